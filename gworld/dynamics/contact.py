"""Where links touch: gaps, normals and times of contact within a step, from the solids' geometry alone.

One body's points are put into the other's distance field; a ball is one point and a radius, so that balls, planes and
anything against a ball are exact. Bodies are rows of flat tensors [N = W*L].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gworld.dynamics.linkage import Linkage
from gworld.dynamics.tokens import FAR, Scene, shape_values

NEWTON = 4
"""Steps towards the instant of contact of a ball: its gap is convex in time, so they never overshoot."""

STRUCK = 2
"""How many bodies on, from the one that is struck, contacts of a step are looked for at the pace of what strikes."""

EAGER = 0.2
"""How much farther (radii) than at its present pace a driven link is looked for contact in a step."""


@dataclass(frozen=True)
class Bodies:
    """N = W*L bodies about their centres of mass: place, turn, speed, spin, and accelerations held over a substep."""

    place: Float[Tensor, "N 3"]
    turn: Float[Tensor, "N 3 3"]
    speed: Float[Tensor, "N 3"]
    spin: Float[Tensor, "N 3"]
    push: Float[Tensor, "N 3"]


@dataclass(frozen=True)
class Candidates:
    """C pairs that may meet: body `a` gives the points, `b` the field (the static link's row where `plane` >= 0).

    `ball` marks those whose points are a single centre with radius `round` [C].
    """

    a: Int[Tensor, " C"]
    b: Int[Tensor, " C"]
    plane: Int[Tensor, " C"]
    ball: Bool[Tensor, " C"]
    round: Float[Tensor, " C"]

    def __len__(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class Contacts:
    """Q contacts: bodies, normal [Q,3] from b to a, levers [Q,3] from each centre of mass to the point of contact at
    its instant, gap [Q] m then (of points: at the substep's start), and when in the substep [Q] (seconds; of points 0:
    many touch at once and hold each other, so each is asked to close no more than its gap); lasts [Q] seconds over
    which pushes are held against (balls are struck at an instant: 0; points touch all along)."""

    a: Int[Tensor, " Q"]
    b: Int[Tensor, " Q"]
    normal: Float[Tensor, "Q 3"]
    arm_a: Float[Tensor, "Q 3"]
    arm_b: Float[Tensor, "Q 3"]
    gap: Float[Tensor, " Q"]
    when: Float[Tensor, " Q"]
    lasts: Float[Tensor, " Q"]

    def __len__(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class Overlaps:
    """How deep bodies a and b [C] are in each other at a substep's start (m, negative: apart), along `normal` [C,3],
    and the deepest point, from their centres of mass."""

    a: Int[Tensor, " C"]
    b: Int[Tensor, " C"]
    depth: Float[Tensor, " C"]
    normal: Float[Tensor, "C 3"]
    arm_a: Float[Tensor, "C 3"]
    arm_b: Float[Tensor, "C 3"]


@dataclass(frozen=True)
class Shapes:
    """Solids by body [N]: ball radius (0: none), bound, row of points and field (-1: none), and by how much (m) a
    body reaches beyond the surface that its Gaussians' centres lie on."""

    radius: Float[Tensor, " N"]
    bound: Float[Tensor, " N"]
    row: Int[Tensor, " N"]
    skin: Float[Tensor, " N"]


def body_shapes(scene: Scene, skin: Tensor) -> Shapes:
    """The solids of all bodies, flat; absent ones have bound -FAR, so that they are near nothing.

    `skin` is the learned reach of a Gaussian beyond its centre, over its width.
    """
    present = scene.present
    bound = torch.where(present, shape_values(scene, "bound"), -FAR * torch.ones_like(scene.scale)[:, None])
    reach = skin * torch.where(present, shape_values(scene, "skin"), torch.zeros_like(bound))
    flat = (shape_values(scene, "radius").flatten(), bound.flatten(), shape_values(scene, "row").flatten())
    return Shapes(*flat, reach.flatten())


def near_pairs(
    scene: Scene, shapes: Shapes, bodies: Bodies, seconds: float, linkage: Linkage | None = None
) -> Candidates:
    """Every pair and half-space that may be met within `seconds`, however bodies turn and are struck meanwhile.

    Agents' links meet half-spaces that face up only, where a joint of the `linkage` moves them along the normal: the
    rim of a table is a half-space for what lies on it, but arms reach over it.
    """
    worlds, links = scene.solid.shape
    place = bodies.place.detach().view(worlds, links, 3)
    pace = bodies.speed.detach().norm(dim=-1) + bodies.push.detach().norm(dim=-1) * seconds
    turning = bodies.spin.detach().norm(dim=-1) * shapes.bound.clamp_min(0)
    own = (shapes.bound + turning * seconds).view(worlds, links)
    pace, slack = pace.view(worlds, links), 0.02 * scene.scale[:, None]
    if linkage is not None:  # what is driven may still gain speed
        own = own + EAGER * scene.scale[:, None] * linkage.driven.view(worlds, links)
    i, j = scene.pairs[:, 0], scene.pairs[:, 1]
    apart = (place[:, i] - place[:, j]).norm(dim=-1)
    for _ in range(STRUCK if bool((shapes.row >= 0).any()) else 0):  # what is at rest may be struck, and strike on
        reach = own + 2.0 * pace * seconds
        meets = apart < reach[:, i] + reach[:, j] + slack
        faster = torch.where(meets, torch.maximum(pace[:, i], pace[:, j]), 0.0)
        pace = pace.scatter_reduce(1, i.expand_as(faster), faster, "amax")
        pace = pace.scatter_reduce(1, j.expand_as(faster), faster, "amax")
    reach = own + 2.0 * pace * seconds
    w, p = (apart < reach[:, i] + reach[:, j] + slack).nonzero(as_tuple=True)
    first, second = w * links + i[p], w * links + j[p]
    swap = (shapes.radius[first] == 0) & (shapes.radius[second] > 0)
    a, b = torch.where(swap, second, first), torch.where(swap, first, second)
    both = (shapes.row[a] >= 0) & (shapes.row[b] >= 0)
    a, b = torch.cat([a, b[both]]), torch.cat([b, a[both]])
    height = torch.einsum("wlk,wqk->wlq", place, scene.planes[..., :3]) - scene.planes[:, None, :, 3]
    near = (height < (reach + slack)[..., None]) & _moves_along(scene, linkage)
    w, link, q = near.nonzero(as_tuple=True)
    plane = torch.cat([torch.full_like(a, -1), w * scene.planes.shape[1] + q])
    a, b = torch.cat([a, w * links + link]), torch.cat([b, w * links])
    return Candidates(a, b, plane, shapes.row[a] < 0, shapes.radius[a])


def _moves_along(scene: Scene, linkage: Linkage | None) -> Bool[Tensor, "W L Q"]:
    """Which bodies may move along the normals of the half-spaces."""
    free = (scene.free & scene.present)[..., None]
    if linkage is None or scene.planes.shape[1] == 0:
        return free
    reach = linkage.reach.detach().view(*scene.solid.shape, 6, -1)
    along = torch.einsum("wlkv,wqk->wlqv", reach[:, :, :3], scene.planes[..., :3]).abs().amax(-1)
    turning = reach[:, :, 3:].abs().amax(dim=(-1, -2))[..., None]
    floor = ((scene.planes[..., :3] * -scene.down[:, None]).sum(-1) > 0.98)[:, None]
    return free | ((torch.maximum(along, turning) > 1e-6) & scene.present[..., None] & floor)


def find_contacts(
    scene: Scene, shapes: Shapes, bodies: Bodies, near: Candidates, seconds: float
) -> tuple[Contacts, Overlaps]:
    """Contacts that begin or last within a substep, each with the instant at which its gap closes; and the overlaps."""
    balls, rough = near.ball.nonzero()[:, 0], (~near.ball).nonzero()[:, 0]
    if len(rough) == 0:
        return _ball_contacts(scene, shapes, bodies, near, seconds)
    found = [_point_contacts(scene, shapes, bodies, _pick(near, rough), seconds)]
    if len(balls):
        found.append(_ball_contacts(scene, shapes, bodies, _pick(near, balls), seconds))
    contacts, overlaps = zip(*found, strict=True)
    return (
        Contacts(**{n: torch.cat([getattr(part, n) for part in contacts]) for n in Contacts.__dataclass_fields__}),
        Overlaps(**{n: torch.cat([getattr(part, n) for part in overlaps]) for n in Overlaps.__dataclass_fields__}),
    )


def pick_contacts(contacts: Contacts, rows: Tensor) -> Contacts:
    """Some of the contacts."""
    return Contacts(**{name: getattr(contacts, name)[rows] for name in Contacts.__dataclass_fields__})


def rate_at(bodies: Bodies, contacts: Contacts) -> Float[Tensor, "Q 3"]:
    """Velocity of a's matter against b's at each contact, at its instant."""
    return _velocity(bodies, contacts.a, contacts.arm_a, contacts.when) - _velocity(
        bodies, contacts.b, contacts.arm_b, contacts.when
    )


def pushed_at(bodies: Bodies, contacts: Contacts) -> Float[Tensor, "Q 3"]:
    """What pushes add to `rate_at` while a contact lasts."""
    return (bodies.push[contacts.a] - bodies.push[contacts.b]) * contacts.lasts[:, None]


def _velocity(bodies: Bodies, row: Tensor, arm: Tensor, when: Tensor) -> Tensor:
    return bodies.speed[row] + bodies.push[row] * when[:, None] + torch.linalg.cross(bodies.spin[row], arm)


def _ball_contacts(
    scene: Scene, shapes: Shapes, bodies: Bodies, near: Candidates, seconds: float
) -> tuple[Contacts, Overlaps]:
    a, b = near.a, near.b
    when, margin = torch.zeros_like(near.round), shapes.skin[a] + shapes.skin[b]
    for step in range(NEWTON):
        place_a, place_b = _moved(bodies, a, when), _moved(bodies, b, when)
        gap, normal = distance(scene, shapes, bodies, near, place_a[:, None], place_b)
        gap, normal = gap[:, 0] - near.round - margin, normal[:, 0]
        arm_a = -normal * (near.round + 0.5 * gap)[:, None]
        arm_b = place_a + arm_a - place_b
        rate = ((_velocity(bodies, a, arm_a, when) - _velocity(bodies, b, arm_b, when)) * normal).sum(-1)
        if step == 0:
            started, overlaps = gap, Overlaps(a, b, -gap, normal, arm_a, arm_b)
            if not bool((gap + 2.0 * rate * seconds < 0).any()):
                return _no_contacts(bodies), overlaps
        if step < NEWTON - 1:
            wait = when - gap / torch.where(rate < 0, rate, torch.ones_like(rate))
            when = torch.where((rate < 0) & (started > 0), wait.clamp(0, seconds), when)
    scale = scene.scale[a // scene.solid.shape[1]]
    met = (rate < 0) & (gap < 1e-4 * scale)
    found = Contacts(a, b, normal, arm_a, arm_b, gap.clamp_max(0.0), when, torch.zeros_like(when))
    return pick_contacts(found, met.nonzero()[:, 0]), overlaps


def _point_contacts(
    scene: Scene, shapes: Shapes, bodies: Bodies, near: Candidates, seconds: float
) -> tuple[Contacts, Overlaps]:
    a, b = near.a, near.b
    points = body_points(scene, shapes, bodies, a)
    gap, normal = distance(scene, shapes, bodies, near, points, bodies.place[b])
    gap = gap - (shapes.skin[a] + shapes.skin[b])[:, None]
    arm_a, arm_b = points - bodies.place[a][:, None], points - bodies.place[b][:, None]
    speed = bodies.speed[a][:, None] + torch.linalg.cross(bodies.spin[a][:, None].expand_as(arm_a), arm_a)
    speed = speed - bodies.speed[b][:, None] - torch.linalg.cross(bodies.spin[b][:, None].expand_as(arm_b), arm_b)
    deepest, index = gap.min(dim=1)
    each = torch.arange(len(a), device=a.device)
    overlaps = Overlaps(a, b, -deepest, normal[each, index], arm_a[each, index], arm_b[each, index])
    push = bodies.push[a] - bodies.push[b]
    rate = ((speed + 0.5 * seconds * push[:, None]) * normal).sum(-1)
    row, k = ((gap + rate * seconds < 0) & (rate < 0) | (gap < 0)).nonzero(as_tuple=True)
    gap = gap[row, k]
    when, lasts = torch.zeros_like(gap), torch.full_like(gap, seconds)
    return Contacts(a[row], b[row], normal[row, k], arm_a[row, k], arm_b[row, k], gap, when, lasts), overlaps


def body_points(scene: Scene, shapes: Shapes, bodies: Bodies, rows: Tensor) -> Float[Tensor, "C M 3"]:
    """Surface points of bodies that are no balls, in the world."""
    local = scene.solids.points[shapes.row[rows]]
    return local @ bodies.turn[rows].transpose(-1, -2) + bodies.place[rows][:, None]


def distance(
    scene: Scene, shapes: Shapes, bodies: Bodies, near: Candidates, points: Tensor, place_b: Tensor
) -> tuple[Float[Tensor, "C M"], Float[Tensor, "C M 3"]]:
    """Signed distance of points [C,M,3] from the surface of `near.b` standing at `place_b` [C,3], and its gradient."""
    arm = points - place_b[:, None]
    long = arm.norm(dim=-1).clamp_min(1e-12)
    gap, normal = long - shapes.radius[near.b][:, None], arm / long[..., None]
    flat = near.plane >= 0
    if scene.planes.shape[1]:
        plane = scene.planes.flatten(0, 1)[near.plane.clamp_min(0)]
        height = (points * plane[:, None, :3]).sum(-1) - plane[:, 3:]
        gap = torch.where(flat[:, None], height, gap)
        normal = torch.where(flat[:, None, None], plane[:, None, :3].expand_as(normal), normal)
    rough = (~flat & (shapes.row[near.b] >= 0)).nonzero()[:, 0]
    if len(rough):
        turn = bodies.turn[near.b[rough]]
        inner, slope = field_distance(scene, shapes.row[near.b[rough]], arm[rough] @ turn)
        gap = gap.index_copy(0, rough, inner)
        normal = normal.index_copy(0, rough, slope @ turn.transpose(-1, -2))
    return gap, normal


def field_distance(scene: Scene, row: Tensor, local: Tensor) -> tuple[Float[Tensor, "C M"], Float[Tensor, "C M 3"]]:
    """Trilinear value and unit gradient of distance fields at points in the solids' own axes; outside the grid the
    distance to it is added."""
    solids = scene.solids
    size = solids.fields.shape[-1]
    at = (local - solids.low[row][:, None]) / solids.cell[row][:, None]
    inside = at.clamp(0.0, size - 1.001)
    base = inside.detach().floor()
    part = inside - base
    corner = base.long()
    start = (row[:, None] * size + corner[..., 0]) * size**2 + corner[..., 1] * size + corner[..., 2]
    offsets = [size**2 * x + size * y + z for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    values = solids.fields.flatten()[start[..., None] + torch.tensor(offsets, device=start.device)]
    cube = values.unflatten(-1, (2, 2, 2))
    x, y, z = part.unbind(-1)
    along_z = cube[..., 0] + (cube[..., 1] - cube[..., 0]) * z[..., None, None]
    along_y = along_z[..., 0] + (along_z[..., 1] - along_z[..., 0]) * y[..., None]
    value = along_y[..., 0] + (along_y[..., 1] - along_y[..., 0]) * x
    by_x = along_y[..., 1] - along_y[..., 0]
    by_y = torch.lerp(along_z[..., 0, 1] - along_z[..., 0, 0], along_z[..., 1, 1] - along_z[..., 1, 0], x)
    flat = cube[..., 1] - cube[..., 0]
    by_z = torch.lerp(
        torch.lerp(flat[..., 0, 0], flat[..., 0, 1], y), torch.lerp(flat[..., 1, 0], flat[..., 1, 1], y), x
    )
    beyond = ((at - inside) * solids.cell[row][:, None]).norm(dim=-1)
    slope = torch.stack([by_x, by_y, by_z], dim=-1) / solids.cell[row][:, None]
    return value + beyond, torch.nn.functional.normalize(slope, dim=-1)


def _moved(bodies: Bodies, row: Tensor, when: Tensor) -> Tensor:
    seconds = when[:, None]
    return bodies.place[row] + bodies.speed[row] * seconds + 0.5 * bodies.push[row] * seconds**2


def _pick(near: Candidates, rows: Tensor) -> Candidates:
    return replace(near, **{name: getattr(near, name)[rows] for name in Candidates.__dataclass_fields__})


def _no_contacts(bodies: Bodies) -> Contacts:
    none = torch.zeros(0, dtype=torch.int64, device=bodies.place.device)
    empty = bodies.place.new_zeros
    return Contacts(none, none, empty(0, 3), empty(0, 3), empty(0, 3), empty(0), empty(0), empty(0))
