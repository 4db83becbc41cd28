"""nerfstudio, instant-ngp and NeRF-synthetic `transforms.json` <-> posed views and sparse points.

Sources: nerfstudio documentation, "Data conventions"; its `nerfstudio_dataparser.py` and `Cameras.get_image_coords`,
which puts pixel centres at +0.5 as we do. Camera axes in the file are OpenGL's (x right, y up, z back). What a writer
did to the world is undone on the way in: saved = applied_scale * applied_transform(original), so that the metric frame
is kept. We write neither field, because our frame is the world.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gworld.errors import InputError
from gworld.files import read_json, safe_join, write_json
from gworld.formats.camera_models import DISTORTION_NAMES, MAX_SIDE, MAX_VALUE, panorama_intrinsics
from gworld.formats.points import read_points, write_points
from gworld.scene.views import View, ViewModel, Views

POINTS_FILE = "sparse_pc.ply"
DEPTH_UNIT = 1e-3  # nerfstudio's default: stored depth is in millimetres
FLIP_YZ = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
"""OpenGL camera axes in OpenCV's, and back."""

KINDS: dict[str, ViewModel] = {
    "SIMPLE_PINHOLE": "pinhole",
    "PINHOLE": "pinhole",
    "SIMPLE_RADIAL": "opencv",
    "RADIAL": "opencv",
    "OPENCV": "opencv",
    "OPENCV_FISHEYE": "fisheye",
    "EQUIRECTANGULAR": "equirectangular",
    "FISHEYE624": "other",
    "ORTHOPHOTO": "other",
    "OMNIDIRECTIONALSTEREO_L": "other",
    "OMNIDIRECTIONALSTEREO_R": "other",
    "VR180_L": "other",
    "VR180_R": "other",
}
"""nerfstudio's camera models (`CAMERA_MODEL_TO_TYPE`) and ours."""

NAMES = {"pinhole": "PINHOLE", "opencv": "OPENCV", "fisheye": "OPENCV_FISHEYE", "equirectangular": "EQUIRECTANGULAR"}
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".webp")  # NeRF-synthetic leaves the suffix out
PICTURES = ("PNG", "JPEG", "WEBP", "BMP")
# What Pillow's header parsers were seen to raise on damaged files, or document.
_PILLOW_ERRORS = (OSError, ValueError, ArithmeticError, LookupError, EOFError, SyntaxError, TypeError, RuntimeError)
PARAMETERS = ("k1", "k2", "k3", "k4", "p1", "p2")  # in the order of nerfstudio's `distortion_params`


@dataclass(frozen=True)
class _Source:
    """A file being read, and how its saved world came from the original: saved = scale * (size * R original + t)."""

    path: Path
    meta: dict[str, Any]
    rotation: np.ndarray
    size: float
    shift: np.ndarray
    scale: float

    def original(self, saved: np.ndarray) -> np.ndarray:
        """Points [..., 3] of the saved world in the original one."""
        return (saved / self.scale - self.shift) @ self.rotation / self.size


def read_transforms(path: str | Path) -> Views:
    """Read `transforms.json` (or the folder that holds it); K, poses and points are float64 in the original frame.

    A picture, mask or depth file that is missing leaves None. Names must stay inside the folder of the file. Splits
    (`train_filenames` and the like) are left out. Raises `InputError` naming file and frame when a field is missing,
    not finite, not a rigid pose, or leads outside the folder.
    """
    file = Path(path)
    file = file / "transforms.json" if file.is_dir() else file
    meta = read_json(file)
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"`{file}` has no list `frames` of objects; a nerfstudio or instant-ngp file is needed.")
    source = _source(file, meta)
    views = _numbered([_read_view(source, frame, index) for index, frame in enumerate(frames)])
    points, colors = _read_sparse_points(source)
    unit = meta.get("depth_unit_scale_factor", meta.get("integer_depth_scale", DEPTH_UNIT))
    return Views(
        views=tuple(views),
        points=points,
        colors=colors,
        metric=meta.get("metric") is True,
        depth_scale=_number(unit, file, "depth_unit_scale_factor"),
    )


