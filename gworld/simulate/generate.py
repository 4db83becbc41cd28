"""One generated episode: a world varied, a start drawn, agents acting, judged, and drawn again until it is plausible.

Everything is drawn from the seed and the episode's own number, so that an episode is the same whoever makes it and
whatever was made before it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.checkpoint import latest_checkpoint
from gworld.config import mapping_from
from gworld.dynamics.state import BELIEF, still_motion
from gworld.errors import InputError, UsageError
from gworld.formats.world import gaussians_hash, load_world
from gworld.geometry import pose_from_transform
from gworld.scene.episode import Episode
from gworld.scene.world import World, WorldState
from gworld.simulate.cast import Cast, Seeker, draw_kind, goal_for, parse_mix
from gworld.simulate.demos import Material, disturbed, material_state
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.learned import Learned, open_stepper
from gworld.simulate.options import Limits, StartOptions
from gworld.simulate.plausible import Clearance, Verdict, judge
from gworld.simulate.policies import Policy, PolicyInput
from gworld.simulate.starts import draw_start
from gworld.simulate.stepper import Kinematics, Stepper
from gworld.simulate.tasks import Judged
from gworld.simulate.variation import Variation
from gworld.simulate.vary import Drawn, keeps_shapes, mass_belief, vary, vary_dynamics

Kind = Literal["policy", "demo", "hard"]
DOUBTS = ((0.2, 0.002), (-0.2, -0.002), (0.2, -0.002), (-0.2, 0.002))
"""Other ways it may have begun, acted in alike: logarithm of objects' masses, metres along x and y."""
NEAR = 0.02
"""Metres within which gaps between bodies are kept with an episode."""


