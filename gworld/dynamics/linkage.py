"""How contact moves the joints of agents: what a push on a link does to all links of its chain.

A push on a link is felt by the joints below it in proportion to how far each of them moves the point that is pushed,
and moves the whole chain with them. A joint gives way as easily as its learned inertia and its drive let it.
Source: Featherstone, "Rigid Body Dynamics Algorithms", 2008, section 2.10 (motion and force under a Jacobian).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Linkage:
    """The joints of all agents of W worlds, V values each, and the bodies [N = W*L] that they move.

    reach [N,6,V] shift and turn of a body's centre of mass per unit of each value; ease [W,V] change of each value's
    mean rate over a substep per impulse on it, keeps [W,V] how much of that is left at its end, where the drive works
    against it; group [N] one number for all bodies whose motion depends on each other.
    """

    reach: Float[Tensor, "N 6 V"]
    ease: Float[Tensor, "W V"]
    keeps: Float[Tensor, "W V"]
    group: Int[Tensor, " N"]

    @property
    def driven(self) -> Bool[Tensor, " N"]:
        """Bodies that some joint moves."""
        return self.reach.detach().abs().amax(dim=(1, 2)) > 1e-6


def point_reach(linkage: Linkage, rows: Int[Tensor, " Q"], arm: Float[Tensor, "Q 3"]) -> Float[Tensor, "Q 3 V"]:
    """How points at `arm` from the centres of mass of bodies `rows` move per unit of each joint value."""
    reach = linkage.reach[rows]
    return reach[:, :3] + torch.linalg.cross(reach[:, 3:], arm[:, :, None].expand_as(reach[:, 3:]), dim=1)


def ease_at(linkage: Linkage, rows: Int[Tensor, " Q"]) -> Float[Tensor, "Q V"]:
    """How easily the joints of the worlds of bodies `rows` give way."""
    return linkage.ease[rows // (len(linkage.reach) // len(linkage.ease))]


def joint_changes(linkage: Linkage, impulse: Float[Tensor, "N 3"], twist: Float[Tensor, "N 3"]) -> Float[Tensor, "W V"]:
    """Changes of the joints' rates under impulses on bodies and their moments about the centres of mass."""
    felt = torch.cat([impulse, twist], dim=-1)[:, None] @ linkage.reach
    return felt.view(len(linkage.ease), -1, linkage.ease.shape[1]).sum(1) * linkage.ease


def body_changes(linkage: Linkage, rates: Float[Tensor, "W V"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Velocities and spins of the bodies when the joints move at `rates`."""
    count = len(linkage.reach) // len(rates)
    moved = (linkage.reach @ rates.repeat_interleave(count, 0)[..., None])[..., 0]
    return moved[:, :3], moved[:, 3:]