def write_transforms(views: Views, path: str | Path) -> None:
    """Write `transforms.json` at `path`, with `sparse_pc.ply` beside it where there are points; nothing is normalised.

    Pictures are named, not copied: they must lie in the folder of the file; a view without one is named
    `images/<name>`. Raises `InputError` when a picture lies elsewhere, when models differ between views, or when
    nerfstudio has no equal of a camera.
    """
    target = Path(path)
    kinds = {_written_model(view) for view in views.views}
    if len(kinds) > 1 and kinds <= {"PINHOLE", "OPENCV"}:
        kinds = {"OPENCV"}
    if len(kinds) > 1:
        raise InputError(f"the views have the camera models {', '.join(sorted(kinds))}; a file holds one. Split them.")
    cameras = [_intrinsics(view) for view in views.views]
    meta: dict[str, Any] = {"camera_model": kinds.pop() if kinds else "PINHOLE"}
    shared = len(views) > 0 and all(camera == cameras[0] for camera in cameras)
    meta |= cameras[0] if shared else {}
    numbered = len({view.camera_id for view in views.views}) > 1
    meta |= {"metric": views.metric, "depth_unit_scale_factor": views.depth_scale}
    meta |= {"ply_file_path": POINTS_FILE} if len(views.points) else {}
    meta["frames"] = [
        _frame(view, target.parent) | ({} if shared else camera) | ({"camera_id": view.camera_id} if numbered else {})
        for view, camera in zip(views.views, cameras, strict=True)
    ]
    if len(views.points):  # only when every picture was found good
        points, colors = views.points.double().cpu().numpy(), views.colors.cpu().numpy()
        write_points(target.parent / POINTS_FILE, points, colors)
    write_json(target, meta)


def _source(file: Path, meta: dict[str, Any]) -> _Source:
    scale = _number(meta.get("applied_scale", 1.0), file, "applied_scale")
    matrix = np.eye(4)
    if meta.get("applied_transform") is not None:
        matrix = _matrix(meta["applied_transform"], file, "applied_transform")
    size = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
    if not (1e-6 < size < 1e6 and 1e-6 < scale < 1e6):
        raise InputError(
            f"`{file}`: `applied_transform` and `applied_scale` scale lengths by {size:g} and {scale:g}; a rotation "
            "with scales above 0 is needed. Export the data set again."
        )
    rotation = _nearest_rotation(matrix[:3, :3] / size, file, "applied_transform")
    return _Source(file, meta, rotation, size, matrix[:3, 3], scale)


def _read_view(source: _Source, frame: dict[str, Any], index: int) -> View:
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"`{source.path}`: frame {index} has no `file_path`; the name of its picture is needed.")
    image = _file_inside(source, name, SUFFIXES)
    values = {**source.meta, **frame}
    width, height = _size(source, values, name, image)
    K, model, distortion, kept = _optics(source, values, name, (width, height))
    time = frame.get("time")
    identity = frame.get("camera_id")
    return View(
        name=_name(name),
        width=width,
        height=height,
        K=K,
        world_from_camera=_pose(source, frame, name),
        model=model,
        distortion=distortion,
        image=image,
        mask=_file_inside(source, frame.get("mask_path")),
        depth=_file_inside(source, frame.get("depth_file_path", frame.get("depth_path"))),
        time=None if time is None else _number(time, source.path, f"time of `{name}`"),
        camera_id=identity if isinstance(identity, int) and 0 <= identity < 1 << 31 else -1,
        source_model=str(values.get("camera_model", "OPENCV")) if model == "other" else "",
        source_params=kept,
    )


def _numbered(views: list[View]) -> list[View]:
    """Give the views that name no camera one number for each distinct set of intrinsics."""
    if views and all(view.camera_id >= 0 for view in views):
        return views
    numbers: dict[Any, int] = {}
    for index, view in enumerate(views):
        key = (
            view.width,
            view.height,
            tuple(view.K.flatten().tolist()),
            view.model,
            view.distortion,
            view.source_params,
        )
        views[index] = replace(view, camera_id=numbers.setdefault(key, len(numbers) + 1))
    return views


def _name(file_path: str) -> str:
    """A picture's name, relative to the folder `images/` where it lies in it, so that names agree with COLMAP's."""
    parts = PurePosixPath(file_path).parts
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] == "images" else parts)


def _file_inside(source: _Source, name: Any, suffixes: tuple[str, ...] = ("",)) -> Path | None:
    if name is None:
        return None
    if not isinstance(name, str):
        raise InputError(f"`{source.path}`: {name!r:.80} stands where the name of a file is needed. Export it again.")
    for suffix in suffixes:
        try:
            file = safe_join(source.path.parent, name + suffix)
            if file.is_file():
                return file
        except (OSError, ValueError) as error:
            raise InputError(f"`{source.path}`: the name {name!r:.80} cannot be used; give a plain one.") from error
        except InputError as error:
            raise InputError(
                f"`{source.path}`: the name {name!r:.200} leads out of the folder of the file; only names inside it "
                "are opened. Move `transforms.json` up to a folder that holds the pictures, and shorten the names."
            ) from error
    return None