@dataclass(frozen=True)
class Recipe:
    """All that decides what is in an episode, besides its number."""

    world: Path
    """The world folder."""
    dynamics: tuple[Path, ...] = ()
    """Dynamics runs: the first one moves the world, others are asked too where it is unsure; the bound one if none."""
    variation: Variation = field(default_factory=Variation)
    seconds: float = 6.0
    rate: float = 20.0
    policy: str = "mixed"
    seed: int = 0
    start: StartOptions = field(default_factory=StartOptions)
    limits: Limits = field(default_factory=Limits)
    tries: int = 20
    """Attempts at one episode before it is given up."""
    video: bool = False
    labels: bool = False
    width: int = 160
    cameras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what makes no episode."""
        if not (0.1 <= self.rate <= 1000 and 2 <= self.steps <= 100_000):
            raise UsageError(f"{self.seconds} s at {self.rate} steps a second were asked for; 2 to 100000 steps fit.")
        if self.tries < 1 or self.seed < 0 or not 16 <= self.width <= 4096:
            raise UsageError(f"tries {self.tries}, seed {self.seed}, width {self.width}: 1, 0 and 16 are the least.")

    @property
    def steps(self) -> int:
        """Steps of an episode."""
        return round(self.seconds * self.rate)


@dataclass(frozen=True)
class Job:
    """Which episode is to be made: its number, where it comes from, and where its first object is to begin."""

    number: int
    kind: Kind = "policy"
    near: tuple[float, float] | None = None
    material: Material | None = None


@dataclass(frozen=True)
class Made:
    """An episode and the varied world it happened in."""

    episode: Episode
    world: World


def recipe_digest(recipe: Recipe) -> str:
    """Twelve letters that change with anything that changes what is generated; not with where files lie."""
    plain = mapping_from(recipe)
    plain["world"] = gaussians_hash(recipe.world) + _hash(recipe.world / "world.json")
    plain["dynamics"] = [_hash(_manifest(place)) for place in recipe.dynamics]  # `world.json` names bound ones by hash
    for guest, found in zip(plain["variation"]["add"], recipe.variation.add, strict=True):
        guest["world"] = gaussians_hash(found.world)
    plain["variation"]["background"]["worlds"] = [gaussians_hash(w) for w in recipe.variation.background.worlds]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def episode_key(digest: str, number: int) -> str:
    """The name under which an episode is kept: the same recipe and number, the same episode."""
    return f"generate {digest} {number:08d}"


@dataclass(frozen=True)
class Trial:
    """One attempt: the world, what was drawn, and what happened; poses [T+1,L,4,4], actions and joints [T,..]."""

    world: World
    world_seed: int
    drawn: Drawn
    clearance: Clearance
    poses: Tensor
    actions: dict[str, Tensor]
    joints: dict[str, Tensor]
    doubt: Tensor
    verdict: Verdict
    cast: Cast
    reached: frozenset[str]


class NoStart(Exception):  # noqa: N818 - it never leaves this file
    """No start was found in this attempt."""


class Maker:
    """Makes episodes of one recipe, one after the other; `scratch` is where models of robots put in are kept."""

    def __init__(self, recipe: Recipe, scratch: Path) -> None:
        self.recipe, self.scratch = recipe, scratch
        self.world, self.step = load_world(recipe.world), 1.0 / recipe.rate
        self._steppers = [open_stepper(self.world, self.step, run) for run in recipe.dynamics or (None,)]
        base = self._steppers[0]
        self.note = base.note
        self._scene = base._scene if isinstance(base, Learned) else None
        self.clearance = Clearance(self.world, self._scene)
        self._varies = recipe.variation != Variation()
        if mapping_from(recipe.variation.physics) != mapping_from(Variation().physics) and self._scene is None:
            raise InputError("the variation changes physics, but no dynamics are given or bound to the world.")
        self.kinds = parse_mix(recipe.policy, [agent.name for agent in self.world.agents])

    def make(self, job: Job) -> Made:
        """The episode of a job, plausible; raises `InputError` when no attempt was."""
        rejected: Counter[str] = Counter()
        for attempt in range(self.recipe.tries):
            seed = int(np.random.SeedSequence([self.recipe.seed, job.number, attempt]).generate_state(1)[0])
            told = None if job.material is None else job.material.seed
            try:
                trial = self._attempt(job, seed, seed if told is None else told)
            except NoStart:
                rejected["start"] += 1
                continue
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)
            if not trial.verdict.broken:
                return Made(self._episode(job, trial, seed, rejected), trial.world)
            rejected.update(trial.verdict.broken[:1])
        reasons = ", ".join(f"{name} {count}x" for name, count in rejected.most_common())
        raise InputError(
            f"episode {job.number} was rejected {self.recipe.tries} times ({reasons}); raise the limit, `--tries`, or "
            "use dynamics that fit this world."
        )

    def _attempt(self, job: Job, seed: int, world_seed: int) -> Trial:
        rng = np.random.default_rng(seed)
        world, drawn, steppers, clearance = self._varied(world_seed)
        state = self._start(job, world, clearance, steppers[0], rng)
        if width := steppers[0].start(still_motion(state.world_from_link[None])).belief.shape[-1]:
            state = replace(state, actuators={BELIEF: mass_belief(world, drawn, width).reshape(-1)})
        asks = bool(clearance.objects) and isinstance(steppers[0], Learned)
        starts = [state, *(_nudged(world, state, *other) for other in DOUBTS)] if asks else [state]
        engine = Engine(world, steppers[0], EngineOptions(self.step, len(starts)))
        engine.reset(seed, starts)
        told, cast = self._cast(job, engine, clearance, rng, seed)
        poses, reached = [engine.motion.world_from_link], cast.reached(engine)
        joints: dict[str, list[Tensor]] = {name: [] for name in engine.stepper.bodies}
        actions: dict[str, list[Tensor]] = {name: [] for name in engine.specs}
        for step in range(self.recipe.steps):
            for name, body in engine.stepper.bodies.items():
                joints[name].append(engine.motion.memory[name][0, : body.width])
            action = {name: engine.fit_action(name, value[:1]) for name, value in told(step).items()}
            for name in actions:
                actions[name].append(action[name][0])
            engine.step(action)
            poses.append(engine.motion.world_from_link)
            reached = reached | cast.reached(engine)
        tracks, done = torch.stack(poses, dim=1), {name: torch.stack(rows) for name, rows in actions.items()}
        others = [tracks[1:], *(self._again(world, stepper, state, done) for stepper in steppers[1:])]
        track, stuck = tracks[0], int(engine.stuck[0])
        doubt = spread_of(track, torch.cat(others) if asks else tracks[:1], clearance.objects)
        verdict = judge(clearance, track, self.step, self.recipe.limits, float(doubt.max()), stuck)
        values = {name: torch.stack(rows) for name, rows in joints.items() if rows[0].numel()}
        return Trial(world, world_seed, drawn, clearance, track, done, values, doubt, verdict, cast, frozenset(reached))

    def _varied(self, seed: int) -> tuple[World, Drawn, list[Stepper], Clearance]:
        """The world that a seed draws, with what moves it and what tells its gaps."""
        if not self._varies:
            return self.world, {}, self._steppers, self.clearance
        world, drawn = vary(self.world, self.recipe.variation, seed, self.scratch / f"world-{seed}")
        same, steppers = keeps_shapes(drawn), list[Stepper]()
        for stepper in self._steppers:
            if not isinstance(stepper, Learned):
                steppers.append(stepper if same else Kinematics(world))
                continue
            read = stepper if same else Learned(world, stepper.model, self.step) if not steppers else steppers[0]
            own = copy.copy(read)  # what was read of the shapes is shared, the network is its own
            own.world, own.model = world, vary_dynamics(stepper.model, drawn)  # type: ignore[attr-defined]  # Learned
            steppers.append(own)
        first = steppers[0]
        clearance = self.clearance if same else Clearance(world, first._scene if isinstance(first, Learned) else None)
        return world, drawn, steppers, clearance

    def _start(
        self, job: Job, world: World, clearance: Clearance, stepper: Stepper, rng: np.random.Generator
    ) -> WorldState:
        if job.material is None:
            try:
                poses = draw_start(world, clearance, stepper.bodies, rng, self.recipe.start, job.near)
            except InputError as error:
                raise NoStart from error
            return WorldState(poses, torch.zeros(len(world.links), 6), torch.zeros(0, len(world.links), 7))
        for _ in range(8):
            state = material_state(world, job.material, rng)
            gaps = clearance.gaps(state.world_from_link[None])
            if not gaps.numel() or float(gaps.min()) >= -0.5 * self.recipe.limits.penetration:
                return state
        raise NoStart

    def _cast(
        self, job: Job, engine: Engine, clearance: Clearance, rng: np.random.Generator, seed: int
    ) -> tuple[Callable[[int], Mapping[str, Tensor]], Cast]:
        """Who does what: the policies of this episode's number, or what its material did, disturbed."""
        if job.material is not None:
            return disturbed(engine, job.material, rng), Cast(dict.fromkeys(engine.specs, "replay"), {})
        words: dict[str, str] = {}
        goals: dict[str, Judged] = {}
        acts: dict[str, Callable[[], Tensor]] = {}
        for name in engine.specs:
            kinds = self.kinds if name in self.kinds else {name: next(iter(self.kinds.values()))}  # a robot put in
            words[name] = draw_kind(kinds, name, job.number, self.recipe.seed)
            if words[name] == "expert":
                goal = goal_for(name, engine, clearance, rng)
                words[name] = "expert" if goal else "random"
                goals |= {name: goal} if goal else {}
            if words[name] in ("expert", "adversarial"):
                acts[name] = Seeker(engine, name, goals.get(name), seed)
            else:
                policy = Policy(f"{name}={words[name]}", engine, PolicyInput(seed))
                acts[name] = lambda name=name, policy=policy: policy()[name]
        return (lambda step: {name: act() for name, act in acts.items()}), Cast(words, goals)

    def _again(
        self, world: World, stepper: Stepper, state: WorldState, actions: Mapping[str, Tensor]
    ) -> Float[Tensor, "1 T L 4 4"]:
        """The same start and actions by other dynamics."""
        engine = Engine(world, stepper, EngineOptions(self.step))
        engine.reset(0, state)
        poses = [engine.motion.world_from_link]
        for step in range(self.recipe.steps):
            poses.append(engine.step({name: values[step] for name, values in actions.items()}).world_from_link)
        return torch.stack(poses, dim=1)

    def _episode(self, job: Job, trial: Trial, seed: int, rejected: Mapping[str, int]) -> Episode:
        """The trial as an episode without films: a row per step, the state and the action in force from then on."""
        times = torch.arange(self.recipe.steps, dtype=torch.float64) * self.step
        poses, kinds = trial.poses[:-1], set(trial.cast.words.values())
        signals, names = {}, {}
        gaps = trial.clearance.gaps(poses)
        met = (gaps < NEAR).any(dim=0).nonzero()[:, 0].tolist() if gaps.shape[1] else []
        if met:
            signals["gaps"] = gaps[:, met].float()
            names["signals/gaps"] = tuple(trial.clearance.names[row] for row in met)
        for agent in trial.world.agents:
            if agent.action is not None:
                names[f"actions/{agent.name}"] = agent.action.names
        return Episode(
            times,
            actions=trial.actions,
            joints=trial.joints,
            link_poses=pose_from_transform(poses),
            link_names=tuple(link.name for link in trial.world.links),
            behaviour=kinds.pop() if len(kinds) == 1 else "mixed",  # type: ignore[arg-type]  # kinds of behaviour
            behaviours=trial.cast.words,  # type: ignore[arg-type]  # kinds of behaviour
            success=trial.cast.goals.keys() <= trial.reached if trial.cast.goals else None,
            source=f"gworld generate, {job.kind}",
            task=trial.cast.task,
            signals=signals,
            names=names,
            origin={
                "number": job.number,
                "kind": job.kind,
                "seed": seed,
                "world_seed": trial.world_seed,
                "from": "" if job.material is None else job.material.source,
                "attempts": sum(rejected.values()) + 1,
                "rejected": dict(rejected),
                "figures": {name: round(value, 6) for name, value in trial.verdict.figures.items()},
                "hardest": hardest_step(trial.doubt, round(1.0 / self.step)),
                "drawn": trial.drawn,
            },
        )


