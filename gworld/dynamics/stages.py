"""Operators that act alone somewhere are fitted there first: drives where agents touch nothing, friction under objects
where they slide free. What is learned together afterwards then cannot explain one of them by another's fault.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.dynamics.actuation import Drive
from gworld.dynamics.contact import body_shapes, find_contacts, near_pairs
from gworld.dynamics.forces import fit_forces
from gworld.dynamics.network import Dynamics, bodies_of
from gworld.dynamics.recordings import Recordings
from gworld.dynamics.state import Motion, motion_from_poses, still_motion
from gworld.dynamics.tokens import Agent, Scene, select_worlds, shape_values
from gworld.geometry import transform_from_pose

APART = 0.045
"""Gap, in radii, beyond which nothing is touched: surfaces read from Gaussians are a little off."""
PARTING = 0.02
"""Growth of a gap in a step, in radii, by which bodies part."""
RUN = 6
"""Steps over which a joint's motion is followed."""
WIDTHS = (0.1, 0.02)
"""Errors, in parts of a usual step, above which they count ever less: first most count, then the many that agree."""
LAGS = (0.01, 0.06, 0.3)
"""Seconds from which the lag of drives is sought."""
LEAST = 8
"""Windows below which nothing can be fitted."""
CHUNK = 256
"""Worlds looked at together."""


@dataclass(frozen=True)
class Fitted:
    """Which operators were fitted alone, and on how many windows."""

    drives: int = 0
    support: int = 0
    forces: int = 0


def fit_alone(model: Dynamics, data: Recordings, steps: int = 200) -> Fitted:
    """Fit the drives, the support's friction and forces across a distance where they act alone; what has too few
    windows is left."""
    forces = fit_forces(model.forces, model.materials, model.free, data) if model.config.forces else 0
    drives = any(name in data.joints and drive.values for name, drive in data.drives.items())
    drives, support = drives and model.config.actuation, model.config.support
    if not (drives or support):
        return Fitted(forces=forces)
    room = clearance(model, data)
    return Fitted(
        fit_drives(model, data, room, steps) if drives else 0,
        fit_support(model, data, room, steps) if support else 0,
        forces,
    )


def alone_parameters(model: Dynamics) -> tuple[list[torch.nn.Parameter], ...]:
    """What the three fits find: the coefficients of the drives, of the support, of forces across a distance."""
    drives, support, forces = model.actuation, model.support, [model.forces.strength, model.forces.exponent]
    forces += [model.materials.power, model.free.fall, model.free.drag] if model.config.forces else []
    return [drives.gain, drives.lag, drives.thrust], [support.brake, support.lever], forces


@torch.no_grad()
def clearance(model: Dynamics, data: Recordings) -> Float[Tensor, "E T L"]:
    """The least gap (radii) between a link and anything it does not lie on: bodies, planes, other agents' links."""
    scene, steps = data.scene, data.poses.shape[1]
    worlds = torch.arange(len(data), device=data.poses.device).repeat_interleave(steps)
    poses = data.poses.flatten(0, 1)
    parts = [
        _gaps(model, select_worlds(scene, rows), poses[at])
        for rows, at in zip(worlds.split(CHUNK), torch.arange(len(poses)).split(CHUNK), strict=True)
    ]
    return torch.cat(parts).view(len(data), steps, -1) / scene.scale[:, None, None]


