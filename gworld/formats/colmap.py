"""COLMAP sparse models (binary and text, with and without rigs) <-> posed views and sparse points.

Source: COLMAP documentation, "Output Format". Where rigs and frames are stored, an image's pose is that of its sensor
on its rig at that frame, as COLMAP itself has it; older models carry the pose with the image alone. Poses and points
are read as float64, because geo-referenced models lie far from the origin, and are never normalised.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch

from gworld.errors import InputError
from gworld.files import atomic_folder, check_count, existing_file, safe_join
from gworld.formats.camera_models import (
    MAX_VALUE,
    MODEL_NAMES,
    MODELS,
    ColmapCamera,
    ColmapFrame,
    ColmapImage,
    ColmapModel,
    Optics,
    Pose,
    colmap_camera,
    optics_of,
)
from gworld.formats.colmap_text import IDENTITY, read_text_model, write_text_model
from gworld.geometry import invert_transform, pose_from_transform, transform_from_pose
from gworld.scene.views import View, Views

MAX_NAME_BYTES = 4096
MODEL_FILES = ("cameras", "images", "points3D", "rigs", "frames")
USUAL_PLACES = (".", "sparse/0", "sparse", "colmap/sparse/0")

_COUNT = struct.Struct("<Q")
_POSE = struct.Struct("<7d")
_CAMERA = struct.Struct("<IiQQ")
_IMAGE = struct.Struct("<I7dI")
_RIG = struct.Struct("<II")
_SENSOR = struct.Struct("<iI")
_FRAME = struct.Struct("<II7d")
_DATA = struct.Struct("<iIQ")
_CAMERA_SENSOR = 0
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
_POINT_CHUNK = 1 << 14


def read_colmap(folder: str | Path) -> Views:
    """Read a sparse model: a folder with `cameras`, `images`, `points3D` as .bin or .txt, or a folder around it.

    Poses, K and points are float64 in the model's own frame and unit. Images and masks are looked up in `images/` and
    `masks/` beside or above the model; one that is missing leaves None. Observed points and tracks are not kept.
    Raises `InputError` for files that are missing, cut off or damaged, for camera models that are not known, and for
    image names that lead outside their folder.
    """
    place, binary = _find_model(Path(folder))
    model = _read_binary_model(place) if binary else read_text_model(place)
    return _views_of(model, place)


def write_colmap(views: Views, folder: str | Path, text: bool = False, *, overwrite: bool = False) -> None:
    """Write a sparse model that COLMAP 3 and 4 read: cameras, images and points, binary or text.

    The folder appears when it is complete. Raises `UsageError` when it exists with content and `overwrite` is False, or
    when it holds anything but a sparse model; raises `InputError` for cameras that no COLMAP model can say.
    """
    target = Path(folder)
    overwrite = overwrite or (target.is_dir() and not any(target.iterdir()))
    model = _model_of(views)
    own = [f"{name}.{kind}" for name in MODEL_FILES for kind in ("bin", "txt")]
    with atomic_folder(target, own=own, overwrite=overwrite) as temporary:
        (write_text_model if text else _write_binary_model)(model, temporary)


def _find_model(folder: Path) -> tuple[Path, bool]:
    """The folder that holds the model's files, and whether they are binary (preferred where both are there)."""
    for place in USUAL_PLACES:
        for suffix in (".bin", ".txt"):
            if (folder / place / f"cameras{suffix}").is_file() and (folder / place / f"images{suffix}").is_file():
                return folder / place, suffix == ".bin"
    raise InputError(
        f"`{folder}` holds no COLMAP model: `cameras` and `images`, both .bin or both .txt, are needed there or in "
        "`sparse/0`. Check the path."
    )


def _views_of(model: ColmapModel, place: Path) -> Views:
    source = str(place)
    optics = {identity: optics_of(camera, source) for identity, camera in model.cameras.items()}
    world_from_camera = _poses(model, source)
    folders = _sibling(place, "images") or place, _sibling(place, "masks")
    views = []
    for image, pose in zip(model.images, world_from_camera.unbind(0), strict=True):
        if image.camera_id not in optics:
            raise InputError(
                f"`{source}`: image `{image.name}` was taken by camera {image.camera_id}, which is not in the list of "
                "cameras. Export the model again."
            )
        views.append(_view(image, pose, model.cameras[image.camera_id], optics[image.camera_id], folders))
    points = _checked_points(model.points, source)
    return Views(tuple(views), torch.from_numpy(points), torch.from_numpy(np.array(model.colors, np.uint8)))


