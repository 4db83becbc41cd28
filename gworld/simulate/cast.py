"""Who does what in a generated episode: kinds of behaviour in given shares, goals that can be reached, and planners
that pursue them in the model."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.state import Motion
from gworld.errors import UsageError
from gworld.simulate.engine import Engine
from gworld.simulate.learned import Learned
from gworld.simulate.plan import Plan, PlanOptions, follow_plan, plan_actions
from gworld.simulate.plausible import Clearance
from gworld.simulate.stepper import Stepper
from gworld.simulate.tasks import Judged, Task, link_middles, object_link

CHOICES = ("expert", "random", "extreme", "adversarial", "null")
GOLDEN = 0.6180339887498949
PRIMES = (2, 3, 7, 11, 13, 19, 23, 29, 31, 37)
FARTHEST = 0.5
"""Metres, at most, to which an expert is to bring something."""
NEAREST = 0.12
LOOK = 0.15
"""Seconds of a planner's steps: coarser than those of the episode, and thrice as cheap."""
BEHIND = 0.1
"""Metres behind the middle of what is pushed from where an expert begins to push."""
RADIUS = 0.05
"""Metres within which it is there."""

Mix = dict[str, tuple[tuple[str, float], ...]]
"""For each agent the kinds it may draw, with the share of episodes up to which each goes."""


@dataclass(frozen=True)
class Cast:
    """What each agent is, and the goals of those that have one."""

    words: dict[str, str]
    goals: dict[str, Judged]

    def reached(self, engine: Engine) -> set[str]:
        """Agents whose goal is met in the state the engine is in."""
        return {
            name for name, goal in self.goals.items() if float(goal.measure(engine.motion)[name][0]) < goal.task.radius
        }

    @property
    def task(self) -> str:
        """The goals in words."""
        parts = []
        for name, goal in self.goals.items():
            x, y, z = goal.task.target
            verb = f"bring {goal.task.object}" if goal.task.kind == "push_to_goal" else "go"
            parts.append(f"{name}: {verb} to {x:.3f} {y:.3f} {z:.3f}")
        return "; ".join(parts)


def parse_mix(text: str, agents: Sequence[str]) -> Mix:
    """`mixed`, one kind, `random:3,expert:1` in these shares, or `left=expert,right=random` (others: null).

    Raises `UsageError` for kinds and agents that there are not, and for shares that are none.
    """
    if "=" in text:
        pairs = dict(part.strip().partition("=")[::2] for part in text.split(","))
        strange = sorted(set(pairs) - set(agents))
        if strange:
            raise UsageError(f"there is no agent `{strange[0]}`; there are {', '.join(agents) or 'none'}.")
        return {name: _shares({pairs.get(name, "null"): 1.0}) for name in agents}
    if text == "mixed":
        return {name: _shares(dict.fromkeys(CHOICES, 1.0)) for name in agents}
    weights: dict[str, float] = {}
    for part in text.split(","):
        word, _, number = part.strip().partition(":")
        try:
            weights[word] = weights.get(word, 0.0) + (float(number) if number else 1.0)
        except ValueError:
            raise UsageError(f"`{part.strip()}` gives no share; `random:3,expert:1` would.") from None
    return {name: _shares(weights) for name in agents}


def draw_kind(mix: Mix, agent: str, number: int, seed: int) -> str:
    """The kind that an agent is in episode `number`.

    Numbers step through the shares by irrational parts, each agent by its own, so that any run of episodes keeps them
    closely and agents do not go in step (Kronecker's sequence).
    """
    turn = list(mix).index(agent) if len(mix) > 1 else zlib.crc32(agent.encode())
    offset = zlib.crc32(f"{agent} {seed}".encode()) / 2**32
    place = (offset + number * math.sqrt(PRIMES[turn % len(PRIMES)])) % 1.0
    return next((word for word, upto in mix[agent] if place < upto), mix[agent][-1][0])


