"""Footage: pictures taken out of videos, photos or RGB-D recordings, before their poses are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gworld.errors import InputError
from gworld.files import existing_file, read_json, safe_join, write_json

FORMAT = "gworld footage 1"
FILE = "footage.json"


@dataclass(frozen=True)
class FootageCamera:
    """One physical camera: its pictures share size and intrinsics.

    `source` names the file or folder it was read from; `K` is (fx, fy, cx, cy) in pixels where it is known from
    calibration, EXIF or a depth sensor, else empty; `distortion` as `CameraModel` "opencv" orders it, empty where
    unknown; `fps` 0 for photos; `photos` is True where the pictures need not be in order of time.
    """

    name: str
    width: int
    height: int
    source: str = ""
    K: tuple[float, ...] = ()
    distortion: tuple[float, ...] = ()
    fps: float = 0.0
    photos: bool = False


@dataclass(frozen=True)
class Shot:
    """One picture of a camera (an index into `Footage.cameras`), upright, 8-bit RGB.

    `name` is unique and sorts in order of time within its camera; `index` is the frame's number in its source, `time`
    seconds from its start. `mask` is an 8-bit PNG of the picture's size, 255 = static scene to use, 0 = to ignore;
    `depth` a 16-bit PNG of the same size, z in units of `Footage.depth_scale` metres, 0 = unknown. `sharpness` is
    comparable within one camera only.
    """

    name: str
    camera: int
    image: Path
    index: int = 0
    time: float | None = None
    mask: Path | None = None
    depth: Path | None = None
    sharpness: float = 0.0


@dataclass(frozen=True)
class Footage:
    """All pictures of a capture, by camera and name, in a folder that `footage.json` describes."""

    folder: Path
    cameras: tuple[FootageCamera, ...]
    shots: tuple[Shot, ...]
    depth_scale: float = 0.001

    def __len__(self) -> int:
        return len(self.shots)


def shots_of(footage: Footage, camera: int) -> tuple[Shot, ...]:
    """The pictures of one camera, in order of name."""
    return tuple(sorted((shot for shot in footage.shots if shot.camera == camera), key=lambda shot: shot.name))


def save_footage(footage: Footage) -> None:
    """Write `footage.json` into the footage's folder; files of the pictures are named relative to it."""
    root = footage.folder.resolve()

    def relative(path: Path | None) -> str | None:
        return None if path is None else path.resolve().relative_to(root).as_posix()

    shots = [
        {**vars(shot), "image": relative(shot.image), "mask": relative(shot.mask), "depth": relative(shot.depth)}
        for shot in footage.shots
    ]
    cameras = [vars(camera) for camera in footage.cameras]
    value = {"format": FORMAT, "depth_scale": footage.depth_scale, "cameras": cameras, "shots": shots}
    write_json(footage.folder / FILE, value)


def load_footage(folder: str | Path) -> Footage:
    """Read what `save_footage` wrote; raises `InputError` for anything damaged or missing."""
    root = Path(folder)
    data = read_json(existing_file(root / FILE))
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}")
        cameras = tuple(FootageCamera(**_tuples(FootageCamera, entry)) for entry in data["cameras"])
        shots = tuple(_shot(root, entry) for entry in data["shots"])
        if not all(0 <= shot.camera < len(cameras) for shot in shots) or len({s.name for s in shots}) != len(shots):
            raise ValueError("a shot names no camera, or two shots have one name")
        return Footage(root, cameras, shots, float(data["depth_scale"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"`{root / FILE}` is damaged ({error}). Capture the footage again.") from error


def _tuples(kind: type, entry: Mapping[str, Any]) -> dict[str, Any]:
    known = {field.name for field in fields(kind)}
    if set(entry) - known:
        raise ValueError(f"unknown keys {sorted(set(entry) - known)}")
    return {key: tuple(map(float, value)) if isinstance(value, list) else value for key, value in entry.items()}


def _shot(root: Path, entry: Mapping[str, Any]) -> Shot:
    given = _tuples(Shot, entry)
    for key in ("image", "mask", "depth"):
        given[key] = None if given.get(key) is None else safe_join(root, str(given[key]))
    return Shot(**given)
