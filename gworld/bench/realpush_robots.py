"""Arms at the real table, told steps of their hands: the recorded pushes by end-effector commands, pushes that nobody
made, by one arm or by two, drawn whole in the recorded world.

The arms go by the engine's own inverse kinematics; the block goes as the network foretells it from the sticks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.actions import Control, action_spec
from gworld.agents.binding import load_robot
from gworld.agents.inverse import joints_from_poses, solve_inverse
from gworld.agents.kinematics import forward_kinematics, rest_values, value_limits
from gworld.agents.tree import Skeleton, link_index, value_slots
from gworld.bench.realpush_data import SMOOTH, Pushing, Track, lift, smoothed
from gworld.bench.rows import Row, at_most
from gworld.errors import InputError
from gworld.formats.world import load_world
from gworld.geometry import (
    invert_transform,
    pose_from_transform,
    quat_from_matrix,
    rotvec_from_quat,
    transform_from_pose,
)
from gworld.scene.rollout import Rollout
from gworld.scene.world import World, WorldState
from gworld.simulate.run import simulate

if TYPE_CHECKING:
    from gworld.bench.realpush import Learned

HAND = "panda_pusher"
"""The link that is told where to go: the stick's holder."""
TIP = 0.1368
"""How far (m) below it the stick ends."""
READY = (0.0, -0.2, 0.0, -2.3, 0.0, 2.1, 0.8)
"""Joints (rad) from which a posture is looked for, the first turned towards the place."""
TURNS = 12
"""Ways of turning the hand about the stick that are tried."""
CLOSE = 0.01
"""Posture errors (m) up to which a place is reached."""
SAMPLE = 8
"""Every how many of an arm's Gaussians are asked how near another arm is, of all ways to hold the sticks."""


@dataclass(frozen=True, eq=False)
class Arm:
    """A robot of a world: its name, chain, base, and links."""

    name: str
    skeleton: Skeleton
    base: Float[Tensor, "4 4"]
    links: tuple[int, ...]

    @property
    def hand(self) -> int:
        """The hand among the world's links."""
        return self.links[link_index(self.skeleton, HAND)]


def arms_of(world: World) -> list[Arm]:
    """The robots of a world that was read from a folder."""
    rest = world.rest_poses().double()
    found = []
    for entity in world.agents:
        skeleton = load_robot(world, entity.name)
        _, base = joints_from_poses(skeleton, rest[list(entity.links)])
        found.append(Arm(entity.name, skeleton, base, entity.links))
    return found


def by_hand(world: World) -> World:
    """The world with agents that are told steps of their hands."""
    specs = {arm.name: action_spec(arm.skeleton, Control("hand_step", hand=HAND)) for arm in arms_of(world)}
    entities = tuple(replace(entity, action=specs.get(entity.name, entity.action)) for entity in world.entities)
    return replace(world, entities=entities)


def hand_steps(arm: Arm, path: Float[Tensor, "T 4 4"]) -> Float[Tensor, "S 6"]:
    """The commands that lead the hand along poses in the world, one per step: metres and radians along and about the
    axes of the robot's base."""
    local = invert_transform(arm.base) @ path
    turn = local[1:, :3, :3] @ local[:-1, :3, :3].transpose(-1, -2)
    return torch.cat([local[1:, :3, 3] - local[:-1, :3, 3], rotvec_from_quat(quat_from_matrix(turn))], dim=-1).float()


def drive_hands(
    world: World, paths: dict[str, Float[Tensor, "T 4 4"]], start: Float[Tensor, "L 4 4"], dt: float
) -> Rollout:
    """What the engine makes of hands led along paths by their steps alone, from poses of all links; others rest."""
    told = {arm.name: hand_steps(arm, paths[arm.name]) for arm in arms_of(world) if arm.name in paths}
    count = len(world.links)
    state = WorldState(start.float(), torch.zeros(count, 6), torch.zeros(0, count, 7))
    steps = len(next(iter(paths.values()))) - 1
    return simulate(by_hand(world), told, step=dt, state=state, seconds=steps * dt)


def hand_errors(world: World, rollout: Rollout, paths: dict[str, Float[Tensor, "T 4 4"]]) -> Float[Tensor, " K"]:
    """How far (m) the sticks' ends are from where they were led, all arms and instants in a row."""
    tip = torch.tensor([0.0, 0.0, -TIP, 1.0], dtype=torch.float64)
    poses = transform_from_pose(rollout.link_poses.double())
    off = [
        ((poses[:, arm.hand] - paths[arm.name]) @ tip)[:, :3].norm(dim=-1)
        for arm in arms_of(world)
        if arm.name in paths
    ]
    return torch.cat(off)


