"""Calibration files: JSON lists of cameras whose lens and place are known.

Two layouts are read. Ours, which says everything it means:

    {"format": "gworld cameras 1", "axes": "opencv", "metric": true, "cameras": [
        {"name": "left", "width": 640, "height": 480, "K": [600, 600, 320, 240], "distortion": [],
         "world_from_camera": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}]}

`axes` are the camera's: "opencv" (x right, y down, z forward) or "opengl" (x right, y up, z back). `K` is
`[fx, fy, cx, cy]` or three rows of three, in pixels with centres at +0.5; `distortion` up to eight numbers
`k1 k2 p1 p2 k3 k4 k5 k6` ("model": "opencv", the default) or four ("model": "fisheye"). `world_from_camera` is a
matrix of three or four rows, or a pose `[x, y, z, qw, qx, qy, qz]`. `metric` is true where lengths are metres.

And that of Embodied Gaussians: an object of cameras by name, each with `X_WC`, a matrix world_from_camera with OpenGL
axes in metres, and `metadata_path`, a JSON file beside it with `K` and `resolution`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.files import read_json, safe_join, write_json
from gworld.geometry import transform_from_pose
from gworld.scene.views import View, Views

FORMAT = "gworld cameras 1"
MAX_SIDE = 1 << 16
MAX_VALUE = 1e9
MAX_CAMERAS = 10_000
FLIP_YZ = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
"""OpenGL camera axes in OpenCV's, and back."""
_KEYS = {"name", "width", "height", "K", "distortion", "model", "world_from_camera"}
_TERMS = {"opencv": 8, "fisheye": 4}


def is_calibration(path: str | Path) -> bool:
    """Whether a JSON file has one of the two layouts; raises `InputError` when it is no JSON file."""
    value = read_json(path)
    return isinstance(value, dict) and (value.get("format") == FORMAT or _is_embodied(value))


def read_calibration(path: str | Path) -> Views:
    """The cameras of a calibration file as views without pictures, named as the file names them.

    K and poses are float64, OpenCV axes. Raises `InputError` naming file, camera and field for anything that is
    missing, unknown, not finite or not a rigid pose.
    """
    file = Path(path)
    value = read_json(file)
    if isinstance(value, dict) and value.get("format") == FORMAT:
        return _read_own(file, value)
    if isinstance(value, dict) and _is_embodied(value):
        views = tuple(_embodied_view(file, name, entry, row + 1) for row, (name, entry) in enumerate(value.items()))
        return Views(views, metric=True)
    raise InputError(
        f'`{file}` is no calibration gworld knows: `"format": "{FORMAT}"` with a list `cameras`, or cameras by name '
        "with `X_WC` and `metadata_path`, is needed."
    )


def write_calibration(views: Views, path: str | Path) -> None:
    """Write our layout, OpenCV axes; raises `InputError` for cameras that are neither pinhole, opencv nor fisheye."""
    cameras = []
    for view in views.views:
        if view.model not in ("pinhole", "opencv", "fisheye"):
            raise InputError(f"camera `{view.name}` has the model {view.model}, which the layout lacks. Undistort it.")
        K = view.K.double()
        entry: dict[str, Any] = {"name": view.name, "width": view.width, "height": view.height}
        entry["K"] = [K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item()]
        entry |= {"model": view.model, "distortion": list(view.distortion)} if view.model != "pinhole" else {}
        cameras.append(entry | {"world_from_camera": view.world_from_camera.double().tolist()})
    write_json(path, {"format": FORMAT, "axes": "opencv", "metric": views.metric, "cameras": cameras})


def _read_own(file: Path, value: dict[str, Any]) -> Views:
    cameras, axes, metric = value.get("cameras"), value.get("axes"), value.get("metric", False)
    if not isinstance(cameras, list) or not 1 <= len(cameras) <= MAX_CAMERAS or not isinstance(metric, bool):
        raise InputError(
            f"`{file}`: a list `cameras` of 1 to {MAX_CAMERAS} objects and a true or false `metric` are needed."
        )
    if axes not in ("opencv", "opengl"):
        raise InputError(f'`{file}`: `axes` is {axes!r:.40}; say "opencv" (z forward) or "opengl" (z back).')
    views = tuple(_own_view(file, entry, axes, row + 1) for row, entry in enumerate(cameras))
    if len({view.name for view in views}) != len(views):
        raise InputError(f"`{file}`: two cameras have one name; names must differ.")
    return Views(views, metric=metric)


