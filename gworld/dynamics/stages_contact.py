"""Contact, mass and how joints give way, fitted in a stage of their own: after the drives and the support, which hold
still meanwhile, and before everything learns together.

What is learned with all else at once drifts: an error of a drive is then explained by a mass or a bounce.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.dynamics.judge import pose_errors
from gworld.dynamics.network import Dynamics
from gworld.dynamics.recordings import CONTEXT, Recordings, cut_batch

TOUCH = 0.045
"""Gap, in radii, below which an agent's link counts as touching."""
MOVED = 0.05
"""Way (radii) of an object within a window by which it counts as moved."""
WIDTH = 0.02
"""Error, in radii, above which errors count ever less: what is chaos after a contact must not drown the rest."""
NETS = 0.2
"""Part of the rate at which networks learn."""
PRIOR = 1e-3
"""Pull of mass towards a power of one of volume, of bounces towards none and of leads towards the usual: felt where
windows tell nothing."""


@dataclass(frozen=True)
class ContactConfig:
    """How contact is fitted."""

    steps: int = 60
    """Steps of the optimiser."""
    batch: int = 12
    """Windows per step."""
    horizons: tuple[int, ...] = (2, 5)
    """Steps predicted, in turn."""
    rate: float = 0.05
    """Learning rate."""
    seed: int = 0
    """Draws windows."""


def contact_parameters(model: Dynamics) -> list[torch.nn.Parameter]:
    """What the stage finds: mass, bounce, grip and reach of bodies, how these depend on shape, inertia and lead of
    joints."""
    own, drives = model.materials, model.actuation
    single = [own.power, own.bounce, own.grip, own.skin, own.mix, drives.heft, drives.lead]
    return [*single, *own.shape.parameters()]


def fit_contact(
    model: Dynamics, data: Recordings, room: Float[Tensor, "E T L"], config: ContactConfig, brakes: bool = False
) -> int:
    """Fit contact on windows in which agents touch something or objects move; returns how many there are.

    With `brakes`, friction under what lies is found here too: nothing slid alone that would have told of it.
    """
    rows = touching_windows(data, room, max(config.horizons))
    if len(rows) < config.batch:
        return 0
    own = contact_parameters(model) + ([model.support.brake] if brakes else [])
    with torch.no_grad():  # of one density and without bounce, until the windows tell otherwise
        if not model.config.forces:
            model.materials.power.fill_(1.0)
        model.materials.bounce.fill_(0.0)
        model.actuation.lead.copy_(usual_lead(model))
        if brakes:
            _begin_braking(model)
    held = [p for p in model.parameters() if all(p is not q for q in own)]
    wanted = [p.requires_grad for p in held]
    generator = torch.Generator().manual_seed(config.seed)
    nets = list(model.materials.shape.parameters())
    single = [p for p in own if all(p is not q for q in nets)]
    rates = [{"params": single, "part": 1.0}, {"params": nets, "part": NETS}]
    optimiser = torch.optim.Adam(rates, lr=config.rate, betas=(0.9, 0.98))
    for parameter in held:
        parameter.requires_grad_(False)
    mean, counted = [torch.zeros_like(p) for p in own], 0
    try:
        for step in range(config.steps):
            horizon = config.horizons[step * len(config.horizons) // config.steps]
            chosen = rows[torch.randint(len(rows), (config.batch,), generator=generator)]
            errors = pose_errors(model, cut_batch(data, chosen, horizon, model.belief, model.actuation), data)
            loss = torch.log1p(errors / WIDTH).mean() + PRIOR * _prior(model)
            optimiser.zero_grad()
            loss.backward(inputs=own)
            norm = torch.nn.utils.clip_grad_norm_(own, 1.0)
            for group in optimiser.param_groups:
                fading = 0.5 * (1 + math.cos(math.pi * step / config.steps))
                group["lr"] = group["part"] * (config.rate * fading + 1e-4)
            if bool(torch.isfinite(norm)):
                optimiser.step()
            if step >= config.steps // 2:  # few windows tell of any one number: the mean of where they draw it
                mean, counted = [m + p.detach() for m, p in zip(mean, own, strict=True)], counted + 1
        with torch.no_grad():
            for parameter, total in zip(own, mean, strict=True):
                parameter.copy_(total / max(counted, 1))
    finally:
        for parameter, before in zip(held, wanted, strict=True):
            parameter.requires_grad_(before)
    return len(rows)


def _begin_braking(model: Dynamics) -> None:
    """Friction of half the weight, as much against turning, and no air: where nothing tells of them alone."""
    model.support.brake.fill_(math.log(0.5) + float(model.free.fall.abs().clamp_min(1e-3).log()))
    model.support.lever.fill_(0.0)
    if not model.config.forces:
        model.free.drag.fill_(0.0)
        model.free.spin_drag.fill_(0.0)


def usual_lead(model: Dynamics) -> Tensor:
    """Logarithms of leads of twice what servos are behind their aims at full pace: what is blocked aims somewhat, but
    not for ever, farther than what moves."""
    own = model.actuation
    return (2.0 * own.trail().detach()).log() + own.pace.detach()


def touching_windows(data: Recordings, room: Float[Tensor, "E T L"], horizon: int) -> Int[Tensor, "N 2"]:
    """(episode, frame of start) of windows in which an object moves, or an agent's links touch something."""
    scene, frames = data.scene, data.poses.shape[1]
    place = data.poses[..., :3]
    links = [link for agent in scene.agents for link in agent.links]
    found = []
    for start in range(CONTEXT - 1, frames - horizon):
        way = (place[:, start + horizon] - place[:, start]).norm(dim=-1) / scene.scale[:, None]
        moves = ((way > MOVED) & scene.free & scene.present).any(-1)
        touches = (room[:, start : start + horizon + 1, links] < TOUCH).flatten(1).any(-1) if links else moves
        episode = (moves | touches).nonzero()[:, 0]
        found.append(torch.stack([episode, torch.full_like(episode, start)], dim=1))
    return torch.cat(found)


def _prior(model: Dynamics) -> Tensor:
    own = model.materials
    return (own.power - 1.0).square() + own.bounce.square() + (model.actuation.lead - usual_lead(model)).square().mean()
