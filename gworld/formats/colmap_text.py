"""The text spelling of COLMAP sparse models: cameras, images, points, rigs and frames, one row per line.

Source: COLMAP documentation, "Output Format", and for rigs and frames the header comments COLMAP writes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gworld.errors import InputError
from gworld.files import existing_file
from gworld.formats.camera_models import MODELS, ColmapCamera, ColmapFrame, ColmapImage, ColmapModel, Pose

IDENTITY: Pose = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
CAMERA_SENSOR = "CAMERA"


def read_text_model(folder: Path) -> ColmapModel:
    """Read `cameras.txt`, `images.txt`, and `points3D.txt`, `rigs.txt`, `frames.txt` where they are.

    Raises `InputError` naming file and line when a row cannot be read; values are checked by the caller.
    """
    model = ColmapModel()
    _read_cameras(folder / "cameras.txt", model)
    _read_images(folder / "images.txt", model)
    if (folder / "points3D.txt").is_file():
        _read_points(folder / "points3D.txt", model)
    if (folder / "rigs.txt").is_file() and (folder / "frames.txt").is_file():
        _read_rigs(folder / "rigs.txt", model)
        _read_frames(folder / "frames.txt", model)
    return model


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, stripped; raises `InputError` when the file is not text."""
    try:
        with open(existing_file(path), encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                yield number, line.strip()
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` is not UTF-8 text: {error.reason}. Export the model again.") from error


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in _lines(path) if line and not line.startswith("#"))


def _bad(path: Path, number: int, needed: str) -> InputError:
    return InputError(f"`{path}`, line {number}: `{needed}` is needed there. The file is damaged; export it again.")


def _read_cameras(path: Path, model: ColmapModel) -> None:
    needed = "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"
    for number, line in _rows(path):
        words = line.split()
        if len(words) > 1 and words[1] not in MODELS:
            raise InputError(
                f"`{path}`, line {number}: the camera model {words[1][:64]} is not known; known are "
                f"{', '.join(MODELS)}. Undistort the images with COLMAP first."
            )
        try:
            identity, width, height = int(words[0]), int(words[2]), int(words[3])
            params = tuple(float(word) for word in words[4:20])
        except (ValueError, IndexError) as error:
            raise _bad(path, number, needed) from error
        if identity in model.cameras:
            raise InputError(f"`{path}`, line {number}: camera {identity} repeats; each id must occur once.")
        model.cameras[identity] = ColmapCamera(words[1], width, height, params)


def _read_images(path: Path, model: ColmapModel) -> None:
    lines = _lines(path)
    for number, line in lines:
        if not line or line.startswith("#"):
            continue
        words = line.split(maxsplit=9)
        try:
            pose = tuple(float(word) for word in words[1:8])
            model.images.append(ColmapImage(int(words[0]), pose, int(words[8]), words[9]))
        except (ValueError, IndexError) as error:
            raise _bad(path, number, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME") from error
        next(lines, None)  # the line of observed points, which may be empty


def _read_points(path: Path, model: ColmapModel) -> None:
    positions, colors = array("d"), array("B")
    for number, line in _rows(path):
        words = line.split(maxsplit=7)
        try:
            positions.extend([float(words[1]), float(words[2]), float(words[3])])
            colors.extend([int(words[4]), int(words[5]), int(words[6])])
        except (ValueError, IndexError, OverflowError) as error:
            raise _bad(path, number, "POINT3D_ID X Y Z R G B ERROR TRACK[]") from error
    model.points = np.frombuffer(positions, np.float64).reshape(-1, 3) if positions else np.zeros((0, 3))
    model.colors = np.frombuffer(colors, np.uint8).reshape(-1, 3) if colors else np.zeros((0, 3), np.uint8)


def _read_rigs(path: Path, model: ColmapModel) -> None:
    for number, line in _rows(path):
        words = iter(line.split())
        try:
            rig, count = int(next(words)), int(next(words))
            if count > 0:
                kind, sensor = next(words), int(next(words))
                if kind == CAMERA_SENSOR:
                    model.sensors[rig, sensor] = IDENTITY
            for _ in range(count - 1):
                kind, sensor, known = next(words), int(next(words)), next(words) == "1"
                pose = tuple(float(next(words)) for _ in range(7)) if known else None
                if kind == CAMERA_SENSOR:
                    model.sensors[rig, sensor] = pose
        except (ValueError, StopIteration, RuntimeError) as error:
            raise _bad(path, number, "RIG_ID NUM_SENSORS REF_SENSOR_TYPE REF_SENSOR_ID SENSORS[]") from error


def _read_frames(path: Path, model: ColmapModel) -> None:
    for number, line in _rows(path):
        words = line.split()
        try:
            pose = tuple(float(word) for word in words[2:9])
            count = int(words[9])
            triples = [words[start : start + 3] for start in range(10, len(words), 3)]
            images = tuple((int(sensor), int(image)) for kind, sensor, image in triples if kind == CAMERA_SENSOR)
            if len(pose) != 7 or len(triples) != count:
                raise ValueError("the counts do not fit")
            model.frames.append(ColmapFrame(int(words[1]), pose, images))
        except (ValueError, IndexError) as error:
            raise _bad(path, number, "FRAME_ID RIG_ID RIG_FROM_WORLD[7] NUM_DATA_IDS DATA_IDS[]") from error


def write_text_model(model: ColmapModel, folder: Path) -> None:
    """Write cameras.txt, images.txt and points3D.txt into an existing folder, floats so that they round-trip.

    Raises `InputError` for image names with white space, which COLMAP's text reader cuts.
    """
    with open(folder / "cameras.txt", "w", encoding="utf-8") as stream:
        stream.write("# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n")
        for identity, camera in model.cameras.items():
            stream.write(f"{identity} {camera.model} {camera.width} {camera.height} {_join(camera.params)}\n")
    with open(folder / "images.txt", "w", encoding="utf-8") as stream:
        stream.write("# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n# POINTS2D[] as (X, Y, POINT3D_ID)\n")
        for image in model.images:
            if image.name.split() != [image.name]:
                raise InputError(
                    f"the image name {image.name!r} has white space, which COLMAP's text files cannot hold. "
                    "Write the binary form."
                )
            stream.write(f"{image.id} {_join(image.pose)} {image.camera_id} {image.name}\n\n")
    with open(folder / "points3D.txt", "w", encoding="utf-8") as stream:
        stream.write("# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n")
        for index, (point, color) in enumerate(zip(model.points.tolist(), model.colors.tolist(), strict=True), 1):
            stream.write(f"{index} {_join(point)} {_join(color)} -1\n")


def _join(values: Sequence[float | int]) -> str:
    return " ".join(repr(value) for value in values)
