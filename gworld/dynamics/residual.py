"""What the other operators leave over: a bounded, learned acceleration that vanishes at rest and where no help."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gworld.dynamics.layers import dead_zone, perceptron
from gworld.dynamics.materials import TRAITS, link_traits
from gworld.dynamics.tokens import Scene

LIMIT = 0.5
"""Largest residual acceleration over speed, per second."""
DEAD = 0.02


class Residual(nn.Module):
    """An acceleration along and across a link's own motion, from its shape and its speed in radii per step."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.3))
        self.net = perceptron((TRAITS + 2, width, 2), generator)

    def alive(self) -> bool:
        """Whether it adds anything, or may learn to."""
        return torch.is_grad_enabled() or float(self.gate.abs()) > DEAD

    def forward(self, scene: Scene, speed: Tensor) -> Tensor:
        """Accelerations [W,L,3] for speeds [W,L,3] m/s."""
        down = scene.down[:, None]
        pace = speed.norm(dim=-1, keepdim=True)
        sinking = (speed * down).sum(-1, keepdim=True) / pace.clamp_min(1e-9)
        units = (pace * scene.dt / scene.scale[:, None, None]).clamp_max(10.0)
        told = torch.tanh(self.net(torch.cat([link_traits(scene), units, sinking], dim=-1)))
        across = down * pace - sinking * speed
        return LIMIT * dead_zone(self.gate, DEAD) * (told[..., :1] * speed + told[..., 1:] * across)
