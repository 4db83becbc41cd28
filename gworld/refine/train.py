"""Learning to refine from pairs: short stretches of film, cut and coloured at random, one denoising step a frame.

Resuming gives the run that was never interrupted, bit for bit on a CPU: weights, their running mean, optimiser and
random generator are in every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
from gworld.data.pairset import Pair
from gworld.errors import InputError
from gworld.refine.inputs import Inputs, move_inputs, warp
from gworld.refine.network import Refiner, State, save_values
from gworld.refine.stretches import Reel, cut_batch, make_reel
from gworld.runlog import RunLog

ROUND = 0.01
"""Error below which the loss is quadratic, of 0..1."""


@dataclass(frozen=True)
class TrainConfig:
    """How to learn."""

    steps: int = 1200
    """Steps of the optimiser."""
    batch: int = 4
    """Stretches per step."""
    frames: int = 2
    """Frames of a stretch."""
    crop: int = 96
    """Side of the square that is cut out, in pixels; a multiple of 8."""
    rate: float = 1.5e-3
    """Learning rate at its highest."""
    flicker: float = 0.5
    """Weight of what differs from frame to frame otherwise than the truth does."""
    edges: float = 0.3
    """Weight of the gradients' error."""
    alike: float = 0.1
    """Weight of what lacks in likeness (1 - SSIM, over squares of 7 pixels)."""
    dropped: float = 0.1
    """Part of the stretches without photos, and without an output before, each."""
    average: float = 0.995
    """How slowly the running mean of the weights follows."""
    every: int = 200
    """Steps between validations and checkpoints."""
    seed: int = 0
    """Draws stretches, noise and augmentations."""


@dataclass(frozen=True)
class Trained:
    """A refiner with its averaged weights; validation PSNR in dB by step, and that of the renders."""

    model: Refiner
    scores: tuple[tuple[int, float], ...]
    raw: float
    steps: int


