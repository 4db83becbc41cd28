"""`gworld bench NAME`: measure one capability and print every row as it comes."""

from __future__ import annotations

import math
import os
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gworld import __version__
from gworld.bench.catalogue import BENCHES, BenchInput, run_bench
from gworld.bench.rows import machine, table_lines
from gworld.cli.options import print_json, say
from gworld.errors import InputError, UsageError
from gworld.files import atomic_write


@dataclass(frozen=True)
class Options:
    """Which bench and with what."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """Which bench (see --list)."""
    list: bool = False
    """Name the benches there are."""
    data: Path | None = None
    """Folder of real recordings; default is the environment variable GWORLD_DATA."""
    peer: Path | None = None
    """Folder of a peer's program or sources to measure beside ours, where the bench takes one."""
    track: Path | None = None
    """A finished track (.npz) of the recording, for the bench `realpush`; it tracks by itself else."""
    seed: int = 0
    """Seed of everything generated."""
    quick: bool = False
    """Smaller inputs and fewer repeats: checks that the bench runs, its figures are not comparable."""
    out: Path | None = None
    """Also write the table to this Markdown file."""
    json: bool = False
    """Print one JSON object on stdout."""


def run(options: Options) -> None:
    """Run a bench; the exit code is 0 when it ran, whatever the rows say."""
    if options.list:
        for name, about in BENCHES.items():
            print(f"{name:<10} {about}")
        return
    if not options.name:
        raise UsageError(f"name a bench: {', '.join(BENCHES)}.")
    data = options.data or (Path(os.environ["GWORLD_DATA"]) if "GWORLD_DATA" in os.environ else None)
    if data is not None and not data.is_dir():
        raise InputError(f"`{data}` is not a folder of recordings. Check `--data` or GWORLD_DATA.")
    if options.track is not None and not options.track.is_file():
        raise InputError(f"`{options.track}` is not a file. Check `--track`, or leave it out.")
    start = time.monotonic()
    rows = []
    given = BenchInput(data, options.peer, options.seed, options.quick, options.track)
    for row in run_bench(options.name, given):
        rows.append(row)
        say(table_lines([row])[2])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    facts = {
        "bench": options.name,
        "version": __version__,
        "rows": [{name: _told(value) for name, value in asdict(row).items()} for row in rows],
        "seconds": round(time.monotonic() - start, 1),
        "peak_mb": round(peak, 1),
        "machine": machine(),
    }
    if options.out is not None:
        with atomic_write(options.out, "w") as stream:
            head = f"# gworld bench {options.name}\n\ngworld {__version__}, {machine()}, {facts['seconds']} s"
            stream.write("\n".join([head + (", quick" if options.quick else ""), "", *table_lines(rows), ""]))
    if options.json:
        print_json(facts)
    else:
        missed = [row.name for row in rows if row.ok is False]
        say(f"{len(rows)} rows in {facts['seconds']} s on {machine()}")
        say(f"goals missed: {'; '.join(missed) if missed else 'none'}")


def _told(value: object) -> object:
    """A value as JSON can hold it: numbers that are none, of rows that were skipped, as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
