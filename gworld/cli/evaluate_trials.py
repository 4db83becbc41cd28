"""What `gworld evaluate` judges: rollouts as they lie on disk, or a run set to predict recorded episodes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gworld.cli.simulate_compare import true_motion
from gworld.data.store import is_episode_store, open_episodes, read_episode
from gworld.dynamics.state import motion_from_poses
from gworld.errors import InputError, UsageError
from gworld.evaluate.trials import Trial
from gworld.files import read_json
from gworld.formats.registry import world_folder
from gworld.formats.world import load_world
from gworld.geometry import transform_from_pose
from gworld.scene.episode import Episode
from gworld.scene.rollout import Rollout, resample_rollout
from gworld.scene.world import World
from gworld.simulate.actions import load_episode, table_from_episode
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.files import read_rollout
from gworld.simulate.learned import open_stepper
from gworld.simulate.run import run_engine, steps_for, tell_table

if TYPE_CHECKING:
    from gworld.cli.evaluate import Options

NULL_SECONDS = 10.0
MOST = 64
"""Rollouts of a folder or a store that are judged."""


@dataclass(frozen=True)
class Subject:
    """What is judged: its world, the trials, the episode behind each (None: none) and from when on; what it cost, how
    far objects drift when nobody acts (m), the command that made it, what is to be warned of."""

    world: World
    trials: list[Trial]
    episodes: Sequence[Episode | None]
    starts: list[float]
    source: str
    commands: list[str]
    costs: Mapping[str, str] = field(default_factory=dict)
    null_drift: float | None = None
    command: str = ""
    warnings: tuple[str, ...] = ()


def gather_subject(options: Options) -> Subject:
    """Read or predict; raises `UsageError` where a world or a truth is missing, `InputError` for strange files."""
    place = options.run
    if place.suffix.lower() == ".mp4":
        place = place.with_suffix(".parquet")
    if place.is_file():
        return _rollouts(options, [place])
    if is_episode_store(place):
        return _store(options, place)
    found = sorted(place.glob("*.parquet"))[:MOST] if place.is_dir() else []
    if found:
        return _rollouts(options, found)
    if place.is_dir():
        return _run(options, place)
    raise InputError(f"`{options.run}` is no rollout, run, world or episode store; name one of them.")


def record_of(rollout: Path) -> dict[str, Any]:
    """What `gworld simulate` wrote about a run beside its rollout; empty where it did not."""
    path = rollout.with_name(f"{rollout.stem}-run.json")
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _rollouts(options: Options, files: list[Path]) -> Subject:
    """Rollouts on disk beside the episodes that they were made from, or those of --truth by number."""
    record = record_of(files[0])
    place = options.world or (Path(record["world"]) if "world" in record else None)
    if place is None:
        raise UsageError(f"`{files[0]}` does not say in which world it was made; name it with `--world`.")
    world = load_world(world_folder(place))
    truth = record.get("truth") or {}
    source = options.truth or (Path(truth["episodes"]) if "episodes" in truth else None)
    trials, episodes, starts = [], [], []
    for index, file in enumerate(files):
        rollout = _in_order(read_rollout(file), world, file)
        number = options.number if options.number is not None else int(truth.get("number", index))
        episode = None if source is None else load_episode(source, number)
        start = float(truth.get("start", 0.0))
        trials.append(_trial(file.stem, world, rollout, episode, start))
        episodes.append(episode)
        starts.append(start)
    costs = {name: str(value) for name, value in (record.get("costs") or {}).items()}
    command = str(record.get("command", ""))
    drift = null_drift(world, None if record.get("dynamics") is None else Path(record["dynamics"]))
    about = (
        f"{len(files)} rollouts in {place}"
        if len(files) > 1
        else f"in {place}, {record.get('moved_by', 'moved by it')}"
    )
    commands = [command] * len(files)
    return Subject(world, trials, episodes, starts, about, commands, costs, drift, command)


def _store(options: Options, place: Path) -> Subject:
    """The episodes of a store, judged as motions."""
    if options.world is None:
        raise UsageError(f"`{place}` holds episodes; name the world they were made in with `--world`.")
    world = load_world(world_folder(options.world))
    store = open_episodes(place)
    trials = []
    for number in range(min(len(store), MOST)):
        motion, _, _ = true_motion(world, read_episode(store, number), 0.0)
        if motion is not None:
            trials.append(_trial(f"episode {number}", world, motion, None, 0.0))
    blank: list[Episode | None] = [None] * len(trials)
    show = [shlex.join(["gworld", "view", str(place)])] * len(trials)
    return Subject(world, trials, blank, [0.0] * len(trials), f"{len(trials)} of {len(store)} episodes", show)


def _run(options: Options, place: Path) -> Subject:
    """A world with its dynamics, or a trained run, set to predict recorded episodes from several instants of each."""
    trained = None if (place / "world.json").is_file() or (place / "world" / "world.json").is_file() else place
    home = options.world or (place if trained is None else None)
    if home is None or options.truth is None:
        raise UsageError(f"to judge the run `{place}`, name its world (`--world`) and recorded episodes (`--truth`).")
    world = load_world(world_folder(home))
    store = open_episodes(options.truth)
    numbers = [options.number] if options.number is not None else list(range(min(options.episodes, len(store))))
    trials, episodes, starts, commands, spent, steps, note = [], [], [], [], 0.0, 0, ""
    for number in numbers:
        episode = read_episode(store, number)
        for begin in _begins(episode, options):
            before = time.perf_counter()
            trial, note, count = _predict(world, trained, episode, begin, options.seconds, f"episode {number}")
            spent, steps = spent + time.perf_counter() - before, steps + count
            trials.append(trial)
            episodes.append(episode)
            starts.append(begin)
            word = [
                "gworld",
                "simulate",
                "--world",
                str(home),
                "--compare",
                str(options.truth),
                "--number",
                str(number),
            ]
            commands.append(shlex.join(word + (["--dynamics", str(trained)] if trained else [])))
    if not trials:
        raise InputError(f"`{options.truth}` holds no episode with tracked poses; run `gworld track` on it first.")
    costs = {"steps per second, loading included": f"{steps / max(spent, 1e-9):.0f}", "steps": str(steps)} | memory()
    about = f"{note}; {len(trials)} predictions of {options.seconds:g} s on {len(numbers)} episodes of {options.truth}"
    drift = null_drift(world, trained)
    return Subject(world, trials, episodes, starts, about, commands, costs, drift)


def _begins(episode: Episode, options: Options) -> Iterator[float]:
    """Seconds since the episode's first instant at which predictions begin."""
    clock = (episode.times - episode.times[0]).double()
    first, last = float(clock[min(2, len(clock) - 1)]), float(clock[-1]) - options.seconds
    for index in range(options.starts):
        share = index / max(options.starts - 1, 1)
        if index == 0 or last > first:
            yield float(clock[int((clock - (first + share * max(last - first, 0.0))).abs().argmin())])


