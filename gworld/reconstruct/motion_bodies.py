"""What moves, and by which numbers: joint values of agents, poses of objects, and steps between such states.

A state is one row `[S]`: the joint values of every agent, then `x y z qw qx qy qz` of every object. A step is one row
`[P]`: joint values that are not held, then per object a shift and a turn about its middle, all six in world axes or,
on a plane, two shifts along it and a turn about its normal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.agents.kinematics import forward_kinematics, rest_values, value_limits
from gworld.agents.tree import Skeleton, value_slots
from gworld.errors import InputError, UsageError
from gworld.geometry import (
    matrix_from_quat,
    pose_from_transform,
    quat_from_rotvec,
    quat_multiply,
    rotvec_from_quat,
    se3_exp,
    transform_from_pose,
)
from gworld.reconstruct.motion_options import TrackOptions
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.world import World


@dataclass(frozen=True, eq=False)
class Arm:
    """An agent with a robot model: its links in the world, its root's pose, its values in the state, which are free."""

    name: str
    skeleton: Skeleton
    links: Int[Tensor, " L"]
    base: Float[Tensor, "4 4"]
    start: int
    free: Int[Tensor, " F"]


@dataclass(frozen=True, eq=False)
class Thing:
    """A rigid body: its link, its place in the state, the directions in which it may be moved [6,D], its middle."""

    name: str
    link: int
    start: int
    axes: Float[Tensor, "6 D"]
    middle: Float[Tensor, " 3"]


@dataclass(frozen=True, eq=False)
class Square:
    """A link that never turns against its robot's root: both links' numbers, the turn, how surely (radians); how high
    it stays over the root, and how surely (metres; 0: not at all)."""

    root: int
    link: int
    quat_wxyz: Float[Tensor, " 4"]
    sigma: float
    height: float
    rise: float


@dataclass(frozen=True, eq=False)
class Posture:
    """Where joints are believed to stay, as a state, and how far they stray from there (rad, m)."""

    state: Float[Tensor, " S"]
    sigma: float


@dataclass(frozen=True, eq=False)
class Bodies:
    """All that moves. `gaussians` are theirs alone; `low`, `high` [S] bound the state; `reach` [P] is how far each
    component of a step moves the body at most, in metres per unit."""

    gaussians: Gaussians
    rest: Float[Tensor, "L 4 4"]
    arms: tuple[Arm, ...]
    things: tuple[Thing, ...]
    start: Float[Tensor, " S"]
    low: Float[Tensor, " S"]
    high: Float[Tensor, " S"]
    reach: Float[Tensor, " P"]
    squares: tuple[Square, ...] = ()
    posture: Posture | None = None

    @property
    def joints(self) -> int:
        """How many of the components of a step, the first ones, are joints'."""
        return sum(len(arm.free) for arm in self.arms)

    @property
    def size(self) -> int:
        """P, the number of components of a step."""
        return self.joints + sum(thing.axes.shape[1] for thing in self.things)


