"""Operators that act alone somewhere are fitted there first: drives where agents touch nothing, friction under objects
where they slide free. What is learned together afterwards then cannot explain one of them by another's fault.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.dynamics.actuation import Drive, Joints, Yield, full_memory, rest_memory
from gworld.dynamics.contact import body_shapes, find_contacts, near_pairs
from gworld.dynamics.forces import fit_forces
from gworld.dynamics.network import Dynamics, bodies_of
from gworld.dynamics.recordings import CONTEXT, Recordings, rates_at
from gworld.dynamics.stages_contact import ContactConfig, contact_parameters, fit_contact
from gworld.dynamics.state import Motion, motion_from_poses, still_motion
from gworld.dynamics.tokens import FAR, Agent, Scene, select_worlds, shape_values
from gworld.geometry import transform_from_pose

APART = 0.045
"""Gap, in radii, beyond which nothing is touched: surfaces read from Gaussians are a little off."""
FLIES, HIGH = 0.1, 0.2
"""Gap, in radii, beyond which nothing holds what is in the air; and height above where a thing lies lowest."""
ALIKE, AGREE = 4, 0.02
"""Instants that have to tell of one fall before it is believed, and how much these may differ, in parts of it."""
FLAT = (0.03, 0.02)
"""Change of height (radii) and sine of the tilt in two steps below which a thing slides and neither tips nor rolls."""
PARTING = 0.02
"""Growth of a gap in a step, in radii, by which bodies part."""
RUN = 6
"""Steps over which a joint's motion is followed."""
WIDTHS = (0.1, 0.02)
"""Errors, in parts of a usual step, above which they count ever less: first most count, then the many that agree."""
LAGS = (0.012, 0.05, 0.2)
"""Seconds from which the lag of drives is sought."""
LEAST = 8
"""Windows below which nothing can be fitted."""
REST = 0.02
"""Weight of windows in which a joint rests, beside those in which it moves."""
CHUNK = 256
"""Worlds looked at together."""


@dataclass(frozen=True)
class Fitted:
    """Which operators were fitted alone, and on how many windows."""

    drives: int = 0
    support: int = 0
    forces: int = 0
    contact: int = 0


def fit_alone(model: Dynamics, data: Recordings, steps: int = 200, contact: ContactConfig | None = None) -> Fitted:
    """Fit the drives, the support's friction and forces across a distance where they act alone, then, where agents
    touch things, contact; what has too few windows is left."""
    forces = fit_forces(model.forces, model.materials, model.free, data) if model.config.forces else 0
    drives = any(name in data.joints and drive.values for name, drive in data.drives.items())
    drives, support = drives and model.config.actuation, model.config.support
    if not (drives or support):
        return Fitted(forces=forces)
    room = clearance(model, data)
    if support and model.config.gravity:
        fit_fall(model, data, room)
    moved = fit_drives(model, data, room, steps) if drives else 0
    slid = fit_support(model, data, room, steps) if support else 0
    touched = drives and contact is not None and model.config.contact
    met = fit_contact(model, data, room, contact, support and not slid) if touched and contact is not None else 0
    return Fitted(moved, slid, forces, met)


def alone_parameters(model: Dynamics) -> tuple[list[torch.nn.Parameter], ...]:
    """What the four fits find: the coefficients of the drives, of the support, of forces across a distance, and those
    of contact that none of the others finds."""
    own, support, forces = model.actuation, model.support, [model.forces.strength, model.forces.exponent]
    forces += [model.materials.power, model.free.fall, model.free.drag] if model.config.forces else []
    drives = [own.gain, own.lag, own.thrust, own.swing, own.damp, own.pace]
    contact = [p for p in contact_parameters(model) if all(p is not q for q in forces)]
    slows = [support.brake, support.lever]
    slows += [model.free.drag, model.free.spin_drag] if model.config.support and not model.config.forces else []
    return drives, slows, forces, contact


@torch.no_grad()
def clearance(model: Dynamics, data: Recordings) -> Float[Tensor, "E T L"]:
    """The least gap (radii) between a link and anything it does not lie on: bodies, planes, other agents' links."""
    scene, steps = data.scene, data.poses.shape[1]
    worlds = torch.arange(len(data), device=data.poses.device).repeat_interleave(steps)
    poses = data.poses.flatten(0, 1)
    parts = [
        _gaps(model, select_worlds(scene, rows), poses[at], data.drives)
        for rows, at in zip(worlds.split(CHUNK), torch.arange(len(poses)).split(CHUNK), strict=True)
    ]
    return torch.cat(parts).view(len(data), steps, -1) / scene.scale[:, None, None]