def _size(source: _Source, values: dict[str, Any], name: str, image: Path | None) -> tuple[int, int]:
    if "w" in values and "h" in values:
        width, height = (_number(values[key], source.path, key) for key in ("w", "h"))
        if all(side == int(side) and 1 <= side <= MAX_SIDE for side in (width, height)):
            return int(width), int(height)
        raise InputError(
            f"`{source.path}`: frame `{name:.200}` is {width:g} x {height:g} pixels; whole numbers from 1 are needed."
        )
    if image is None:
        raise InputError(
            f"`{source.path}`: frame `{name:.200}` has no `w` and `h`, and its picture is missing, so its size is "
            "unknown. Put the pictures beside the file, or add `w` and `h`."
        )
    return _picture_size(image)


def _picture_size(image: Path) -> tuple[int, int]:
    """Width and height from the header of a picture."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(image, formats=PICTURES) as picture:
                return picture.size
    except (*_PILLOW_ERRORS, Image.DecompressionBombError) as error:
        raise InputError(
            f"`{image}` cannot be read as a picture: {error!s:.200}. Replace it, or add `w` and `h`."
        ) from error


def _optics(
    source: _Source, values: dict[str, Any], name: str, size: tuple[int, int]
) -> tuple[Float[Tensor, "3 3"], ViewModel, tuple[float, ...], tuple[float, ...]]:
    """K float64, our model, its distortion, and for the model `other` the file's own `distortion_params`."""
    file = source.path
    kind = values.get("camera_model", "OPENCV_FISHEYE" if values.get("is_fisheye") is True else "OPENCV")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(
            f"`{file}`: the camera model {kind!r:.80} is not known; known are {', '.join(KINDS)}. Undistort the "
            "pictures first."
        )
    if KINDS[kind] == "equirectangular":
        return panorama_intrinsics(*size), "equirectangular", (), ()
    fx = _focal(file, values, ("fl_x", "camera_angle_x"), size[0])
    fy = _focal(file, values, ("fl_y", "camera_angle_y"), size[1])
    if fx is None and fy is None:
        raise InputError(f"`{file}`: frame `{name:.200}` has neither `fl_x` nor `camera_angle_x`; one is needed.")
    cx = _number(values.get("cx", size[0] / 2), file, "cx")
    cy = _number(values.get("cy", size[1] / 2), file, "cy")
    K = torch.tensor([[fx or fy, 0, cx], [0, fy or fx, cy], [0, 0, 1]], dtype=torch.float64)
    listed = values.get("distortion_params", [values.get(key, 0.0) for key in PARAMETERS])
    if not isinstance(listed, list):
        raise InputError(f"`{file}`: `distortion_params` is not a list of numbers. Export the data set again.")
    params = tuple(_number(value, file, "a distortion parameter") for value in listed[:64])
    if KINDS[kind] == "other":
        return K, "other", (), params
    terms = dict.fromkeys(PARAMETERS, 0.0) | dict(zip(PARAMETERS, params, strict=False))
    if KINDS[kind] == "fisheye":
        return K, "fisheye", tuple(terms[key] for key in DISTORTION_NAMES["fisheye"]), ()
    if terms["k4"]:  # a fourth radial term, which OpenCV's model lacks
        return K, "other", (), params
    used = terms["k1"], terms["k2"], terms["p1"], terms["p2"], terms["k3"], 0.0, 0.0, 0.0
    return (K, "opencv", used, ()) if any(used) else (K, "pinhole", (), ())


def _focal(file: Path, values: dict[str, Any], names: tuple[str, str], side: int) -> float | None:
    """Focal length in pixels, given as such or as the field of view in radians."""
    length, angle = names
    if values.get(length) is None and values.get(angle) is None:
        return None
    if values.get(length) is not None:
        focal = _number(values[length], file, length)
    else:
        view = _number(values[angle], file, angle)
        focal = 0.5 * side / math.tan(view / 2) if 1e-6 < view < math.pi - 1e-6 else 0.0
    if focal <= 0:
        raise InputError(f"`{file}`: `{length}` or `{angle}` gives a focal length of {focal:g}; above 0 is needed.")
    return focal