def command_rows(
    pushing: Pushing,
    track: Track,
    pushes: list[tuple[float, float]],
    learned: dict[int, Learned],
    predict: Callable[[Pushing, Learned, Tensor, int], Tensor],
    folder: Path,
) -> Iterator[Row]:
    """The recorded arm by end-effector commands: every push begun where it was tracked, then steps of the hand alone;
    the stick's end against the tracked one, and the block foretold from where the commands brought the stick."""
    if not (folder / "world" / "world.json").is_file():
        yield Row("robot by end-effector commands", 0.0, "", note=f"no `{folder / 'world'}`: skipped")
        return
    world = load_world(folder / "world")
    arm = arms_of(world)[0]
    off, apart, copied = [], [], []
    for push, own in learned.items():
        start = max(8, int(torch.searchsorted(pushing.times, pushes[push][0])) - 3)
        steps = min(int((pushes[push][1] - pushes[push][0] + 0.3) / pushing.dt), len(pushing.times) - 1 - start)
        rows = slice(start, start + steps + 1)
        path = {arm.name: track.world_from_link[rows, arm.hand]}
        rollout = drive_hands(world, path, track.world_from_link[start], pushing.dt)
        off.append(float(hand_errors(world, rollout, path).max()))
        stick = pushing.pusher.clone()
        stick[rows] = smoothed(
            stick_path(pushing, transform_from_pose(rollout.link_poses[:, arm.hand].double())), SMOOTH / pushing.dt
        )
        told = predict(replace(pushing, pusher=stick), own, torch.tensor([start]), steps)[0]
        apart.append(float(pushing.apart(told[-1], pushing.block[start + steps])))
        copied.append(float(pushing.apart(pushing.block[start], pushing.block[start + steps])))
    note = "steps of the hand taken from the tracked path; no commands were recorded"
    yield at_most("robot by end-effector commands: stick's end off at most", 1e3 * max(off), "mm", 2.0, note=note)
    for push, error, still in zip(learned, apart, copied, strict=True):
        label = f"block after the whole of push {push + 1}, robot by end-effector commands"
        yield Row(label, 1e3 * error, "mm", baseline=1e3 * still, note="baseline: copy")


def stick_path(pushing: Pushing, poses: Float[Tensor, "T 4 4"]) -> Float[Tensor, "T 2"]:
    """Where on the table's plane the stick's axis passes half the block's height."""
    local = invert_transform(pushing.world_from_plane) @ poses
    at, way = local[:, :3, 3], local[:, :3, 2]
    return (at + ((0.5 * pushing.height - at[:, 2]) / way[:, 2])[:, None] * way)[:, :2]


def upright(pushing: Pushing, path: Float[Tensor, "T 2"], height: float, turn: float) -> Float[Tensor, "T 4 4"]:
    """Poses of a hand that carries an upright stick along a path on the plane, turned about it."""
    pose = torch.eye(4, dtype=torch.float64).repeat(len(path), 1, 1)
    pose[:, 0, 0] = pose[:, 1, 1] = math.cos(turn)
    pose[:, 1, 0], pose[:, 0, 1] = math.sin(turn), -math.sin(turn)
    pose[:, :2, 3], pose[:, 2, 3] = path, height
    return pushing.world_from_plane @ pose


@dataclass(frozen=True, eq=False)
class Posture:
    """A way of going along a path: the hand's poses, and those of all links at its start, middle and end."""

    hand: Float[Tensor, "T 4 4"]
    links: Float[Tensor, "M n 4 4"]