def fit_drives(model: Dynamics, data: Recordings, room: Tensor, steps: int) -> int:
    """Fit the response to commands on runs in which an agent's links touch nothing; returns how many there were."""
    runs = _joint_runs(data, room)
    count = sum(len(run.values) for run in runs)
    if count < LEAST:
        return 0
    own = alone_parameters(model)[0]

    def losses(width: float) -> Tensor:
        """Mean loss of each row of each kind."""
        total = torch.zeros_like(own[0])
        for run in runs:
            place = (torch.tensor(run.drive.kinds), torch.tensor(run.drive.rows))
            part = _joint_loss(model, data.scene, run, width)[list(run.drive.values)]
            total = total.index_put(tuple(index.to(part.device) for index in place), part, accumulate=True)
        return total / len(runs)

    found = []
    for lag in LAGS:  # a slow drive and a weak one look alike from afar, hence several beginnings
        for run in runs:
            _begin(model, run, lag)
        _descend(own, lambda: losses(WIDTHS[0]).sum(), steps // 4)
        found.append((losses(WIDTHS[0]).detach(), [p.detach().clone() for p in own]))
    best = torch.stack([loss for loss, _ in found]).argmin(dim=0)[None]
    with torch.no_grad():
        for index, parameter in enumerate(own):
            parameter.copy_(torch.stack([values[index] for _, values in found]).gather(0, best)[0])
    _descend(own, lambda: losses(WIDTHS[1]).sum(), steps // 2, 0.03)
    return count


def fit_fall(model: Dynamics, data: Recordings, room: Tensor) -> int:
    """Set the fall to what objects do that touch and lie on nothing; returns on how many instants."""
    scene = data.scene
    if scene.planes.shape[-2] == 0:
        return 0
    floor = (scene.planes[..., :3] * -scene.down[:, None]).sum(-1) > 0.98
    level = torch.where(floor, scene.planes[..., 3], torch.full_like(scene.planes[..., 3], -FAR)).amax(-1)
    if not bool((level > -FAR).all()):
        return 0
    height = -(data.poses[..., :3] * scene.down[:, None, None]).sum(-1)
    above = height - torch.maximum(height.amin(dim=1, keepdim=True), level[:, None, None])
    flies = (above > HIGH * scene.scale[:, None, None]) & (room > FLIES)
    flies = flies[:, :-2] & flies[:, 1:-1] & flies[:, 2:] & (scene.free & scene.present)[:, None]
    flies = flies & ((height[:, 2:] - height[:, :-2]).abs() > PARTING * scene.scale[:, None, None])
    gains = -(height[:, 2:] - 2.0 * height[:, 1:-1] + height[:, :-2])[flies] / scene.dt**2
    found, alike = _commonest(gains)
    if alike < max(ALIKE, len(gains) // 16):
        return 0
    with torch.no_grad():
        model.free.fall.fill_(found / model.free.length)
    return alike


def _commonest(values: Float[Tensor, " N"]) -> tuple[float, int]:
    """The middle of those values that agree most with each other, and how many these are: what flies is struck now and
    then, or carried past sight of what carries it, and every time otherwise."""
    if len(values) == 0:
        return 0.0, 0
    near = (values[:, None] - values).abs() < AGREE * values.abs()[:, None]
    best = near[near.sum(1).argmax()]
    return float(values[best].median()), int(best.sum())


def fit_support(model: Dynamics, data: Recordings, room: Tensor, steps: int) -> int:
    """Fit what brakes objects on steps in which they slide and touch nothing; returns how many there were."""
    rows, link = _slides(data, room)
    if len(rows) < LEAST:
        return 0
    rows, link = rows[:1024], link[:1024]
    scene = select_worlds(data.scene, rows[:, 0])
    first, middle, last = (data.poses[rows[:, 0], rows[:, 1] + k] for k in range(3))
    way = motion_from_poses(torch.stack([first, middle], dim=1), scene.dt, model.belief)
    truth = transform_from_pose(last)
    picked = torch.arange(len(rows), device=link.device)
    rim = shape_values(scene, "bound")[picked, link]

    ways = [(b[picked, link, :3] - a[picked, link, :3]).norm(dim=-1) for a, b in ((first, middle), (middle, last))]
    slows = ((ways[0] - ways[1]) / scene.dt**2).median().clamp_min(1e-3)
    with torch.no_grad():  # about what most of them lose; the rest is sought from there
        model.support.brake.fill_(float((slows / model.support.length).log()))
        model.support.lever.fill_(0.0)
        if not model.config.forces:
            model.free.drag.fill_(0.0)
            model.free.spin_drag.fill_(0.0)
    alone = copy.copy(model)  # the same coefficients in a network without contacts
    alone.config = replace(model.config, contact=False, substeps=1)

    def loss() -> Tensor:
        got = _slide(alone, scene, way)[picked, link]
        true = truth[picked, link]
        off = (got[:, :3, 3] - true[:, :3, 3]).square().sum(-1)
        turned = (got[:, :3, :3] - true[:, :3, :3]).square().sum((-1, -2)) / 3.0 * rim**2
        return torch.log1p((off + turned + 1e-16).sqrt() / (0.02 * scene.scale)).mean()

    _descend(alone_parameters(model)[1], loss, steps)
    return len(rows)


@dataclass(frozen=True)
class _Run:
    """Windows of one agent: its joint values and rates [N,V], commands [N,RUN,A], values after them [N,RUN,V]."""

    agent: Agent
    drive: Drive
    values: Tensor
    rates: Tensor
    told: Tensor
    truth: Tensor


def _joint_runs(data: Recordings, room: Tensor) -> list[_Run]:
    """The windows of all agents, those of one make together."""
    found: dict[object, _Run] = {}
    for agent in data.scene.agents:
        drive = data.drives.get(agent.name)
        run = _joint_run(data, room, agent, drive) if drive is not None and agent.name in data.joints else None
        if run is None:
            continue
        make = (agent.action, run.drive.values, run.drive.components, run.drive.slope, run.drive.offset)
        other = found.get(make)
        if other is not None:
            pairs = [(getattr(other, name), getattr(run, name)) for name in ("values", "rates", "told", "truth")]
            run = _Run(other.agent, other.drive, *(torch.cat(pair) for pair in pairs))
        found[make] = run
    return list(found.values())


def _joint_run(data: Recordings, room: Tensor, agent: Agent, drive: Drive) -> _Run | None:
    """The windows in which the agent's joints, actions and surroundings let its drive be seen alone."""
    values, told = data.joints[agent.name], data.actions[agent.name]
    known = torch.isfinite(values).all(-1) & torch.isfinite(told).all(-1)
    alone = room[..., list(drive.links)].amin(-1) > APART
    long = RUN + CONTEXT
    free = (known & alone).unfold(1, long, 1).all(-1)
    if int(free.sum()) < LEAST:  # an arm that carries something all the time still tells how it moves
        free = known.unfold(1, long, 1).all(-1)
    if not bool(free.any()):
        return None
    episode, start = free.nonzero(as_tuple=True)
    cut = values.unfold(1, long, 1)[episode, start].transpose(1, 2)
    rates = rates_at(values, data.scene.dt, episode, start + CONTEXT - 1)
    asked = told.unfold(1, long, 1)[episode, start].transpose(1, 2)[:, CONTEXT - 1 : -1]
    return _Run(agent, drive, cut[:, CONTEXT - 1], rates, asked, cut[:, CONTEXT:])


def _fastest(run: _Run) -> Float[Tensor, " A"]:
    """How fast the driven values ever move, in parts of their range per second: about their servos' pace."""
    pace = run.rates[:, list(run.drive.values)].abs().quantile(0.99, dim=0)
    span = torch.tensor(run.agent.action.high) - torch.tensor(run.agent.action.low)
    span = span[list(run.drive.components)] * torch.tensor(run.drive.slope).abs()
    return (pace / span.to(pace)).clamp(1e-3, 1e3)


@torch.no_grad()
def _begin(model: Dynamics, run: _Run, lag: float) -> None:
    """Put the drive of a run where its coefficients are sought from: this lag, and the pace that is seen."""
    told, kinds, rows = model.actuation, list(run.drive.kinds), list(run.drive.rows)
    told.gain[kinds, rows], told.lag[kinds, rows], told.thrust[kinds, rows] = 1.0, math.log(lag), 3.0
    told.swing[kinds, rows], told.damp[kinds, rows] = math.log(2.0 / lag), 0.0
    told.pace[kinds, rows] = _fastest(run).log()


def _joint_loss(model: Dynamics, scene: Scene, run: _Run, width: float) -> Tensor:
    """How far each joint [V] ends up from the truth, in parts of a usual step; the first step, whose rate was guessed,
    only begins the others."""
    memory = full_memory(run.values, run.rates)
    found = []
    for step in range(RUN):
        values, memory = model.actuation.respond(scene, run.agent, run.drive, memory, run.told[:, step])
        found.append(values)
    way = torch.stack(found[1:], dim=1) - found[0][:, None]
    true = run.truth[:, 1:] - run.truth[:, :1]
    usual = run.truth.diff(dim=1).square().mean((0, 1)).sqrt().clamp_min(1e-6)
    moves = (true.abs().amax(dim=1, keepdim=True) > 0.1 * usual).to(way) + REST  # a joint that rests tells little
    return (moves * torch.log1p((way - true).abs() / (width * usual))).mean((0, 1)) / moves.mean((0, 1))


def _slides(data: Recordings, room: Tensor) -> tuple[Int[Tensor, "N 2"], Int[Tensor, " N"]]:
    """(episode, frame) and link of objects that move in this step and the next and part from all there is in both.

    What parts is pushed by nothing, while a gap that stays is a touch, however surfaces were read. What tips or rolls
    is not braked by friction under a flat body.
    """
    place = data.poses[..., :3]
    way = place.diff(dim=1).norm(dim=-1) / data.scene.scale[:, None, None]
    moves = (way[:, :-1] > 0.02) & (way[:, 1:] > 0.002)
    away = torch.nan_to_num(room.diff(dim=1), nan=torch.inf)  # out of reach of everything: no gap is known
    alone = (away[:, :-1] > PARTING) & (away[:, 1:] > 0.3 * PARTING) & (room[:, 1:-1] > APART)
    free = (data.scene.free & data.scene.present)[:, None]
    down = data.scene.down[:, None, None]
    high = (place * down).sum(-1) / data.scene.scale[:, None, None]
    turn = transform_from_pose(data.poses)[..., :3, :3]
    upright = (turn.transpose(-1, -2) @ down[..., None])[..., 0]  # gravity's direction as the body has it
    tilts = torch.linalg.cross(upright[:, :-2], upright[:, 2:]).norm(dim=-1)
    flat = ((high[:, 2:] - high[:, :-2]).abs() < FLAT[0]) & (tilts < FLAT[1])
    episode, start, link = (moves & alone & free & flat).nonzero(as_tuple=True)
    return torch.stack([episode, start], dim=1), link


def _slide(model: Dynamics, scene: Scene, way: Motion) -> Tensor:
    """Poses a step after `way`, whose twists are means over the step before and hence those in its middle."""
    late = model.step(replace(scene, dt=0.5 * scene.dt), way)
    return model.step(scene, replace(way, twists=late.twists)).world_from_link


def _gaps(model: Dynamics, scene: Scene, poses: Tensor, drives: Mapping[str, Drive]) -> Tensor:
    """Least gaps (m) of all links; half-spaces count for agents' links where joints move these along their normals."""
    motion = still_motion(transform_from_pose(poses), model.belief)
    bodies = bodies_of(scene, motion, motion.twists)
    linkage = None
    if drives:
        rest = {name: Joints(*rest_memory(drive, len(scene)).chunk(3, dim=-1)) for name, drive in drives.items()}
        ones = {name: torch.ones_like(joints.values) for name, joints in rest.items()}
        ease = {name: Yield(one, one) for name, one in ones.items()}
        linkage = model.actuation.linkage(scene, drives, rest, ease)
    shapes = body_shapes(scene, torch.zeros_like(model.materials.skin))
    fast = replace(bodies, speed=bodies.speed + 1.0)
    near = near_pairs(scene, shapes, fast, 0.1 * float(scene.scale.max()), linkage)
    gaps = torch.full((scene.solid.numel(),), torch.inf, device=poses.device)
    if not len(near):
        return gaps.view(scene.solid.shape)
    _, overlaps = find_contacts(scene, shapes, bodies, near, scene.dt)
    below = (overlaps.normal * -scene.down.repeat_interleave(scene.solid.shape[1], 0)[overlaps.a]).sum(-1) > 0.9
    below = below & (overlaps.b % scene.solid.shape[1] == 0) & scene.free.repeat(len(scene))[overlaps.a]
    apart = torch.where(below, torch.full_like(overlaps.depth, torch.inf), -overlaps.depth)
    for row in (overlaps.a, overlaps.b):
        gaps = gaps.scatter_reduce(0, row, apart, "amin")
    return gaps.view(scene.solid.shape)


def _descend(parameters: list[torch.nn.Parameter], loss: Callable[[], Tensor], steps: int, rate: float = 0.1) -> None:
    """Adam on a few coefficients, all windows at once."""
    optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-4)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward(inputs=parameters)
        optimiser.step()
        schedule.step()
