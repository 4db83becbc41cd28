"""Learning from recordings: operators where they act alone first, then all together, short predictions before longer
ones, from noisy starts, with actions left out.

Resuming gives the run that was never interrupted, bit for bit on a CPU: weights, optimiser, best weights and random
generator are in every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from gworld.checkpoint import (
    Checkpoint,
    capture_generators,
    flatten_state,
    latest_checkpoint,
    load_checkpoint,
    restore_generators,
    save_checkpoint,
    unflatten_state,
)
from gworld.dynamics.actuation import actuation_of
from gworld.dynamics.baselines import Plain
from gworld.dynamics.judge import pose_errors, validate
from gworld.dynamics.network import Dynamics, save_values
from gworld.dynamics.recordings import Batch, Recordings, cut_batch, window_table
from gworld.dynamics.stages import Fitted, alone_parameters, fit_alone
from gworld.dynamics.stages_contact import ContactConfig
from gworld.dynamics.state import Motion
from gworld.runlog import RunLog

Learner = Dynamics | Plain
"""What can be trained."""
LEAST = 0.02
"""Error, in radii, below which the loss is proportional and above which it grows with the logarithm: chaos after a
contact must not drown what can be learned."""


@dataclass(frozen=True)
class TrainConfig:
    """How to learn."""

    steps: int = 400
    """Steps of the optimiser."""
    batch: int = 48
    """Windows per step."""
    horizons: tuple[int, ...] = (1, 3, 6)
    """Steps that are predicted, in turn: each for an equal part of the run."""
    rate: float = 0.05
    """Learning rate of single coefficients; networks learn at a tenth of it."""
    noise: float = 2e-4
    """Standard deviation of the noise on velocities at the start, in radii per step."""
    dropped: float = 0.1
    """Part of the windows in which an agent's actions are unknown, drawn for each agent."""
    alone: int = 300
    """Steps with which operators are first fitted where they act alone."""
    contact: ContactConfig = field(default_factory=ContactConfig)
    """How contact, mass and what joints give way are fitted after that, where agents touch things."""
    settled: float = 0.1
    """Part of the rate at which what was fitted alone goes on to learn."""
    sparse: float = 1e-2
    """Weight of what pulls the residual towards nothing."""
    every: int = 50
    """Steps between validations and checkpoints."""
    patience: int = 10
    """Validations without gain after which learning ends."""
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A model with its best weights, and its errors: validation error by step."""

    model: Learner
    losses: tuple[tuple[int, float], ...]
    steps: int


def train(
    model: Learner,
    data: Recordings,
    held_out: Recordings,
    config: TrainConfig = TrainConfig(),
    out: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """Learn from recordings until `config.steps`, or until the error on `held_out` no longer falls.

    With `out`, a run folder is written, and an interrupted run in it goes on where its last checkpoint is.
    """
    generator = torch.Generator().manual_seed(config.seed)
    optimiser = torch.optim.Adam(_groups(model, config), betas=(0.9, 0.98))
    best, first = _copy(model), 0
    losses: list[tuple[int, float]] = []
    found = latest_checkpoint(out) if out is not None else None
    if found is not None:
        first, best, losses = _restore(load_checkpoint(found), model, optimiser, generator)
    elif isinstance(model, Dynamics) and config.alone:
        _slow(optimiser, fit_alone(model, data, config.alone, config.contact), config)
    log = RunLog(out, resume_step=first if found else None) if out is not None else None
    step = first
    try:
        for step in range(first, config.steps + 1):
            if step % config.every == 0 and (step > first or step == 0):
                losses.append((step, validate(model, held_out)))
                progress(step, losses[-1][1])
                best = _copy(model) if losses[-1][1] <= min(loss for _, loss in losses) else best
                if log is not None:
                    log.metrics(step, validation=losses[-1][1])
                    save_checkpoint(out or "", _checkpoint(step, model, optimiser, generator, best, losses))
                if _stalled(losses, config.patience):
                    break
            if step < config.steps:
                loss = _improve(model, optimiser, data, config, step, generator)
                if log is not None and step % 10 == 0:
                    log.metrics(step, loss=loss)
    finally:
        if log is not None:
            log.__exit__(None, None, None)
    model.load_state_dict(best)
    return Trained(model, tuple(losses), step)


def _improve(
    model: Learner, optimiser: torch.optim.Optimizer, data: Recordings, config: TrainConfig, step: int,
    generator: torch.Generator,
) -> float:  # fmt: skip
    """One step of the optimiser; a gradient that is not finite is passed over."""
    part = min(step * len(config.horizons) // config.steps, len(config.horizons) - 1)
    horizon = min(config.horizons[part], data.poses.shape[1] - 4)
    table, share = window_table(data, horizon)
    rows = table[torch.multinomial(share, config.batch, replacement=True, generator=generator)]
    batch = _disturb(cut_batch(data, rows, horizon, model.belief, actuation_of(model)), config, generator)
    errors = pose_errors(model, batch, data)
    loss = torch.log1p(errors / LEAST).mean()
    if isinstance(model, Dynamics):
        loss = loss + config.sparse * model.residual.gate.abs()
    optimiser.zero_grad()
    loss.backward()
    for group in optimiser.param_groups:
        group["lr"] = group["first"] * 0.5 * (1 + math.cos(math.pi * step / config.steps)) + 1e-5 * (group["first"] > 0)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    if bool(torch.isfinite(norm)):
        optimiser.step()
    return float(loss.detach())


def _disturb(batch: Batch, config: TrainConfig, generator: torch.Generator) -> Batch:
    """Noise on the velocities of objects that move, and actions left out."""
    moving = batch.scene.free & batch.scene.present
    size = config.noise * batch.scene.scale / batch.scene.dt
    noise = (
        torch.randn(batch.start.twists.shape, generator=generator).to(size) * size[:, None, None] * moving[..., None]
    )
    noise[..., 3:] /= batch.scene.scale[:, None, None]
    start: Motion = replace(batch.start, twists=batch.start.twists + noise)
    actions = {}
    for name, value in batch.actions.items():
        gone = (torch.rand(len(value), generator=generator) < config.dropped).to(value.device)
        actions[name] = torch.where(gone[:, None, None], torch.full_like(value, torch.nan), value)
    return replace(batch, start=start, actions=actions)


def _slow(optimiser: torch.optim.Optimizer, fitted: Fitted, config: TrainConfig) -> None:
    """Let what was fitted alone learn on slowly; the rates are part of the optimiser's state."""
    counts = (fitted.drives, fitted.support, fitted.forces, fitted.contact)
    for group, windows in zip(optimiser.param_groups[2:], counts, strict=True):
        group["first"] *= config.settled if windows else 1.0
    if fitted.forces:  # all accelerations at once say more than windows whose first velocities are a little off
        optimiser.param_groups[4]["first"] = 0.0


