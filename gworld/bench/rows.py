"""What a bench yields: rows with goal and baseline beside the value, and how they are timed and printed."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measured figure.

    `goal` is the text of its target, `baseline` what it is compared with, `ok` None without goal.
    """

    name: str
    value: float
    unit: str
    goal: str = ""
    baseline: float | None = None
    ok: bool | None = None
    note: str = ""


def at_most(name: str, value: float, unit: str, limit: float, baseline: float | None = None, note: str = "") -> Row:
    """A row whose goal is a value of at most `limit`."""
    return Row(name, value, unit, f"<= {limit:g}", baseline, value <= limit, note)


def at_least(name: str, value: float, unit: str, limit: float, baseline: float | None = None, note: str = "") -> Row:
    """A row whose goal is a value of at least `limit`."""
    return Row(name, value, unit, f">= {limit:g}", baseline, value >= limit, note)


def median_seconds(function: Callable[[], object], repeats: int = 7, warm: int = 1) -> float:
    """Median wall time of a call in seconds, after `warm` calls that are not counted."""
    for _ in range(warm):
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def paired_seconds(
    first: Callable[[], object], second: Callable[[], object], repeats: int = 7, warm: int = 1
) -> tuple[float, float, float]:
    """Median seconds of two calls taken in turns and the median of their ratios: fair while a machine changes pace."""
    for _ in range(warm):
        first()
        second()
    pairs = [(median_seconds(first, 1, 0), median_seconds(second, 1, 0)) for _ in range(repeats)]
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def peak_growth(function: Callable[[], object]) -> float:
    """By how many bytes the process' memory grew at most while the call ran; NaN where the kernel does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    except OSError:
        return math.nan
    base = _status_bytes("VmRSS")
    function()
    return float(max(0, _status_bytes("VmHWM") - base))


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def machine() -> str:
    """The processor and its core count, as one phrase."""
    import os

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def table_lines(rows: Iterable[Row]) -> list[str]:
    """Rows as a Markdown table."""
    lines = ["| figure | value | unit | baseline | goal | met |", "|---|---:|---|---:|---|---|"]
    for row in rows:
        baseline = "" if row.baseline is None else _short(row.baseline)
        met = "" if row.ok is None else "yes" if row.ok else "**no**"
        name = f"{row.name} ({row.note})" if row.note else row.name
        lines.append(f"| {name} | {_short(row.value)} | {row.unit} | {baseline} | {row.goal} | {met} |")
    return lines


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
