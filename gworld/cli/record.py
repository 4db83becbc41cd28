"""`gworld record`: episodes from simulated scenes with several agents, their truth known exactly, into a store."""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from gworld.cli.options import print_json, say, ticker
from gworld.data.simulators_options import SceneOptions
from gworld.errors import UsageError

if TYPE_CHECKING:
    from gworld.data.simulators import Simulation
    from gworld.data.store import EpisodeSet


@dataclass(frozen=True)
class Options:
    """Which scene, how many episodes, and who acts."""

    out: Path
    """The episode store: made, or added to; episodes that it has already are skipped, so the same command resumes."""
    scene: str = "push"
    """push, arms or street; or gym:ID, dm:DOMAIN/TASK, robosuite:NAME for an environment of other people."""
    episodes: int = 20
    """How many episodes are recorded."""
    seconds: float = 10.0
    """Length of each episode."""
    policy: str = "mixed"
    """expert, random, extreme, adversarial, null, replay or mixed; or per agent, as left=expert,right=random."""
    replay: Path | None = None
    """The store whose episodes are replayed, in turn, by agents that replay."""
    seed: int = 0
    """Seed of the first episode; each next one has the next seed."""
    options: Annotated[SceneOptions, tyro.conf.arg(name="")] = field(default_factory=SceneOptions)
    """What the scene holds and how it is watched."""
    video: bool = True
    """Film with the cameras; with --no-video, states alone are recorded, much faster and without OpenGL."""
    truth: bool = True
    """Keep depth and the link behind every pixel beside each video."""
    world: bool = True
    """Write the scene's true world of Gaussians and its robots to OUT/world (our own scenes; once)."""
    json: bool = False
    """Print one JSON object on stdout instead of lines for people."""


def run(options: Options) -> None:
    """Record; raises `UsageError` for a request that makes no sense, `MissingBackendError` without MuJoCo or OpenGL."""
    from gworld.data.behaviours import parse_policy
    from gworld.data.simulators_gym import open_simulation
    from gworld.data.store import EpisodeWriter

    if options.episodes < 1 or options.seed < 0:
        raise UsageError(f"{options.episodes} episodes from seed {options.seed} were asked for; 1 from 0 is the least.")
    replayed = _replayed(options)
    simulation = open_simulation(options.scene, options.options)
    policy = parse_policy(options.policy, list(simulation.agents))
    if "replay" in policy.values() and replayed is None:
        raise UsageError("agents that replay need the episodes: give the store with `--replay EPISODES`.")
    if options.video and simulation.cameras is not None:
        simulation.draw(0)  # so that a machine without OpenGL says so before anything is made
    begin, made, steps, skipped = time.monotonic(), 0, 0, 0
    results: list[bool | None] = []
    tick = ticker("record", options.episodes, begin)
    with EpisodeWriter(options.out) as writer:
        known = writer.keys
        for number in range(options.episodes):
            key = _key(options, number)
            if key in known:
                skipped += 1
                continue
            count, success = _record(options, simulation, policy, replayed, number, writer, key)
            made, steps = made + 1, steps + count
            results.append(success)
            tick(number + 1)
    if options.world:
        _save_world(simulation, options.out / "world")
    simulation.close()
    _report(options, simulation, made, steps, skipped, results, time.monotonic() - begin)


def _record(
    options: Options,
    simulation: Simulation,
    policy: dict[str, str],
    replayed: EpisodeSet | None,
    number: int,
    writer: Any,
    key: str,
) -> tuple[int, bool | None]:
    """One episode: simulated, filmed, stored."""
    from gworld.data.simulated import film_trace, simulate_episode, trace_episode
    from gworld.data.store import read_episode

    source = None if replayed is None else read_episode(replayed, number % len(replayed))
    trace, behaviours = simulate_episode(simulation, policy, options.seed + number, options.seconds, source)
    videos = film_trace(simulation, trace, writer.scratch(), options.truth) if options.video else ()
    episode = trace_episode(simulation, trace, behaviours, videos)
    writer.add(episode, key)
    return len(episode), episode.success


def _save_world(simulation: Simulation, folder: Path) -> None:
    """The true world at the start of seed 0, where none lies there and the scene is one of ours."""
    from gworld.data.simulators import SCENES
    from gworld.data.simulators_world import scene_world
    from gworld.formats.world import save_world

    if simulation.name in SCENES and not folder.exists():
        simulation.reset(0)
        with tempfile.TemporaryDirectory() as place:
            save_world(scene_world(simulation, folder=place), folder)


def _replayed(options: Options) -> EpisodeSet | None:
    from gworld.data.store import open_episodes

    if options.replay is None:
        return None
    episodes = open_episodes(options.replay)
    if len(episodes) == 0:
        raise UsageError(f"`{options.replay}` holds no finished episode to replay.")
    return episodes


def _key(options: Options, number: int) -> str:
    """Names an episode by all that decides what is in it."""
    scene = asdict(options.options)
    facts = (options.scene, options.policy, options.seconds, options.video, options.truth, str(options.replay), scene)
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    return f"{options.scene} {digest} seed {options.seed + number}"


def _report(
    options: Options,
    simulation: Simulation,
    made: int,
    steps: int,
    skipped: int,
    results: list[bool | None],
    seconds: float,
) -> None:
    cameras = len(simulation.cameras) if options.video and simulation.cameras is not None else 0
    judged = [result for result in results if result is not None]
    facts = {
        "out": str(options.out),
        "added": made,
        "skipped": skipped,
        "steps": steps,
        "frames": steps * cameras,
        "seconds": seconds,
        "episodes_per_minute": 60 * made / seconds if seconds > 0 else 0.0,
        "frames_per_second": steps * cameras / seconds if seconds > 0 else 0.0,
        "succeeded": sum(judged),
    }
    if options.json:
        print_json(facts)
        return
    before = f", {skipped} were there already" if skipped else ""
    frames = f", {facts['frames_per_second']:.0f} frames/s from {cameras} cameras" if cameras else ", no pictures"
    goals = f", {sum(judged)} of {len(judged)} reached their goals" if judged else ""
    say(f"episodes: {options.out}")
    say(
        f"result: {made} added in {seconds:.1f} s ({facts['episodes_per_minute']:.1f} episodes/min, "
        f"{steps / max(seconds, 1e-9):.0f} steps/s{frames}){goals}{before}"
    )
    say(f"next: gworld info {options.out} --thumbnail sheet.png")