def train(
    model: Refiner,
    pairs: Iterable[Pair],
    held_out: Iterable[Pair] = (),
    config: TrainConfig = TrainConfig(),
    out: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, psnr: None,
    along: Checkpoint | None = None,
) -> Trained:
    """Learn for `config.steps` on the CPU or device the model is on; with `out` a run folder is kept and resumed.

    Tensors and values of `along` go into every checkpoint (the photos that the refiner will refer to).
    Raises `InputError` where no pair can be learned from.
    """
    reels = [make_reel(pair) for pair in pairs]
    if not reels or config.crop % 8 or min(min(reel.size) for reel in reels) < config.crop:
        sizes = {reel.size for reel in reels}
        raise InputError(
            f"squares of {config.crop} pixels cannot be cut out of pairs of {sizes or 'no size'}; a multiple of 8 that "
            "fits into every clip is needed."
        )
    judges = [make_reel(pair) for pair in held_out]
    generator = torch.Generator().manual_seed(config.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack this form
    mean = _copy(model)
    scores: list[tuple[int, float]] = []
    first = 0
    found = latest_checkpoint(out) if out is not None else None
    if found is not None:
        first, scores = _restore(load_checkpoint(found), model, mean, optimiser, generator)
    log = RunLog(out, resume_step=first if found else None) if out is not None else None
    try:
        for step in range(first, config.steps):
            loss = _improve(model, optimiser, reels, config, step, generator)
            with torch.no_grad():
                slow = min(config.average, (1 + step) / (10 + step))
                for name, value in model.state_dict().items():
                    mean[name].lerp_(value, 1 - slow)
            if log is not None and step % 10 == 0:
                log.metrics(step, loss=loss)
            if (step + 1) % config.every == 0 or step + 1 == config.steps:
                scores.append((step + 1, _judge(model, mean, judges)))
                progress(*scores[-1])
                if log is not None:
                    log.metrics(step, psnr=scores[-1][1])
                    kept = _checkpoint(step + 1, model, mean, optimiser, generator, scores)
                    save_checkpoint(out or "", _with(kept, along))
    finally:
        if log is not None:
            log.__exit__(None, None, None)
    model.load_state_dict(mean)
    return Trained(model, tuple(scores), _raw(judges), config.steps)


def loss_of(model: Refiner, batch: Sequence[Inputs], config: TrainConfig, sigma: float, fresh: Tensor) -> Tensor:
    """The loss of a stretch of frames that follow each other; `fresh` [B] marks those that never see an output."""
    state: State | None = None
    total = batch[0].rgb.new_zeros(())
    last: Tensor | None = None
    for inputs in batch:
        truth = inputs.truth
        assert truth is not None
        inputs = replace(inputs, kept=inputs.kept * (1 - fresh[:, None, None, None]))
        picture, state = model(inputs, state, sigma)
        error = picture - truth
        total = total + _round(error) + config.edges * (_round(error.diff(dim=2)) + _round(error.diff(dim=3)))
        if config.alike:
            total = total + config.alike * (1 - _likeness(picture, truth))
        if last is not None and config.flicker:
            # The warped error before against the error now: what is equally wrong in both does not flicker.
            total = total + config.flicker * _round((error - warp(last, inputs.place)) * inputs.kept)
        last = error
    return total / len(batch)


def _improve(
    model: Refiner, optimiser: torch.optim.Optimizer, reels: Sequence[Reel], config: TrainConfig, step: int,
    generator: torch.Generator,
) -> float:  # fmt: skip
    batch = cut_batch(reels, config.batch, config.frames, config.crop, config.dropped, generator)
    device = next(model.parameters()).device
    batch = [_on(inputs, device) for inputs in batch]
    sigma = model.config.sigma * float(torch.rand((), generator=generator)) * 2
    fresh = (torch.rand(config.batch, generator=generator) < config.dropped).float().to(device)
    loss = loss_of(model, batch, config, sigma, fresh)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    warm = min(1.0, (step + 1) / 50)
    for group in optimiser.param_groups:
        group["lr"] = config.rate * warm * (0.5 * (1 + math.cos(math.pi * step / config.steps)) + 0.01)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if bool(torch.isfinite(norm)):
        optimiser.step()
    return float(loss.detach())


@torch.no_grad()
def _judge(model: Refiner, mean: dict[str, Tensor], reels: Sequence[Reel]) -> float:
    """Mean PSNR of the held-out frames with the averaged weights, each reel from its first frame on."""
    if not reels:
        return math.nan
    own = _copy(model)
    model.load_state_dict(mean)
    found = []
    device = next(model.parameters()).device
    for reel in reels:
        state: State | None = None
        for frame in reel.frames:
            inputs = _on(frame, device)
            picture, state = model(inputs, state)
            found.append(_psnr(picture.clamp(0, 1), inputs.truth))
    model.load_state_dict(own)
    return sum(found) / len(found)


def _raw(reels: Sequence[Reel]) -> float:
    found = [_psnr(frame.rgb.float(), frame.truth) for reel in reels for frame in reel.frames]
    return sum(found) / len(found) if found else math.nan


def _psnr(picture: Tensor, truth: Tensor | None) -> float:
    assert truth is not None
    return -10 * math.log10(max(float((picture - truth.float()).square().mean()), 1e-10))


def _round(error: Tensor) -> Tensor:
    return ((error.square() + ROUND**2).sqrt() - ROUND).mean()


def _likeness(one: Tensor, two: Tensor) -> Tensor:
    """SSIM over squares. Source: Wang et al., "Image quality assessment", 2004."""
    planes = torch.cat([one, two, one * one, two * two, one * two], dim=1)
    a, b, aa, bb, ab = torch.nn.functional.avg_pool2d(planes, 7, 1).chunk(5, dim=1)
    mean, spread = 2 * a * b + 1e-4, aa + bb - a * a - b * b + 9e-4
    return (mean * (2 * (ab - a * b) + 9e-4) / ((a * a + b * b + 1e-4) * spread)).mean()


def _on(inputs: Inputs, device: torch.device) -> Inputs:
    return move_inputs(move_inputs(inputs, torch.float32), device)


def _copy(model: Refiner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _checkpoint(
    step: int, model: Refiner, mean: dict[str, Tensor], optimiser: torch.optim.Optimizer, generator: torch.Generator,
    scores: list[tuple[int, float]],
) -> Checkpoint:  # fmt: skip
    tensors, skeleton = flatten_state(optimiser.state_dict(), "optimiser")
    tensors |= {f"model.{name}": value for name, value in mean.items()}
    tensors |= {f"now.{name}": value for name, value in model.state_dict().items()}
    told = [[step, None if math.isnan(score) else score] for step, score in scores]
    values = {**save_values(model), "optimiser": skeleton, "scores": told}
    return Checkpoint(step, tensors, values, capture_generators({"train": generator}))


def _with(checkpoint: Checkpoint, along: Checkpoint | None) -> Checkpoint:
    if along is None:
        return checkpoint
    tensors, values = along.tensors | checkpoint.tensors, along.values | checkpoint.values
    return replace(checkpoint, tensors=tensors, values=values)


def _restore(
    checkpoint: Checkpoint, model: Refiner, mean: dict[str, Tensor], optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[int, list[tuple[int, float]]]:  # fmt: skip
    tensors = checkpoint.tensors
    model.load_state_dict({n.removeprefix("now."): v for n, v in tensors.items() if n.startswith("now.")})
    mean.update({n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")})
    optimiser.load_state_dict(unflatten_state(tensors, checkpoint.values["optimiser"]))
    restore_generators(checkpoint.generators, {"train": generator})
    told = checkpoint.values["scores"]
    return checkpoint.step, [(int(step), math.nan if score is None else float(score)) for step, score in told]
