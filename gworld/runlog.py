"""Run folders: `log.jsonl`, `metrics.csv`, progress with rate and ETA; optional wandb, tensorboard and rerun sinks."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from gworld.errors import MissingBackendError
from gworld.files import atomic_write, folder_lock

T = TypeVar("T")
SinkName = Literal["wandb", "tensorboard", "rerun"]


@runtime_checkable
class Sink(Protocol):
    """Where metrics go besides the run folder."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Flush and release."""


class RunLog:
    """The log of one run folder, which it locks while open.

    `event` appends a line to `log.jsonl`, `metrics` a row to `metrics.csv`; both are with the system when the call
    returns, and a line that a kill cut short is dropped when the run is opened again. Rows from `resume_step` on are
    dropped too, so that a resumed run has every step once; None keeps all. Raises `UsageError` when another process
    holds the folder.
    """

    def __init__(self, folder: str | Path, *, resume_step: int | None = None, sinks: Iterable[SinkName] = ()) -> None:
        self.folder = Path(folder)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(folder_lock(self.folder))
        try:
            _drop_torn_line(self.folder / "log.jsonl")
            self._columns, rows = _read_rows(self.folder / "metrics.csv", resume_step)
            self._rewrite(rows)
            log = open(self.folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - the stack closes it
            self._log = self._stack.enter_context(log)
            self._sinks = [_open_sink(name, self.folder) for name in sinks]
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for sink in self._sinks:
                sink.close()

    def event(self, name: str, **fields: Any) -> None:
        """Append `{"time": .., "event": name, ..}` to `log.jsonl`; numbers that are not finite become null."""
        plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in fields.items()}
        self._log.write(json.dumps({"time": round(time.time(), 3), "event": name, **plain}, allow_nan=False) + "\n")
        self._log.flush()

    def metrics(self, step: int, **values: float) -> None:
        """Append one row to `metrics.csv`; a new name adds a column. Non-finite values are written as empty cells."""
        new = [name for name in values if name not in self._columns]
        if new:
            columns, rows = _read_rows(self.folder / "metrics.csv", None)
            self._columns = [*columns, *new]
            self._rewrite(rows)
        row = {"step": step, **{name: f"{value:.8g}" for name, value in values.items() if math.isfinite(value)}}
        with open(self.folder / "metrics.csv", "a", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, self._columns).writerow(row)
        for sink in self._sinks:
            sink.log(step, values)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_write(self.folder / "metrics.csv", "w") as stream:
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def track(items: Iterable[T], label: str, *, total: int | None = None) -> Iterator[T]:
    """Yield `items` and report rate and time left on stderr: a bar on a terminal, else a line every ten seconds."""
    count = len(items) if total is None and isinstance(items, Sized) else total
    if sys.stderr.isatty():
        yield from _track_bar(items, label, count)
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= 10.0:
            last = now
            print(progress_line(label, done, count, now - start), file=sys.stderr, flush=True)
    if done:
        print(progress_line(label, done, done, time.monotonic() - start), file=sys.stderr, flush=True)


def progress_line(label: str, done: int, total: int | None, seconds: float) -> str:
    """`label 30/100, 12.0/s, 6 s left` as one plain line."""
    rate = done / seconds if seconds > 0 else 0.0
    text = f"{label} {done}" + (f"/{total}" if total is not None else "") + f", {rate:.3g}/s"
    if total is not None and done < total and rate > 0:
        return f"{text}, {_duration((total - done) / rate)} left"
    return f"{text}, {_duration(seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _track_bar(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=label)


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with atomic_write(path) as stream:
            stream.write(data[: data.rfind(b"\n") + 1])


def _read_rows(path: Path, before: int | None) -> tuple[list[str], list[dict[str, str]]]:
    if not path.exists():
        return ["step"], []
    text = path.read_text(encoding="utf-8")
    text = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(text))
    columns = list(reader.fieldnames or ["step"])
    rows = [row for row in reader if row["step"].isdigit() and (before is None or int(row["step"]) < before)]
    return columns, rows


def _open_sink(name: SinkName, folder: Path) -> Sink:
    try:
        kinds: dict[str, Callable[[Path], Sink]] = {"wandb": _Wandb, "tensorboard": _TensorBoard, "rerun": _Rerun}
        return kinds[name](folder)
    except ImportError as error:
        package = {"wandb": "wandb", "tensorboard": "tensorboard", "rerun": "gworld[rerun]"}[name]
        raise MissingBackendError(f"logging to {name} needs a package: pip install {package}.") from error


class _Wandb:
    def __init__(self, folder: Path) -> None:
        import wandb

        self._run = wandb.init(dir=str(folder), name=folder.name, mode="offline")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Rerun:
    def __init__(self, folder: Path) -> None:
        import rerun

        self._stream = rerun.RecordingStream("gworld")
        self._stream.save(str(folder / "run.rrd"))
        self._rerun = rerun

    def log(self, step: int, values: dict[str, float]) -> None:
        self._stream.set_time("step", sequence=step)
        for name, value in values.items():
            self._stream.log(name, self._rerun.Scalars(value))

    def close(self) -> None:
        self._stream.disconnect()