def _pose(source: _Source, frame: dict[str, Any], name: str) -> Float[Tensor, "4 4"]:
    """world_from_camera, OpenCV axes, in the frame the data had before `applied_transform` and `applied_scale`."""
    what = f"`transform_matrix` of `{name:.200}`"
    saved = _matrix(frame.get("transform_matrix"), source.path, what)
    pose = np.eye(4)
    pose[:3, :3] = source.rotation.T @ _nearest_rotation(saved[:3, :3], source.path, what)
    pose[:3, 3] = source.original(saved[:3, 3])
    return torch.from_numpy(pose) @ FLIP_YZ


def _read_sparse_points(source: _Source) -> tuple[Float[Tensor, "P 3"], UInt8[Tensor, "Q 3"]]:
    file = _file_inside(source, source.meta.get("ply_file_path"))
    if file is None:
        return torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.uint8)
    points, colors = read_points(file)
    return torch.from_numpy(source.original(points)), torch.from_numpy(colors)


def _number(value: Any, file: Path, what: str) -> float:
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_VALUE:
            return float(value)
    except OverflowError:
        pass
    raise InputError(
        f"`{file}`: {what} is {value!r:.80}; a number of at most {MAX_VALUE:g} is needed. Export it again."
    )


def _matrix(rows: Any, file: Path, what: str) -> np.ndarray:
    """A 3x4 or 4x4 list of lists as [4,4] float64 with the last row 0 0 0 1."""
    if (
        not isinstance(rows, list)
        or len(rows) not in (3, 4)
        or any(not isinstance(row, list) or len(row) != 4 for row in rows)
    ):
        raise InputError(f"`{file}`: {what} is no matrix of 4x4 or 3x4 numbers; one is needed. Export it again.")
    matrix = np.eye(4)
    matrix[: len(rows)] = [[_number(value, file, what) for value in row] for row in rows]
    if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise InputError(
            f"`{file}`: {what} ends with the row {matrix[3].tolist()}; 0 0 0 1 is needed. Export it again."
        )
    return matrix


def _nearest_rotation(matrix: np.ndarray, file: Path, what: str) -> np.ndarray:
    """The rotation a matrix is, mended where it was printed with few digits."""
    error = np.abs(matrix.T @ matrix - np.eye(3)).max()
    if not error <= 2e-2 or np.linalg.det(matrix) <= 0:
        raise InputError(
            f"`{file}`: {what} is no rotation (it is off by {error:.2g}, determinant {np.linalg.det(matrix):.2g}); "
            "scale, shear and mirroring have no place in a camera's pose. Export the data set again."
        )
    if error < 1e-9:
        return matrix
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def _written_model(view: View) -> str:
    if view.model == "other" and view.source_model in KINDS:
        return view.source_model
    if view.model == "other" or (view.model == "opencv" and any(view.distortion[5:])):
        name = view.source_model or "FULL_OPENCV"
        raise InputError(f"view `{view.name}` has the camera model {name}, which nerfstudio lacks. Undistort it first.")
    return NAMES[view.model]


def _intrinsics(view: View) -> dict[str, Any]:
    """Intrinsics under nerfstudio's names; its panoramas have fl_x = w / 2 and fl_y = h."""
    values: dict[str, Any] = {"w": view.width, "h": view.height}
    if view.model == "equirectangular":
        return values | {"fl_x": view.width / 2, "fl_y": view.height, "cx": view.width / 2, "cy": view.height / 2}
    K = view.K.double()
    values |= {"fl_x": K[0, 0].item(), "fl_y": K[1, 1].item(), "cx": K[0, 2].item(), "cy": K[1, 2].item()}
    if view.model == "other":
        return values | ({"distortion_params": list(view.source_params)} if view.source_params else {})
    return values | dict(zip(DISTORTION_NAMES[view.model], map(float, view.distortion[:5]), strict=False))


def _frame(view: View, folder: Path) -> dict[str, Any]:
    frame: dict[str, Any] = {"file_path": f"images/{view.name}"}
    for key, file in (("file_path", view.image), ("mask_path", view.mask), ("depth_file_path", view.depth)):
        if file is not None:
            frame[key] = _relative(file, folder)
    if view.time is not None:
        frame["time"] = view.time
    return frame | {"transform_matrix": (view.world_from_camera.double() @ FLIP_YZ).tolist()}


def _relative(file: Path, folder: Path) -> str:
    base = folder.resolve()
    whole = file.resolve()
    if base not in whole.parents:
        raise InputError(
            f"`{file}` lies outside `{base}`, the folder of the file that names it. Write `transforms.json` into a "
            "folder that holds the pictures, or copy them there."
        )
    return whole.relative_to(base).as_posix()
