"""From actions to motion: one call that runs a world under actions or a policy and returns the rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gworld.dynamics.state import Motion
from gworld.errors import MissingBackendError, UsageError
from gworld.formats.registry import world_folder
from gworld.formats.world import load_world
from gworld.geometry import pose_from_transform
from gworld.scene.rollout import Rollout
from gworld.scene.world import World, WorldState
from gworld.simulate.actions import ActionTable, read_actions, resample, table_from_columns
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.learned import Learned, open_stepper
from gworld.simulate.policies import Policy, PolicyInput
from gworld.simulate.stepper import Stepper
from gworld.simulate.tasks import Judged, parse_task

Told = Callable[[int], Mapping[str, Tensor]]
"""What every agent does at a step: step number -> {agent: [W,A]}."""
MAX_STEPS = 10_000_000


@dataclass(frozen=True)
class Run:
    """A run of W worlds: their rollouts, what was cut to limits, the steps on which a world had to be held, a note."""

    rollouts: tuple[Rollout, ...]
    clipped: dict[str, int]
    stuck: int
    note: str
    state: tuple[WorldState, ...]


def simulate(
    world: World | str | Path,
    actions: ActionTable | Mapping[str, Any] | str | Path | None = None,
    *,
    policy: str | None = None,
    dynamics: str | Path | None = None,
    task: str | None = None,
    seconds: float | None = None,
    step: float | None = None,
    seed: int = 0,
    state: WorldState | None = None,
    stepper: Stepper | None = None,
    deviations: bool = False,
) -> Rollout:
    """How a world moves while its agents act: `gw.simulate("world", "actions.parquet")`.

    `actions` are a file (see `read_actions`), a table, or {agent: [T,A]} with one row per step of `step` seconds (1/30
    when None); or a `policy` acts for `seconds` (5 when None). The first instant is the state at the start; row t of
    the rollout's actions is what was done from instant t on, NaN where unknown. Without dynamics, agents follow their
    kinematics and objects stay. With `deviations` the rollout tells how sure every link's place is (about four times
    the time). Raises `InputError` for actions that do not fit the world.
    """
    found = world if isinstance(world, World) else load_world(world_folder(world))
    size = 1 / 30 if step is None else step
    if (actions is None) == (policy is None):
        raise UsageError("either actions or a policy is needed to simulate; one of the two.")
    engine = Engine(found, stepper or open_stepper(found, size, dynamics), EngineOptions(step=size))
    engine.reset(seed, state)
    if actions is not None:
        table = as_table(actions, found, size)
        count = steps_for(table.seconds if seconds is None else seconds, size)
        return run_engine(engine, tell_table(engine, table, count), count, (seed,), deviations=deviations).rollouts[0]
    judged = None if task is None else Judged(parse_task(task, found), found)
    if judged is not None:
        judged.draw(engine.generators)
    acting = Policy(policy or "null", engine, PolicyInput(seed, None, judged))
    count = steps_for(5.0 if seconds is None else seconds, size)
    return run_engine(engine, lambda _: acting(), count, (seed,), deviations=deviations).rollouts[0]


def make_env(world: World | str | Path, kind: str = "parallel", **settings: Any) -> Any:
    """A world as an environment: `parallel` (PettingZoo, several agents), `gym` (gymnasium, one) or `vector`.

    `settings` are those of `gworld.simulate.env.Setting`, and `agent=` or `worlds=` where they apply. Raises
    `MissingBackendError` where gymnasium or PettingZoo is not installed, `UsageError` for an unknown kind.
    """
    try:
        from gworld.simulate import env
    except ImportError as error:
        raise MissingBackendError(
            f"environments need gymnasium and pettingzoo ({error}). Run `pip install 'gworld[sim]'`."
        ) from error
    kinds: dict[str, Any] = {"parallel": env.WorldParallelEnv, "gym": env.WorldEnv, "vector": env.WorldVectorEnv}
    if kind not in kinds:
        raise UsageError(f"there is no environment of the kind `{kind}`; there are {', '.join(kinds)}.")
    return kinds[kind](world, **settings)


def as_table(actions: ActionTable | Mapping[str, Any] | str | Path, world: World, step: float) -> ActionTable:
    """Actions in any of the forms that `simulate` takes, checked."""
    if isinstance(actions, ActionTable):
        return actions
    if isinstance(actions, str | Path):
        return read_actions(actions, world, step)
    return table_from_columns({name: np.asarray(values) for name, values in actions.items()}, world, step)


def steps_for(seconds: float, step: float) -> int:
    """Steps in a time, at least one."""
    if not 0 < seconds / step <= MAX_STEPS:
        raise UsageError(f"{seconds} s in steps of {step:g} s were asked for; 1 to {MAX_STEPS} steps are possible.")
    return max(1, round(seconds / step))


def tell_table(engine: Engine, table: ActionTable, steps: int, start: float = 0.0) -> Told:
    """A table's actions from its instant `start` on, on the engine's clock, alike in all worlds."""
    held = resample(table, engine.options.step, steps, start)
    worlds = engine.options.worlds
    return lambda step: {name: values[step].expand(worlds, -1) for name, values in held.items()}


def run_engine(
    engine: Engine,
    told: Told,
    steps: int,
    seeds: Sequence[int] = (),
    watch: Callable[[int, Motion], None] = lambda step, motion: None,
    deviations: bool = False,
) -> Run:
    """Step the engine from where it stands; `watch` sees every state, the first included.

    With `deviations` the rollouts tell how sure every link's place is. Raises `UsageError` where nothing learned it.
    """
    if deviations:
        sure_of(engine.stepper)
    begun, start = engine.motion, engine.motion.time
    poses, done = [pose_from_transform(engine.motion.world_from_link)], []
    watch(0, engine.motion)
    for step in range(steps):
        action = {name: torch.as_tensor(value) for name, value in told(step).items()}
        motion = engine.step(action)
        poses.append(pose_from_transform(motion.world_from_link))
        done.append(action)
        watch(step + 1, motion)
    track = torch.stack(poses, dim=1)
    times = start + engine.options.step * torch.arange(steps + 1, dtype=torch.float64)
    names = tuple(link.name for link in engine.world.links)
    rollouts = []
    for row in range(engine.options.worlds):
        actions = {name: _column(done, name, row, len(spec)) for name, spec in engine.specs.items()}
        rollouts.append(Rollout(times, track[row], names, actions, tuple(seeds), world=_name(engine.world)))
    if deviations:
        rollouts = with_deviations(engine.stepper, begun, rollouts)
    clipped = {
        f"{agent}/{part}": int(count)
        for agent, spec in engine.specs.items()
        for part, count in zip(spec.names, engine.clipped[agent], strict=True)
        if count
    }
    states = tuple(engine.save(row) for row in range(engine.options.worlds))
    return Run(tuple(rollouts), clipped, int(engine.stuck.sum()), engine.stepper.note, states)


def with_deviations(stepper: Stepper, start: Motion, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Rollouts that tell how sure every link's place is, of worlds that began as `start` and did what they say.

    Raises `UsageError` where nothing learned it.
    """
    learned = sure_of(stepper)
    names = rollouts[0].actions
    actions = {name: torch.stack([rollout.actions[name][:-1] for rollout in rollouts]).float() for name in names}
    std = learned.deviations(start, actions, len(rollouts[0]) - 1).float()
    std = torch.cat([torch.zeros_like(std[:, :1]), std], dim=1)
    return [replace(rollout, link_std=own) for rollout, own in zip(rollouts, std, strict=True)]


def sure_of(stepper: Stepper) -> Learned:
    """The stepper, if it knows how sure it is; raises `UsageError` if not."""
    if isinstance(stepper, Learned) and stepper.calibration is not None:
        return stepper
    raise UsageError(
        "how sure places are is known only to dynamics that were calibrated; name such a run, or leave deviations out."
    )


def _column(done: Sequence[Mapping[str, Tensor]], name: str, row: int, width: int) -> Tensor:
    """One agent's actions [T+1,A], unknown where it was told nothing and after the last step."""
    blank = torch.full((width,), math.nan)
    rows = [step[name].expand(step[name].shape[0], width)[row] if name in step else blank for step in done]
    return torch.stack([*rows, blank])


def _name(world: World) -> str:
    return "" if world.folder is None else world.folder.name
