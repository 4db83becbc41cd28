"""How bodies resist and respond, inferred from shape and from what was seen of them: no table of identities.

Mass is a learned power of volume times a bounded function of shape times what history tells; the power extrapolates to
sizes that were never seen. Restitution and friction of a contact are symmetric functions of both shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gworld.dynamics.layers import clamp_through, coefficient, perceptron
from gworld.dynamics.tokens import Scene, shape_values

TRAITS = 5
BOUND = 0.5
"""How far shape may change the logarithm of density, and restitution and friction."""


@dataclass(frozen=True)
class Nature:
    """What is known of each link: logarithm of mass [W,L] (driven links: of no meaning), bounce and grip [W,L]; and
    which of two grips counts: both alike (`mix` 0), the larger (1) or the smaller (-1)."""

    log_mass: Float[Tensor, "W L"]
    bounce: Float[Tensor, "W L"]
    grip: Float[Tensor, "W L"]
    mix: Float[Tensor, ""]


class Materials(nn.Module):
    """The shared encoder from solids and beliefs to natures."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.power = coefficient(0.0, 0.2, generator)
        self.bounce = coefficient(0.4, 0.1, generator)
        self.grip = coefficient(0.3, 0.05, generator)
        self.skin = coefficient(0.0, 0.02, generator)
        self.shape = perceptron((TRAITS, width, 3), generator)
        self.mix = nn.Parameter(torch.zeros(()))

    def forward(self, scene: Scene, belief: Float[Tensor, "W L B"]) -> Nature:
        """Natures of all links."""
        traits = link_traits(scene)
        told = BOUND * torch.tanh(self.shape(traits))
        volume = shape_values(scene, "volume") / scene.scale[:, None] ** 3
        log_mass = self.power * torch.log(volume.clamp_min(1e-9)) + told[..., 0] + belief[..., 0]
        bounce = 0.5 * self.bounce + told[..., 1]
        bounce = bounce + 0.5 * belief[..., 1] if belief.shape[-1] > 1 else bounce
        grip = 0.5 * self.grip + told[..., 2]
        return Nature(log_mass, bounce, grip, clamp_through(self.mix, -1.0, 1.0))


def restitution_of(nature: Nature, a: Tensor, b: Tensor) -> Float[Tensor, " Q"]:
    """Restitution of contacts between bodies (flat rows), 0..1: no contact creates energy."""
    flat = nature.bounce.flatten()
    return clamp_through(flat[a] + flat[b], 0.0, 1.0)


def friction_of(nature: Nature, a: Tensor, b: Tensor) -> Float[Tensor, " Q"]:
    """Coefficient of friction of contacts, at least 0."""
    flat = nature.grip.flatten()
    return clamp_through(flat[a] + flat[b] + nature.mix * (flat[a] - flat[b]).abs(), 0.0, 3.0)


def link_traits(scene: Scene) -> Float[Tensor, "W L 5"]:
    """The solids' traits; link 0 has zeros."""
    return shape_values(scene, "traits") * scene.present[..., None]