def _view(
    image: ColmapImage,
    world_from_camera: torch.Tensor,
    camera: ColmapCamera,
    optics: Optics,
    folders: tuple[Path, Path | None],
) -> View:
    images, masks = folders
    try:
        photo = _if_file(safe_join(images, image.name))
        mask = _if_file(safe_join(masks, image.name + ".png")) if masks else None
    except (InputError, OSError, ValueError) as error:
        raise InputError(
            f"`{images}`: the image name {image.name!r:.200} leads out of that folder or is no name; plain relative "
            "names are needed. Export the model again."
        ) from error
    return View(
        name=image.name,
        width=camera.width,
        height=camera.height,
        K=optics.K,
        world_from_camera=world_from_camera,
        model=optics.model,
        distortion=optics.distortion,
        image=photo,
        mask=mask,
        camera_id=image.camera_id,
        source_model=camera.model,
        source_params=camera.params,
    )


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _sibling(place: Path, name: str) -> Path | None:
    """The folder `name` in the model's folder or in one of the three above it."""
    folder = place.resolve()
    return next((up / name for up in (folder, *list(folder.parents)[:3]) if (up / name).is_dir()), None)


def _poses(model: ColmapModel, source: str) -> torch.Tensor:
    """world_from_camera [N,4,4] float64 of the images, through frames and rigs where the model has them."""
    own = _transforms([image.pose for image in model.images], source)
    if not model.frames:
        return invert_transform(own)
    rig_from_world = _transforms([frame.pose for frame in model.frames], source)
    known = {key: pose for key, pose in model.sensors.items() if pose is not None}
    sensor_from_rig = dict(zip(known, _transforms(list(known.values()), source), strict=True))
    row_of = {image.id: row for row, image in enumerate(model.images)}
    for frame, from_world in zip(model.frames, rig_from_world, strict=True):
        for sensor, image in frame.images:
            mounted = sensor_from_rig.get((frame.rig_id, sensor))
            if image in row_of and mounted is not None:
                own[row_of[image]] = mounted @ from_world
    return invert_transform(own)


def _transforms(poses: list[Pose], source: str) -> torch.Tensor:
    """[N,4,4] of poses `qw qx qy qz tx ty tz`; raises `InputError` when one is not a pose."""
    rows = np.array(poses, np.float64).reshape(-1, 7)
    bad = ~(np.abs(rows) <= MAX_VALUE).all(axis=1) | ~(np.abs(rows[:, :4]).max(axis=1) > 1e-9)
    if bad.any():
        raise InputError(
            f"`{source}`: a pose is {rows[np.argmax(bad)].tolist()}; a unit quaternion and finite metres are needed. "
            "Export the model again."
        )
    return transform_from_pose(torch.from_numpy(np.concatenate([rows[:, 4:], rows[:, :4]], axis=1)))


def _checked_points(points: np.ndarray, source: str) -> np.ndarray:
    bad = ~(np.abs(points) <= MAX_VALUE).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"`{source}`: point {row} lies at {points[row].tolist()}; finite coordinates up to {MAX_VALUE:g} are "
            "needed. Export the model again."
        )
    return np.array(points, np.float64)


def _model_of(views: Views) -> ColmapModel:
    """Number cameras and images; views share a camera when both its number and its parameters are equal."""
    keys = [(view.camera_id, colmap_camera(view)) for view in views.views]
    distinct = list(dict.fromkeys(keys))
    kept = {identity for identity, _ in distinct}
    keep = len(kept) == len(distinct) and all(0 < identity < 1 << 31 for identity in kept)
    numbers = {key: key[0] if keep else index for index, key in enumerate(distinct, 1)}
    model = ColmapModel({numbers[key]: key[1] for key in distinct})
    for index, (view, key) in enumerate(zip(views.views, keys, strict=True), 1):
        x, y, z, *quat = pose_from_transform(invert_transform(view.world_from_camera.double())).tolist()
        model.images.append(ColmapImage(index, (*quat, x, y, z), numbers[key], view.name))
    model.points = views.points.double().cpu().numpy()
    model.colors = views.colors.cpu().numpy() if len(views.colors) else np.full((len(views.points), 3), 128, np.uint8)
    return model


