"""Who acts: nobody, noise, limits, a recording, an expert and an adversary that plan, a function of your own."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gworld.dynamics.state import Motion
from gworld.errors import InputError, UsageError
from gworld.scene.world import ActionSpec
from gworld.simulate.actions import ActionTable
from gworld.simulate.engine import Engine
from gworld.simulate.plan import Plan, PlanOptions, Score, follow_plan, plan_actions
from gworld.simulate.served import PREFIX, Served
from gworld.simulate.tasks import Judged, find_function

POLICIES = ("null", "random", "extreme", "replay", "expert", "adversarial")
QUICK = PlanOptions(horizon=8, hold=2, samples=24, rounds=2, elites=4)
"""How far and how hard the planning policies look."""

Act = Callable[[], Tensor]
"""One agent's next actions [W,A] in the state that its engine is in now."""


@dataclass(frozen=True)
class PolicyInput:
    """What policies may use: a seed, the actions to replay, the task to do."""

    seed: int = 0
    table: ActionTable | None = None
    task: Judged | None = None


class Policy:
    """Acts for every agent of an engine; the same seed in the same engine acts the same."""

    def __init__(self, text: str, engine: Engine, given: PolicyInput = PolicyInput()) -> None:
        self.engine = engine
        self.words = parse_policy(text, list(engine.specs))
        self._acts = {name: _make(word, engine, name, given) for name, word in self.words.items()}

    def __call__(self) -> dict[str, Tensor]:
        """What every agent does in the engine's state."""
        return {name: act() for name, act in self._acts.items()}


def parse_policy(text: str, agents: Sequence[str]) -> dict[str, str]:
    """A policy per agent: one for all, or `left=expert,right=random` (others: null).

    Raises `UsageError` for unknown policies and agents.
    """
    chosen = dict.fromkeys(agents, text.strip())
    if "=" in text:
        pairs = [part.partition("=")[::2] for part in text.split(",")]
        chosen = {**dict.fromkeys(agents, "null"), **{name.strip(): word.strip() for name, word in pairs}}
    for name, word in chosen.items():
        if name not in agents:
            raise UsageError(f"there is no agent `{name}`; there are {', '.join(agents) or 'none'}.")
        if word not in POLICIES and ":" not in word:
            raise UsageError(
                f"there is no policy `{word}`; there are {', '.join(POLICIES)}, module:function, served:PORT."
            )
    return chosen


def _make(word: str, engine: Engine, agent: str, given: PolicyInput) -> Act:
    if word.startswith(PREFIX):
        return Served(word, engine, agent)
    if ":" in word:
        return _foreign(word, engine, agent, given.seed)
    if word == "null":
        return _still(engine, agent)
    if word == "random":
        return _noise(engine, agent, given.seed)
    if word == "extreme":
        return _limits(engine, agent, given.seed)
    if word == "replay":
        return _replay(engine, agent, given.table)
    return _seek(word, engine, agent, given)


def _still(engine: Engine, agent: str) -> Act:
    """Holds where the agent was when it was asked first."""
    kept: list[Tensor] = []

    def act() -> Tensor:
        if not kept:
            kept.append(engine.stepper.hold(engine.motion, agent))
        return kept[0]

    return act


def _noise(engine: Engine, agent: str, seed: int) -> Act:
    """Smooth noise: servos wander about where they started, other components about their middle.

    An Ornstein-Uhlenbeck process, correlated over 0.4 to 1.6 s, smoothed once more so that its speed is continuous.
    """
    spec, step, worlds = engine.specs[agent], engine.options.step, engine.options.worlds
    rngs = [np.random.default_rng([seed + world, _number(agent), 13]) for world in range(worlds)]
    low, high = np.array(spec.low), np.array(spec.high)
    servo = _servos(spec)
    keep = np.exp(-step / np.exp(np.stack([rng.uniform(math.log(0.4), math.log(1.6), len(spec)) for rng in rngs])))
    width = np.where(servo, np.minimum(0.25 * (high - low), 0.7), 0.5 * (high - low))
    width = width * np.stack([rng.uniform(0.5, 1.0, len(spec)) for rng in rngs])
    smooth = math.exp(-step / 0.15)
    raw = np.where(servo, 0.0, np.stack([rng.standard_normal(len(spec)) for rng in rngs]))
    value, hold = raw.copy(), _still(engine, agent)

    def act() -> Tensor:
        nonlocal raw, value
        center = np.where(servo, np.nan_to_num(hold().numpy()), (low + high) / 2)
        shocks = np.stack([rng.standard_normal(len(spec)) for rng in rngs])
        raw = keep * raw + np.sqrt(1 - keep**2) * shocks
        value = smooth * value + (1 - smooth) * raw
        return torch.from_numpy(np.clip(center + width * value, low, high)).float()

    return act