def fit_drives(model: Dynamics, data: Recordings, room: Tensor, steps: int) -> int:
    """Fit the response to commands on runs in which an agent's links touch nothing; returns how many there were."""
    runs = []
    for agent in data.scene.agents:
        drive = data.drives.get(agent.name)
        if drive is not None and agent.name in data.joints:
            runs += [run for run in (_joint_run(data, room, agent, drive),) if run is not None]
    count = sum(len(run.values) for run in runs)
    if count < LEAST:
        return 0
    own = alone_parameters(model)[0]

    def loss(width: float) -> Tensor:
        return torch.stack([_joint_loss(model, data.scene, run, width) for run in runs]).mean()

    told, found = model.actuation, []
    kinds = sorted({kind for run in runs for kind in run.drive.kinds})
    for lag in LAGS:  # a slow drive and a weak one look alike from afar, hence several beginnings
        with torch.no_grad():
            told.gain[kinds], told.lag[kinds], told.thrust[kinds] = 1.0, math.log(lag), 3.0
        _descend(own, lambda: loss(WIDTHS[0]), steps // 4)
        found.append((float(loss(WIDTHS[0]).detach()), [p.detach().clone() for p in own]))
    with torch.no_grad():
        for parameter, value in zip(own, min(found, key=lambda pair: pair[0])[1], strict=True):
            parameter.copy_(value)
    _descend(own, lambda: loss(WIDTHS[1]), steps // 2)
    return count


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
    """Windows of one agent: its joint values [N,V], the step's mean rates before [N,V], commands [N,RUN,A], truth."""

    agent: Agent
    drive: Drive
    values: Tensor
    rates: Tensor
    told: Tensor
    truth: Tensor


def _joint_run(data: Recordings, room: Tensor, agent: Agent, drive: Drive) -> _Run | None:
    """The windows in which the agent's joints, actions and surroundings let its drive be seen alone."""
    values, told = data.joints[agent.name], data.actions[agent.name]
    known = torch.isfinite(values).all(-1) & torch.isfinite(told).all(-1)
    alone = room[..., list(drive.links)].amin(-1) > APART
    free = (known & alone).unfold(1, RUN + 2, 1).all(-1)
    if int(free.sum()) < LEAST:  # an arm that carries something all the time still tells how it moves
        free = known.unfold(1, RUN + 2, 1).all(-1)
    if not bool(free.any()):
        return None
    episode, start = free.nonzero(as_tuple=True)
    cut = values.unfold(1, RUN + 2, 1)[episode, start].transpose(1, 2)
    rates = (cut[:, 1] - cut[:, 0]) / data.scene.dt
    asked = told.unfold(1, RUN + 2, 1)[episode, start].transpose(1, 2)[:, 1:-1]
    return _Run(agent, drive, cut[:, 1], rates, asked, cut[:, 2:])


def _joint_loss(model: Dynamics, scene: Scene, run: _Run, width: float) -> Tensor:
    """How far joints end up from the truth, in parts of a usual step; the first step, whose rate was guessed, only
    begins the others."""
    memory = torch.cat([run.values, run.rates], dim=-1)
    found = []
    for step in range(RUN):
        values, memory = model.actuation.respond(scene, run.agent, run.drive, memory, run.told[:, step])
        found.append(values)
    way = torch.stack(found[1:], dim=1) - found[0][:, None]
    true = run.truth[:, 1:] - run.truth[:, :1]
    usual = run.truth.diff(dim=1).square().mean((0, 1)).sqrt().clamp_min(1e-6)
    return torch.log1p((way - true).abs() / (width * usual)).mean()


def _slides(data: Recordings, room: Tensor) -> tuple[Int[Tensor, "N 2"], Int[Tensor, " N"]]:
    """(episode, frame) and link of objects that move in this step and the next and part from all there is in both.

    What parts is pushed by nothing, while a gap that stays is a touch, however surfaces were read.
    """
    place = data.poses[..., :3]
    way = place.diff(dim=1).norm(dim=-1) / data.scene.scale[:, None, None]
    moves = (way[:, :-1] > 0.02) & (way[:, 1:] > 0.002)
    away = torch.nan_to_num(room.diff(dim=1), nan=torch.inf)  # out of reach of everything: no gap is known
    alone = (away[:, :-1] > PARTING) & (away[:, 1:] > 0.3 * PARTING) & (room[:, 1:-1] > APART)
    free = (data.scene.free & data.scene.present)[:, None]
    episode, start, link = (moves & alone & free).nonzero(as_tuple=True)
    return torch.stack([episode, start], dim=1), link


def _slide(model: Dynamics, scene: Scene, way: Motion) -> Tensor:
    """Poses a step after `way`, whose twists are means over the step before and hence those in its middle."""
    late = model.step(replace(scene, dt=0.5 * scene.dt), way)
    return model.step(scene, replace(way, twists=late.twists)).world_from_link


def _gaps(model: Dynamics, scene: Scene, poses: Tensor) -> Tensor:
    motion = still_motion(transform_from_pose(poses), model.belief)
    bodies = bodies_of(scene, motion, motion.twists)
    shapes = body_shapes(scene, torch.zeros_like(model.materials.skin))
    fast = replace(bodies, speed=bodies.speed + 1.0)
    near = near_pairs(scene, shapes, fast, 0.1 * float(scene.scale.max()))
    gaps = torch.full((scene.solid.numel(),), torch.inf, device=poses.device)
    if not len(near):
        return gaps.view(scene.solid.shape)
    _, overlaps = find_contacts(scene, shapes, bodies, near, scene.dt)
    below = (overlaps.normal * -scene.down.repeat_interleave(scene.solid.shape[1], 0)[overlaps.a]).sum(-1) > 0.9
    below = below & (overlaps.b % scene.solid.shape[1] == 0)
    apart = torch.where(below, torch.full_like(overlaps.depth, torch.inf), -overlaps.depth)
    for row in (overlaps.a, overlaps.b):
        gaps = gaps.scatter_reduce(0, row, apart, "amin")
    return gaps.view(scene.solid.shape)


def _descend(parameters: list[torch.nn.Parameter], loss: Callable[[], Tensor], steps: int) -> None:
    """Adam on a few coefficients, all windows at once."""
    optimiser = torch.optim.Adam(parameters, lr=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-4)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward(inputs=parameters)
        optimiser.step()
        schedule.step()