def goal_for(agent: str, engine: Engine, clearance: Clearance, rng: np.random.Generator) -> Judged | None:
    """Something to do for an agent: bring an object somewhere near, or go somewhere where there is none; None where
    the room is too small."""
    world = engine.world
    objects = [entity for entity in world.entities if entity.kind == "object" and entity.links]
    low, high = (part[:2].double().numpy() for part in clearance.box)
    pose = engine.motion.world_from_link[0]
    chosen = objects[int(rng.integers(len(objects)))] if objects else None
    link = chosen.links[0] if chosen else next(e.links[-1] for e in world.agents if e.name == agent)
    x, y, z = (pose[link, :3, :3] @ link_middles(world)[link] + pose[link, :3, 3]).tolist()
    edge = 0.15 * (high - low)
    for _ in range(50):
        angle, far = rng.uniform(-np.pi, np.pi), rng.uniform(NEAREST, FARTHEST)
        spot = np.array([x, y]) + far * np.array([np.cos(angle), np.sin(angle)])
        if chosen is None or ((spot > low + edge) & (spot < high - edge)).all():
            break
    else:
        return None
    kind = "push_to_goal" if chosen else "reach"
    task = Task(kind, (agent,), "", chosen.name if chosen else "", (float(spot[0]), float(spot[1]), z), radius=RADIUS)  # type: ignore[arg-type]  # one of two kinds
    judged = Judged(task, world)
    judged.draw(engine.generators[:1])
    return judged


class Seeker:
    """Plans 1.2 s ahead in the model, every 0.6 s: an expert for its goal, an adversary to meet what is nearest.

    An expert is drawn to the far side of what it pushes, else it would have to find that out by chance.
    """

    def __init__(self, engine: Engine, agent: str, goal: Judged | None, seed: int) -> None:
        self.engine, self.agent, self.goal, self.seed = engine, agent, goal, seed
        self.middles = link_middles(engine.world)
        shaped = set(engine.world.gaussians.links.tolist()) - {0}
        self.own = [link for e in engine.world.agents if e.name == agent for link in e.links if link in shaped]
        others = [e for e in engine.world.entities if e.name != agent]
        self.others = [link for entity in others for link in entity.links if link in shaped]
        factor = max(1, round(LOOK / engine.options.step))
        self.planner = copy.copy(engine)
        self.planner.stepper = coarser(engine.stepper, factor)
        self.planner.options = replace(engine.options, step=factor * engine.options.step)
        self.options = PlanOptions(horizon=8, hold=2, samples=20, rounds=2, elites=4)
        self.factor, self.again = factor, 4 * factor
        self.plan: Plan | None = None
        self.count = 0

    def __call__(self) -> Float[Tensor, "1 A"]:
        """The next action."""
        row = self.count % self.again
        if row == 0:
            start = None if self.plan is None else follow_plan(self.plan, self.options, 4)
            seed = self.seed * 8191 + self.count
            self.planner.motion = self.engine.motion
            options = self.options if start is None else replace(self.options, rounds=1)
            self.plan = plan_actions(self.planner, self._score, [self.agent], options, seed=seed, start=start)
        self.count += 1
        assert self.plan is not None
        return self.plan.actions[self.agent][row // self.factor][None]

    def _score(self, before: Motion, after: Motion) -> Float[Tensor, " W"]:
        return self._merit(after) - self._merit(before)

    def _merit(self, motion: Motion) -> Float[Tensor, " W"]:
        poses = motion.world_from_link
        places = (poses[..., :3, :3] @ self.middles[..., None])[..., 0] + poses[..., :3, 3]
        if self.goal is None:
            return -torch.cdist(places[:, self.own], places[:, self.others]).flatten(1).amin(1)
        merit = -self.goal.measure(motion)[self.agent]
        if self.goal.task.kind != "push_to_goal":
            return merit
        thing = places[:, object_link(self.engine.world, self.goal.task.object)]
        away = torch.nn.functional.normalize(thing[:, :2] - self.goal.targets.to(thing)[:1, :2], dim=-1)
        behind = thing[:, :2] + BEHIND * away
        far = (places[:, self.own, :2] - behind[:, None]).norm(dim=-1).amin(1)
        return merit - 0.3 * far


def coarser(stepper: Stepper, factor: int) -> Stepper:
    """What steps a world alike, `factor` times as far; a network is asked for longer steps, what it read is shared."""
    if not isinstance(stepper, Learned):
        return stepper
    own = copy.copy(stepper)
    own.seconds = factor * stepper.seconds
    own._scene, own._scenes = replace(stepper._scene, dt=own.seconds), {}
    return own


def _shares(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    strange = sorted(set(weights) - set(CHOICES))
    if strange:
        raise UsageError(f"there is no kind `{strange[0]}` of behaviour; there are {', '.join(CHOICES)}, and mixed.")
    total = sum(weights.values())
    if not all(0 <= weight < 1e9 for weight in weights.values()) or total <= 0:
        raise UsageError(f"the shares {dict(weights)} cannot be kept; numbers of 0 or more, not all 0, fit.")
    shares, upto = [], 0.0
    for word, weight in weights.items():
        upto += weight / total
        shares.append((word, upto))
    return tuple(shares)