def bodies_of(world: World, robots: Mapping[str, Skeleton], options: TrackOptions) -> Bodies:
    """The moving part of a world: agents by their robot models, the rest of what is not static as rigid bodies.

    Raises `UsageError` when nothing moves or names are unknown, `InputError` for an agent of several links without a
    robot model, and for a model that does not fit.
    """
    _check_names(world, robots, options)
    rest = world.rest_poses().double()
    arms: list[Arm] = []
    values: list[Tensor] = []
    low: list[Tensor] = []
    high: list[Tensor] = []
    for entity in world.entities:
        if entity.name not in robots or entity.name in options.fixed:
            continue
        arm = _arm(entity.name, robots[entity.name], entity.links, rest, sum(map(len, values)), options)
        limits = value_limits(arm.skeleton, torch.float64)
        values.append(_rest_of(arm, world, rest).clamp(*limits))
        low.append(limits[0])
        high.append(limits[1])
        arms.append(arm)
    things: list[Thing] = []
    for entity in world.entities:
        if entity.kind == "static" or entity.name in robots or entity.name in options.fixed:
            continue
        if entity.kind == "agent" and len(entity.links) > 1:
            raise InputError(f"agent `{entity.name}` has {len(entity.links)} links; its robot model is needed.")
        for link in entity.links:
            things.append(_thing(world, entity.name, link, sum(map(len, values)), options))
            values.append(pose_from_transform(rest[link]))
            low.append(torch.full((7,), -torch.inf, dtype=torch.float64))
            high.append(torch.full((7,), torch.inf, dtype=torch.float64))
    if not values:
        raise UsageError("the world has no agent with a robot model and no object to be tracked. Bind one first.")
    moving = [int(link) for arm in arms for link in arm.links] + [thing.link for thing in things]
    rows = torch.isin(world.gaussians.links.long(), torch.tensor(moving))
    gaussians = select_gaussians(world.gaussians, rows)
    if gaussians.soft_links is not None:
        raise InputError("soft bodies cannot be tracked; bind rigid ones.")
    empty: list[str] = [thing.name for thing in things if not bool((gaussians.links == thing.link).any())]
    if empty or not len(gaussians):
        raise InputError(f"what is to be tracked has no Gaussians ({', '.join(empty) or 'no body has any'}). Bind it.")
    state, ends = torch.cat(values), (torch.cat(low), torch.cat(high))
    bodies = Bodies(gaussians, rest, tuple(arms), tuple(things), state, *ends, torch.ones(0, dtype=torch.float64))
    bodies = replace(bodies, squares=tuple(_square(world, bodies, name, options) for name in options.square))
    return replace(bodies, reach=_reaches(bodies))


def poses_of(bodies: Bodies, states: Float[Tensor, "*B S"]) -> Float[Tensor, "*B L 4 4"]:
    """`world_from_link` of the whole world; what does not move is at rest."""
    poses = bodies.rest.expand(*states.shape[:-1], -1, 4, 4).clone()
    for arm in bodies.arms:
        values = states[..., arm.start : arm.start + _width(arm)]
        poses[..., arm.links, :, :] = forward_kinematics(arm.skeleton, values, arm.base)
    for thing in bodies.things:
        poses[..., thing.link, :, :] = transform_from_pose(states[..., thing.start : thing.start + 7])
    return poses


def moved(bodies: Bodies, states: Float[Tensor, "*#B S"], steps: Float[Tensor, "*#B P"]) -> Float[Tensor, "*C S"]:
    """States after steps, within the joints' limits."""
    states, steps = _paired(states, steps)
    result, at = states.clone(), 0
    for arm in bodies.arms:
        columns = arm.start + arm.free
        result[..., columns] = states[..., columns] + steps[..., at : at + len(arm.free)]
        at += len(arm.free)
    for thing in bodies.things:
        width = thing.axes.shape[1]
        twist = steps[..., at : at + width] @ thing.axes.T
        place, quat = states[..., thing.start : thing.start + 3], states[..., thing.start + 3 : thing.start + 7]
        turned = quat_multiply(quat_from_rotvec(twist[..., 3:]), quat)
        shift = (matrix_from_quat(quat) - matrix_from_quat(turned)) @ thing.middle
        result[..., thing.start : thing.start + 3] = place + twist[..., :3] + shift
        result[..., thing.start + 3 : thing.start + 7] = turned
        at += width
    return torch.minimum(torch.maximum(result, bodies.low), bodies.high)


def between(bodies: Bodies, before: Float[Tensor, "*#B S"], after: Float[Tensor, "*#B S"]) -> Float[Tensor, "*C P"]:
    """The step from one state to another."""
    parts = [(after - before)[..., arm.start + arm.free] for arm in bodies.arms]
    for thing in bodies.things:
        poses = [state[..., thing.start : thing.start + 7] for state in (before, after)]
        inverse = poses[0][..., 3:] * poses[0].new_tensor([1.0, -1.0, -1.0, -1.0])
        turn = rotvec_from_quat(quat_multiply(poses[1][..., 3:], inverse))
        ends = [(matrix_from_quat(pose[..., 3:]) @ thing.middle) + pose[..., :3] for pose in poses]
        parts.append(torch.cat([ends[1] - ends[0], turn], dim=-1) @ thing.axes)
    return torch.cat(parts, dim=-1)


