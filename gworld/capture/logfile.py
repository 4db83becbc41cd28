"""Logs beside a video as CSV files: poses of a robot's hand in its base, or an IMU's readings."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import torch

from gworld.capture.handlog import HandLog
from gworld.capture.inertial import ImuLog
from gworld.errors import InputError
from gworld.files import existing_file
from gworld.geometry import transform_from_pose

COLUMNS = ("time", "x", "y", "z", "qw", "qx", "qy", "qz")
IMU = ("time", "gx", "gy", "gz", "ax", "ay", "az")
EUROC = ("timestamp [ns]", *(f"w_RS_S_{axis} [rad s^-1]" for axis in "xyz"),
         *(f"a_RS_S_{axis} [m s^-2]" for axis in "xyz"))  # fmt: skip
DAY = 86_400.0
MAX_BYTES = 256 << 20


def read_hand_log(path: str | Path) -> HandLog:
    """Read seconds, metres and a unit quaternion per line, under a header that names the columns in any order.

    Further columns are ignored. Raises `InputError` naming the line for anything that is not such a row.
    """
    file, _, values = _read(path, (COLUMNS,))
    lengths = values[:, 4:].norm(dim=1, keepdim=True)
    wrong = ((lengths[:, 0] - 1).abs() > 0.01).nonzero()
    if len(wrong):
        raise InputError(f"`{file}`, pose {int(wrong[0]) + 1}: a unit quaternion (wxyz) is needed.")
    if len(values) < 2:
        raise InputError(f"`{file}` holds {len(values)} poses; two or more are needed.")
    return HandLog(values[:, 0], transform_from_pose(torch.cat([values[:, 1:4], values[:, 4:] / lengths], 1)))


def read_imu_log(path: str | Path) -> ImuLog:
    """Read an IMU's times, rates of turn (rad/s) and accelerations (m/s^2), columns in any order.

    Either `time,gx,gy,gz,ax,ay,az` in seconds, or EuRoC's `#timestamp [ns],w_RS_S_x [rad s^-1],...`. Times that are no
    seconds of the film (later than a day) are counted from the first. Raises `InputError` naming the line.
    """
    file, columns, values = _read(path, (IMU, EUROC))
    if len(values) < 2:
        raise InputError(f"`{file}` holds {len(values)} readings; two or more are needed.")
    times = values[:, 0] - values[0, 0] if columns == EUROC else values[:, 0]
    times = times * 1e-9 if columns == EUROC else times
    if float(times[0]) > DAY:
        times = times - times[0]
    later = torch.cat([torch.ones(1, dtype=torch.bool), times.diff() != 0])  # some sensors write a reading twice
    return ImuLog(times[later], values[later, 1:4], values[later, 4:])


def _read(path: str | Path, layouts: tuple[tuple[str, ...], ...]) -> tuple[Path, tuple[str, ...], torch.Tensor]:
    """The columns of the first layout that the header names, float64 [rows, columns], all finite."""
    file = existing_file(path)
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"`{file}` has {file.stat().st_size} bytes; a log of at most {MAX_BYTES} is read.")
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            header = [name.strip().lstrip("#") for name in next(reader, [])]
            columns = next((layout for layout in layouts if set(layout) <= set(header)), None)
            if columns is None:
                missing = [name for name in layouts[0] if name not in header]
                raise InputError(
                    f"`{file}` lacks the columns {', '.join(missing)}; its first line must name {layouts[0]}."
                )
            rows = _rows(reader, file, [header.index(name) for name in columns])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"`{file}` is no CSV file: {error}. Export the log as text.") from error
    return file, columns, torch.tensor(rows, dtype=torch.float64).reshape(-1, len(columns))


def _rows(lines: Iterator[list[str]], file: Path, places: list[int]) -> list[list[float]]:
    rows = []
    for number, line in enumerate(lines, 2):
        if not line:
            continue
        try:
            row = [float(line[place]) for place in places]
        except (ValueError, IndexError) as error:
            raise InputError(
                f"`{file}`, line {number}: {error}; {len(places)} numbers are needed. Mend the log."
            ) from error
        if not all(abs(value) < 1e19 for value in row):
            raise InputError(f"`{file}`, line {number}: finite numbers are needed. Mend the log.")
        rows.append(row)
    return rows
