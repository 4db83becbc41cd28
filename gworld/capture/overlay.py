"""A video that shows what is ignored: masked areas tinted red, each picture's name in the corner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from PIL import Image

from gworld.capture.footage import Footage, Shot, shots_of
from gworld.errors import InputError
from gworld.render.video import side_by_side, write_video

TINT = (230, 20, 60)
SIDE = 960
"""Pixels on the longer side of the video at most."""


def tint(picture: UInt8[ndarray, "H W 3"], ignored: Bool[ndarray, "H W"]) -> UInt8[ndarray, "H W 3"]:
    """A picture with its ignored pixels half red and their outline white."""
    shown = picture.copy()
    shown[ignored] = (picture[ignored] * 0.45 + np.array(TINT) * 0.55).astype(np.uint8)
    inner = ignored.copy()
    inner[1:] &= ignored[:-1]
    inner[:-1] &= ignored[1:]
    inner[:, 1:] &= ignored[:, :-1]
    inner[:, :-1] &= ignored[:, 1:]
    shown[ignored & ~inner] = 255
    return shown


def write_overlay(footage: Footage, path: str | Path, *, fps: float = 10.0) -> int:
    """Write an MP4 of all pictures, camera after camera, with what their masks ignore; returns their number.

    Pictures of other shapes than the first stand on black. Raises `InputError` for footage without pictures or with
    one that cannot be read.
    """
    if not footage.shots:
        raise InputError(f"`{footage.folder}` holds no pictures; at least one is needed. Capture the footage again.")
    return write_video(_frames(footage), path, fps)


def _frames(footage: Footage) -> Iterator[ndarray]:
    size: tuple[int, int] | None = None
    for camera in range(len(footage.cameras)):
        for shot in shots_of(footage, camera):
            picture, ignored = _load(shot)
            size = size or picture.shape[:2]
            yield side_by_side([_on_canvas(tint(picture, ignored), size)], [shot.name])


def _load(shot: Shot) -> tuple[ndarray, ndarray]:
    try:
        with Image.open(shot.image) as opened:
            picture = opened.convert("RGB")
            picture.thumbnail((SIDE, SIDE), reducing_gap=2.0)
        if shot.mask is None:
            return np.asarray(picture), np.zeros((picture.height, picture.width), bool)
        with Image.open(shot.mask) as opened:
            mask = opened.convert("L").resize(picture.size, Image.Resampling.NEAREST)
        return np.asarray(picture), np.asarray(mask) < 128
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"`{shot.image}` or its mask cannot be read ({error}). Capture the footage again.") from error


def _on_canvas(picture: ndarray, size: tuple[int, int]) -> ndarray:
    """The picture as it is where it fits, else shrunk, on black of the size given."""
    if picture.shape[:2] == size:
        return picture
    shrunk = Image.fromarray(picture)
    shrunk.thumbnail((size[1], size[0]))
    canvas = Image.new("RGB", (size[1], size[0]))
    canvas.paste(shrunk, ((size[1] - shrunk.width) // 2, (size[0] - shrunk.height) // 2))
    return np.asarray(canvas)