def turned_away(bodies: Bodies, poses: Float[Tensor, "*B L 4 4"]) -> Float[Tensor, "*B N"]:
    """By how many sigmas links that are held square are turned, three numbers each, and raised, where that is held."""
    parts = [torch.zeros(*poses.shape[:-3], 0, dtype=torch.float64)]
    for square in bodies.squares:
        root, quat = (pose_from_transform(poses[..., link, :, :])[..., 3:] for link in (square.root, square.link))
        back = root.new_tensor([1.0, -1.0, -1.0, -1.0])
        turn = quat_multiply((square.quat_wxyz * back).expand_as(root), quat_multiply(root * back, quat))
        parts.append(rotvec_from_quat(turn) / square.sigma)
        if square.rise > 0:
            parts.append((_height(poses, square.root, square.link) - square.height)[..., None] / square.rise)
    return torch.cat(parts, dim=-1)


def strayed(
    bodies: Bodies, states: Float[Tensor, "*B S"]
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B P"], Float[Tensor, "*B P"]]:
    """What it costs that joints stray from their posture (zeros without one), its slope and its bend per component.

    Charbonnier's function of each joint: a few joints that move far are believed before many that move a little, which
    is how a controller moves an arm that has more joints than its task needs.
    """
    slope = torch.zeros(*states.shape[:-1], bodies.size, dtype=torch.float64)
    if bodies.posture is None:
        return slope.sum(-1), slope, slope
    sigma, joints = bodies.posture.sigma, torch.arange(bodies.size) < bodies.joints
    away = between(bodies, bodies.posture.state, states) * joints / sigma
    grown = (1 + away.square()).sqrt()
    return (grown - 1).sum(-1), away / grown / sigma, joints / (grown * sigma**2)


def with_bases(bodies: Bodies, twists: Float[Tensor, "A 6"]) -> Bodies:
    """The bodies with every agent's root moved by a twist in the root's own frame."""
    arms = tuple(replace(arm, base=arm.base @ se3_exp(twist)) for arm, twist in zip(bodies.arms, twists, strict=True))
    return replace(bodies, arms=arms)


def root_steps(bodies: Bodies, size: Float[Tensor, " B"]) -> list[Bodies]:
    """The bodies with each component of each root moved by its size, one after another."""
    shifted = []
    for row in range(len(size)):
        twists = torch.zeros(len(bodies.arms), 6, dtype=torch.float64)
        twists.view(-1)[row] = size[row]
        shifted.append(with_bases(bodies, twists))
    return shifted


def names_of(bodies: Bodies) -> tuple[str, ...]:
    """A name per component of a step."""
    names = []
    for arm in bodies.arms:
        columns = [name for name, place in value_slots(arm.skeleton).items() for _ in range(place.stop - place.start)]
        names += [f"{arm.name}/{columns[int(row)]}" for row in arm.free]
    for thing in bodies.things:
        words = ("x", "y", "z", "rx", "ry", "rz") if thing.axes.shape[1] == 6 else ("u", "v", "turn")
        names += [f"{thing.name}/{word}" for word in words]
    return tuple(names)


def _width(arm: Arm) -> int:
    return sum(place.stop - place.start for place in value_slots(arm.skeleton).values())


def _paired(states: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    batch = torch.broadcast_shapes(states.shape[:-1], steps.shape[:-1])
    return states.expand(*batch, -1), steps.expand(*batch, -1)


def _check_names(world: World, robots: Mapping[str, Skeleton], options: TrackOptions) -> None:
    entities = {entity.name: entity for entity in world.entities}
    for name, skeleton in robots.items():
        if name not in entities or len(entities[name].links) != len(skeleton.links):
            raise InputError(f"the world has no agent `{name}` with {len(skeleton.links)} links.")
        if any(joint.kind in ("ball", "free") for joint in skeleton.free_joints):
            raise InputError(f"robot `{name}` has ball or free joints, which are not tracked; bind it without them.")
    unknown = [name for name in options.fixed if name not in entities]
    known = [joint.name for skeleton in robots.values() for joint in skeleton.free_joints]
    unknown += [name for name in options.hold if name.rpartition("/")[2] not in known]
    if unknown:
        raise UsageError(f"there is no {', '.join(unknown)} to be held or fixed; there are {', '.join(entities)}.")


def _arm(name: str, skeleton: Skeleton, links: tuple[int, ...], rest: Tensor, start: int, options: TrackOptions) -> Arm:
    columns = [joint.name for joint in skeleton.free_joints]
    free = [row for row, joint in enumerate(columns) if not {joint, f"{name}/{joint}"} & set(options.hold)]
    base = rest[links[0]] @ torch.tensor(skeleton.links[0].parent_from_link).double().inverse()
    return Arm(name, skeleton, torch.tensor(links), base, start, torch.tensor(free, dtype=torch.long))


def _rest_of(arm: Arm, world: World, rest: Tensor) -> Tensor:
    """The joint values at which the world shows the robot."""
    from gworld.agents.inverse import joints_from_poses

    values, _ = joints_from_poses(arm.skeleton, rest[arm.links])
    shown = forward_kinematics(arm.skeleton, values, arm.base)
    if float((shown - rest[arm.links]).abs().amax()) > 1e-2:
        return rest_values(arm.skeleton, torch.float64)
    return values


def _square(world: World, bodies: Bodies, name: str, options: TrackOptions) -> Square:
    """A link by its name (`hand` or `arm/hand`), with the turn by quarters that is nearest at rest."""
    poses = poses_of(bodies, bodies.start)
    for arm in bodies.arms:
        for link in arm.links.tolist():
            if world.links[link].name not in (name, f"{arm.name}/{name}"):
                continue
            root = int(arm.links[0])
            away = poses[root, :3, :3].T @ poses[link, :3, :3]
            quarters = torch.eye(4, dtype=torch.float64)
            quarters[:3, :3] = _nearest_quarters(away)
            height = float(_height(poses, root, link))
            quat = pose_from_transform(quarters)[3:]
            return Square(root, link, quat, options.square_sigma, height, options.square_rise)
    raise UsageError(f"there is no link `{name}` of a tracked robot to be held square. Give a name of its model.")


def _height(poses: Float[Tensor, "*B L 4 4"], root: int, link: int) -> Float[Tensor, "*B"]:
    """How high a link stands over a root, along its z axis."""
    away = poses[..., link, :3, 3] - poses[..., root, :3, 3]
    return (away * poses[..., root, :3, 2]).sum(-1)


def _nearest_quarters(turn: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """The turn by quarters about axes that is nearest to another turn."""
    best = torch.eye(3, dtype=torch.float64)
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            tried = torch.zeros(3, 3, dtype=torch.float64)
            tried[torch.arange(3), torch.tensor(order)] = torch.tensor(signs, dtype=torch.float64)
            if torch.linalg.det(tried) > 0 and (tried * turn).sum() > (best * turn).sum():
                best = tried
    return best


def _thing(world: World, name: str, link: int, start: int, options: TrackOptions) -> Thing:
    axes = torch.eye(6, dtype=torch.float64)
    if options.objects == "planar":
        normal = torch.tensor(options.rig.plane[:3], dtype=torch.float64)
        along = torch.linalg.cross(normal, torch.eye(3, dtype=torch.float64)[int(normal.abs().argmin())])
        along = along / along.norm()
        axes = torch.zeros(6, 3, dtype=torch.float64)
        axes[:3, 0], axes[:3, 1], axes[3:, 2] = along, torch.linalg.cross(normal, along), normal
    means = world.gaussians.means[world.gaussians.links == link].double()
    middle = (means.amin(0) + means.amax(0)) / 2 if len(means) else torch.zeros(3, dtype=torch.float64)
    return Thing(name, link, start, axes, middle)


def _reaches(bodies: Bodies) -> Tensor:
    """Metres that a body's farthest point moves per unit of each component."""
    eye = 1e-4 * torch.eye(bodies.size, dtype=torch.float64)
    shown = poses_of(bodies, torch.cat([bodies.start[None], moved(bodies, bodies.start, eye)]))
    back = poses_of(bodies, moved(bodies, bodies.start, -eye))
    links, means = bodies.gaussians.links.long(), bodies.gaussians.means.double()
    reaches = []
    for row in range(bodies.size):
        change = (shown[1 + row] - back[row])[links]
        shift = (change[:, :3, :3] @ means[..., None])[..., 0] + change[:, :3, 3]
        # At a limit only one of the two sides moves, by half as much: no less than a millimetre per unit is believed.
        reaches.append(max(float(shift.norm(dim=-1).amax()) / 2e-4, 1e-3))
    return torch.tensor(reaches, dtype=torch.float64)