class _Reader:
    """A file's bytes and a position; every read is checked against what is there."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self.data = existing_file(path).read_bytes()
        self.at = 0

    def take(self, layout: struct.Struct) -> tuple:
        self.need(layout.size)
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def need(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise InputError(
                f"`{self.source}` ends after {len(self.data)} bytes, {self.at + size} are needed. It is cut off or "
                "damaged; copy or export it again."
            )

    def skip(self, size: int) -> None:
        self.need(size)
        self.at += size

    def count(self, bytes_each: int, what: str) -> int:
        count = int(self.take(_COUNT)[0])
        check_count(count, bytes_each, len(self.data) - self.at, self.source, what)
        return count

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + MAX_NAME_BYTES)
        try:
            if end < 0:
                raise ValueError("it has no end")
            name = self.data[self.at : end].decode("utf-8")
        except ValueError as error:
            raise InputError(
                f"`{self.source}`: an image name cannot be read: {error}. Export the model again."
            ) from error
        self.at = end + 1
        return name


def _read_binary_model(folder: Path) -> ColmapModel:
    model = ColmapModel()
    _read_cameras(_Reader(folder / "cameras.bin"), model)
    _read_images(_Reader(folder / "images.bin"), model)
    if (folder / "points3D.bin").is_file():
        _read_points(_Reader(folder / "points3D.bin"), model)
    if (folder / "rigs.bin").is_file() and (folder / "frames.bin").is_file():
        _read_rigs(_Reader(folder / "rigs.bin"), model)
        _read_frames(_Reader(folder / "frames.bin"), model)
    return model


def _read_cameras(reader: _Reader, model: ColmapModel) -> None:
    for _ in range(reader.count(_CAMERA.size + 16, "cameras")):
        identity, number, width, height = reader.take(_CAMERA)
        if number not in MODEL_NAMES or identity in model.cameras:
            fact = f"camera {identity} repeats" if identity in model.cameras else f"camera model {number} is not known"
            raise InputError(
                f"`{reader.source}`: {fact}; models 0 to {max(MODEL_NAMES)}, each camera once, are needed. Undistort "
                "the images with COLMAP, or export the model again."
            )
        name = MODEL_NAMES[number]
        params = reader.take(struct.Struct(f"<{len(MODELS[name].params)}d"))
        model.cameras[identity] = ColmapCamera(name, width, height, params)


def _read_images(reader: _Reader, model: ColmapModel) -> None:
    for _ in range(reader.count(_IMAGE.size + 9, "images")):
        identity, *pose, camera = reader.take(_IMAGE)
        model.images.append(ColmapImage(identity, tuple(pose), camera, reader.name()))
        reader.skip(24 * reader.count(24, "observed points"))


def _read_points(reader: _Reader, model: ColmapModel) -> None:
    count = reader.count(_POINT.itemsize, "points")
    starts = np.empty(count, np.int64)
    size, track = _POINT.itemsize, struct.Struct("<Q")
    for row in range(count):
        reader.need(size)
        starts[row] = reader.at
        reader.at += size + 8 * track.unpack_from(reader.data, reader.at + size - 8)[0]
    reader.need(0)
    data = np.frombuffer(reader.data, np.uint8)
    model.points, model.colors = np.empty((count, 3)), np.empty((count, 3), np.uint8)
    for begin in range(0, count, _POINT_CHUNK):  # in pieces, so that the gathered bytes stay small beside the file
        rows = slice(begin, begin + _POINT_CHUNK)
        gathered = data[starts[rows, None] + np.arange(size)].view(_POINT)[:, 0]
        model.points[rows], model.colors[rows] = gathered["xyz"], gathered["rgb"]


def _read_rigs(reader: _Reader, model: ColmapModel) -> None:
    for _ in range(reader.count(_RIG.size, "rigs")):
        rig, sensors = reader.take(_RIG)
        for index in range(sensors):
            kind, sensor = reader.take(_SENSOR)
            pose = IDENTITY if index == 0 else None
            if index > 0 and reader.take(struct.Struct("<B"))[0]:
                pose = reader.take(_POSE)
            if kind == _CAMERA_SENSOR:
                model.sensors[rig, sensor] = pose


def _read_frames(reader: _Reader, model: ColmapModel) -> None:
    for _ in range(reader.count(_FRAME.size + 4, "frames")):
        _, rig, *pose = reader.take(_FRAME)
        (count,) = reader.take(struct.Struct("<I"))
        check_count(count, _DATA.size, len(reader.data) - reader.at, reader.source, "images of a frame")
        rows = [reader.take(_DATA) for _ in range(count)]
        images = tuple((sensor, image) for kind, sensor, image in rows if kind == _CAMERA_SENSOR)
        model.frames.append(ColmapFrame(rig, tuple(pose), images))


def _write_binary_model(model: ColmapModel, folder: Path) -> None:
    with open(folder / "cameras.bin", "wb") as stream:
        stream.write(_COUNT.pack(len(model.cameras)))
        for identity, camera in model.cameras.items():
            stream.write(_CAMERA.pack(identity, MODELS[camera.model].id, camera.width, camera.height))
            stream.write(struct.pack(f"<{len(camera.params)}d", *camera.params))
    with open(folder / "images.bin", "wb") as stream:
        stream.write(_COUNT.pack(len(model.images)))
        for image in model.images:
            stream.write(_IMAGE.pack(image.id, *image.pose, image.camera_id))
            stream.write(image.name.encode() + b"\0" + _COUNT.pack(0))
    rows = np.zeros(len(model.points), _POINT)
    rows["id"] = np.arange(1, len(rows) + 1)
    rows["xyz"], rows["rgb"], rows["error"] = model.points, model.colors, -1.0
    with open(folder / "points3D.bin", "wb") as stream:
        stream.write(_COUNT.pack(len(rows)))
        stream.write(rows.tobytes())
