"""RGB-D recordings as folders: which depth picture belongs to which colour picture, intrinsics, the depth's unit.

Known layouts: TUM RGB-D (`rgb.txt` and `depth.txt` with time stamps, depth in 1/5000 m), pairs of folders (`color/`
or `rgb/` beside `depth/`, depth in millimetres) and 7-Scenes (`x.color.png` beside `x.depth.png`). Intrinsics are
taken from a JSON or text file beside them, in the forms of Open3D, Replica, ScanNet and plain `fx fy cx cy`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16

from gworld.capture.photos import list_pictures, read_grey
from gworld.errors import InputError
from gworld.files import read_json, safe_join

COLOUR = ("rgb", "color", "colour", "images", "image")
DEPTH = ("depth", "depths", "depth_images")
MILLIMETRE, TUM = 0.001, 1.0 / 5000.0
MAX_GAP = 0.02
"""Seconds between a colour and a depth picture that are taken for one moment."""
MAX_LIST_BYTES = 64 << 20
_CALIBRATIONS = re.compile(r"(cam(era)?|intrinsics?|calib|cam_params).*\.(json|txt)$", re.IGNORECASE)


@dataclass(frozen=True)
class Calibration:
    """What a calibration file says: (fx, fy, cx, cy), the size they hold for (0 unsaid), metres per unit (0 unsaid)."""

    K: tuple[float, float, float, float]
    width: int = 0
    height: int = 0
    depth_scale: float = 0.0


@dataclass(frozen=True)
class RgbdListing:
    """The pictures of a recording in order; `depths` is None where a picture has none, `times` empty where unknown."""

    pictures: tuple[Path, ...]
    depths: tuple[Path | None, ...]
    times: tuple[float, ...]
    depth_scale: float
    calibration: Calibration | None


def find_rgbd(folder: Path) -> RgbdListing | None:
    """The RGB-D recording in `folder`, or None when it has none of the known layouts.

    Raises `InputError` for a layout that is there but broken.
    """
    calibration = find_calibration(folder)
    told = calibration.depth_scale if calibration else 0.0
    if (folder / "rgb.txt").is_file() and (folder / "depth.txt").is_file():
        pictures, depths, times = _associate(folder)
        return RgbdListing(pictures, depths, times, told or TUM, calibration)
    pairs = _seven_scenes(folder) or _folder_pairs(folder)
    if pairs is None:
        return None
    return RgbdListing(*pairs, (), told or MILLIMETRE, calibration)


def read_depth(path: Path, colour_size: tuple[int, int], size: tuple[int, int]) -> UInt16[np.ndarray, "H W"]:
    """A depth picture, 0 where unknown, brought to `size` = (height, width) by nearest neighbour: depth is not mixed.

    `colour_size` is the full colour picture's, whose shape the depth must have. Raises `InputError` otherwise.
    """
    values = read_grey(path)
    if values.dtype != np.uint16:
        raise InputError(f"`{path}` has 8 bits a pixel; depth needs 16. Export the depth as 16-bit PNG.")
    height, width = values.shape
    if abs(width * colour_size[0] - height * colour_size[1]) > 0.01 * width * colour_size[0]:
        raise InputError(
            f"`{path}` has {width} x {height} pixels and its colour picture {colour_size[1]} x {colour_size[0]}; "
            "one shape is needed. Register the depth to the colour camera."
        )
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.intp)
    return np.ascontiguousarray(values[rows[:, None], columns])


def find_calibration(folder: Path) -> Calibration | None:
    """Intrinsics from the first file of `folder` that is named like a calibration and holds one."""
    for file in sorted(folder.iterdir(), key=lambda file: ("depth" in file.name.lower(), file.name)):
        if _CALIBRATIONS.match(file.name) and file.is_file():
            found = _from_json(file) if file.suffix.lower() == ".json" else _from_text(file)
            if found is not None:
                return found
    return None


def _from_json(file: Path) -> Calibration | None:
    data = read_json(file, MAX_LIST_BYTES)
    data = data.get("camera", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        return None
    names = {"fx": ("fx", "fl_x"), "fy": ("fy", "fl_y"), "cx": ("cx", "ppx"), "cy": ("cy", "ppy")}
    values = {key: next((data[name] for name in given if name in data), None) for key, given in names.items()}
    numbers: list[Any] = list(values.values())
    if None in numbers:
        numbers = _matrix_numbers(data.get("intrinsic_matrix", data.get("K")))
    return _calibration(file, numbers, data) if numbers else None


def _matrix_numbers(matrix: Any) -> list[Any]:
    """fx fy cx cy of a 3 x 3 matrix: rows of rows, or nine numbers; Open3D writes those column by column."""
    if not isinstance(matrix, list):
        return []
    nested = all(isinstance(row, list) for row in matrix)
    flat = [value for row in matrix for value in row] if nested else matrix
    if len(flat) != 9:
        return []
    columns = not nested and not _number(flat[2])
    return [flat[0], flat[4], flat[6], flat[7]] if columns else [flat[0], flat[4], flat[2], flat[5]]


def _from_text(file: Path) -> Calibration | None:
    lines = [line.split("#")[0].replace(",", " ").split() for line in _lines(file)]
    rows = [[_number(word) for word in line] for line in lines if line]
    if any(value is None for row in rows for value in row):
        return None
    flat = [value for row in rows for value in row if value is not None]
    width = len(rows[0]) if rows else 0
    if len(rows) == 1 and width >= 4 and width not in (9, 16):
        return _calibration(file, flat[:4], {})
    side = {9: 3, 16: 4}.get(len(flat))
    return None if side is None else _calibration(file, [flat[0], flat[side + 1], flat[2], flat[side + 2]], {})


def _calibration(file: Path, numbers: list[Any], data: dict[str, Any]) -> Calibration:
    values = [_number(value) for value in numbers]
    if len(values) != 4 or None in values or values[0] <= 0 or values[1] <= 0:  # type: ignore[operator]  # None is out
        raise InputError(f"`{file}` holds no usable fx fy cx cy ({numbers}). Correct it, or remove it.")
    size = [_number(data.get(long, data.get(short, 0))) or 0 for long, short in (("width", "w"), ("height", "h"))]
    unit = _number(data.get("depth_scale", data.get("scale", 0))) or 0.0
    # A number above one counts units in a metre (Open3D, Replica), one below it is a unit's length.
    scale = 0.0 if unit <= 0 else 1.0 / unit if unit > 1 else unit
    return Calibration(tuple(values), int(size[0]), int(size[1]), scale)  # type: ignore[arg-type]  # four floats


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _lines(file: Path) -> list[str]:
    try:
        if file.stat().st_size > MAX_LIST_BYTES:
            raise InputError(f"`{file}` has {file.stat().st_size} bytes; a list has at most {MAX_LIST_BYTES}.")
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"`{file}` cannot be read as text: {error}. Export it again.") from error


def _stamped(folder: Path, name: str) -> list[tuple[float, Path]]:
    found = []
    for number, line in enumerate(_lines(folder / name), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        moment = _number(words[0])
        if moment is None or len(words) < 2:
            raise InputError(f"`{folder / name}` line {number} is not `time file`. Correct it, or export it again.")
        found.append((moment, safe_join(folder, words[1])))
    if not found:
        raise InputError(f"`{folder / name}` lists no picture; `time file` is needed on each line.")
    return sorted(found)


def _associate(folder: Path) -> tuple[tuple[Path, ...], tuple[Path | None, ...], tuple[float, ...]]:
    """Each colour picture with the depth nearest in time, within `MAX_GAP`; no depth is used twice."""
    colour, depth = _stamped(folder, "rgb.txt"), _stamped(folder, "depth.txt")
    stamps = [moment for moment, _ in depth]
    offers = []
    for position, (moment, _) in enumerate(colour):
        place = bisect_left(stamps, moment)
        near = [
            (abs(stamps[other] - moment), position, other) for other in (place - 1, place) if 0 <= other < len(stamps)
        ]
        offers += [offer for offer in near if offer[0] <= MAX_GAP]
    given: dict[int, Path] = {}
    used: set[int] = set()
    for _, position, other in sorted(offers):
        if position not in given and other not in used:
            given[position] = depth[other][1]
            used.add(other)
    if not given:
        raise InputError(f"`{folder}`: no depth lies within {MAX_GAP} s of a colour picture. Check the two clocks.")
    start = colour[0][0]
    pictures, depths = tuple(path for _, path in colour), tuple(given.get(position) for position in range(len(colour)))
    return pictures, depths, tuple(moment - start for moment, _ in colour)


def _seven_scenes(folder: Path) -> tuple[tuple[Path, ...], tuple[Path | None, ...]] | None:
    files = {file.name: file for file in list_pictures(folder)}
    colour = [file for name, file in files.items() if re.search(r"\.color\.\w+$", name)]
    depths = [files.get(re.sub(r"\.color\.\w+$", ".depth.png", file.name)) for file in colour]
    return (tuple(colour), tuple(depths)) if colour and any(depths) else None


def _folder_pairs(folder: Path) -> tuple[tuple[Path, ...], tuple[Path | None, ...]] | None:
    def first(names: Iterable[str]) -> list[Path]:
        return next(
            (found for name in names if (folder / name).is_dir() and (found := list_pictures(folder / name))), []
        )

    colour, depth = first(COLOUR), first(DEPTH)
    if not colour or not depth:
        return None
    by_stem = {file.stem: file for file in depth}
    depths = [by_stem.get(file.stem) for file in colour]
    if not any(depths):
        if len(colour) != len(depth):
            raise InputError(
                f"`{folder}` has {len(colour)} colour and {len(depth)} depth pictures of differing names; "
                "equal names or equal numbers are needed."
            )
        depths = list(depth)
    return tuple(colour), tuple(depths)
