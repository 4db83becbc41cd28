"""`gworld generate`: episodes by the thousand out of a world: varied, judged, resumed, spread over workers."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gworld.cli.options import print_json, say, ticker
from gworld.errors import UsageError
from gworld.simulate.options import Limits, StartOptions

if TYPE_CHECKING:
    from gworld.simulate.generate import Recipe
    from gworld.simulate.produce import Backend, Produced


@dataclass(frozen=True)
class Options:
    """What is generated in which world, and by whom."""

    world: Path
    """The world folder, or the run that holds it."""
    out: Path
    """The episode store: made, or gone on with; episodes that it has already are not made again."""
    episodes: int = 100
    """How many episodes there are to be in the end."""
    dynamics: tuple[Path, ...] = ()
    """Dynamics runs: the first moves the world, more of them tell how sure it is; else the one bound to the world."""
    seconds: float = 6.0
    """Length of each episode."""
    rate: float = 20.0
    """Steps per second; what the dynamics were trained with."""
    policy: str = "mixed"
    """expert, random, extreme, adversarial, null; mixed; shares as random:3,expert:1; or left=expert,right=random."""
    demos: Path | None = None
    """An episode store; a share of the episodes begins at moments of it and does the same, disturbed."""
    demo_share: float = 0.3
    """The part of the episodes that does so."""
    hard_share: float = 0.1
    """The part that begins where earlier episodes were unsure or missed their goals."""
    spread: bool = True
    """Let objects begin where none has been so far."""
    vary: Path | None = None
    """A YAML file of what varies from episode to episode (docs/generate.md)."""
    start: StartOptions = field(default_factory=StartOptions)
    """Where things begin."""
    limits: Limits = field(default_factory=Limits)
    """What is thrown away as implausible."""
    tries: int = 20
    """Attempts at an episode before it is given up."""
    video: bool = False
    """Film with the world's cameras."""
    labels: bool = False
    """Keep depth and the link behind every pixel beside each video."""
    width: int = 160
    """Width of the pictures in pixels."""
    cameras: tuple[str, ...] = ()
    """Cameras by name; all when empty."""
    lerobot: Path | None = None
    """Also write all episodes as a LeRobot v3 data set to this new folder."""
    seed: int = 0
    """Draws everything, together with each episode's number."""
    round: int = 32
    """Episodes planned at once: hard cases and empty places are looked for in the rounds before."""
    backend: Literal["local", "ray"] = "local"
    """Who makes the episodes: processes on this machine, or a Ray cluster."""
    workers: int = 1
    """How many at once; 1 makes them in this process."""
    address: str = "auto"
    """Where the Ray cluster is: `auto`, `local` (started here for the run), or `ray://HOST:PORT`."""
    json: bool = False
    """Print one JSON object on stdout instead of lines for people."""


def run(options: Options) -> None:
    """Generate.

    Raises `UsageError` for requests that contradict themselves, `InputError` for worlds, dynamics and files that cannot
    be used and for episodes that were never plausible, `MissingBackendError` without Ray where it is asked for.
    """
    from gworld.files import refuse_existing
    from gworld.formats.registry import world_folder
    from gworld.simulate.generate import Recipe
    from gworld.simulate.produce import PARTS, Plan, produce
    from gworld.simulate.variation import Variation, load_variation

    if options.workers < 1:
        raise UsageError(f"{options.workers} workers were asked for; 1 is the least.")
    if options.labels and not options.video:
        raise UsageError("`--labels` lie beside films; add `--video`.")
    if options.lerobot is not None:
        refuse_existing(options.lerobot, overwrite=False)
    variation = Variation() if options.vary is None else load_variation(options.vary)
    same = ("world", "dynamics", "seconds", "rate", "policy", "seed", "start", "limits", "tries")
    films = ("video", "labels", "width", "cameras")
    chosen = {name: getattr(options, name) for name in (*same, *films)} | {"world": world_folder(options.world)}
    recipe = Recipe(variation=variation, **chosen)
    plan = Plan(options.episodes, options.demos, options.demo_share, options.hard_share, options.spread, options.round)
    begin = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what it says of lost workers; it is no result
        backend = _backend(options, recipe, options.out / PARTS)
        try:
            found = produce(recipe, plan, options.out, backend, ticker("generate", options.episodes, begin))
        finally:
            getattr(backend, "close", lambda: None)()
    seconds = time.monotonic() - begin
    if options.lerobot is not None:
        from gworld.data.lerobot_write import write_lerobot
        from gworld.data.store import open_episodes

        write_lerobot(open_episodes(options.out), options.lerobot)
    _close(options, found, seconds)


def _backend(options: Options, recipe: Recipe, parts: Path) -> Backend:
    if options.backend == "ray":
        from gworld.cli.cluster import RayWorkers

        return RayWorkers(recipe, parts, options.workers, options.address)
    from gworld.simulate.pool import Here, Workers

    return Here(recipe, parts) if options.workers == 1 else Workers(recipe, parts, options.workers)


def _close(options: Options, found: Produced, seconds: float) -> None:
    facts = facts_of(options, found, seconds)
    if options.json:
        print_json(facts)
        return
    why = ", ".join(f"{name} {count}" for name, count in found.rejected.most_common()) or "none rejected"
    cover = ", ".join(f"{name} {100 * part:.0f} %" for name, part in sorted(facts["coverage"].items()))
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(found.kinds.items()))
    say(f"episodes: {options.out}" + (f", LeRobot data set {options.lerobot}" if options.lerobot else ""))
    say(
        f"result: {found.added} added in {seconds:.1f} s ({facts['episodes_per_hour']:.0f} episodes/h), "
        f"{found.skipped} were there ({kinds}); {100 * found.acceptance:.0f} % of attempts accepted ({why})"
    )
    say(f"  visited: {cover}; as different as {facts['distinct']:.1f} episodes that share nothing")
    say(f"next: gworld info {options.out} --thumbnail sheet.png")


def facts_of(options: Options, found: Produced, seconds: float) -> dict[str, Any]:
    """What the closing lines and `--json` say."""
    return {
        "out": str(options.out),
        "added": found.added,
        "skipped": found.skipped,
        "steps": found.steps,
        "seconds": seconds,
        "episodes_per_hour": 3600 * found.added / seconds if seconds > 0 else 0.0,
        "attempts": found.attempts,
        "acceptance": found.acceptance,
        "rejected": dict(found.rejected),
        "kinds": dict(found.kinds),
        "coverage": found.tally.coverage(),
        "distinct": found.tally.distinct(),
    }