def _limits(engine: Engine, agent: str, seed: int) -> Act:
    """Every component at one of its limits, each for 0.3 to 1.5 s."""
    spec, step, worlds = engine.specs[agent], engine.options.step, engine.options.worlds
    rngs = [np.random.default_rng([seed + world, _number(agent), 17]) for world in range(worlds)]
    left, high = np.zeros((worlds, len(spec)), int), np.zeros((worlds, len(spec)), bool)

    def act() -> Tensor:
        for row, rng in enumerate(rngs):
            ended = left[row] <= 0
            left[row, ended] = np.ceil(rng.uniform(0.3, 1.5, int(ended.sum())) / step)
            high[row, ended] = rng.random(int(ended.sum())) < 0.5
        left[:] -= 1
        return torch.from_numpy(np.where(high, spec.high, spec.low)).float()

    return act


def _replay(engine: Engine, agent: str, table: ActionTable | None) -> Act:
    """What a table says for this instant; past its end, and where it says nothing, the action is unknown."""
    if table is None:
        raise UsageError("policy `replay` needs actions to repeat; name them with `--actions`.")
    worlds, count = engine.options.worlds, len(engine.specs[agent])
    values = table.values.get(agent)

    def act() -> Tensor:
        now = engine.motion.time
        row = int(torch.searchsorted(table.times, now + 1e-6 * engine.options.step, right=True)) - 1
        if values is None or now > table.seconds - 1e-6 * engine.options.step:
            return torch.full((worlds, count), math.nan)
        return values[max(row, 0)].expand(worlds, -1)

    return act


def _seek(word: str, engine: Engine, agent: str, given: PolicyInput) -> Act:
    """Plans in the model, again every few steps: an expert for the task, an adversary to run into what is nearest."""
    if word == "expert" and (given.task is None or agent not in given.task.agents):
        raise UsageError(f"policy `expert` needs a task for agent `{agent}`; name one with `--task`.")
    bodies = set(engine.world.gaussians.links.tolist()) - {0}  # a bare frame, as of a rail, is nothing to run into
    others = [link for e in engine.world.entities if e.name != agent for link in e.links if link in bodies]
    own = next([link for link in e.links if link in bodies] for e in engine.world.agents if e.name == agent)
    if word == "adversarial" and not (own and others):
        raise UsageError(f"agent `{agent}` is alone; there is nothing to run into. Choose another policy.")
    again = QUICK.hold * 2
    plans: list[Plan | None] = [None] * engine.options.worlds
    count = 0

    def nearing(before: Motion, after: Motion) -> Tensor:
        def apart(motion: Motion) -> Tensor:
            places = motion.world_from_link[..., :3, 3]
            return torch.cdist(places[:, own], places[:, others]).flatten(1).amin(1)

        return apart(before) - apart(after)

    def score(row: int) -> Score:
        return given.task.score([agent], row) if word == "expert" and given.task is not None else nearing

    def act() -> Tensor:
        nonlocal count
        if count % again == 0:
            for row, last in enumerate(plans):
                start = None if last is None else follow_plan(last, QUICK, again)
                seed = given.seed * 1_000_003 + count * 8191 + _number(agent) + row
                plans[row] = plan_actions(engine, score(row), [agent], QUICK, seed=seed, row=row, start=start)
        step, count = count % again, count + 1
        return torch.stack([plan.actions[agent][step] for plan in plans if plan is not None])

    return act


def _foreign(name: str, engine: Engine, agent: str, seed: int) -> Act:
    """A function of the user's: `make(world, agent, seed)` returns `act(motion) -> [W,A] or [A]`."""
    made = find_function(name)(engine.world, agent, seed)
    if not callable(made):
        raise InputError(f"`{name}` returned {type(made).__name__}; a function of the state is needed.")

    def act() -> Tensor:
        return engine.fit_action(agent, made(engine.motion))

    return act


def _servos(spec: ActionSpec) -> np.ndarray:
    return np.array([name.rpartition("/")[2] == "position" for name in spec.names])


def _number(name: str) -> int:
    return zlib.crc32(name.encode())
