"""What contacts do: impulses that act equally and oppositely at the contact point, solved for all contacts at once.

Each contact must part at `restitution` times its closing speed; friction opposes sliding within its cone. Contacts that
share a body are solved together by Jacobi sweeps with the shared body's inertia split among them, in no order, so that
bodies may be listed in any; a lone contact is exact after one sweep.
Source: Tonge, Benevolenski, Voroshilov, "Mass splitting for jitter-free parallel rigid body simulation", 2012.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.dynamics.contact import Bodies, Contacts, rate_at


@dataclass(frozen=True)
class Matter:
    """How bodies resist and respond: inverse masses [N], inverse inertias [N,3,3] in body axes (0: moved by others).

    Bodies that lie [N] on something with the normal up [N,3] turn about that alone, as easily as `ease_up` [N] says.
    """

    inverse_mass: Float[Tensor, " N"]
    inverse_inertia: Float[Tensor, "N 3 3"]
    lies: Bool[Tensor, " N"] | None = None
    up: Float[Tensor, "N 3"] | None = None
    ease_up: Float[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Response:
    """What each contact does [Q]: restitution 0..1 and friction >= 0."""

    restitution: Float[Tensor, " Q"]
    friction: Float[Tensor, " Q"]


def solve_contacts(
    bodies: Bodies, matter: Matter, contacts: Contacts, response: Response, sweeps: int
) -> tuple[Float[Tensor, "Q 3"], Float[Tensor, " Q"]]:
    """Impulses [Q,3] on `a` (their opposites act on `b`), and the part of each along its normal [Q]."""
    a, b, normal = contacts.a, contacts.b, contacts.normal
    count = bodies.place.new_zeros(len(bodies.place))
    ones = torch.ones_like(contacts.gap)
    count = count.index_add(0, a, ones).index_add(0, b, ones).clamp_min(1.0)
    spun = _world_inertia(bodies, matter)
    arm_a, arm_b = contacts.arm_a, contacts.arm_b
    ease = _ease(matter, spun, a, arm_a, normal, count) + _ease(matter, spun, b, arm_b, normal, count)
    slip = _slip(matter, spun, a, arm_a, count) + _slip(matter, spun, b, arm_b, count)
    rate = rate_at(bodies, contacts)
    wanted = -response.restitution * (rate * normal).sum(-1).clamp_max(0.0)
    press = torch.zeros_like(ease)
    drag = torch.zeros_like(normal)
    shared = int(count[matter.inverse_mass > 0].max()) > 1 if bool((matter.inverse_mass > 0).any()) else False
    rubs = bool((response.friction > 0).any())
    for _ in range(sweeps if shared or rubs else 1):
        speed = (rate * normal).sum(-1)
        press = (press + (wanted - speed) / ease.clamp_min(1e-12)).clamp_min(0.0)
        if rubs:
            sliding = rate - speed[:, None] * normal
            drag = drag - sliding / slip.clamp_min(1e-12)[:, None]
            size = drag.norm(dim=-1).clamp_min(1e-12)
            drag = drag * (response.friction * press / size).clamp_max(1.0)[:, None]
        impulse = press[:, None] * normal + drag
        if shared or rubs:
            dv, dw = spread_impulses(bodies, matter, contacts, impulse, spun)
            change = dv[a] + torch.linalg.cross(dw[a], arm_a) - dv[b] - torch.linalg.cross(dw[b], arm_b)
            rate = rate_at(bodies, contacts) + change
    return impulse, press


def spread_impulses(
    bodies: Bodies, matter: Matter, contacts: Contacts, impulse: Tensor, spun: Tensor | None = None
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Changes of velocity and spin [N,3] that impulses on the contacts make."""
    a, b = contacts.a, contacts.b
    spun = _world_inertia(bodies, matter) if spun is None else spun
    zero = torch.zeros_like(bodies.speed)
    total = zero.index_add(0, a, impulse).index_add(0, b, -impulse)
    twist = zero.index_add(0, a, torch.linalg.cross(contacts.arm_a, impulse))
    twist = twist.index_add(0, b, -torch.linalg.cross(contacts.arm_b, impulse))
    return total * matter.inverse_mass[:, None], (spun @ twist[..., None])[..., 0]


def _world_inertia(bodies: Bodies, matter: Matter) -> Tensor:
    spun = bodies.turn @ matter.inverse_inertia @ bodies.turn.transpose(-1, -2)
    if matter.lies is None or matter.up is None or matter.ease_up is None:
        return spun
    held = matter.up[:, :, None] * matter.up[:, None, :] * matter.ease_up[:, None, None]
    return torch.where(matter.lies[:, None, None], held, spun)


def _ease(matter: Matter, spun: Tensor, row: Tensor, arm: Tensor, normal: Tensor, count: Tensor) -> Tensor:
    """How much a unit impulse along the normal changes the speed there, each body shared by `count` contacts."""
    lever = torch.linalg.cross(arm, normal)
    turning = (lever * (spun[row] @ lever[..., None])[..., 0]).sum(-1)
    return (matter.inverse_mass[row] + turning) * count[row]


def _slip(matter: Matter, spun: Tensor, row: Tensor, arm: Tensor, count: Tensor) -> Tensor:
    """A bound of the same in any direction, so that sweeps of friction never overshoot."""
    most = spun.diagonal(dim1=-2, dim2=-1).sum(-1)[row]
    return (matter.inverse_mass[row] + (arm * arm).sum(-1) * most) * count[row]
