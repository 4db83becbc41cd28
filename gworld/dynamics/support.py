"""Objects that lie on a plane: they stay flat on it and slide with dry friction, learned as a deceleration.

Friction under a flat body opposes its motion as a whole: sliding and turning share one limit, the body's own radius of
gyration being the lever. A push below the limit moves nothing, and what rests stays at rest exactly.
Source: Goyal, Ruina, Papadopoulos, "Planar sliding with dry friction", 1991 (ellipsoidal limit surface).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gworld.dynamics.contact import Bodies
from gworld.dynamics.layers import clamp_through, coefficient
from gworld.dynamics.tokens import Scene, shape_values


@dataclass(frozen=True)
class Grounded:
    """Bodies [N] that lie on something, and its normal [N,3]."""

    lies: Tensor
    up: Tensor


class Support(nn.Module):
    """Dry friction of flat bodies on what carries them."""

    def __init__(self, length: float, generator: torch.Generator) -> None:
        super().__init__()
        self.length = length
        self.brake = coefficient(1.0, 0.1, generator)
        self.lever = coefficient(1.0, 0.05, generator)

    def forward(self, scene: Scene, bodies: Bodies, seconds: float) -> tuple[Bodies, Grounded]:
        """Bodies braked over `seconds`, their pushes and motion kept in the plane they lie on."""
        grounded = self.find(scene, bodies)
        bodies = replace(
            bodies,
            speed=keep_flat(grounded, bodies.speed),
            push=keep_flat(grounded, bodies.push),
            spin=keep_upright(grounded, bodies.spin),
        )
        radius = (shape_values(scene, "inertia").diagonal(dim1=-2, dim2=-1).amax(-1)).sqrt().view(-1, 1)
        reach = self.lever.abs() * radius
        pace = ((bodies.speed**2).sum(-1, keepdim=True) + (bodies.spin * reach) ** 2).sum(-1, keepdim=True)
        pace = (pace + 1e-16).sqrt()
        brake = self.length * clamp_through(self.brake, 0.0, 1e4)
        kept = (1.0 - brake * seconds / pace).clamp_min(0.0)
        kept = torch.where(grounded.lies[:, None], kept, torch.ones_like(kept))
        return replace(bodies, speed=bodies.speed * kept, spin=bodies.spin * kept), grounded

    def find(self, scene: Scene, bodies: Bodies) -> Grounded:
        """Objects with gravity and a plane below them."""
        lies = (scene.free & scene.present & (scene.down.norm(dim=-1, keepdim=True) > 0.5)).flatten()
        up = -scene.down[:, None].expand(*scene.solid.shape, 3).reshape(-1, 3)
        return Grounded(lies, up)


def keep_flat(grounded: Grounded | None, part: Tensor) -> Tensor:
    """Vectors [N,3] without what leaves the plane that a body lies on."""
    if grounded is None:
        return part
    off = (part * grounded.up).sum(-1, keepdim=True) * grounded.up
    return torch.where(grounded.lies[:, None], part - off, part)


def keep_upright(grounded: Grounded | None, spin: Tensor) -> Tensor:
    """Turning [N,3] about the normal alone, of bodies that lie."""
    if grounded is None:
        return spin
    along = (spin * grounded.up).sum(-1, keepdim=True) * grounded.up
    return torch.where(grounded.lies[:, None], along, spin)
