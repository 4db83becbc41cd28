"""`gworld simulate`: any actions in, video and labels out, for one or many agents and worlds."""

from __future__ import annotations

import resource
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from gworld.cli.options import print_json, say
from gworld.errors import UsageError
from gworld.files import refuse_existing, write_json
from gworld.render.names import BackendName

if TYPE_CHECKING:
    from gworld.scene.world import World
    from gworld.simulate.actions import ActionTable
    from gworld.simulate.engine import Engine

LONGEST = 5.0
"""Seconds that a policy acts when nothing is said."""
USUAL = 30.0
"""Steps per second when nothing is said and nothing recorded is at hand."""
PACES = (10.0, 120.0)
"""Steps per second, least and most, that are taken over from a recording."""


@dataclass(frozen=True)
class Options:
    """What acts in which world, how it is watched, and what is written. One of --actions and --policy is given."""

    world: Annotated[Path, tyro.conf.arg(metavar="WORLD")]
    """The world folder."""
    actions: Path | None = None
    """Parquet, CSV, npz, npy or JSON with a clock and columns `agent/component`, an episode, a store, a data set."""
    number: int = 0
    """Which episode, where --actions or --compare holds several."""
    agents: str = ""
    """Share one recording's columns out to agents, as left=*left*,right=*right* (or by number, as left=0:7)."""
    policy: str | None = None
    """null, random, extreme, replay, expert, adversarial, one for all or `left=expert,right=random`; `module:function`
    runs that function of yours, `served:PORT` asks a policy in a process of its own on this machine."""
    task: str | None = None
    """What experts do: reach, push_to_goal, keep_apart, a YAML file, or `module:function` of yours."""
    dynamics: Path | None = None
    """A dynamics run; else the one bound to the world, else kinematics only."""
    out: Path = Path("rollout.mp4")
    """The video; `.parquet` of the same name holds the motion."""
    cameras: tuple[str, ...] = ()
    """The world's cameras by name (all when empty), or one of: `orbit`, a camera-path JSON."""
    outputs: tuple[str, ...] = ("rgb",)
    """rgb depth link_id flow scene_flow alpha seen visibility: the first four make panels, all go to --labels."""
    width: int = 320
    """Width of each camera's picture in pixels; its height follows the camera."""
    seconds: float | None = None
    """How long; as long as the actions last, or 5 s of a policy."""
    rate: float = 0.0
    """Steps per second; 0 takes those of the recording that acts or is compared with, else 30."""
    fps: float | None = None
    """Frames per second of video; as many as steps."""
    worlds: int = 1
    """Worlds run at once, with seeds seed, seed + 1 ..; up to 16 are shown."""
    seed: int = 0
    """Draws targets, noise and starts."""
    jitter: float = 0.0
    """How far joints start from where they are, as a part of their range."""
    compare: Path | None = None
    """A recorded episode: truth beside prediction, errors in OUT-errors.csv; its own actions where none are given."""
    swap: tuple[str, ...] = ()
    """`agent=FILE`: that agent's actions from elsewhere; shows both runs and their difference."""
    refine: bool = False
    """Turn the pictures into footage where the world is unsure (see `gworld refine`)."""
    refiner: Path | None = None
    """A trained refiner for --refine; else the world's own, else the one shipped for all scenes."""
    labels: Path | None = None
    """A new folder for pictures, labels and contacts of every frame."""
    contact_margin: float = 0.005
    """Bodies nearer than this, in metres, are in contact (labels)."""
    deviations: bool = False
    """Write how sure every link's place is into the motion file too, as `link_std` in metres (about four times the
    time; for dynamics that were calibrated)."""
    glb: Path | None = None
    """An animated GLB of the first world."""
    episode: Path | None = None
    """An episode store to which every world's run is added."""
    background: tuple[float, float, float] | None = None
    """Background colour, 0 to 1; the world's own, or black, when not given."""
    backend: BackendName = "auto"
    """Which renderer draws."""
    overwrite: bool = False
    """Replace what exists."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Simulate.

    Raises `UsageError` for requests that contradict themselves or outputs that exist, `InputError` for a world or
    actions that cannot be used.
    """
    _check(options)
    from gworld.cli.simulate_compare import compare_run, swap_run
    from gworld.cli.simulate_draw import draw_run
    from gworld.formats.registry import world_folder
    from gworld.formats.world import load_world
    from gworld.simulate.engine import EngineOptions
    from gworld.simulate.learned import open_stepper
    from gworld.simulate.stepper import Kinematics

    world = load_world(world_folder(options.world))
    options = _paced(options, world)
    step = 1.0 / options.rate
    stepper = open_stepper(world, step, options.dynamics)
    say(stepper.note)
    if isinstance(stepper, Kinematics) and any(entity.kind == "object" for entity in world.entities):
        say(f"to let objects move: gworld train dynamics --episodes EPISODES --world {options.world} --out RUN, then")
        say(f"gworld bind {options.world} --dynamics RUN")
    if not world.agents:
        say(f"nobody acts in `{options.world}`: put a robot into it with `gworld bind {options.world} --robot FILE`")
    settings = EngineOptions(step, options.worlds, options.jitter)
    begin = time.monotonic()
    if options.compare is not None:
        facts = compare_run(world, stepper, settings, options)
    elif options.swap:
        facts = swap_run(world, stepper, settings, options)
    else:
        facts = draw_run(world, stepper, settings, options)
    facts |= {
        "gaussians": len(world.gaussians),
        "seconds": round(time.monotonic() - begin, 3),
        "moved_by": stepper.note,
    }
    write_record(options, facts)
    _close(options, facts)


