"""Driving: who tells each agent what, one step of the engine after the other, and a record of all of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.actions import deepest_link
from gworld.agents.inverse import InverseOptions, solve_inverse
from gworld.agents.tree import value_slots
from gworld.data.parquet import write_columns
from gworld.errors import InputError
from gworld.files import atomic_write
from gworld.geometry import pose_from_transform, transform_from_pose
from gworld.scene.rollout import Rollout
from gworld.scene.world import WorldState
from gworld.simulate.actions import ActionTable
from gworld.simulate.engine import Engine
from gworld.simulate.files import write_rollout
from gworld.simulate.policies import Policy, PolicyInput
from gworld.simulate.stepper import read_state
from gworld.simulate.tasks import Judge, Judged, Task
from gworld.viewer.tape import Tape

HAND, REPLAY = "sliders", "replay"
WORDS = {HAND: "human"}
"""What episodes call what drives here."""
MAX_STEPS = 36_000
"""Steps that one recording holds: twenty minutes at 30 per second."""
QUICK = InverseOptions(iterations=12)


class Driver:
    """An engine of one world, what each agent is told by (`modes`), and what its sliders say (`told`).

    Every step since the reset is kept, so that what was driven can be branched from, and repeated by its actions alone.
    `recording` is True while a drive is to be written. Not to be called from several threads at once, but for `tell`.
    """

    def __init__(
        self, engine: Engine, table: ActionTable | None = None, seed: int = 0, task: Task | Judge | None = None
    ) -> None:
        self.engine, self.table, self.seed = engine, table, seed
        self.task = None if task is None else Judged(task, engine.world)
        self.modes = dict.fromkeys(engine.specs, HAND)
        self.told = {name: np.zeros(len(spec)) for name, spec in engine.specs.items()}
        self.recording = False
        self.saved: WorldState | None = None
        self.left = False  # something else was driven than what led to the remembered state
        self._drivers: dict[str, set[str]] = {}
        self._policy: Policy | None = None
        self.reset()

    def choices(self, agent: str) -> tuple[str, ...]:
        """What an agent can be driven by."""
        expert = ("expert",) if self.task is not None and agent in self.task.agents else ()
        others = [body for body in self.engine.world.entities if body.kind != "static" and body.name != agent]
        adversarial = ("adversarial",) if others else ()
        replay = (REPLAY,) if self.table is not None and agent in self.table.values else ()
        return (HAND, "null", "random", "extreme", *expert, *adversarial, *replay)

    @property
    def poses(self) -> Float[np.ndarray, "L 7"]:
        """Where every link is now."""
        return pose_from_transform(self.engine.motion.world_from_link[0]).numpy()

    @property
    def time(self) -> float:
        """Seconds since the reset."""
        return float(self.engine.motion.time)

    @property
    def steps(self) -> int:
        """Steps since the reset."""
        return len(self._tape)

    def reset(self) -> None:
        """Begin anew at rest; sliders go to where the agents stand. A recording ends."""
        self.engine.reset(self.seed)
        if self.task is not None:
            self.task.draw(self.engine.generators)
        self.recording = False
        self._tape, self.left = Tape(self.poses), False
        self._drivers = {agent: set() for agent in self.engine.specs}
        self._settle()

    def _settle(self) -> None:
        self._policy = None
        for agent in self.engine.specs:
            self.hold(agent)

    def hold(self, agent: str) -> None:
        """Set an agent's sliders to what keeps it where it is."""
        spec = self.engine.specs[agent]
        still = self.engine.stepper.hold(self.engine.motion, agent)[0].double().numpy()
        middle = np.clip(0.0, spec.low, spec.high)
        self.told[agent] = np.clip(np.where(np.isfinite(still), still, middle), spec.low, spec.high)

    def tell(self, agent: str, component: int, value: float) -> None:
        """Set one slider; values beyond the limits are cut, and what is no number is ignored."""
        spec = self.engine.specs[agent]
        if math.isfinite(value) and 0 <= component < len(spec):
            self.told[agent][component] = min(max(value, spec.low[component]), spec.high[component])

    def choose(self, agent: str, mode: str) -> None:
        """Change what an agent is driven by. Raises `InputError` for what it cannot be."""
        if mode not in self.choices(agent):
            raise InputError(f"agent `{agent}` cannot be driven by {mode!r}; {', '.join(self.choices(agent))} can be.")
        if mode == HAND and self.modes[agent] != HAND:
            self.hold(agent)
        self.modes[agent], self._policy = mode, None

    def actions(self) -> dict[str, Float[Tensor, "1 A"]]:
        """What every agent is told now."""
        if self._policy is None:
            words = {name: "null" if mode == HAND else mode for name, mode in self.modes.items()}
            text = ",".join(f"{name}={word}" for name, word in words.items())
            self._policy = Policy(text, self.engine, PolicyInput(self.seed, self.table, self.task))
        told = self._policy() if any(mode != HAND for mode in self.modes.values()) else {}
        by_hand = {name: torch.tensor(self.told[name], dtype=torch.float32)[None] for name in self.modes}
        return {name: by_hand[name] if mode == HAND else told[name] for name, mode in self.modes.items()}

    def step(self) -> None:
        """One step of the engine; of drives longer than `MAX_STEPS` only the motion goes on."""
        told = self.actions()
        self.engine.step(told)
        self.left = True
        if len(self._tape) >= MAX_STEPS:
            self.recording = False
            return
        self._tape.add(told, self.poses)
        for agent, mode in self.modes.items():
            self._drivers[agent].add(mode)

    def start_recording(self) -> None:
        """Begin anew at rest, so that the actions alone repeat the motion."""
        self.reset()
        self.recording = True

    def stop_recording(self) -> Rollout | None:
        """What was driven since the reset; None where no step was recorded."""
        recorded, self.recording = self.recording, False
        return self.driven() if recorded else None

    def driven(self) -> Rollout | None:
        """All that happened since the reset, as the actions from rest repeat it; None without a step."""
        tape = self._tape
        if not len(tape):
            return None
        actions = {}
        for name, spec in self.engine.specs.items():
            actions[name] = torch.cat([tape.told(name), torch.full((1, len(spec)), math.nan)])
        times = self.engine.options.step * torch.arange(len(tape) + 1, dtype=torch.float64)
        names = tuple(link.name for link in self.engine.world.links)
        folder = self.engine.world.folder
        world = folder.name if folder else ""
        return Rollout(times, tape.poses(), names, actions, (self.seed,), "", world)

    def behaviours(self) -> dict[str, str]:
        """Who chose each agent's actions since the reset, in the words of episodes."""
        words = {agent: {WORDS.get(mode, mode) for mode in modes} for agent, modes in self._drivers.items()}
        return {agent: kinds.pop() if len(kinds) == 1 else "mixed" for agent, kinds in words.items()}

    def save(self) -> None:
        """Remember the state, to branch from."""
        self.saved, self._kept, self.left = self.engine.save(), self._tape.copy(), False

    def back(self) -> bool:
        """Return to the remembered state and what led to it; False where there is none.

        A recording goes on from there: the engine comes back with the same bits, so actions from rest repeat it.
        """
        if self.saved is None:
            return False
        self.engine.reset(self.seed, self.saved)
        self._tape, self.left = self._kept.copy(), False
        self._settle()
        return True

    def hand_link(self, agent: str) -> int | None:
        """The link of the world that a gizmo of this agent drags; None where joints have no targets to be set."""
        body = self.engine.stepper.bodies.get(agent)
        if body is None or body.stand_in:
            return None
        if not any(f"{joint}/position" in body.spec.names for joint in value_slots(body.skeleton)):
            return None
        names = [link.name for link in body.skeleton.links]
        return body.entity.links[body.carriers.index(names.index(deepest_link(body.skeleton)))]

    def reach(self, agent: str, pose: Float[np.ndarray, " 7"]) -> float:
        """Set an agent's sliders so that its hand goes to a pose as far as it can; metres that are left."""
        body = self.engine.stepper.bodies[agent]
        state = read_state(body, self.engine.motion.world_from_link[:, list(body.entity.links)])
        target = transform_from_pose(torch.from_numpy(np.asarray(pose)).float())[None, None]
        hand = [deepest_link(body.skeleton)]
        found = solve_inverse(body.skeleton, hand, target, state.values, base=state.base, options=QUICK)
        slots = value_slots(body.skeleton)
        for index, name in enumerate(body.spec.names):
            joint, _, quantity = name.rpartition("/")
            if quantity == "position" and joint in slots:
                self.tell(agent, index, float(found.values[0, slots[joint].start]))
        return float(found.position_error.max())


def write_driven(rollout: Rollout, engine: Engine, folder: Path) -> tuple[Path, Path]:
    """Write a recording as `drive-N-actions.parquet` and `drive-N.parquet` with the next free N; both names."""
    motion = free_name(folder, "drive", ".parquet")
    acts = motion.with_name(f"{motion.stem}-actions.parquet")
    columns = {"time": rollout.times[:-1].numpy()}
    for agent, values in rollout.actions.items():
        for index, part in enumerate(engine.specs[agent].names):
            columns[f"{agent}/{part}"] = values[:-1, index].double().numpy()
    with atomic_write(acts) as stream:
        write_columns(Path(stream.name), columns)
    write_rollout(rollout, motion)
    return acts, motion


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """The first of `stem-001`, `stem-002` .. in a folder, which is made, that no file has."""
    folder.mkdir(parents=True, exist_ok=True)
    return next(path for n in range(1, 1 << 20) if not (path := folder / f"{stem}-{n:03d}{suffix}").exists())
