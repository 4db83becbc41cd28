"""Looking ahead in the model: sampling-based planning for one agent or several, all samples stepped as one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.state import Motion
from gworld.errors import UsageError
from gworld.scene.world import ActionSpec
from gworld.simulate.engine import Engine

Score = Callable[[Motion, Motion], Float[Tensor, " W"]]
"""How good a step was in each world: (before, after) -> [W], more is better."""


@dataclass(frozen=True)
class PlanOptions:
    """How actions are searched."""

    method: Literal["cem", "mppi"] = "cem"
    """The cross-entropy method, or model predictive path integral control."""
    horizon: int = 12
    """Steps looked ahead."""
    hold: int = 3
    """Steps for which one sampled action holds."""
    samples: int = 48
    """Action sequences tried in each round."""
    rounds: int = 3
    """Rounds of sampling."""
    elites: int = 6
    """Of each round the best, from which the next is drawn (cem)."""
    temperature: float = 0.1
    """How much worse samples still count, as a part of the scores' spread (mppi)."""
    spread: float = 0.4
    """Standard deviation of the first round, as a part of each component's range."""

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        if min(self.horizon, self.hold, self.samples, self.rounds, self.elites) < 1 or self.elites > self.samples:
            raise UsageError(
                f"the plan {self} cannot be searched; counts from 1, and no more elites than samples, fit."
            )
        if not (self.temperature > 0 and 0 < self.spread <= 10):
            raise UsageError(f"temperature {self.temperature} and spread {self.spread} were asked for; above 0 fits.")


@dataclass(frozen=True)
class Plan:
    """Actions {agent: [horizon, A]}, what they scored in the model, and the score of doing nothing.

    `knots` is the searched mean, with which the next plan may begin.
    """

    actions: dict[str, Float[Tensor, "H A"]]
    score: float
    idle: float
    knots: Float[Tensor, "K D"]


def plan_actions(
    engine: Engine,
    score: Score,
    agents: Sequence[str] = (),
    options: PlanOptions = PlanOptions(),
    *,
    seed: int = 0,
    row: int = 0,
    start: Float[Tensor, "K D"] | None = None,
    others: dict[str, Float[Tensor, "H A"]] | None = None,
) -> Plan:
    """The best actions found for `agents` (all when empty) from where world `row` of the engine stands now.

    Nothing in the engine changes. `others` says what the other agents will do; where it does not, they are unknown.
    The first round is drawn about `start`, the knots of an earlier plan, or about holding still. Doing nothing is
    always among what is compared. Sources: Rubinstein, 1999 (CEM); Williams et al., 2017 (MPPI).
    """
    names = list(agents) or list(engine.specs)
    for name in names:
        if name not in engine.specs:
            raise UsageError(f"there is no agent `{name}` to plan for; there are {', '.join(engine.specs)}.")
    specs = [engine.specs[name] for name in names]
    low, high = (torch.tensor([v for spec in specs for v in getattr(spec, end)]) for end in ("low", "high"))
    still = torch.cat([torch.nan_to_num(engine.stepper.hold(engine.motion, name)[row]) for name in names])
    count = math.ceil(options.horizon / options.hold)
    idle = still.expand(count, -1)
    mean = idle.clone() if start is None or start.shape != idle.shape else start.clone()
    deviation = (options.spread * (high - low)).expand(count, -1).clone()
    rng = torch.Generator().manual_seed(seed)
    best, best_score, idle_score = mean, -math.inf, -math.inf
    for turn in range(options.rounds):
        noise = torch.randn(options.samples, count, len(low), generator=rng)
        knots = torch.minimum(torch.maximum(mean + deviation * noise, low), high)
        knots[0] = mean.clamp(low, high)
        knots[1 % options.samples] = best
        if turn == 0:
            knots[options.samples - 1] = idle
        values = _roll(engine, row, _split(knots, names, specs), score, options, others or {})
        idle_score = float(values[-1]) if turn == 0 else idle_score
        top = int(values.argmax())
        if float(values[top]) > best_score:
            best, best_score = knots[top], float(values[top])
        mean, deviation = _narrow(knots, values, options)
        deviation = torch.maximum(deviation, 0.02 * (high - low))
    actions = {
        name: part[0].repeat_interleave(options.hold, dim=0)[: options.horizon]
        for name, part in _split(best[None], names, specs).items()
    }
    return Plan(actions, best_score, idle_score, best)


def follow_plan(plan: Plan, options: PlanOptions, steps: int) -> Float[Tensor, "K D"]:
    """The knots with which to plan anew after `steps` steps: what was done falls off, the last one stays."""
    passed = steps // options.hold
    rest = plan.knots[passed:]
    return torch.cat([rest, plan.knots[-1:].expand(len(plan.knots) - len(rest), -1)])


def _roll(
    engine: Engine,
    row: int,
    knots: dict[str, Tensor],
    score: Score,
    options: PlanOptions,
    others: dict[str, Tensor],
) -> Float[Tensor, " N"]:
    """The summed score of each sample [N]; worlds that go astray score worst."""
    motion = _repeat(engine.motion, row, options.samples)
    value = torch.zeros(options.samples)
    with torch.no_grad():
        for step in range(options.horizon):
            told = {name: part[:, step // options.hold] for name, part in knots.items()}
            for name, known in others.items():
                if name not in told and step < len(known):
                    told[name] = known[step].expand(options.samples, -1)
            after = engine.stepper.step(motion, told, engine.options.step)
            value = value + score(motion, after)
            motion = after
    return torch.nan_to_num(value, nan=-1e9, posinf=-1e9, neginf=-1e9)


def _narrow(knots: Tensor, values: Tensor, options: PlanOptions) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the next round: the elites', or all samples weighed by their scores."""
    if options.method == "cem":
        chosen = knots[values.argsort(descending=True, stable=True)[: options.elites]]
        return chosen.mean(0), chosen.std(0, unbiased=False)
    scale = options.temperature * values.clamp_min(-1e8).std().clamp_min(1e-9)
    weight = torch.softmax(values / scale, dim=0)[:, None, None]
    mean = (weight * knots).sum(0)
    return mean, (weight * (knots - mean).square()).sum(0).sqrt()


def _split(knots: Float[Tensor, "N K D"], names: list[str], specs: list[ActionSpec]) -> dict[str, Tensor]:
    return dict(zip(names, knots.split([len(spec) for spec in specs], dim=-1), strict=True))


def _repeat(motion: Motion, row: int, count: int) -> Motion:
    """One world of a batch, many times."""

    def spread(value: Tensor) -> Tensor:
        return value[row : row + 1].expand(count, *value.shape[1:]).contiguous()

    memory = {name: spread(value) for name, value in motion.memory.items()}
    return replace(
        motion,
        world_from_link=spread(motion.world_from_link),
        twists=spread(motion.twists),
        belief=spread(motion.belief),
        memory=memory,
    )
