"""`gworld train`: a dynamics network from episodes or one of the generated laws; a refiner from photos."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from gworld.cli.options import print_json, say
from gworld.cli.train_refiner import RefinerTraining, train_refiner
from gworld.errors import InputError, UsageError

if TYPE_CHECKING:
    from gworld.dynamics.recordings import Recordings


@dataclass(frozen=True)
class Options:
    """What to learn from, and where the run goes. One of --episodes (with --world) and --law is given."""

    what: Annotated[Literal["dynamics", "refiner"], tyro.conf.Positional]
    """The part of the world model to train."""
    out: Path
    """The run folder; the same command goes on with a run that was interrupted."""
    episodes: Path | None = None
    """An episode store with tracked or simulated link poses."""
    world: Path | None = None
    """The world (or the run that made it) whose agents and objects the episodes show."""
    law: Literal["uniform", "parabola", "collision", "combo"] | None = None
    """Learn from generated balls instead."""
    limit: int | None = None
    """Read at most this many episodes."""
    held_out: float = 0.15
    """Part of the episodes kept for validation."""
    steps: int = 400
    """Steps of the optimiser."""
    batch: int = 48
    """Windows per step."""
    horizons: tuple[int, ...] = (1, 3, 6)
    """Steps predicted, in turn, each for an equal part of the run."""
    substeps: int = 0
    """Parts into which a step is cut; 0 takes 2 for balls and 4 where objects lie on a table."""
    forces: bool = False
    """Learn forces across a distance too."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""
    seed: int = 0
    """Draws weights and windows."""
    view: bool = False
    """Watch in the browser: the course of the error; pause and step."""
    json: bool = False
    """Print one JSON object on stdout instead of lines for people."""
    refiner: RefinerTraining = field(default_factory=RefinerTraining)
    """What a refiner learns from; --out, --world, --device, --seed, --view and --json count for it too."""


def run(options: Options) -> None:
    """Train; raises `UsageError` for options that exclude each other and `InputError` for episodes without poses."""
    if options.what == "dynamics":
        return _train_dynamics(options)
    return train_refiner(
        options.refiner, options.out, options.world, device=options.device, seed=options.seed, json=options.json,
        view=options.view,
    )  # fmt: skip


def _train_dynamics(options: Options) -> None:
    import torch

    from gworld.dynamics.baselines import ConstantVelocity, Copy
    from gworld.dynamics.judge import validate
    from gworld.dynamics.network import Dynamics, NetworkConfig
    from gworld.dynamics.recordings import recordings_to, split_recordings
    from gworld.dynamics.train import TrainConfig, train
    from gworld.viewer.follow import Watched, resting_between_steps

    if (options.law is None) == (options.episodes is None):
        raise UsageError("one of `--episodes` and `--law` is needed, to learn from.")
    if options.device != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"`--device {options.device}` is not here: this machine shows PyTorch no CUDA device.")
    started = time.monotonic()
    data = _law_data(options) if options.law else _store_data(options)
    if len(data) < 2:
        raise InputError(
            f"{len(data)} episodes were found; at least 2 are needed, one to learn from and one to judge by."
        )
    learn, judge = split_recordings(data, options.held_out, torch.Generator().manual_seed(options.seed))
    lies = bool((data.scene.planes.shape[1] > 0) and (data.scene.down.abs().sum() > 0))
    network = NetworkConfig(
        substeps=options.substeps or (4 if lies else 2),
        length=float(data.scene.scale.mean()) if lies else 1.0,
        support=lies,
        forces=options.forces,
        seed=options.seed,
    )
    config = TrainConfig(steps=options.steps, batch=options.batch, horizons=options.horizons, seed=options.seed)
    say(f"{len(learn)} episodes of {learn.poses.shape[1]} steps to learn from, {len(judge)} to judge by")
    learn, judge = recordings_to(learn, options.device), recordings_to(judge, options.device)
    model = Dynamics(network).to(options.device)
    with contextlib.ExitStack() as stack:
        watched = stack.enter_context(Watched(options.out)) if options.view else None
        if watched is not None:
            stack.enter_context(resting_between_steps(watched))
            watched.tell("fitting what acts alone: drives, supports, contacts", 0.0)

        def told(step: int, loss: float) -> None:
            say(f"  step {step}: {loss:.5f} radii")
            if watched is not None:
                watched.tell(f"step {step} of {options.steps}: {loss:.5f} radii off held out", step / options.steps)

        done = train(model, learn, judge, config, options.out, told)
    values = {
        "error": validate(done.model, judge),
        "constant_velocity": validate(ConstantVelocity(), judge),
        "copy": validate(Copy(), judge),
    }
    if options.json:
        print_json({"run": str(options.out), "steps": done.steps, "seconds": time.monotonic() - started, **values})
        return
    say(f"{options.out}: {done.steps} steps, {time.monotonic() - started:.0f} s")
    say(
        f"  error of predictions held out {values['error']:.4f} radii "
        f"(constant velocity {values['constant_velocity']:.4f}, copy {values['copy']:.4f})"
    )
    say(f"next: gworld simulate --world WORLD --dynamics {options.out} --policy random")


def _law_data(options: Options) -> Recordings:
    from gworld.data.laws import draw_trials, law_episode, law_world
    from gworld.dynamics.recordings import gather_recordings

    assert options.law is not None
    trials = draw_trials(options.law, options.limit or 300, 1000 + options.seed)
    return gather_recordings([law_world(trial) for trial in trials], [law_episode(trial) for trial in trials])


def _store_data(options: Options) -> Recordings:
    from gworld.data.store import open_episodes, read_episode
    from gworld.dynamics.drives import world_drives
    from gworld.dynamics.recordings import gather_recordings
    from gworld.formats.registry import world_folder
    from gworld.formats.world import load_world

    assert options.episodes is not None
    if options.world is None:
        raise UsageError("`--episodes` needs `--world`, whose Gaussians tell the shapes.")
    world, store = load_world(world_folder(options.world)), open_episodes(options.episodes)
    count = len(store) if options.limit is None else min(options.limit, len(store))
    episodes = [read_episode(store, index) for index in range(count)]
    drives = world_drives(world) if world.folder is not None else {}
    return gather_recordings([world], episodes, drives)
