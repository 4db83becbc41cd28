"""What contacts do: impulses that act equally and oppositely at the contact point, solved for all contacts at once.

Each contact must part at `restitution` times its closing speed; friction opposes sliding within its cone. Contacts that
share a body are solved together by Jacobi sweeps with the shared body's inertia split among them, in no order, so that
bodies may be listed in any; a lone contact is exact after one sweep.
Sources: Tonge, Benevolenski, Voroshilov, "Mass splitting for jitter-free parallel rigid body simulation", 2012; Mazhar
et al., "Using Nesterov's method to accelerate multibody dynamics with friction and contact", 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.dynamics.contact import Bodies, Contacts, pushed_at, rate_at
from gworld.dynamics.linkage import Linkage, body_changes, ease_at, joint_changes, point_reach
from gworld.dynamics.native import can_sweep, sweep_contacts

LEVEL = 1e-3
"""Squared sine of the angle between two normals below which they are one."""


@dataclass(frozen=True)
class Matter:
    """How bodies resist and respond: inverse masses [N], inverse inertias [N,3,3] in body axes (0: moved by others).

    Bodies that lie [N] on something with the normal up [N,3] move across it and turn about it alone, as easily as
    `ease_up` [N] says.
    Links of agents have no mass here: they give way as the `linkage` of their joints does.
    """

    inverse_mass: Float[Tensor, " N"]
    inverse_inertia: Float[Tensor, "N 3 3"]
    lies: Bool[Tensor, " N"] | None = None
    up: Float[Tensor, "N 3"] | None = None
    ease_up: Float[Tensor, " N"] | None = None
    linkage: Linkage | None = None


@dataclass(frozen=True)
class Changes:
    """What impulses change: velocities and spins [N,3] of bodies, rates [W,V] of agents' joints (None: no agents)."""

    speed: Float[Tensor, "N 3"]
    spin: Float[Tensor, "N 3"]
    rates: Float[Tensor, "W V"] | None = None


@dataclass(frozen=True)
class Response:
    """What each contact does [Q]: restitution 0..1, friction >= 0, and how fast (m/s) it may go on closing."""

    restitution: Float[Tensor, " Q"]
    friction: Float[Tensor, " Q"]
    closing: Float[Tensor, " Q"] | None = None


def solve_contacts(
    bodies: Bodies, matter: Matter, contacts: Contacts, response: Response, sweeps: int
) -> tuple[Float[Tensor, "Q 3"], Float[Tensor, " Q"]]:
    """Impulses [Q,3] on `a` (their opposites act on `b`), and the part of each along its normal [Q]."""
    a, b, normal = contacts.a, contacts.b, contacts.normal
    count = _sharers(bodies, matter, contacts)
    spun = _world_inertia(bodies, matter)
    arm_a, arm_b = contacts.arm_a, contacts.arm_b
    ease_a, slip_a = _ease(matter, spun, a, arm_a, normal)
    ease_b, slip_b = _ease(matter, spun, b, arm_b, normal)
    ease, slip = ease_a * count[a] + ease_b * count[b], slip_a * count[a] + slip_b * count[b]
    gives = ease > LEVEL * slip  # else nothing moves along the normal, and no impulse would ever be enough
    struck = rate_at(bodies, contacts)
    free = rate = struck + pushed_at(bodies, contacts)
    wanted = -response.restitution * (struck * normal).sum(-1).clamp_max(0.0)
    wanted = wanted if response.closing is None else wanted - response.closing
    shared = bool((count > 1).any())
    rubs = bool((response.friction > 0).any())
    sweeps = sweeps if shared or rubs else 1
    link = matter.linkage
    given = {
        **{"a": a, "b": b, "normal": normal, "arm_a": arm_a, "arm_b": arm_b, "rate": free, "wanted": wanted},
        **{"ease": ease, "slip": slip, "friction": response.friction, "gives": gives},
        **{"inverse_mass": matter.inverse_mass, "inverse_inertia": spun},
        **{"lies": None if matter.up is None else matter.lies, "up": None if matter.lies is None else matter.up},
        **{"reach": link.reach if link else None, "ease_joints": link.ease if link else None},
    }
    if can_sweep(given):
        return sweep_contacts(given, len(link.ease) if link else 1, sweeps)
    press = torch.zeros_like(ease)
    drag = torch.zeros_like(normal)
    last_press, last_drag, impulse = press, drag, drag
    for sweep in range(sweeps):
        ahead = sweep / (sweep + 3.0)  # Nesterov's momentum: each sweep begins beyond where the last one ended
        begin, begin_drag = press + ahead * (press - last_press), drag + ahead * (drag - last_drag)
        last_press, last_drag = press, drag
        if sweep:
            told = spread_impulses(bodies, matter, contacts, begin[:, None] * normal + begin_drag, spun)
            change = told.speed[a] + torch.linalg.cross(told.spin[a], arm_a)
            change = change - told.speed[b] - torch.linalg.cross(told.spin[b], arm_b)
            rate = free + change
        speed = (rate * normal).sum(-1)
        press = torch.where(gives, (begin + (wanted - speed) / ease.clamp_min(1e-12)).clamp_min(0.0), 0.0)
        if rubs:
            sliding = rate - speed[:, None] * normal
            drag = begin_drag - sliding / slip.clamp_min(1e-12)[:, None]
            size = drag.norm(dim=-1).clamp_min(1e-12)
            drag = drag * (response.friction * press / size).clamp_max(1.0)[:, None]
        impulse = press[:, None] * normal + drag
    return impulse, press


