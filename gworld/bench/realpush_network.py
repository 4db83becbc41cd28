"""gworld's network on the real push: the pusher is an agent whose motion is told, the block a solid of its own outline.

What a few pushes can tell is little, and is fitted through the rollout: friction of stick and table, where the block
presses on the table and how wide, how far surfaces reach, and by how much the tracked pusher is off.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.agents.tree import Body, Joint, Skeleton
from gworld.bench.realpush_data import CELL, Outline, Pushing, lift
from gworld.bench.realpush_planar import Fitted, fit_settings, paths_from, plane_residuals, read_offsets
from gworld.data.shapes import plain, sphere
from gworld.dynamics.actuation import KINDS, Drive, full_memory
from gworld.dynamics.drives import make_drive
from gworld.dynamics.network import Dynamics
from gworld.dynamics.state import Motion
from gworld.dynamics.tokens import Scene, Solids, compile_scene, select_worlds
from gworld.geometry import quat_from_matrix
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World

NAMES = ("pusher x", "pusher y", "grip", "reach", "brake", "lever", "pressure x", "pressure y", "log spread", "fade")
"""What is fitted: the pusher's error (m), friction of the contact, how far the stick reaches beyond its radius (m),
what table friction takes from a speed (logarithm), the lever of turning (logarithm), where the block presses (m from
its middle), how wide (logarithm, of its radius of gyration), and the seconds (logarithm) in which fades what of the
block's motion is not explained."""
SPREAD = (0.004, 0.004, 0.15, 0.008, 0.5, 0.2, 0.006, 0.006, 0.2, 0.7)
"""Standard deviation that each is believed to have beforehand."""
FASTEST = 2.0
"""Bound (m/s) of the pusher's commanded velocity."""
FADE = 0.3
"""Seconds in which what is not explained is believed to fade."""
BACK = 3
"""Steps before a window over which it is read."""
STIFF = 10.0
"""Logarithm of the inertia of a pusher whose motion is told: nothing turns it aside."""
SPACING = 0.004
BLOCK = 1
"""The block's link; a pusher's base, rail and tip follow."""


@dataclass(frozen=True, eq=False)
class Stage:
    """The scene of one world, its pushers' drives, and what its block's and tips' links stand over the plane."""

    scene: Scene
    drives: dict[str, Drive]
    height: float
    tips: tuple[int, ...]
    beliefs: int = 1

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of the pushers."""
        return tuple(self.drives)


def open_stage(given: Pushing, pushers: int = 1, reach: float = 0.0) -> Stage:
    """A table, the block and some pushers, all at the plane's origin."""
    height = 0.5 * given.height
    parts = [_table(), _owned(_solid(given.outline, given.height), BLOCK)]
    links = [Link("world"), Link("block", _pose(0.0, 0.0, height), 0)]
    entities = [Entity("scene", "static", (0,)), Entity("block", "object", (BLOCK,))]
    drives, tips, names = {}, [], ("pusher", "other", "third", "fourth")[:pushers]
    spec = ActionSpec(("x/velocity", "y/velocity"), ("m/s", "m/s"), (-FASTEST,) * 2, (FASTEST,) * 2)
    skeleton = _gantry(height)
    for name in names:
        first = len(links)
        links += [Link(f"{name}/{body.name}", _pose(0.0, 0.0, height), 0) for body in skeleton.links]
        tip = first + len(skeleton.links) - 1
        parts.append(_owned(sphere(given.radius + reach, 0.3 * given.radius, plain(0.9, 0.9, 0.9)), tip))
        entities.append(Entity(name, "agent", tuple(range(first, tip + 1)), spec))
        tips.append(tip)
    world = World(join_gaussians(parts), tuple(links), tuple(entities))
    for entity in world.agents:
        drives[entity.name] = make_drive(world, entity, skeleton, torch.zeros(2))
    return Stage(compile_scene([world], given.dt), drives, height, tuple(tips))


def told_network(model: Dynamics) -> Dynamics:
    """A copy whose agents go exactly where they are told."""
    own = copy.deepcopy(model)
    kind = KINDS.index("velocity")
    with torch.no_grad():
        own.actuation.gain[kind], own.actuation.lag[kind] = 1.0, -8.0
        own.actuation.thrust[kind], own.actuation.heft[kind] = 12.0, STIFF
    return own


