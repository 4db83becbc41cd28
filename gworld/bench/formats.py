"""`gworld bench formats`: a million Gaussians through every format, beside numpy and splat-transform."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_most, paired_seconds, peak_growth
from gworld.errors import MissingBackendError
from gworld.formats.edit import with_sh_degree
from gworld.formats.ply import read_ply, write_ply
from gworld.formats.registry import SPLAT_FORMATS, read_table, write_table
from gworld.formats.table import SplatTable

CONVERSIONS = (
    ("a.ply", "b.spz"),
    ("b.spz", "c.ply"),
    ("a.ply", "b.compressed.ply"),
    ("b.compressed.ply", "c.ply"),
    ("flat.ply", "b.sog"),
    ("b.sog", "c.ply"),
)
ALONE = (("a.ply", "b3.sog"), ("b3.sog", "c.ply"))
"""Without the peer: its SH palette on a CPU did not finish 100,000 Gaussians in ten minutes."""


def rows(given: BenchInput) -> Iterator[Row]:
    """Yield the rows; needs about 2 GB of disk in the temporary folder and 3 GB of memory."""
    count = 20_000 if given.quick else 1_000_000
    table = surface_table(count, given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ply(table, folder / "a.ply")
        write_ply(with_sh_degree(table, 0), folder / "flat.ply")
        yield from _reading(folder / "a.ply", 3 if given.quick else 5)
        yield from _start_up(folder / "a.ply")
        yield from _every_format(table, folder)
        yield from _conversions(folder, given)


def surface_table(count: int, seed: int) -> SplatTable:
    """Gaussians of SH degree 3 as a capture would have them: flat, on smooth surfaces, colours that vary slowly."""
    rng = np.random.default_rng(seed)
    blob = rng.integers(0, 200, count)
    centers, radii = rng.normal(size=(200, 3)) * 3, rng.uniform(0.2, 1.2, 200)
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    base = rng.normal(size=(200, 16, 3)) * np.concatenate([[1.0], np.full(15, 0.12)])[None, :, None]
    sh = base[blob] + rng.normal(size=(count, 16, 3)) * np.concatenate([[0.15], np.full(15, 0.03)])[None, :, None]
    size = rng.normal(-4.2, 0.7, (count, 1))
    return SplatTable(
        means=(centers[blob] + normals * radii[blob, None]).astype(np.float32),
        quats_wxyz=np.concatenate([1 + normals[:, 2:], -normals[:, 1:2], normals[:, :1], 0 * size], 1).astype(
            np.float32
        ),
        log_scales=(size + np.array([0.0, -0.3, -2.0]) + rng.normal(0, 0.3, (count, 3))).astype(np.float32),
        opacity_logits=rng.normal(1.5, 2.0, count).astype(np.float32),
        sh=sh.astype(np.float32),
        links=np.zeros(count, np.int32),
    )


def _reading(path: Path, repeats: int) -> Iterator[Row]:
    size = path.stat().st_size

    def baseline() -> np.ndarray:
        with open(path, "rb") as stream:
            while stream.readline().strip() != b"end_header":
                pass
            values = np.fromfile(stream, np.float32).reshape(-1, 62)
        return np.ascontiguousarray(values[:, 9:54].reshape(-1, 3, 15).transpose(0, 2, 1))

    ours, theirs, ratio = paired_seconds(lambda: read_ply(path), baseline, repeats)
    yield at_most("PLY read / numpy.fromfile and SH reorder", ratio, "x", 3.0, 1.0)
    yield Row("PLY read", ours, "s", baseline=theirs)
    yield at_most("PLY read, peak memory / file", peak_growth(lambda: read_ply(path)) / size, "x", 2.5)


def _start_up(path: Path) -> Iterator[Row]:
    command = [sys.executable, "-m", "gworld"]
    seconds, _ = _child([*command, "--help"], 7)
    yield at_most("gworld --help, whole command", seconds, "s", 0.4)
    seconds, peak = _child([*command, "info", str(path)], 3)
    yield at_most("gworld info of the PLY, peak memory", peak / 1e6, "MB", 200.0)
    yield Row("gworld info of the PLY, whole command", seconds, "s")


def _every_format(table: SplatTable, folder: Path) -> Iterator[Row]:
    for known in SPLAT_FORMATS:
        path = folder / f"each{known.suffixes[0]}"
        start = time.perf_counter()
        try:
            write_table(table, path)
        except MissingBackendError:  # USD where its extra is not installed
            continue
        yield Row(f"{known.name} write", time.perf_counter() - start, "s")
        yield Row(f"{known.name} size", path.stat().st_size / 1e6, "MB")
        if known.reader:
            start = time.perf_counter()
            read_table(path)
            yield Row(f"{known.name} read", time.perf_counter() - start, "s")
        path.unlink()


def _conversions(folder: Path, given: BenchInput) -> Iterator[Row]:
    """Whole commands in turns with splat-transform, where node and the package are found."""
    peer = _splat_transform(given.peer)
    repeats = 1 if given.quick else 3
    for source, target in (*CONVERSIONS, *ALONE):
        paths = [str(folder / source), str(folder / target)]
        command = [sys.executable, "-m", "gworld", "convert", *paths, "--overwrite"]
        degree = "SH 0" if "flat" in source or source == "b.sog" else "SH 3"
        label = f"convert {source.partition('.')[2]} to {target.partition('.')[2]}, {degree}, whole command"
        if peer is None or (source, target) in ALONE:
            seconds, _ = _child(command, repeats)
            yield Row(label, seconds, "s", note="splat-transform not found" if peer is None else "")
            continue
        # Ours writes last, so that both read the file we wrote in the way back.
        theirs, ours = [], []
        for _ in range(repeats):
            theirs.append(_child(["node", str(peer), "-g", "cpu", "-w", *paths], 1)[0])
            ours.append(_child(command, 1)[0])
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        yield at_most(f"{label} / splat-transform", ratio, "x", 1.0)
        yield Row(label, statistics.median(ours), "s", baseline=statistics.median(theirs))


def _splat_transform(peer: Path | None) -> Path | None:
    """The peer's program below `--peer` or the folder that `make peers` fills, or None."""
    folders = [peer] if peer else [Path(os.environ.get("GWORLD_PEERS", ".venv/peers"))]
    for folder in folders:
        program = folder / "node_modules" / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
        if program.is_file() and shutil.which("node"):
            return program
    return None


# A small process starts the program: a child's peak memory counts from its fork, so ours would be counted with it.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)]), flush=True)
os._exit(0)
"""


def _child(command: list[str], repeats: int) -> tuple[float, float]:
    """Median wall seconds and largest peak memory (bytes) of a program run `repeats` times."""
    times, peak = [], 0.0
    for _ in range(repeats):
        launcher = [sys.executable, "-S", "-c", _LAUNCHER, *command]
        done = subprocess.run(launcher, capture_output=True, text=True, check=False)
        seconds, memory, status = json.loads(done.stdout)
        if status != 0:
            raise RuntimeError(f"{command[:4]} failed: {done.stderr[-400:]}")
        times.append(seconds)
        peak = max(peak, memory)
    return statistics.median(times), peak