def postures(arm: Arm, pushing: Pushing, path: Float[Tensor, "T 2"], height: float) -> list[Posture]:
    """The ways in which an arm reaches a path's start, middle and end with an upright stick."""
    some = [0, len(path) // 2, len(path) - 1]
    ready = rest_values(arm.skeleton, torch.float64).clone()
    slots = value_slots(arm.skeleton)
    towards = (invert_transform(arm.base) @ upright(pushing, path[:1], height, 0.0))[0, :2, 3]
    for number, value in enumerate(READY, 1):
        ready[slots[f"panda_joint{number}"].start] = value
    ready[slots["panda_joint1"].start] = math.atan2(float(towards[1]), float(towards[0]))
    held = tuple(name for name in slots if "finger" in name)
    found = []
    low, high = value_limits(arm.skeleton, torch.float64)
    for turn in range(TURNS):
        hand = upright(pushing, path, height, 2 * math.pi * turn / TURNS)
        values, rows, off = ready, [], 0.0
        for row in some:
            solved = solve_inverse(arm.skeleton, [HAND], hand[row, None], values, base=arm.base, hold=held)
            values, off = solved.values, max(off, float(solved.position_error[0]), float(solved.rotation_error[0]))
            rows.append(values)
        room = torch.minimum(values - low, high - values)[:7].amin()
        if off < CLOSE and float(room) > 0.05:
            found.append(Posture(hand, forward_kinematics(arm.skeleton, torch.stack(rows), arm.base)))
    return found


def choose_postures(world: World, arms: list[Arm], ways: list[list[Posture]]) -> list[Posture]:
    """One posture for each of one or two arms; of two, those in which the arms are as far apart as can be."""
    if len(arms) == 1:
        return ways[0][:1]
    skins = [_points(world, arm) for arm in arms]

    def apart(one: Posture, two: Posture) -> float:
        places = ([_placed(skin, pose) for pose in way.links] for skin, way in zip(skins, (one, two), strict=True))
        return min(float(torch.cdist(a, b).min()) for a, b in zip(*places, strict=True))

    return max(([one, two] for one in ways[0] for two in ways[1]), key=lambda pair: apart(*pair))


def stage_trial(
    world: World,
    pushing: Pushing,
    paths: dict[str, Float[Tensor, "T 2"]],
    block: Float[Tensor, "T 3"],
    spot: Float[Tensor, " 3"],
    dt: float,
) -> tuple[Rollout, float]:
    """Sticks' paths and a block's places, laid so that the block begins at `spot` on the table, acted out by the arms
    of a world in turn; and how far (m) the sticks' ends were off at most.

    Raises `InputError` where an arm does not reach.
    """
    shift = lift(spot) @ torch.linalg.inv(lift(block[0]))
    told = {name: path @ shift[:2, :2].T + shift[:2, 3] for name, path in paths.items()}
    arms = arms_of(world)[: len(told)]
    height = _hand_height(world, pushing, arms[0])
    ways = [postures(arm, pushing, path, height) for arm, path in zip(arms, told.values(), strict=True)]
    if not all(ways):
        raise InputError("an arm does not reach its stick's path; bind it with its base nearer to the block.")
    chosen = choose_postures(world, arms, ways)
    start = world.rest_poses().double()
    for arm, posture in zip(arms, chosen, strict=True):
        start[list(arm.links)] = posture.links[0]
    hands = {arm.name: posture.hand for arm, posture in zip(arms, chosen, strict=True)}
    rollout = drive_hands(world, hands, start, dt)
    angle = torch.atan2(shift[1, 0], shift[0, 0])
    moved = torch.cat([block[:, :2] @ shift[:2, :2].T + shift[:2, 3], block[:, 2:] + angle], dim=-1)
    off = float(hand_errors(world, rollout, hands).max())
    return with_block(world, rollout, pushing, moved, "tblock"), off


def _hand_height(world: World, pushing: Pushing, arm: Arm) -> float:
    """How high (m) over the plane the hand is so that the stick ends as low as it stood when the world was tracked."""
    return float((invert_transform(pushing.world_from_plane) @ world.rest_poses().double()[arm.hand])[2, 3])


def nearest(world: World, rollout: Rollout, first: str, second: str, every: int = 3) -> float:
    """How near (m) the Gaussians of two bodies (every second of each) come to each other, sticks left out."""
    own = {entity.name: entity for entity in world.entities}
    skins = []
    for name in (first, second):
        links = torch.tensor([link for link in own[name].links if not world.links[link].name.endswith(HAND)])
        rows = torch.isin(world.gaussians.links.long(), links).nonzero()[::2, 0]
        skins.append((world.gaussians.means[rows].double(), world.gaussians.links[rows].long()))
    poses = transform_from_pose(rollout.link_poses[::every].double())
    found = []
    for pose in poses:
        a, b = ((pose[links] @ _homogeneous(means)[..., None])[:, :3, 0] for means, links in skins)
        found.append(float(torch.cdist(a, b).min()))
    return min(found)


def with_block(world: World, rollout: Rollout, pushing: Pushing, block: Float[Tensor, "T 3"], name: str) -> Rollout:
    """The rollout with a thing at places on the plane."""
    poses = rollout.link_poses.clone()
    row = [link.name for link in world.links].index(name)
    poses[:, row] = pose_from_transform(pushing.links(block)).float()
    return replace(rollout, link_poses=poses)


def _points(world: World, arm: Arm) -> tuple[Tensor, Tensor]:
    own = torch.isin(world.gaussians.links.long(), torch.tensor(arm.links)).nonzero()[::SAMPLE, 0]
    return world.gaussians.means[own].double(), world.gaussians.links[own].long() - arm.links[0]


def _placed(skin: tuple[Tensor, Tensor], poses: Float[Tensor, "n 4 4"]) -> Float[Tensor, "P 3"]:
    means, links = skin
    return (poses[links] @ _homogeneous(means)[..., None])[:, :3, 0]


def _homogeneous(points: Float[Tensor, "P 3"]) -> Float[Tensor, "P 4"]:
    return torch.cat([points, torch.ones_like(points[:, :1])], dim=-1)