def settings_of(model: Dynamics) -> Float[Tensor, " 10"]:
    """What a network believes: its own frictions, nothing off."""
    first = torch.zeros(len(NAMES), dtype=torch.float64)
    first[2], first[4], first[5] = (
        float(p.detach()) for p in (model.materials.grip, model.support.brake, model.support.lever)
    )
    first[9] = math.log(FADE)
    return first


def with_settings(model: Dynamics, stage: Stage, values: Float[Tensor, "V 10"], worlds: int) -> tuple[Dynamics, Scene]:
    """The network and the scene of V x `worlds` worlds, each setting in `worlds` of them, side by side.

    The network's own coefficients are one number for all worlds; here each world has its own.
    """
    own, solids = copy.deepcopy(model), stage.scene.solids
    links, count, rows = len(stage.scene.link_names), len(solids.radius), len(solids.points)
    each = values.repeat_interleave(worlds, 0).float()
    for module, name, index in ((own.materials, "grip", 2), (own.support, "brake", 4), (own.support, "lever", 5)):
        delattr(module, name)
        told = each[:, index, None]
        setattr(module, name, told if name == "grip" else told.repeat_interleave(links, 0))
    held = {field.name: getattr(solids, field.name) for field in fields(Solids)}
    many = {name: value.repeat(len(values), *(1,) * (value.ndim - 1)) for name, value in held.items()}
    many["row"] = torch.where(many["row"] < 0, many["row"], many["row"] + _offset(len(values), count, rows))
    block = int(stage.scene.solid[0, BLOCK]) + count * torch.arange(len(values))
    balls = (stage.scene.solid[0, list(stage.tips)][:, None] + count * torch.arange(len(values))).flatten()
    told = values.to(solids.center)
    shift = torch.cat([told[:, 6:8], torch.zeros(len(values), 1)], dim=1)
    many["center"][block] += shift
    many["points"][many["row"][block]] -= shift[:, None]
    many["low"][many["row"][block]] -= shift
    many["inertia"][block] *= (2.0 * told[:, 8]).exp()[:, None, None]
    many["ease"][block] *= (-2.0 * told[:, 8]).exp()[:, None, None]
    for name in ("radius", "bound"):
        many[name][balls] += told[:, 3].repeat(len(stage.tips))
    scene = select_worlds(stage.scene, torch.zeros(len(each), dtype=torch.int64))
    number = torch.arange(len(values)).repeat_interleave(worlds)[:, None]
    solid = torch.where(scene.solid < 0, scene.solid, scene.solid + count * number)
    return own, replace(scene, solids=Solids(**many), solid=solid)


def _offset(copies: int, count: int, rows: int) -> Tensor:
    return (rows * torch.arange(copies)).repeat_interleave(count)


def roll_blocks(
    model: Dynamics,
    stage: Stage,
    values: Float[Tensor, "V 10"],
    start: Float[Tensor, "W 3"],
    speed: Float[Tensor, "W 3"],
    paths: dict[str, Float[Tensor, "W T 2"]],
    left: Float[Tensor, "V W 3"] | None = None,
) -> Float[Tensor, "V W T 3"]:
    """Places of the block at all instants of the pushers' paths, the first being `start`, where it moves at `speed`;
    for V settings at once. `left` is the velocity there that the network does not explain: it goes on, fading, as long
    as the network moves the block."""
    count, steps = len(start), next(iter(paths.values())).shape[1] - 1
    own, scene = with_settings(model, stage, values, count)
    start, speed = start.repeat(len(values), 1), speed.repeat(len(values), 1)
    motion, actions = _begin(stage, scene, values, start, speed, paths)
    fade = values[:, 9].exp().repeat_interleave(count)
    rest = torch.zeros_like(start) if left is None else left.flatten(0, 1)
    usual = _size(speed) * scene.dt
    found = [start]
    for step in range(steps):
        with torch.no_grad():
            motion = own.step(scene, motion, {name: told[:, step] for name, told in actions.items()}, stage.drives)
        block = _flat(motion.world_from_link[:, BLOCK].double(), found[-1])
        if left is not None:
            share = (_size(block - found[-1]) / usual.clamp_min(1e-9)).clamp_max(1.0)
            block = block + (share * (-(step + 0.5) * scene.dt / fade).exp() * scene.dt)[:, None] * rest
            poses = motion.world_from_link.clone()
            poses[:, BLOCK, :2, :2] = lift(block)[:, :2, :2].float()
            poses[:, BLOCK, :2, 3] = block[:, :2].float()
            motion = replace(motion, world_from_link=poses)
        found.append(block)
    return torch.stack(found, dim=1).unflatten(0, (len(values), count))


