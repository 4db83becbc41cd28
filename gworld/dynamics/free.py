"""Motion in the air: a learned fall along gravity's direction and a learned drag; inertia itself is exact."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gworld.dynamics.layers import clamp_through, coefficient
from gworld.dynamics.tokens import Scene


class Free(nn.Module):
    """Accelerations that act on every object alike: none is known before training."""

    def __init__(self, length: float, generator: torch.Generator) -> None:
        super().__init__()
        self.length = length
        self.fall = coefficient(0.5, 0.2, generator)
        self.drag = coefficient(0.3, 0.05, generator)
        self.spin_drag = coefficient(0.3, 0.05, generator)

    def forward(self, scene: Scene, speed: Tensor) -> Tensor:
        """Accelerations [W,L,3] of links moving at `speed` [W,L,3] m/s."""
        fall = self.length * self.fall * scene.down[:, None]
        return fall - clamp_through(self.drag, 0.0, 10.0) * speed

    def spin(self, spin: Tensor) -> Tensor:
        """Angular accelerations [W,L,3] of links turning at `spin` rad/s."""
        return -clamp_through(self.spin_drag, 0.0, 10.0) * spin