def _own_view(file: Path, entry: Any, axes: str, number: int) -> View:
    what = f"camera {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise InputError(f"`{file}`: {what} is no object with a `name`; one is needed.")
    what = f"camera `{entry['name']:.80}`"
    if set(entry) - _KEYS:
        raise InputError(
            f"`{file}`: {what} has the unknown fields {sorted(set(entry) - _KEYS)}; known are {sorted(_KEYS)}."
        )
    size = tuple(_side(entry.get(key), file, f"{what}, `{key}`") for key in ("width", "height"))
    terms = _numbers(entry.get("distortion", []), file, f"{what}, `distortion`")
    model = entry.get("model", "opencv" if any(terms) else "pinhole")
    if model not in ("pinhole", *_TERMS) or len(terms) > _TERMS.get(model, 0):
        raise InputError(
            f'`{file}`: {what} has the model {model!r:.40} with {len(terms)} distortion terms; "pinhole" with none, '
            '"opencv" with up to 8 or "fisheye" with up to 4 is needed.'
        )
    pose = _pose(entry.get("world_from_camera"), file, f"{what}, `world_from_camera`")
    return View(
        name=entry["name"],
        width=size[0],
        height=size[1],
        K=_intrinsics(entry.get("K"), file, f"{what}, `K`"),
        world_from_camera=pose @ FLIP_YZ if axes == "opengl" else pose,
        model=model,
        distortion=(*terms, *[0.0] * (_TERMS[model] - len(terms))) if model in _TERMS else (),
        camera_id=number,
    )


def _is_embodied(value: dict[str, Any]) -> bool:
    return 0 < len(value) <= MAX_CAMERAS and all(isinstance(one, dict) and "X_WC" in one for one in value.values())


def _embodied_view(file: Path, name: str, entry: dict[str, Any], number: int) -> View:
    what = f"camera `{name:.80}`"
    if not isinstance(entry.get("metadata_path"), str):
        raise InputError(f"`{file}`: {what} has no `metadata_path`; the JSON file with its `K` is needed.")
    beside = safe_join(file.parent, entry["metadata_path"])
    metadata = read_json(beside)
    size = metadata.get("resolution") if isinstance(metadata, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        raise InputError(f"`{beside}` has no `resolution` of two numbers; the size of the pictures is needed.")
    width, height = (_side(side, beside, "`resolution`") for side in size)
    K = _intrinsics(metadata.get("K"), beside, "`K`")
    pose = _pose(entry["X_WC"], file, f"{what}, `X_WC`") @ FLIP_YZ
    return View(name, width, height, K, pose, camera_id=number)


def _intrinsics(value: Any, file: Path, what: str) -> Float[Tensor, "3 3"]:
    """K from `[fx, fy, cx, cy]` or three rows."""
    flat = (
        [one for row in value for one in (row if isinstance(row, list) else [row])] if isinstance(value, list) else []
    )
    numbers = _numbers(flat, file, what)
    if len(numbers) == 9 and (numbers[1], numbers[3], *numbers[6:]) == (0, 0, 0, 0, 1):
        numbers = (numbers[0], numbers[4], numbers[2], numbers[5])
    if len(numbers) != 4 or min(numbers[:2]) <= 0:
        raise InputError(
            f"`{file}`: {what} is {value!r:.120}; [fx, fy, cx, cy], or three rows without skew, with focal lengths "
            "above 0 are needed."
        )
    fx, fy, cx, cy = numbers
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def _pose(value: Any, file: Path, what: str) -> Float[Tensor, "4 4"]:
    """A rigid transform from a matrix of rows or from `[x, y, z, qw, qx, qy, qz]`."""
    nested = isinstance(value, list) and all(isinstance(row, list) for row in value)
    flat = _numbers([one for row in value for one in row] if nested else value, file, what)
    if not nested and len(flat) == 7 and abs(math.hypot(*flat[3:]) - 1) < 1e-3:
        return transform_from_pose(torch.tensor(flat, dtype=torch.float64))
    if nested and [len(row) for row in value] in ([4] * 3, [4] * 4):
        matrix = np.array(flat).reshape(-1, 4)
        left, sizes, right = np.linalg.svd(matrix[:3, :3])
        last = len(matrix) == 3 or np.array_equal(matrix[3], [0, 0, 0, 1])
        if last and np.abs(sizes - 1).max() < 1e-3 and np.linalg.det(matrix[:3, :3]) > 0:
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = left @ right, matrix[:3, 3]
            return torch.from_numpy(pose)
    raise InputError(
        f"`{file}`: {what} is no rigid pose; rows of a rotation matrix beside the position, or "
        "[x, y, z, qw, qx, qy, qz] with a unit quaternion, are needed."
    )


def _numbers(value: Any, file: Path, what: str) -> tuple[float, ...]:
    plain = isinstance(value, list) and len(value) <= 64
    if not plain or not all(type(one) in (int, float) and abs(one) <= MAX_VALUE for one in value):
        raise InputError(f"`{file}`: {what} is {value!r:.120}; a list of numbers up to {MAX_VALUE:g} is needed.")
    return tuple(float(one) for one in value)


def _side(value: Any, file: Path, what: str) -> int:
    if type(value) is int and 1 <= value <= MAX_SIDE:
        return value
    raise InputError(f"`{file}`: {what} is {value!r:.40}; a whole number of pixels from 1 to {MAX_SIDE} is needed.")