def spread_of(
    track: Float[Tensor, "T L 4 4"], others: Float[Tensor, "N T L 4 4"], links: Sequence[int]
) -> Float[Tensor, " T"]:
    """How far (m) objects are elsewhere, at each instant, in other runs: their mean, of the object that is farthest."""
    if not links or not len(others):
        return torch.zeros(len(track))
    places = others[:, :, list(links), :3, 3]
    return (places - track[:, list(links), :3, 3]).norm(dim=-1).mean(dim=0).amax(dim=-1)


def hardest_step(doubt: Float[Tensor, " T"], window: int) -> int:
    """The step after which, within `window` steps, runs grow apart most."""
    later = doubt[torch.arange(len(doubt)).add(window).clamp_max(len(doubt) - 1)]
    return int((later - doubt).argmax())


def _nudged(world: World, state: WorldState, mass: float, shift: float) -> WorldState:
    """The state with objects elsewhere and heavier."""
    poses, actuators = state.world_from_link.clone(), dict(state.actuators)
    links = [link for entity in world.entities if entity.kind == "object" for link in entity.links]
    poses[links, :2, 3] += shift
    if BELIEF in actuators:
        belief = actuators[BELIEF].view(len(poses), -1).clone()
        belief[links, 0] += mass
        actuators[BELIEF] = belief.reshape(-1)
    return replace(state, world_from_link=poses, actuators=actuators)


def _manifest(place: Path) -> Path:
    """What tells a dynamics run's weights apart."""
    if (place / "manifest.json").is_file():
        return place / "manifest.json"
    found = latest_checkpoint(place)
    if found is None:
        raise InputError(f"`{place}` holds no dynamics checkpoint; train one with `gworld train dynamics`.")
    return found / "manifest.json"


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
