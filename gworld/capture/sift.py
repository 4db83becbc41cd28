"""SIFT features of one picture, and matches of two sets of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from gworld.errors import InputError

MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class Features:
    """Features of one picture: pixels [N,2] (centres at +0.5) and unit descriptors [N,128]."""

    pixels: Float[ndarray, "N 2"]
    descriptors: Float[ndarray, "N 128"]


def find_features(
    picture: UInt8[ndarray, "H W"],
    mask: UInt8[ndarray, "H W"] | None = None,
    most: int = 3000,
    threshold: float = 0.0017,
    max_side: int = 960,
) -> Features:
    """SIFT features (Lowe, IJCV 2004; L1-root descriptors) of a grey picture where the mask, if any, is 128 or more.

    A low `threshold` finds features in bland pictures too. Pictures longer than `max_side` are shrunk first.
    """
    import pycolmap

    height, width = picture.shape
    options = pycolmap.FeatureExtractionOptions(use_gpu=False, num_threads=1, max_image_size=max_side)
    options.sift.max_num_features, options.sift.peak_threshold = most, threshold
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = 3  # COLMAP's own log stays off the terminal
    try:
        extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
        keypoints, looks = extractor.extract_from_uint8_array(_shrunk(picture, max_side))
    finally:
        pycolmap.logging.minloglevel = level
    factor = max(1.0, max(height, width) / max_side)
    pixels = np.array([(point.x, point.y) for point in keypoints], np.float64).reshape(-1, 2) * factor
    rows = np.ones(len(pixels), bool)
    if mask is not None:
        across, down = np.clip(pixels.astype(int), 0, [width - 1, height - 1]).T
        rows = mask[down, across] >= 128
    whole = np.asarray(looks.data, np.float32).reshape(-1, 128)[rows]
    return Features(pixels[rows], whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-9))


def match_mutual(first: ndarray, second: ndarray, ratio: float = 0.85, least: float = 0.7) -> Int[ndarray, "M 2"]:
    """Rows of two descriptor tables that are each other's nearest, and clearly nearer than the second nearest.

    `ratio` bounds the distance against the second nearest's, `least` is the smallest cosine.
    """
    if len(first) < 2 or len(second) < 2:
        return np.zeros((0, 2), np.int64)
    cosines = first @ second.T
    forward, backward = cosines.argmax(1), cosines.argmax(0)
    rows = np.flatnonzero(backward[forward] == np.arange(len(first)))
    two = np.partition(cosines[rows], -2, axis=1)[:, -2:]
    distance = np.sqrt(np.maximum(2 - 2 * two, 0))
    good = (distance[:, 1] < ratio * distance[:, 0]) & (two[:, 1] > least)
    return np.stack([rows[good], forward[rows[good]]], axis=1)


def read_grey(path: Path, width: int, height: int) -> UInt8[ndarray, "H W"]:
    """A picture as 8-bit grey of a known size; raises `InputError` when it cannot be read or is of another size."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.size != (width, height) or width * height > MAX_PIXELS:
                raise InputError(
                    f"`{path}` is {picture.size[0]} x {picture.size[1]} pixels; {width} x {height} are needed. Use the "
                    "pictures that belong to the poses."
                )
            return np.array(picture.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"`{path}` cannot be read as a picture: {error!s:.200}. Replace it.") from error


def still_picture(paths: Sequence[Path], width: int, height: int, most: int = 15) -> UInt8[ndarray, "H W"]:
    """The median of up to `most` pictures, spread evenly, of a camera that stands still: movers and noise vanish."""
    rows = sorted({round(row) for row in np.linspace(0, len(paths) - 1, min(most, len(paths)))})
    stack = np.stack([read_grey(paths[row], width, height) for row in rows])
    return np.rint(np.median(stack, axis=0)).astype(np.uint8)


def _shrunk(picture: ndarray, max_side: int) -> ndarray:
    from PIL import Image

    factor = max_side / max(picture.shape)
    if factor >= 1:
        return np.ascontiguousarray(picture)
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
