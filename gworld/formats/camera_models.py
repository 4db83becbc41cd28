"""COLMAP's camera models, and what a sparse model holds, apart from how its files spell it.

Sources: COLMAP documentation, "Camera Models" and "Output Format"; the model numbers are those of `sensor/models.h`.
COLMAP's pixel centres lie at +0.5, as ours do, so principal points pass through unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.scene.views import View, ViewModel

MAX_SIDE = 1 << 20
MAX_VALUE = 1e9

Pose = tuple[float, ...]
"""COLMAP's order: `qw qx qy qz tx ty tz` of the world in a camera or rig."""


class Model(NamedTuple):
    """One COLMAP camera model: its number in binary files, its parameters in order, and the gworld model it equals."""

    id: int
    params: tuple[str, ...]
    kind: ViewModel


def _model(number: int, params: str, kind: ViewModel) -> Model:
    return Model(number, tuple(params.split()), kind)


MODELS: dict[str, Model] = {
    "SIMPLE_PINHOLE": _model(0, "f cx cy", "pinhole"),
    "PINHOLE": _model(1, "fx fy cx cy", "pinhole"),
    "SIMPLE_RADIAL": _model(2, "f cx cy k1", "opencv"),
    "RADIAL": _model(3, "f cx cy k1 k2", "opencv"),
    "OPENCV": _model(4, "fx fy cx cy k1 k2 p1 p2", "opencv"),
    "OPENCV_FISHEYE": _model(5, "fx fy cx cy k1 k2 k3 k4", "fisheye"),
    "FULL_OPENCV": _model(6, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6", "opencv"),
    "FOV": _model(7, "fx fy cx cy omega", "other"),
    "SIMPLE_RADIAL_FISHEYE": _model(8, "f cx cy k1", "fisheye"),
    "RADIAL_FISHEYE": _model(9, "f cx cy k1 k2", "fisheye"),
    "THIN_PRISM_FISHEYE": _model(10, "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1", "other"),
    "RAD_TAN_THIN_PRISM_FISHEYE": _model(11, "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3", "other"),
    "SIMPLE_DIVISION": _model(12, "f cx cy k", "other"),
    "DIVISION": _model(13, "fx fy cx cy k", "other"),
    "SIMPLE_FISHEYE": _model(14, "f cx cy", "fisheye"),
    "FISHEYE": _model(15, "fx fy cx cy", "fisheye"),
    "EUCM": _model(16, "fx fy cx cy alpha beta", "other"),
    "EQUIRECTANGULAR": _model(17, "w h", "equirectangular"),
}
MODEL_NAMES = {model.id: name for name, model in MODELS.items()}

DISTORTION_NAMES: dict[ViewModel, tuple[str, ...]] = {
    "pinhole": (),
    "opencv": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "fisheye": ("k1", "k2", "k3", "k4"),
    "equirectangular": (),
    "other": (),
}
"""The order of `View.distortion` for each model."""


class ColmapCamera(NamedTuple):
    """A row of cameras.bin or cameras.txt."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


class ColmapImage(NamedTuple):
    """A row of images.bin or images.txt; its observed points are not kept."""

    id: int
    pose: Pose
    camera_id: int
    name: str


class ColmapFrame(NamedTuple):
    """A row of frames.bin or frames.txt: where a rig was, and which sensor took which image."""

    rig_id: int
    pose: Pose
    images: tuple[tuple[int, int], ...]


@dataclass
class ColmapModel:
    """A sparse model as its files say it; `sensors` maps (rig, sensor) to sensor_from_rig, None where unknown."""

    cameras: dict[int, ColmapCamera] = field(default_factory=dict)
    images: list[ColmapImage] = field(default_factory=list)
    sensors: dict[tuple[int, int], Pose | None] = field(default_factory=dict)
    frames: list[ColmapFrame] = field(default_factory=list)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    colors: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint8))


class Optics(NamedTuple):
    """What a camera's parameters mean: K [3,3] float64, gworld's model, its distortion."""

    K: Float[Tensor, "3 3"]
    model: ViewModel
    distortion: tuple[float, ...]


def optics_of(camera: ColmapCamera, source: str) -> Optics:
    """Intrinsics of a COLMAP camera, distortion kept; models without an equal here become `other`.

    Raises `InputError` when a size, the number of parameters or a value cannot be a camera's.
    """
    model = MODELS[camera.model]
    sizes = (1 <= camera.width <= MAX_SIDE) and (1 <= camera.height <= MAX_SIDE)
    finite = all(math.isfinite(value) and abs(value) <= MAX_VALUE for value in camera.params)
    if not sizes or not finite or len(camera.params) != len(model.params):
        raise InputError(
            f"`{source}`: a {camera.model} camera of {camera.width} x {camera.height} pixels has the parameters "
            f"{list(camera.params)[:16]}; {' '.join(model.params)} with finite values are needed. Export it again."
        )
    values = dict(zip(model.params, camera.params, strict=True))
    if model.kind == "equirectangular":
        return Optics(panorama_intrinsics(camera.width, camera.height), model.kind, ())
    fx = values.get("fx", values.get("f", 0.0))
    fy = values.get("fy", fx)
    if min(fx, fy) <= 0:
        raise InputError(
            f"`{source}`: a {camera.model} camera has the focal length {min(fx, fy):g}; pixels > 0 are needed. "
            "Export the model again."
        )
    K = torch.tensor([[fx, 0, values["cx"]], [0, fy, values["cy"]], [0, 0, 1]], dtype=torch.float64)
    return Optics(K, model.kind, tuple(values.get(name, 0.0) for name in DISTORTION_NAMES[model.kind]))


def panorama_intrinsics(width: int, height: int) -> Float[Tensor, "3 3"]:
    """K of a full panorama: pixels per radian of longitude (x) and latitude (y), forward in the middle; float64."""
    rows = [[width / (2 * math.pi), 0, width / 2], [0, height / math.pi, height / 2], [0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64)


def colmap_camera(view: View) -> ColmapCamera:
    """The COLMAP camera of a view: the one it was read from where that still holds, else the plainest equal one.

    Raises `InputError` for a camera that no COLMAP model can say.
    """
    kept = _kept_camera(view)
    if kept is not None:
        return kept
    K = view.K.double()
    (fx, skew, cx), (_, fy, cy) = K[0].tolist(), K[1].tolist()
    if view.model == "other" or skew != 0:
        fact = f"the model {view.source_model or 'other'}" if view.model == "other" else f"a skew of {skew:g}"
        raise InputError(
            f"view `{view.name}` has {fact}, which no COLMAP camera model equals. Undistort the images first."
        )
    if view.model == "equirectangular":
        return ColmapCamera("EQUIRECTANGULAR", view.width, view.height, (float(view.width), float(view.height)))
    focal = (fx, fy, cx, cy)
    if view.model == "pinhole":
        return ColmapCamera("PINHOLE", view.width, view.height, focal)
    count = len(DISTORTION_NAMES[view.model])
    distortion = tuple(float(value) for value in view.distortion) + (0.0,) * (count - len(view.distortion))
    if view.model == "fisheye":
        return ColmapCamera("OPENCV_FISHEYE", view.width, view.height, focal + distortion)
    if any(distortion[4:]):
        return ColmapCamera("FULL_OPENCV", view.width, view.height, focal + distortion)
    return ColmapCamera("OPENCV", view.width, view.height, focal + distortion[:4])


def _kept_camera(view: View) -> ColmapCamera | None:
    """The camera a view was read from, unless the view has been changed since (resized, undistorted)."""
    model = MODELS.get(view.source_model)
    if model is None or len(model.params) != len(view.source_params):
        return None
    camera = ColmapCamera(view.source_model, view.width, view.height, view.source_params)
    optics = optics_of(camera, view.name)
    if optics.model != view.model or not torch.allclose(optics.K, view.K.double(), rtol=1e-6, atol=1e-6):
        return None
    given = tuple(view.distortion) + (0.0,) * (len(optics.distortion) - len(view.distortion))
    same = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in zip(given, optics.distortion, strict=False))
    return camera if same else None