def _size(change: Float[Tensor, "W 3"]) -> Float[Tensor, " W"]:
    """How far a change of place moves a point at the block's usual distance (m)."""
    return (change[:, :2].square().sum(-1) + (0.07 * change[:, 2]).square()).sqrt()


def _flat(pose: Float[Tensor, "W 4 4"], before: Float[Tensor, "W 3"]) -> Float[Tensor, "W 3"]:
    """The place of a pose on the plane, its turn nearest to the one before."""
    turn = torch.atan2(pose[:, 1, 0], pose[:, 0, 0]) - before[:, 2]
    turn = before[:, 2] + torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
    return torch.cat([pose[:, :2, 3], turn[:, None]], dim=-1)


def _begin(
    stage: Stage, scene: Scene, values: Tensor, start: Tensor, speed: Tensor, paths: dict[str, Tensor]
) -> tuple[Motion, dict[str, Tensor]]:
    """The motion at the start and the pushers' actions."""
    links = len(scene.link_names)
    poses = torch.eye(4).expand(len(scene), links, 4, 4).clone()
    poses[:, BLOCK] = lift(start).float()
    poses[:, 1:, 2, 3] = stage.height
    twists = torch.zeros(len(scene), links, 6)
    twists[:, BLOCK, :2], twists[:, BLOCK, 5] = speed[:, :2].float(), speed[:, 2].float()
    memory, actions = {}, {}
    for (name, drive), path in zip(stage.drives.items(), paths.values(), strict=True):
        whole = (path + values[:, None, None, :2]).flatten(0, 1)
        poses[:, drive.links[1], 0, 3] = whole[:, 0, 0].float()
        poses[:, drive.links[2], :2, 3] = whole[:, 0].float()
        actions[name] = (whole.diff(dim=1) / scene.dt).float()
        memory[name] = full_memory(whole[:, 0].float(), actions[name][:, 0])
    blank = torch.zeros(len(scene), links, stage.beliefs)
    return Motion(poses, twists, blank, memory), actions


def predict_windows(
    model: Dynamics,
    stage: Stage,
    values: Float[Tensor, "V 10"],
    given: Pushing,
    rows: Int[Tensor, " N"],
    steps: int,
    offset: Float[Tensor, "N 2"] | None = None,
) -> Float[Tensor, "V N T 3"]:
    """Places of the block in windows, from the pusher's motion alone; with `offset`, what the past tells of the
    pusher's error, the motion that is not explained at the start is carried on too."""
    path = paths_from(given, rows, steps, BACK)[0] + (0.0 if offset is None else offset[:, None])
    start, now = given.block[rows - BACK], speed_at(given, rows)
    left = None
    if offset is not None:
        told = roll_blocks(model, stage, values, start, speed_at(given, rows - BACK), {"pusher": path[:, : BACK + 1]})
        left = (given.block[rows] - told[:, :, -1]) / (BACK * given.dt)
    return roll_blocks(model, stage, values, given.block[rows], now, {"pusher": path[:, BACK:]}, left)


