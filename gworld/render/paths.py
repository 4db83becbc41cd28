"""Camera paths: orbits, smooth curves through keyframes, nerfstudio's camera-path files, and a view that fits a scene.

A path is a `Cameras` with one camera per frame. A camera that rides on a link needs no path: give it `links`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.files import read_json
from gworld.geometry import (
    matrix_from_quat,
    quat_from_matrix,
    quat_from_rotvec,
    quat_inverse,
    quat_multiply,
    rotvec_from_quat,
    slerp,
    transform_from,
)
from gworld.scene.cameras import Cameras, intrinsics, look_at

MAX_FRAMES = 1_000_000
MAX_SIZE = 16_384
MAX_QUANTILE = 1_000_000
"""Points that go into a percentile; more are thinned evenly."""


def orbit(
    center: Float[Tensor, " 3"], radius: float, height: float, count: int, up: Float[Tensor, " 3"] | None = None
) -> Float[Tensor, "count 4 4"]:
    """`world_from_camera` of `count` cameras on a circle that look at `center`, the last one step before the first.

    `radius` and `height` above the centre are in metres along `up` (default +Z); the turn is counter-clockwise seen
    from above and starts at the +X side.
    """
    up = torch.nn.functional.normalize(center.new_tensor([0.0, 0.0, 1.0]) if up is None else up.to(center), dim=0)
    helper = center.new_tensor([1.0, 0.0, 0.0] if abs(float(up[0])) < 0.9 else [0.0, 1.0, 0.0])
    first = torch.nn.functional.normalize(helper - (helper @ up) * up, dim=0)
    second = torch.linalg.cross(up, first)
    angle = torch.arange(count, dtype=center.dtype, device=center.device)[:, None] * (2 * math.pi / max(count, 1))
    eye = center + radius * (angle.cos() * first + angle.sin() * second) + height * up
    return look_at(eye, center.expand_as(eye), up)


def path_cameras(world_from_camera: Float[Tensor, "T 4 4"], width: int, height: int, fov_y: float = 0.8) -> Cameras:
    """One pinhole camera per pose, with square pixels and the vertical field of view `fov_y` in radians."""
    K = intrinsics(width, height, fov_y).to(world_from_camera)
    return Cameras(K.expand(len(world_from_camera), 3, 3), world_from_camera, width, height)


def spline(keyframes: Cameras, count: int, *, closed: bool = False) -> Cameras:
    """`count` cameras on a smooth curve through all keyframes; `closed` returns to the first without repeating it.

    Positions and rotations are centripetal Catmull-Rom curves (no loops or overshoot at uneven spacing), drawn as cubic
    Bezier segments, with slerp in place of lerp for the rotations; K is interpolated linearly.
    Raises `InputError` for less than two keyframes. Source: Yuksel et al., 2011; Shoemake, 1985.
    """
    number = len(keyframes)
    if number < 2 or count < 1:
        raise InputError(f"a spline of {count} frames through {number} keyframes was asked for; 1 and 2 are needed.")
    order = torch.arange(number + closed, device=keyframes.K.device) % number
    positions = keyframes.world_from_camera[order, :3, 3]
    quats = quat_from_matrix(keyframes.world_from_camera[order, :3, :3])
    spacing = _spacing(positions, quats)
    knots = torch.cat([spacing.new_zeros(1), spacing.cumsum(0)])
    times = torch.arange(count, device=knots.device) * (knots[-1] / max(count - (not closed), 1))
    segment = (torch.searchsorted(knots, times, right=True) - 1).clamp(0, len(spacing) - 1)
    weight = ((times - knots[segment]) / spacing[segment]).clamp(0, 1)
    eye = _bezier(positions, spacing, closed, segment, weight, _LINE)
    quat = _bezier(quats, spacing, closed, segment, weight, _ROTATIONS)
    K = torch.lerp(keyframes.K[order[segment]], keyframes.K[order[segment + 1]], weight[:, None, None])
    pose = transform_from(matrix_from_quat(quat), eye)
    return replace(keyframes, K=K, world_from_camera=pose, distortion=None, names=(), links=())


def fit_view(
    means: Float[Tensor, "N 3"],
    width: int,
    height: int,
    *,
    fov_y: float = 0.8,
    direction: tuple[float, float, float] = (1.0, -1.2, 0.7),
) -> Cameras:
    """One camera that frames the bulk of a scene from `direction` (from the scene to the camera, +Z up).

    It aims at the middle between the 3rd and 97th percentiles of each axis and steps back until 98 % of all points are
    in view with some room to spare, so that outliers and non-finite points change little.
    """
    center, _ = bulk(means)
    away = torch.nn.functional.normalize(center.new_tensor(direction), dim=0)
    pose = look_at(center + away, center)
    x, y, z = ((_thinned(means) - center) @ pose[:3, :3]).unbind(-1)
    slope_y = math.tan(fov_y / 2)
    # A point is in view from distances beyond this one, on whichever side of the centre it lies.
    needed = torch.maximum(x.abs() * height / (slope_y * width), y.abs() / slope_y) - z
    distance = max(1.15 * _percentile(needed, 0.98), 1e-3) if len(needed) else 1.0
    return path_cameras(look_at(center + distance * away, center)[None], width, height, fov_y)


def bulk(means: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, " 3"], float]:
    """Where most of the points are: middle of the 3rd to 97th percentiles, 90th percentile of the distance from it.

    Metres; the origin and 1 without finite points, at least a millimetre otherwise.
    """
    points = _thinned(means)
    if len(points) == 0:
        return means.detach().new_zeros(3), 1.0
    ends = [[_percentile(column, part) for part in (0.03, 0.97)] for column in points.unbind(-1)]
    center = points.new_tensor(ends).mean(dim=1)
    return center, max(_percentile(torch.linalg.vector_norm(points - center, dim=-1), 0.9), 1e-3)


def _thinned(means: Float[Tensor, "N 3"]) -> Float[Tensor, "M 3"]:
    """The finite points, evenly thinned where they are more than a percentile needs."""
    points = means.detach()[means.detach().isfinite().all(dim=-1)]
    return points[:: max(1, len(points) // MAX_QUANTILE)]


def _percentile(values: Float[Tensor, " N"], part: float) -> float:
    return float(values.kthvalue(1 + round(part * (len(values) - 1))).values)


def read_camera_path(path: str | Path) -> tuple[Cameras, float]:
    """Cameras and frames per second of a nerfstudio camera-path JSON (perspective ones).

    Its poses are camera-to-world with OpenGL axes, row by row, and its field of view is vertical, in degrees.
    Raises `InputError` for anything else, naming the file.
    """
    data = read_json(path)
    frames = data.get("camera_path") if isinstance(data, dict) else None
    if not isinstance(frames, list) or not 1 <= len(frames) <= MAX_FRAMES:
        raise InputError(f"`{path}` holds no list `camera_path` of 1 to {MAX_FRAMES} cameras; export the path again.")
    kind = data.get("camera_type", "perspective")
    if kind != "perspective":
        raise InputError(f"`{path}` is a path of {kind!r} cameras; only perspective ones can be rendered.")
    width, height = (int(_number(path, data, name, 1, MAX_SIZE)) for name in ("render_width", "render_height"))
    if "fps" in data:
        fps = _number(path, data, "fps", 1e-3, 1000)
    else:
        fps = len(frames) / _number(path, data, "seconds", 1e-3, 1e6) if "seconds" in data else 24.0
    poses, focals = [], []
    for frame in frames:
        if not isinstance(frame, dict):
            raise InputError(f"`{path}` has a camera that is not an object; export the path again.")
        poses.append(_opencv_pose(path, frame.get("camera_to_world")))
        focals.append(0.5 * height / math.tan(math.radians(_number(path, frame, "fov", 0.1, 179)) / 2))
    K = torch.zeros(len(frames), 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = torch.tensor(focals)
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = width / 2, height / 2, 1.0
    return Cameras(K, torch.stack(poses), width, height), fps


def _opencv_pose(path: str | Path, values: Any) -> Float[Tensor, "4 4"]:
    """A pose with OpenCV axes from sixteen numbers, flat or as four rows, with OpenGL axes."""
    rows = values if isinstance(values, list) else []
    flat = [value for row in rows for value in (row if isinstance(row, list) else [row])]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in flat)
    if len(flat) != 16 or not numbers or not all(abs(value) < 1e15 for value in flat):
        raise InputError(f"`{path}` has a `camera_to_world` that is not 4 x 4 finite numbers; export the path again.")
    pose = torch.tensor(flat, dtype=torch.float64).reshape(4, 4)
    error = (pose[:3, :3].T @ pose[:3, :3] - torch.eye(3, dtype=torch.float64)).abs().amax()
    if error > 1e-3 or pose[3].tolist() != [0, 0, 0, 1]:
        raise InputError(f"`{path}` has a `camera_to_world` that is not a rotation with a position in the last column.")
    return (pose * pose.new_tensor([1.0, -1.0, -1.0, 1.0])).float()


def _number(path: str | Path, data: dict[str, Any], name: str, low: float, high: float) -> float:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"`{path}` has {name} = {value!r}; a number from {low:g} to {high:g} is needed.")
    return float(value)


def _spacing(positions: Float[Tensor, "K 3"], quats: Float[Tensor, "K 4"]) -> Float[Tensor, " K1"]:
    """Knot intervals: the square root of how far apart neighbours are, in mean steps and radians together."""
    distance = positions.diff(dim=0).norm(dim=-1)
    mean = distance.mean().clamp_min(torch.finfo(distance.dtype).tiny)
    angle = rotvec_from_quat(quat_multiply(quat_inverse(quats[:-1]), quats[1:])).norm(dim=-1)
    return (distance / mean + 0.5 * angle).clamp_min(1e-3).sqrt()


@dataclass(frozen=True)
class _Geometry:
    """How to walk in a space: the way from a to b, a step along such a way, and the point at a weight between."""

    way: Callable[[Tensor, Tensor], Tensor]
    step: Callable[[Tensor, Tensor], Tensor]
    between: Callable[[Tensor, Tensor, Tensor], Tensor]


_LINE = _Geometry(
    way=lambda a, b: b - a,
    step=lambda a, way: a + way,
    between=lambda a, b, weight: torch.lerp(a, b, weight[:, None]),
)
_ROTATIONS = _Geometry(
    way=lambda a, b: rotvec_from_quat(quat_multiply(quat_inverse(a), b)),
    step=lambda a, way: quat_multiply(a, quat_from_rotvec(way)),
    between=slerp,
)


def _bezier(
    points: Tensor, spacing: Tensor, closed: bool, segment: Tensor, weight: Tensor, geometry: _Geometry
) -> Tensor:
    """Points on the Catmull-Rom curve: de Casteljau's construction on the control points of each one's segment."""
    speed = geometry.way(points[:-1], points[1:]) / spacing[:, None]
    # The tangent at a keyframe weighs the speeds before and after it, the shorter side more.
    before, time_before, time = speed.roll(1, 0), spacing.roll(1)[:, None], spacing[:, None]
    tangent = (time * before + time_before * speed) / (time + time_before)
    if not closed:
        tangent[0] = speed[0]
    tangent = torch.cat([tangent, tangent[:1] if closed else speed[-1:]])
    third = spacing[segment][:, None] / 3
    start, end = points[segment], points[segment + 1]
    level = [start, geometry.step(start, tangent[segment] * third)]
    level += [geometry.step(end, -tangent[segment + 1] * third), end]
    while len(level) > 1:
        level = [geometry.between(a, b, weight) for a, b in pairwise(level)]
    return level[0]
