"""The times of a video's frames from a file beside it, where the video's own clock is wrong or there is none."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from gworld.capture.footage import Footage
from gworld.errors import InputError, UsageError
from gworld.files import existing_file, read_json

MAX_BYTES = 64 << 20
DAY = 86_400.0
_NANO = "[ns]"


def read_times(path: str | Path) -> tuple[float, ...]:
    """Seconds of each frame, rising, by a file beside the video.

    Text or CSV with one frame per line, its time in the first column, after one line of names or none (nanoseconds
    where the name ends in `[ns]`, as EuRoC writes); or JSON, a list of numbers or an object with one under
    `timestamps`. Times later than a day are counted from the first. Raises `InputError` naming the line.
    """
    file = existing_file(path)
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"`{file}` has {file.stat().st_size} bytes; times of frames take at most {MAX_BYTES}.")
    values = _of_json(file) if file.suffix.lower() == ".json" else _of_lines(file)
    if not values:
        raise InputError(f"`{file}` holds no time; one number per frame is needed.")
    for number, (before, after) in enumerate(pairwise(values), 2):
        if not after > before:
            raise InputError(f"`{file}`, time {number}: {after:g} does not come after {before:g}; times must rise.")
    start = values[0] if values[0] > DAY else 0.0
    return tuple(value - start for value in values)


def set_times(footage: Footage, cameras: Sequence[Sequence[int]], times: Sequence[Sequence[float]]) -> Footage:
    """The footage with the times of `times[k]` for the shots of input k, whose cameras are `cameras[k]`.

    Raises `InputError` with both counts where an input has a picture beyond its times.
    """
    if len(times) != len(cameras):
        raise UsageError(f"{len(times)} files of times were given for {len(cameras)} inputs; one for each is needed.")
    owner = {camera: number for number, own in enumerate(cameras) for camera in own}
    shots = []
    for shot in footage.shots:
        own = times[owner[shot.camera]]
        if shot.index >= len(own):
            raise InputError(
                f"`{shot.name}` is frame {shot.index + 1} of its video, but there are times for {len(own)} only. Give "
                "one time for each frame of the video."
            )
        shots.append(replace(shot, time=own[shot.index]))
    return replace(footage, shots=tuple(shots))


def _of_json(file: Path) -> list[float]:
    data: Any = read_json(file)
    data = data.get("timestamps") if isinstance(data, dict) else data
    if not isinstance(data, list):
        raise InputError(f"`{file}` holds no list of times; a list of numbers, or one under `timestamps`, is needed.")
    return [_number(value, file, f"entry {number}") for number, value in enumerate(data, 1)]


def _of_lines(file: Path) -> list[float]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            cells = [(number, line[0].strip()) for number, line in enumerate(csv.reader(stream), 1) if line and line[0]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"`{file}` is no text: {error}. One number per line is needed.") from error
    unit = 1.0
    if cells and not cells[0][1].lstrip("+-").replace(".", "", 1)[:1].isdigit():
        unit = 1e-9 if cells[0][1].endswith(_NANO) else 1.0
        cells = cells[1:]
    first = 0
    if unit != 1.0 and cells:  # whole nanoseconds since 1970 have more digits than a float
        try:
            whole = [int(text) for _, text in cells]
        except ValueError as error:
            raise InputError(f"`{file}`: {error}; whole nanoseconds are needed under `{_NANO}`.") from error
        first = whole[0] if whole[0] * unit > DAY else 0
        return [_number((value - first) * unit, file, "") for value in whole]
    return [_number(text, file, f"line {number}") for number, text in cells]


def _number(value: Any, file: Path, where: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"`{file}`, {where}: {value!r:.40} is no number of seconds.") from error
    if isinstance(value, bool) or not math.isfinite(found):
        raise InputError(f"`{file}`, {where}: {value!r:.40} is no number of seconds.")
    return found