def fit_network(
    model: Dynamics, stage: Stage, given: Pushing, sets: list[tuple[Tensor, int]], law: Fitted, steps: int = 6
) -> Fitted:
    """The settings of the network from training windows (starts, steps), begun at those of the quasi-static law."""
    first = settings_of(model)
    begin = from_law(first, law.values)
    told = [(rows, count, read_offsets(law.values, given, rows)) for rows, count in sets]

    def residuals(tries: Tensor) -> Tensor:
        parts = []
        for rows, count, offset in told:
            moved = predict_windows(model, stage, tries, given, rows, count, offset)
            parts.append(plane_residuals(given, moved, rows, [count // 2, count]))
        return torch.cat(parts, dim=1)

    return fit_settings(begin, SPREAD, residuals, steps)


def from_law(first: Float[Tensor, " 10"], law: Float[Tensor, " 7"]) -> Float[Tensor, " 10"]:
    """The network's settings where the quasi-static law says them."""
    begin = first.clone()
    begin[:2], begin[2], begin[3], begin[6:8] = law[:2], law[2].exp(), law[6], law[4:6]
    return begin


def speed_at(given: Pushing, rows: Int[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """The block's velocity (m/s, rad/s) at instants, from the two steps before each."""
    now, last, before = (given.block[rows - k] for k in range(3))
    return (1.5 * (now - last) - 0.5 * (last - before)) / given.dt


def _gantry(height: float) -> Skeleton:
    """Two rails across the table and the tip they carry."""
    raised = np.eye(4)
    raised[2, 3] = height
    bodies = (Body("base", -1, raised), Body("rail", 0, np.eye(4)), Body("tip", 1, np.eye(4)))
    joints = tuple(
        Joint(axis, "prismatic", link, np.eye(3)[link - 1], np.zeros(3), (0.0,)) for link, axis in ((1, "x"), (2, "y"))
    )
    return Skeleton("gantry", bodies, joints)


def _solid(outline: Outline, height: float) -> Gaussians:
    """The surface of the shape raised from the plane, about its middle height."""
    ticks = [outline.low[k] + CELL * torch.arange(outline.sd.shape[k]) for k in (0, 1)]
    grid = torch.stack(torch.meshgrid(*ticks, indexing="ij"), dim=-1)
    rim = grid[(outline.sd.abs() < 0.6 * CELL)][::2]
    _, out = outline.distance(rim)
    levels = torch.linspace(-0.5 * height, 0.5 * height, max(3, round(height / SPACING)))
    side = torch.cat([torch.cat([rim, z.expand(len(rim), 1)], dim=1) for z in levels.double()])
    normal = torch.cat([out, torch.zeros(len(out), 1)], dim=1).repeat(len(levels), 1)
    every = round(SPACING / CELL)
    inner = grid[::every, ::every][outline.sd[::every, ::every] < -0.5 * SPACING]
    parts, normals = [side], [normal]
    for sign in (-1.0, 1.0):
        parts.append(torch.cat([inner, torch.full((len(inner), 1), 0.5 * sign * height)], dim=1))
        normals.append(torch.tensor([0.0, 0.0, sign]).expand(len(inner), 3))
    return _sheets(torch.cat(parts), torch.cat(normals), SPACING)


def _table() -> Gaussians:
    """A flat square metre and a half at the plane."""
    ticks = torch.linspace(-0.75, 1.25, 41)
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), dim=-1).reshape(-1, 2)
    points = torch.cat([grid, torch.zeros(len(grid), 1)], dim=1)
    return _sheets(points, torch.tensor([0.0, 0.0, 1.0]).expand(len(points), 3), 0.05)


def _sheets(points: Tensor, normals: Tensor, spacing: float) -> Gaussians:
    """Flat Gaussians at points, across their normals."""
    count = len(points)
    normals = normals.double()
    other = torch.where(
        normals[:, 2:].abs() < 0.9, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    ).double()
    first = torch.nn.functional.normalize(torch.linalg.cross(other, normals), dim=-1)
    frame = torch.stack([first, torch.linalg.cross(normals, first), normals], dim=-1)
    scales = spacing * torch.tensor([0.62, 0.62, 0.06])
    return Gaussians(
        means=points.float(), quats_wxyz=quat_from_matrix(frame).float(), log_scales=scales.log().expand(count, 3),
        opacity_logits=torch.full((count,), 3.5), sh=torch.zeros(count, 1, 3),
        links=torch.zeros(count, dtype=torch.int32),
    )  # fmt: skip


def _owned(gaussians: Gaussians, link: int) -> Gaussians:
    return replace(gaussians, links=torch.full_like(gaussians.links, link))


def _pose(x: float, y: float, z: float) -> tuple[float, ...]:
    return (x, y, z, 1.0, 0.0, 0.0, 0.0)
