"""Procedural textures of the generated room's sides, in one flat array so that a picture is painted in one gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

TEXEL = 0.01  # metres
OCTAVES = ((3, 0.30), (7, 0.30), (20, 0.25), (60, 0.15))  # (cell in texels, weight)


@dataclass(frozen=True)
class Side:
    """A side of a box: its width and height in metres along the box's axes `across` and `up`."""

    width: float
    height: float
    across: int
    up: int


@dataclass(frozen=True)
class Paint:
    """All textures: texels [N,3] float32 0..1; per side where it starts, its row's length, how far (column, row) may
    go, the two axes it spans and half its size in metres along them."""

    texels: ndarray
    starts: ndarray
    widths: ndarray
    limits: ndarray
    axes: ndarray
    half: ndarray


def paint_sides(sides: Sequence[Side], random: np.random.Generator) -> Paint:
    """A texture of its own for every side: soft noise of four sizes under patches with sharp edges."""
    textures = [_texture(_texels(side.width), _texels(side.height), random) for side in sides]
    counts = [texture.shape[0] * texture.shape[1] for texture in textures]
    return Paint(
        texels=np.concatenate([texture.reshape(-1, 3) for texture in textures]),
        starts=np.cumsum([0, *counts[:-1]]).astype(np.int32),
        widths=np.array([texture.shape[1] for texture in textures], np.int32),
        limits=np.array([(texture.shape[1] - 1.001, texture.shape[0] - 1.001) for texture in textures], np.float32),
        axes=np.array([(side.across, side.up) for side in sides]),
        half=np.array([(side.width / 2, side.height / 2) for side in sides], np.float32),
    )


def color_at(paint: Paint, side: ndarray, hit: ndarray) -> ndarray:
    """Colours [H,W,3] of points on sides [H,W] given in their boxes' axes [3,H,W], linear between texels."""
    sides, points = side.reshape(-1), hit.reshape(3, -1)
    columns = np.arange(len(sides))
    spots = []
    for axis in (0, 1):
        along = points[paint.axes[sides, axis], columns] + paint.half[sides, axis]
        spots.append(np.clip(along / np.float32(TEXEL) - np.float32(0.5), 0, paint.limits[sides, axis]))
    column, row = (spot.astype(np.int32) for spot in spots)
    u, v = (spots[0] - column)[:, None], (spots[1] - row)[:, None]
    width = paint.widths[sides]
    base = paint.starts[sides] + row * width + column
    upper = paint.texels[base] * (1 - u) + paint.texels[base + 1] * u
    lower = paint.texels[base + width] * (1 - u) + paint.texels[base + width + 1] * u
    return (upper * (1 - v) + lower * v).reshape(*side.shape, 3)


def _texels(length: float) -> int:
    return max(2, int(np.ceil(length / TEXEL)) + 1)


def _texture(width: int, height: int, random: np.random.Generator) -> ndarray:
    """[height, width, 3] float32: noise in a tint of its own, then patches, one for every 25 x 25 texels or so."""
    tint = random.uniform(0.4, 0.62, 3)
    noise = np.sum([weight * _noise(width, height, cell, random) for cell, weight in OCTAVES], axis=0)
    grey = noise.mean(-1, keepdims=True)
    texture = tint + 1.1 * (0.8 * (grey - 0.5) + 0.25 * (noise - 0.5))
    for _ in range(width * height // 700):
        x, y = random.integers(0, width), random.integers(0, height)
        w, h = random.integers(3, 22, 2)
        texture[y : y + h, x : x + w] += random.uniform(-0.22, 0.22) + random.uniform(-0.08, 0.08, 3)
    return np.clip(texture, 0.02, 0.98).astype(np.float32)


def _noise(width: int, height: int, cell: int, random: np.random.Generator) -> ndarray:
    """Value noise [height, width, 3]: random values on a grid, smoothly interpolated."""
    down, across = _weights(height, cell), _weights(width, cell)
    grid = random.random((down.shape[1], across.shape[1], 3))
    return np.einsum("hg,gkc,wk->hwc", down, grid, across, optimize=True)


def _weights(length: int, cell: int) -> ndarray:
    """[length, cells + 1] weights of the grid's values on texels."""
    spot = np.arange(length) / cell
    low = spot.astype(int)
    share = spot - low
    share = share * share * (3 - 2 * share)
    weights = np.zeros((length, low[-1] + 2))
    weights[np.arange(length), low], weights[np.arange(length), low + 1] = 1 - share, share
    return weights
