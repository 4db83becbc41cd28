"""Judging policies in the model: the same policies from the same starts in gworld and in the true simulator."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.recorded import FPS, Recorded, TrueStepper, open_recorded, paired_states, shipped_stepper
from gworld.bench.rows import Row, at_least
from gworld.dynamics.state import Motion
from gworld.scene.world import WorldState
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.stepper import Stepper

SECONDS, STARTS, FIRST = 4.0, 300, 20_000
RADIUS = 0.06
"""Metres from its goal within which an object counts as brought there."""
NUDGE = 1e-3
"""Metres by which the objects start off in the true simulator's second run, the ceiling."""
BUDGET = 1200.0
"""Processor seconds for the true simulator's runs; fewer starts are taken where they would not do."""


@dataclass(frozen=True)
class Pusher:
    """A policy: goes behind the object and pushes it towards its goal; how fast, how skewed (rad), how far around it,
    how often it looks (steps)."""

    name: str
    speed: float = 0.4
    skew: float = 0.0
    around: float = 0.13
    every: int = 1


POLICIES = (
    Pusher("brisk"),
    Pusher("tight", around=0.10),
    Pusher("slow", speed=0.28),
    Pusher("slower", speed=0.17),
    Pusher("skewed", skew=0.5),
    Pusher("skewed and slow", speed=0.3, skew=0.3),
    Pusher("wide", around=0.22),
    Pusher("wide and slow", speed=0.33, around=0.18),
    Pusher("rarely looks", every=5),
    Pusher("more rarely looks", every=7),
    Pusher("hardly looks", every=9),
    Pusher("rarely looks, slow", speed=0.32, every=6),
)
"""Chosen by their success in the true simulator alone, from 40 other starts than those judged, to lie apart."""


def rows(given: BenchInput) -> Iterator[Row]:
    """Success of each policy in both, their correlation and rank violations, and the truth against itself."""
    with tempfile.TemporaryDirectory() as folder:
        recorded = open_recorded("push", Path(folder), agents=2, objects=1, width=64)
        goals = 8 if given.quick else _affordable(recorded)
        seeds = range(FIRST + 1000 * given.seed, FIRST + 1000 * given.seed + goals)
        ours, true = paired_states(recorded, seeds)
        _, nudged = paired_states(recorded, seeds, NUDGE)
        targets = _targets(recorded, seeds)
        policies = POLICIES[:2] if given.quick else POLICIES
        found = np.zeros((3, len(policies)))
        model, truth = shipped_stepper("push", recorded.world), TrueStepper(recorded)
        ways: Sequence[tuple[Stepper, list[WorldState]]] = ((model, ours), (truth, true), (truth, nudged))
        for number, policy in enumerate(policies):
            for way, (stepper, starts) in enumerate(ways):
                found[way, number] = success(recorded, stepper, policy, starts, targets)
            value, baseline = found[0, number], found[1, number]
            note = f"true simulator {baseline:.3f}, a millimetre off {found[2, number]:.3f}"
            yield Row(f"success of `{policy.name}`", float(value), "", "", float(baseline), None, note)
        recorded.simulation.close()
    middling = int(((found[1] >= 0.3) & (found[1] <= 0.8)).sum())
    yield Row("policies with true success from 0.3 to 0.8", middling, "", ">= 4", None, middling >= 4)
    ceiling = pearson(found[2], found[1])
    yield Row("Pearson, truth a millimetre off against truth (ceiling)", ceiling, "", note=f"{goals} paired starts")
    note = f"{goals} paired starts, {len(policies)} policies; goal: 300 starts"
    yield at_least("Pearson, ours against truth", pearson(found[0], found[1]), "", ceiling - 0.01, ceiling, note)
    yield Row("rank violations (MMRV), ours", violations(found[0], found[1]), "", "", violations(found[2], found[1]))


def success(
    recorded: Recorded, stepper: Stepper, policy: Pusher, starts: list[WorldState], targets: Float[Tensor, "W 2"]
) -> float:
    """Share of starts from which the object is near its goal at the end."""
    engine = Engine(recorded.world, stepper, EngineOptions(1 / FPS, len(starts)))
    engine.reset(0, starts)
    names = list(recorded.simulation.agents)
    pusher, thing = (_link(recorded, name) for name in (f"{names[0]}/pusher", recorded.simulation.objects[0]))
    still = torch.zeros(len(starts), 2)
    action = still
    for step in range(round(SECONDS * FPS)):
        if step % policy.every == 0:
            action = act(policy, engine.motion, pusher, thing, targets)
        engine.step({names[0]: action, names[1]: still})
    gap = (engine.motion.world_from_link[:, thing, :2, 3] - targets).norm(dim=-1)
    return float((gap < RADIUS).float().mean())


def act(policy: Pusher, motion: Motion, pusher: int, thing: int, targets: Float[Tensor, "W 2"]) -> Float[Tensor, "W 2"]:
    """Velocities: around the object to the side away from its goal, then through it; nothing once it is there."""
    own, body = motion.world_from_link[:, pusher, :2, 3], motion.world_from_link[:, thing, :2, 3]
    way = targets - body
    far = way.norm(dim=-1, keepdim=True)
    toward = way / far.clamp_min(1e-6)
    turn = torch.tensor([[np.cos(policy.skew), -np.sin(policy.skew)], [np.sin(policy.skew), np.cos(policy.skew)]])
    toward = toward @ turn.T.to(toward)
    offset = own - body
    distance = offset.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    lined = -(offset / distance * toward).sum(-1, keepdim=True)
    angle = torch.atan2(offset[:, 1], offset[:, 0])
    wanted = torch.atan2(-toward[:, 1], -toward[:, 0])
    bend = (wanted - angle + torch.pi) % (2 * torch.pi) - torch.pi
    ahead = angle + bend.clamp(-0.5, 0.5)
    ring = body + policy.around / np.cos(0.25) * torch.stack([ahead.cos(), ahead.sin()], dim=-1)
    aim = torch.where(lined > 0.96, body + 0.02 * toward, ring)
    step = aim - own
    speed = policy.speed * step / step.norm(dim=-1, keepdim=True).clamp_min(0.02)
    return torch.where(far > 0.02, speed, torch.zeros_like(speed)).clamp(-0.4, 0.4)


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two lists of success rates; NaN where one does not vary."""
    if len(first) < 2 or first.std() < 1e-9 or second.std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def violations(found: np.ndarray, true: np.ndarray) -> float:
    """Mean over policies of the largest true difference to one that is ranked the other way round.

    Source: Li et al., "Evaluating Real-World Robot Manipulation Policies in Simulation", 2024 (MMRV).
    """
    wrong = (found[:, None] < found[None]) != (true[:, None] < true[None])
    return float((np.abs(true[:, None] - true[None]) * wrong).max(1).mean())


def _affordable(recorded: Recorded) -> int:
    """How many starts the true simulator's runs can be given."""
    recorded.simulation.reset(0)
    begin = time.process_time()
    for _ in range(40):
        recorded.simulation.step({})
    each = (time.process_time() - begin) / 40 * 1.3
    return int(min(STARTS, max(40, BUDGET / (2 * len(POLICIES) * SECONDS * FPS * each))))


def _targets(recorded: Recorded, seeds: range) -> Float[Tensor, "W 2"]:
    found = []
    for seed in seeds:
        recorded.simulation.reset(seed)
        found.append(next(iter(recorded.simulation.goals.values())).position[:2])
    return torch.tensor(found, dtype=torch.float32)


def _link(recorded: Recorded, name: str) -> int:
    return recorded.simulation.link_names.index(name)
