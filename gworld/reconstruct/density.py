"""Density control with a fixed budget: Gaussians as samples of a Markov chain, moved where the scene needs them.

Source: Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo", 2024. A dead Gaussian is not pruned but
put onto a living one, whose opacity and scale are changed so that the stack of both draws the same picture (eq. 9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.geometry import matrix_from_quat, normalize_quat
from gworld.render.native_train import AdamState

DEAD = 0.005
"""Opacity below which a Gaussian is relocated."""
MOST_COPIES = 51
NOISE = 5e5
"""Strength of the exploration noise, in units of the positions' learning rate."""
SOLID = 0.07
"""Opacity from which on the noise is below a five-hundredth of its full strength and is left out."""

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Grown:
    """Gaussians and their optimiser after a change of density: the rows that moved elsewhere, how many were added."""

    params: Params
    adam: AdamState
    moved: Tensor
    added: int = 0


def control_mcmc(params: Params, adam: AdamState, target: int, unseen: Tensor, generator: torch.Generator) -> Grown:
    """Relocate dead (and `unseen`) Gaussians onto living ones and add new ones up to `target`, all drawn by opacity.

    Tensors change in place where their length stays. A row that was moved, and the one it was put onto, lose their
    optimiser's memory.
    """
    opacity = params["opacity_logits"].sigmoid()
    broken = ~torch.stack([p.reshape(len(p), -1).isfinite().all(1) for p in params.values()]).all(0)
    dead = (opacity <= DEAD) | unseen | broken
    rows = dead.nonzero()[:, 0]
    alive = (~dead).nonzero()[:, 0]
    if not len(alive):
        return Grown(params, adam, rows[:0])
    if len(rows):
        source = alive[_draw(opacity[alive], len(rows), generator)]
        _stack(params, source, rows)
        _forget(adam, torch.cat([source, rows]))
    more = target - len(opacity)
    if more > 0:
        opacity = params["opacity_logits"].sigmoid()
        source = _draw(opacity, more, generator)
        count = len(opacity)
        params = {name: torch.cat([p, p[source]]) for name, p in params.items()}
        adam = append_rows(adam, more)
        _stack(params, source, torch.arange(count, count + more, device=source.device))
        _forget(adam, source)
    return Grown(params, adam, rows, max(more, 0))


def split_evenly(
    opacity: Float[Tensor, " M"], copies: Int[Tensor, " M"]
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Opacity of each of `copies` equal Gaussians that replace one of `opacity`, and the factor of their scales.

    The stack has the same opacity at its centre and the same integral along a line. Source: eq. 9 of the paper.
    """
    copies = copies.clamp(1, MOST_COPIES)
    new = 1 - (1 - opacity.double()).pow(1 / copies)
    total = torch.zeros_like(new)
    terms = _binomial_terms(new.device)
    for number in range(1, int(copies.max()) + 1 if len(copies) else 1):
        powers = torch.stack([new.pow(k + 1) * terms[number - 1, k] for k in range(number)]).sum(0)
        total += torch.where(number <= copies, powers, torch.zeros_like(powers))
    return new.to(opacity), (opacity / total.clamp_min(1e-12)).to(opacity)


def add_noise(params: Params, rate: float, width: float, generator: torch.Generator) -> None:
    """Move faint Gaussians at random along their own shape: exploration that stops where opacity is sure.

    `rate` is the positions' learning rate as a share of the scene's `width`: lengths cancel, and the same scene in
    other units gets the same noise.
    """
    logits = params["opacity_logits"]
    rows = (logits < math.log(SOLID / (1 - SOLID))).nonzero()[:, 0]
    if not len(rows):
        return
    opacity = logits[rows].sigmoid()
    strength = torch.sigmoid(-100 * (opacity - DEAD)) * (rate * NOISE / width)
    rotation = matrix_from_quat(normalize_quat(params["quats_wxyz"][rows]))
    variances = (2 * params["log_scales"][rows]).exp()
    noise = torch.randn(len(rows), 3, generator=generator, device=logits.device) * strength[:, None]
    turned = (rotation.transpose(1, 2) @ noise[:, :, None])[:, :, 0] * variances
    moved = (rotation @ turned[:, :, None])[:, :, 0]
    params["means"][rows] += torch.where(moved.isfinite(), moved, torch.zeros_like(moved)).clamp(-width, width)


def append_rows(adam: AdamState, count: int) -> AdamState:
    """Optimiser state with `count` fresh rows at the end of every moment."""

    def grown(moments: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.cat([m, m.new_zeros(count, *m.shape[1:])]) for name, m in moments.items()}

    return AdamState(adam.step, grown(adam.first), grown(adam.second))


def keep_rows(adam: AdamState, rows: Tensor) -> AdamState:
    """Optimiser state of some rows."""

    def kept(moments: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: m[rows].contiguous() for name, m in moments.items()}

    return AdamState(adam.step, kept(adam.first), kept(adam.second))


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows drawn with replacement in proportion to their weights."""
    bounds = weights.double().clamp_min(0).cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64, device=weights.device) * bounds[-1]
    return torch.searchsorted(bounds, drawn, right=True).clamp_max(len(weights) - 1)


def _stack(params: Params, source: Tensor, rows: Tensor) -> None:
    """Make `rows` copies of `source` (which may repeat) and share each source's opacity among all its copies."""
    copies = torch.bincount(source, minlength=len(params["means"]))[source] + 1
    logits, scales = params["opacity_logits"], params["log_scales"]
    opacity, factor = split_evenly(logits[source].sigmoid(), copies)
    opacity = opacity.clamp(DEAD, 1 - 1e-6)
    new_logits, new_scales = torch.logit(opacity), scales[source] + factor.log()[:, None]
    logits[source], scales[source] = new_logits, new_scales
    for values in params.values():
        values[rows] = values[source]


def _forget(adam: AdamState, rows: Tensor) -> None:
    for moments in (adam.first, adam.second):
        for moment in moments.values():
            moment[rows] = 0


def _binomial_terms(device: torch.device) -> Tensor:
    """Row i-1, column k: (-1)^k C(i-1, k) / sqrt(k+1)."""
    table = [
        [(-1) ** k * math.comb(i, k) / math.sqrt(k + 1) if k <= i else 0.0 for k in range(MOST_COPIES)]
        for i in range(MOST_COPIES)
    ]
    return torch.tensor(table, dtype=torch.float64, device=device)