def _predict(
    world: World, trained: Path | None, episode: Episode, begin: float, seconds: float, name: str
) -> tuple[Trial, str, int]:
    truth, state, start = true_motion(world, episode, begin)
    if truth is None or state is None:
        raise InputError(f"{name} has no tracked poses to compare with; run `gworld track` on it first.")
    step = float((episode.times[-1] - episode.times[0]) / (len(episode) - 1))
    stepper = open_stepper(world, step, trained)
    count = steps_for(min(seconds, float(truth.times[-1])), step)
    engine = Engine(world, stepper, EngineOptions(step))
    engine.reset(0, state)
    done = run_engine(engine, tell_table(engine, table_from_episode(episode, world, name), count, start), count, (0,))
    rollout = replace(done.rollouts[0], times=done.rollouts[0].times - done.rollouts[0].times[0])
    return _trial(f"{name} from {begin:.1f} s", world, rollout, episode, begin), stepper.note, count


def _trial(name: str, world: World, rollout: Rollout, episode: Episode | None, start: float) -> Trial:
    """A rollout, on its own clock, beside the recorded motion from `start` on."""
    times = rollout.times - rollout.times[0]
    predicted = transform_from_pose(rollout.link_poses)
    truth, state, _ = (None, None, 0.0) if episode is None else true_motion(world, episode, start)
    if truth is None or state is None:
        moving = motion_from_poses(rollout.link_poses[None, :2], float(times[1] - times[0])).twists[0]
        return Trial(name, times, predicted, None, moving)
    inside = times <= truth.times[-1] + 1e-6
    known = transform_from_pose(resample_rollout(truth, times[inside]).link_poses)
    return Trial(name, times[inside], predicted[inside], known, state.velocities)


def _in_order(rollout: Rollout, world: World, file: Path) -> Rollout:
    """The rollout with the world's links in the world's order."""
    names = [link.name for link in world.links]
    missing = [name for name in names if name not in rollout.link_names]
    if missing or len(rollout) < 2:
        raise InputError(f"`{file}` does not move the world's link `{(missing or names)[0]}`; name its own world.")
    order = [rollout.link_names.index(name) for name in names]
    std = None if rollout.link_std is None else rollout.link_std[:, order]
    return replace(rollout, link_poses=rollout.link_poses[:, order], link_names=tuple(names), link_std=std)


def null_drift(world: World, trained: Path | None) -> float | None:
    """Metres that an object moves at most in ten seconds in which every agent holds still; None without objects."""
    free = [link for entity in world.entities if entity.kind == "object" for link in entity.links]
    bound = trained is not None or (world.folder is not None and (world.folder / "dynamics").is_dir())
    if not free or not bound:
        return None
    step = 0.05
    engine = Engine(world, open_stepper(world, step, trained), EngineOptions(step))
    engine.reset(0)
    first: Tensor = engine.motion.world_from_link[0, free, :3, 3]
    held = engine.hold()
    most = 0.0
    for _ in range(steps_for(NULL_SECONDS, step)):
        moved = engine.step(held).world_from_link[0, free, :3, 3]
        most = max(most, float(torch.linalg.vector_norm(moved - first, dim=-1).max()))
    return most


def memory() -> dict[str, str]:
    """What this process has held at most."""
    import resource

    return {"memory, at most": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"}
