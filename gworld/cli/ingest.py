"""`gworld ingest`: recorded data sets into an episode store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gworld.cli.options import print_json, say
from gworld.errors import UsageError
from gworld.scene.episode import Behaviour


@dataclass(frozen=True)
class Options:
    """What to read, and where the episodes go."""

    source: Annotated[Path, tyro.conf.Positional]
    """A LeRobot data set (v2 or v3), robomimic HDF5, RLDS folder, ROS 2 bag (MCAP), or annotation/ beside videos/."""
    out: Path
    """The episode store: made, or added to; what it has already is skipped, so that the same command resumes."""
    agents: str = ""
    """Split one recording by column names, as left=*left*,right=*right* (or by number, as left=0:7,right=7:14)."""
    sync: Literal["auto", "none"] = "none"
    """`auto` estimates the clock offset and rate between video and actions and applies what it is sure of."""
    behaviour: Behaviour | None = None
    """Who chose the actions, where the source does not say: mixing kinds unknowingly ruins planning."""
    licence: str = ""
    """The licence of the recordings, kept with every episode."""
    rate: float | None = None
    """Steps per second, for sources without a clock of their own (RLDS)."""
    limit: int | None = None
    """Read at most this many episodes of the source."""
    json: bool = False
    """Print one JSON object on stdout instead of lines for people."""


def run(options: Options) -> None:
    """Ingest; raises `InputError` for a bad source and `UsageError` for a target that cannot be used."""
    from gworld.data.ingest import IngestReport, ingest, open_source
    from gworld.data.split import parse_agents

    if options.limit is not None and options.limit < 1:
        raise UsageError(f"`--limit {options.limit}` leaves nothing to read; at least 1 is needed.")
    if options.rate is not None and not 0 < options.rate < 100_000:
        raise UsageError(f"`--rate {options.rate}` is no rate; steps per second above 0 are needed.")
    agents = parse_agents(options.agents)
    source = open_source(options.source, options.rate)
    count = len(source) if options.limit is None else min(options.limit, len(source))
    say(f"{options.source}: {source.kind}, {len(source):,} episodes")
    for note in source.notes:
        say(f"  {note}")
    report: IngestReport = ingest(
        source,
        options.out,
        agents=agents,
        sync=options.sync,
        behaviour=options.behaviour,
        licence=options.licence,
        limit=options.limit,
        progress=_ticker(count),
    )
    for number, sync in report.syncs.items():
        say(f"  episode {number}: {sync}")
    if options.json:
        syncs = {str(number): vars(sync) for number, sync in report.syncs.items()}
        print_json({**vars(report), "syncs": syncs, "out": str(options.out)})
        return
    sure = sum(sync.sure for sync in report.syncs.values())
    clocks = f", clocks found with confidence in {sure} of {len(report.syncs)}" if report.syncs else ""
    before = f", {report.skipped:,} were there already" if report.skipped else ""
    say(f"episodes: {options.out}")
    say(f"result: {len(report.added):,} added, {report.seconds:.1f} s of recording{before}{clocks}")
    say(f"next: gworld info {options.out} --thumbnail sheet.png")


def _ticker(count: int) -> Callable[[str, float], None]:
    """Prints a plain line of progress, at most every five seconds."""
    from gworld.runlog import progress_line

    begin = last = time.monotonic()

    def tick(name: str, share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 5.0:
            last = now
            say(progress_line("ingest", round(share * count), count, now - begin))

    return tick
