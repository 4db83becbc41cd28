"""The probe itself: what is read off a sequence is fine-tuned on random functions of the true state, many at once.

R-IB: how far predictions agree on inputs that share a state, 2 (0.5 - share that differ); 1 is always, 0 is by chance.
D-IB: how far inputs of different states are told apart, 2 (share that differ), at most 1: random functions differ on
half of them. Source: Vafa et al., "What has a foundation model found? Using inductive bias to probe for world models",
2025, with the identity as the only map between predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

WIDTH, STEPS, RATE = 48, 250, 1e-2
LEAST = 1e-2
"""Spread of a number below which its differences are not blown up."""


@dataclass(frozen=True)
class Inputs:
    """What a model made of N sequences: R things of D numbers each, in no order; and the true states' numbers."""

    things: Float[Tensor, "N R D"]
    states: Int[Tensor, " N"]


@dataclass(frozen=True)
class Scores:
    """The two scores, that on inputs listed in another order, and the share of right answers."""

    respects: float
    tells_apart: float
    permuted: float
    right: float


def probe(
    learn: Inputs, judge: Inputs, permuted: Inputs | None, functions: int = 100, examples: int = 100, seed: int = 0
) -> Scores:
    """Fine-tune a read-out of each of many random binary functions on examples drawn from `learn`; ask it of `judge`,
    and of the same inputs `permuted`."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.cat([learn.states, judge.states]).max()) + 1
    bits = torch.rand(functions, count, generator=generator) < 0.5
    rows = torch.rand(functions, len(learn.states), generator=generator).argsort(1)[:, :examples]
    mean, spread = learn.things.mean((0, 1)), learn.things.flatten(0, 1).std(0).clamp_min(LEAST)

    def scaled(inputs: Inputs) -> Tensor:
        return ((inputs.things - mean) / spread).clamp(-5.0, 5.0)

    weights = _fine_tune(scaled(learn)[rows], bits.gather(1, learn.states[rows]), generator)
    said = _read_out(weights, scaled(judge).expand(functions, -1, -1, -1)) > 0
    other = said if permuted is None else _read_out(weights, scaled(permuted).expand(functions, -1, -1, -1)) > 0
    same = judge.states[:, None] == judge.states[None]
    apart = ~same
    same = same & ~torch.eye(len(same), dtype=torch.bool)
    return Scores(
        2 * (0.5 - _differ(said, said, same)),
        min(1.0, 2 * _differ(said, said, apart)),
        2 * (0.5 - _differ(said, other, same)),
        float((said == bits[:, judge.states]).float().mean()),
    )


def _differ(first: Bool[Tensor, "F N"], second: Bool[Tensor, "F N"], pairs: Bool[Tensor, "N N"]) -> float:
    """The share of pairs and functions in which two predictions differ."""
    a, b = first.float(), second.float()
    differ = (a.T @ (1 - b) + (1 - a).T @ b) / len(a)
    return float(differ[pairs].mean())


def _fine_tune(things: Float[Tensor, "F M R D"], bits: Bool[Tensor, "F M"], generator: torch.Generator) -> list[Tensor]:
    """Weights of a read-out for each function: a perceptron per thing, their sum, a perceptron of that."""
    sizes = [(things.shape[-1], WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
    weights = []
    for inputs, outputs in sizes:
        weights += [torch.randn(len(things), inputs, outputs, generator=generator) * inputs**-0.5]
        weights += [torch.zeros(len(things), 1, outputs)]
    for weight in weights:
        weight.requires_grad_()
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        said = _read_out(weights, things)
        torch.nn.functional.binary_cross_entropy_with_logits(said, bits.float()).backward()
        optimiser.step()
        schedule.step()
    return [weight.detach() for weight in weights]


def _read_out(weights: list[Tensor], things: Float[Tensor, "F M R D"]) -> Float[Tensor, "F M"]:
    flat = things.flatten(1, 2)
    hidden = torch.nn.functional.silu(flat @ weights[0] + weights[1])
    hidden = (hidden @ weights[2] + weights[3]).unflatten(1, things.shape[1:3]).sum(dim=2)
    hidden = torch.nn.functional.silu(torch.nn.functional.silu(hidden) @ weights[4] + weights[5])
    return (hidden @ weights[6] + weights[7])[..., 0]