def pressed(matter: Matter, contacts: Contacts) -> Bool[Tensor, " Q"]:
    """Contacts of bodies that an agent's link touches and something else too: what is squeezed does not bounce to and
    fro between the two, else each bounce would let the link follow, ever deeper."""
    if matter.linkage is None:
        return torch.zeros_like(contacts.gap, dtype=torch.bool)
    driven, none = matter.linkage.driven, torch.zeros_like(matter.inverse_mass)
    a, b = contacts.a, contacts.b
    by_link = none.index_add(0, a, driven[b].to(none)).index_add(0, b, driven[a].to(none))
    by_other = none.index_add(0, a, (~driven[b]).to(none)).index_add(0, b, (~driven[a]).to(none))
    squeezed = (by_link > 0) & (by_other > 0) & ~driven
    return squeezed[a] | squeezed[b]


def spread_impulses(
    bodies: Bodies, matter: Matter, contacts: Contacts, impulse: Tensor, spun: Tensor | None = None
) -> Changes:
    """What impulses on the contacts change."""
    a, b = contacts.a, contacts.b
    spun = _world_inertia(bodies, matter) if spun is None else spun
    zero = torch.zeros_like(bodies.speed)
    total = zero.index_add(0, a, impulse).index_add(0, b, -impulse)
    twist = zero.index_add(0, a, torch.linalg.cross(contacts.arm_a, impulse))
    twist = twist.index_add(0, b, -torch.linalg.cross(contacts.arm_b, impulse))
    speed, spin = total * matter.inverse_mass[:, None], (spun @ twist[..., None])[..., 0]
    if matter.lies is not None and matter.up is not None:
        off = (speed * matter.up).sum(-1, keepdim=True) * matter.up
        speed = torch.where(matter.lies[:, None], speed - off, speed)
    if matter.linkage is None:
        return Changes(speed, spin)
    rates = joint_changes(matter.linkage, total, twist)
    driven = body_changes(matter.linkage, rates)
    return Changes(speed + driven[0], spin + driven[1], rates)


def gives_along(matter: Matter, row: Tensor, normal: Tensor) -> Float[Tensor, " Q"]:
    """Inverse masses of bodies along normals: what lies does not give way into what it lies on."""
    weight = matter.inverse_mass[row]
    if matter.lies is None or matter.up is None:
        return weight
    across = 1.0 - (matter.up[row] * normal).sum(-1).square()
    across = torch.where(across > LEVEL, across, 0.0)  # rounding alone would let it give way, and then without bounds
    return torch.where(matter.lies[row], weight * across, weight)


def _sharers(bodies: Bodies, matter: Matter, contacts: Contacts) -> Float[Tensor, " N"]:
    """How many contacts share each body that gives way; all links of an agent are one."""
    link = matter.linkage
    moves = matter.inverse_mass > 0 if link is None else (matter.inverse_mass > 0) | link.driven
    ones, none = moves.to(bodies.place), bodies.place.new_zeros(len(bodies.place))
    rows = torch.arange(len(none), device=none.device) if link is None else link.group
    a, b = contacts.a, contacts.b
    count = none.index_add(0, rows[a], ones[a]).index_add(0, rows[b], ones[b])
    return count[rows].clamp_min(1.0)


def _world_inertia(bodies: Bodies, matter: Matter) -> Tensor:
    spun = bodies.turn @ matter.inverse_inertia @ bodies.turn.transpose(-1, -2)
    if matter.lies is None or matter.up is None or matter.ease_up is None:
        return spun
    held = matter.up[:, :, None] * matter.up[:, None, :] * matter.ease_up[:, None, None]
    return torch.where(matter.lies[:, None, None], held, spun)


def _ease(matter: Matter, spun: Tensor, row: Tensor, arm: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """How much a unit impulse along the normal changes the speed there, and a bound of the same in any direction, so
    that sweeps of friction never overshoot."""
    lever = torch.linalg.cross(arm, normal)
    turning = (lever * (spun[row] @ lever[..., None])[..., 0]).sum(-1)
    most = spun.diagonal(dim1=-2, dim2=-1).sum(-1)[row]
    ease = gives_along(matter, row, normal) + turning
    slip = matter.inverse_mass[row] + (arm * arm).sum(-1) * most
    if matter.linkage is None:
        return ease, slip
    reach, gives = point_reach(matter.linkage, row, arm), ease_at(matter.linkage, row)
    along = (reach * normal[:, :, None]).sum(1)
    return ease + (along.square() * gives).sum(-1), slip + (reach.square().sum(1) * gives).sum(-1)