def prepare(engine: Engine, options: Options, table: ActionTable | None) -> tuple[Any, int, dict[str, str]]:
    """Who tells the engine what (step -> actions), for how many steps, and each agent's kind of behaviour.

    A policy acts for agents of whom the actions say nothing only where both are given.
    """
    from gworld.simulate.policies import Policy, PolicyInput
    from gworld.simulate.run import steps_for, tell_table
    from gworld.simulate.tasks import Judged, parse_task

    world, step = engine.world, engine.options.step
    judged = None if options.task is None else Judged(parse_task(options.task, world), world)
    if judged is not None:
        judged.draw(engine.generators)
    seconds = options.seconds or (LONGEST if table is None else table.seconds)
    count = steps_for(seconds, step)
    if options.policy is None:
        assert table is not None
        words = {name: "replay" if name in table.values else "unknown" for name in engine.specs}
        return tell_table(engine, table, count), count, words
    policy = Policy(options.policy, engine, PolicyInput(options.seed, table, judged))
    return (lambda _: policy()), count, policy.words


def load_table(world: World, options: Options) -> ActionTable | None:
    """The actions of `--actions`, with what was assumed and what was cut said."""
    from gworld.data.split import parse_agents
    from gworld.simulate.actions import read_actions

    if options.actions is None:
        return None
    split = parse_agents(options.agents)
    table = read_actions(options.actions, world, 1.0 / options.rate, options.number, split)
    for note in table.notes:
        say(note)
    tell_clipped(dict(table.clipped), str(options.actions))
    return table


def tell_clipped(clipped: dict[str, int], source: str) -> None:
    """Say which components were cut to their limits, and how often."""
    if clipped:
        parts = ", ".join(f"{name} {count}x" for name, count in sorted(clipped.items())[:8])
        say(f"cut to the limits in `{source}`: {parts}")


def write_record(options: Options, facts: dict[str, Any]) -> None:
    """What `gworld evaluate` wants to know of a run, in OUT-run.json beside its video: command, world, costs."""
    begun = max(facts["seconds"], 1e-9)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    costs = {
        "steps per second, drawing included": f"{facts['steps'] * facts['worlds'] / begun:.1f}",
        "frames per second": f"{facts['frames'] / begun:.1f}",
        "whole run": f"{begun:.1f} s, {facts['steps']} steps, {facts['frames']} frames, {facts['worlds']} worlds",
        "memory, at most": f"{held:.0f} MB",
        "Gaussians": f"{facts['gaussians']:,}",
    }
    record = {
        "command": shlex.join(["gworld", *sys.argv[1:]]),
        "world": str(options.world),
        "dynamics": None if options.dynamics is None else str(options.dynamics),
        "truth": facts.get("truth"),
        "moved_by": facts["moved_by"],
        "costs": costs,
    }
    write_json(options.out.with_name(f"{options.out.stem}-run.json"), record)


def _check(options: Options) -> None:
    """Refuse what cannot be done before anything is loaded."""
    if (options.actions is None and options.policy is None) and options.compare is None:
        raise UsageError("nothing acts: give `--actions FILE`, or `--policy NAME`.")
    if options.actions is not None and options.policy is not None and "replay" not in options.policy:
        raise UsageError("both `--actions` and `--policy` were given; a policy uses actions only to `replay` them.")
    if options.swap and (options.actions is None or options.worlds > 1 or options.compare):
        raise UsageError("`--swap` changes `--actions` in one world; give actions, one world and no `--compare`.")
    if options.compare and options.worlds > 1:
        raise UsageError("`--compare` runs one world; leave `--worlds` out.")
    if options.out.suffix.lower() != ".mp4":
        raise UsageError(f"`--out {options.out}` is no .mp4 file.")
    if not ((options.rate == 0 or 0.1 <= options.rate <= 10_000) and 16 <= options.width <= 4096):
        raise UsageError(
            f"rate {options.rate} and width {options.width} were asked for; 0.1 to 10000 and 16 to 4096 fit."
        )
    if options.glb is not None and options.glb.suffix.lower() != ".glb":
        raise UsageError(f"`--glb {options.glb}` is no .glb file.")
    for path in (options.out, options.out.with_suffix(".parquet"), options.labels, options.glb):
        if path is not None:
            refuse_existing(path, overwrite=options.overwrite)


def _paced(options: Options, world: World) -> Options:
    """The options with a rate: the one asked for, that of the recording that acts or is compared with, or the usual.

    A recording's own counts where its clock is steady and neither slow nor fast. Raises `UsageError` for more frames
    than steps.
    """
    from gworld.data.split import parse_agents
    from gworld.simulate.actions import load_episode, read_actions

    rate, source = options.rate or USUAL, options.compare or options.actions
    if not options.rate and source is not None:
        if options.compare is not None:
            times = load_episode(source, options.number).times
        else:
            times = read_actions(source, world, 1 / USUAL, options.number, parse_agents(options.agents)).times
        steps = times.double().diff()
        if len(steps) and float(steps.max() - steps.min()) < 0.1 * float(steps.median()):
            own = round(1 / float(steps.mean()), 3)
            if PACES[0] <= own <= PACES[1] and own != USUAL:
                say(f"{own:g} steps per second, as in `{source}`")
                rate = own
    if options.fps is not None and not 0 < options.fps <= rate:
        raise UsageError(f"`--fps {options.fps}` is more than the {rate:g} steps per second that there are.")
    return replace(options, rate=rate)


def _close(options: Options, facts: dict[str, Any]) -> None:
    if options.json:
        print_json(facts)
        return
    tell_clipped(facts["clipped"], "the run")
    if facts["stuck"]:
        say(f"{facts['stuck']} steps led to poses that are no numbers; their worlds were held still there")
    say(f"rollout: {', '.join(facts['files'])}")
    say(f"result: {facts['result']}")
    say(f"next: {facts['next']}")