def _groups(model: Learner, config: TrainConfig) -> list[dict[str, object]]:
    alone = alone_parameters(model) if isinstance(model, Dynamics) else ()
    apart = {id(p) for group in alone for p in group}
    single = [p for p in model.parameters() if p.ndim <= 1 and p.numel() <= 8 and not _in_net(model, p)]
    single = [p for p in single if id(p) not in apart]
    ids = {id(p) for p in single} | apart
    nets = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": single, "lr": config.rate, "first": config.rate},
        {"params": nets, "lr": 0.1 * config.rate, "first": 0.1 * config.rate},
        *({"params": group, "lr": config.rate, "first": config.rate} for group in alone),
    ]


def _in_net(model: Learner, parameter: Tensor) -> bool:
    return any(p is parameter for m in model.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters())


def _stalled(losses: list[tuple[int, float]], patience: int) -> bool:
    values = [loss for _, loss in losses]
    return len(values) > patience and min(values[-patience:]) > 0.98 * min(values[:-patience])


def _copy(model: Learner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _checkpoint(
    step: int, model: Learner, optimiser: torch.optim.Optimizer, generator: torch.Generator, best: dict[str, Tensor],
    losses: list[tuple[int, float]],
) -> Checkpoint:  # fmt: skip
    tensors, skeleton = flatten_state(optimiser.state_dict(), "optimiser")
    tensors |= {f"model.{name}": value for name, value in best.items()}
    tensors |= {f"now.{name}": value for name, value in model.state_dict().items()}
    values = {
        **(save_values(model) if isinstance(model, Dynamics) else {}),
        "optimiser": skeleton,
        "losses": [list(pair) for pair in losses],
    }
    return Checkpoint(step, tensors, values, capture_generators({"train": generator}))


def _restore(
    checkpoint: Checkpoint, model: Learner, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[int, dict[str, Tensor], list[tuple[int, float]]]:
    tensors = checkpoint.tensors
    best = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
    model.load_state_dict({n.removeprefix("now."): v for n, v in tensors.items() if n.startswith("now.")})
    optimiser.load_state_dict(unflatten_state(tensors, checkpoint.values["optimiser"]))
    restore_generators(checkpoint.generators, {"train": generator})
    return checkpoint.step, best, [(int(step), float(loss)) for step, loss in checkpoint.values["losses"]]
