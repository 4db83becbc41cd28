"""A robot's log as a CSV file: `time,x,y,z,qw,qx,qy,qz`, one pose of the hand in the robot's base per line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import torch

from gworld.capture.handlog import HandLog
from gworld.errors import InputError
from gworld.files import existing_file
from gworld.geometry import transform_from_pose

COLUMNS = ("time", "x", "y", "z", "qw", "qx", "qy", "qz")
MAX_BYTES = 256 << 20


def read_hand_log(path: str | Path) -> HandLog:
    """Read seconds, metres and a unit quaternion per line, under a header that names the columns in any order.

    Further columns are ignored. Raises `InputError` naming the line for anything that is not such a row.
    """
    file = existing_file(path)
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"`{file}` has {file.stat().st_size} bytes; a log of at most {MAX_BYTES} is read.")
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = _rows(csv.reader(stream), file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"`{file}` is no CSV file: {error}. Export the log as text.") from error
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(COLUMNS))
    if len(values) < 2:
        raise InputError(f"`{file}` holds {len(values)} poses; two or more are needed.")
    return HandLog(values[:, 0], transform_from_pose(values[:, 1:]))


def _rows(reader: Iterator[list[str]], file: Path) -> list[list[float]]:
    lines = iter(reader)
    header = [name.strip() for name in next(lines, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"`{file}` lacks the columns {', '.join(missing)}; its first line must name {COLUMNS}.")
    places = [header.index(name) for name in COLUMNS]
    rows = []
    for number, line in enumerate(lines, 2):
        if not line:
            continue
        try:
            row = [float(line[place]) for place in places]
        except (ValueError, IndexError) as error:
            raise InputError(f"`{file}`, line {number}: {error}; eight numbers are needed. Mend the log.") from error
        length = sum(value * value for value in row[4:]) ** 0.5
        if not all(abs(value) < 1e12 for value in row) or abs(length - 1) > 0.01:
            raise InputError(f"`{file}`, line {number}: finite numbers and a unit quaternion (wxyz) are needed.")
        rows.append([*row[:4], *(value / length for value in row[4:])])
    return rows
