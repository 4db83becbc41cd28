"""Recorded data sets as sources of episodes, and how to add your own in ten lines.

A `Source` says which episodes there are and reads one at a time. This turns a folder of CSV logs, each beside a video
of the same name, into an episode store:

    from pathlib import Path
    from gworld.data.ingest import ingest
    from gworld.data.source import Source, robot_episode, table_from_csv

    files = sorted(Path("logs").glob("*.csv"))

    def read(index, scratch):
        log = table_from_csv(files[index])  # {"t": [T], "j1": [T], .., "cmd1": [T], ..}
        return robot_episode(log["t"], joints=[log["j1"], log["j2"]], actions=[log["cmd1"], log["cmd2"]],
                             videos={"front": files[index].with_suffix(".mp4")})

    ingest(Source("csv", Path("logs"), tuple(file.stem for file in files), read), "episodes")
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gworld.data.clips import Clip, probe_clip
from gworld.errors import InputError
from gworld.files import existing_file
from gworld.scene.episode import Episode, Video

ROBOT = "robot"
"""The one agent of a recording that names no other."""


@dataclass(frozen=True)
class Source:
    """A recorded data set: what kind it is, where it lies, its episodes' names, and how to read the one at an index.

    `read(index, scratch)` returns one episode whose videos are files; a source that holds pictures instead of videos
    writes them into the folder `scratch`. `notes` say what a person should know: what is missing or was left out.
    """

    kind: str
    path: Path
    names: tuple[str, ...]
    read: Callable[[int, Path], Episode]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def robot_episode(
    times: Any,
    *,
    joints: Any = None,
    actions: Any = None,
    videos: Mapping[str, Path] | None = None,
    **fields: Any,
) -> Episode:
    """An episode of one agent from plain numbers: `times` [T] seconds; `joints` and `actions` lists of columns [T].

    Videos take their own clock, from the first frame on, as beginning with the first step. `fields` are those of
    `Episode` (behaviour, licence, task ..).
    """
    clock = torch.as_tensor(np.asarray(times, np.float64))
    begin = float(clock[0]) if len(clock) else 0.0
    footage = tuple(whole_video(probe_clip(path), name, begin) for name, path in (videos or {}).items())
    tables: dict[str, Any] = {
        kind: {} if columns is None else {ROBOT: torch.as_tensor(np.stack(list(columns), axis=1), dtype=torch.float32)}
        for kind, columns in (("joints", joints), ("actions", actions))
    }
    return Episode(clock, videos=footage, **tables, **fields)


def table_from_csv(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file with a header line; an empty cell is NaN. Raises `InputError` for other texts."""
    with open(existing_file(path), encoding="utf-8", errors="replace", newline="") as stream:
        try:
            header, *rows = csv.reader(stream)
            cells = np.array([[float(cell) if cell else np.nan for cell in row] for row in rows], np.float64)
            return dict(zip(header, cells.reshape(len(rows), len(header)).T, strict=True))
        except (ValueError, csv.Error) as error:
            raise InputError(f"`{path}` is no table of numbers ({str(error)[:100]}). Check its lines.") from error


def whole_video(clip: Clip, name: str, begin: float = 0.0) -> Video:
    """All frames of a clip, the first shown at `begin` seconds."""
    return Video(name, clip.path, torch.from_numpy(clip.times + begin))


def numbers(values: Any, what: str, source: object, rows: int | None = None) -> Tensor:
    """Nested lists or an array as float32 [T, A] (a single number per row becomes one column).

    Raises `InputError` for what is not numbers, is infinite, or has not `rows` rows.
    """
    try:
        array = np.asarray(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"`{source}`: {what} is not a table of numbers; export it again.") from None
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or np.isinf(array).any() or (np.abs(np.nan_to_num(array)) > 1e38).any():
        raise InputError(f"`{source}`: {what} has shape {list(array.shape)} or infinite values; [T, A] is needed.")
    if rows is not None and len(array) != rows:
        raise InputError(f"`{source}`: {what} has {len(array)} rows; {rows} are needed. The recording is incomplete.")
    return torch.from_numpy(array.astype(np.float32))


def padded(values: Tensor, rows: int) -> Tensor:
    """Actions [T-1, A] between T steps as [T, A]: what follows the last step is unknown, NaN."""
    return torch.cat([values, values.new_full((rows - len(values), values.shape[1]), float("nan"))])


def same_count(source: object, first: str, one: int, second: str, two: int) -> None:
    """Raise `InputError` with both counts when they differ: nothing is ever shifted or cut in silence."""
    if one != two:
        raise InputError(f"`{source}`: {first} has {one}, {second} has {two}; the data set disagrees with itself.")


def texts(value: Any) -> tuple[str, ...]:
    """Names of columns as data sets write them: a list, a list in a list, or lists by group; else none."""
    if isinstance(value, Mapping):
        value = [name for group in value.values() for name in (group if isinstance(group, list) else [])]
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
        return ()
    return tuple(value)
