"""Forces across a distance: a learned power of it, equal and opposite, along the line between two bodies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gworld.dynamics.layers import coefficient
from gworld.dynamics.tokens import Scene


class PairForces(nn.Module):
    """Attraction `strength * m_a m_b (r / length)^exponent`; the strength carries the unit and begins near nothing."""

    def __init__(self, length: float, generator: torch.Generator) -> None:
        super().__init__()
        self.length = length
        self.strength = coefficient(0.0, 0.05, generator)
        self.exponent = coefficient(-1.0, 0.1, generator)

    def forward(self, scene: Scene, place: Tensor, mass: Tensor) -> Tensor:
        """Accelerations [W,L,3] of bodies at `place` [W,L,3] with relative masses [W,L] (0: absent)."""
        i, j = scene.pairs[:, 0], scene.pairs[:, 1]
        line = place[:, j] - place[:, i]
        far = line.norm(dim=-1).clamp_min(1e-3 * self.length)
        pull = self.strength * self.length * (far / self.length) ** self.exponent
        along = pull[..., None] * line / far[..., None]
        zero = torch.zeros_like(place)
        return zero.index_add(1, i, along * mass[:, j, None]).index_add(1, j, -along * mass[:, i, None])
