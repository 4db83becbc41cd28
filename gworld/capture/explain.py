"""Whether a static world explains the pictures too, where flow says that something moves.

Flow is wrong beside the edges at which a near surface hides a far one, and on surfaces without texture: it blends, or
slides from one surface to the other, as if something moved. So before a point is called a mover, the pictures
themselves are asked: is there any depth at which the patch around it, carried over by the camera's motion alone, looks
as much like its neighbours as along the flow? What really moves finds none; a bland patch finds many, and is no
witness.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray

from gworld.capture.flow import sample_map
from gworld.capture.rigid import Motion, Tracks, project, rays_of

DEPTHS = 36
"""Inverse depths that are tried, from infinity to the nearest."""
PATCH = tuple((x, y) for y in range(-6, 7, 3) for x in range(-6, 7, 3))
TOP = 30.0
"""Levels of 255 beyond which a difference tells no more: what is hidden looks like anything."""
FLOOR = 3.0
"""Levels of 255 by which pictures of the same thing differ anyway."""


def soften(gray: UInt8[ndarray, "T H W"]) -> Float32[ndarray, "T H W"]:
    """Pictures a little blurred, so that half a pixel's miss costs little."""
    import cv2

    return np.stack([cv2.GaussianBlur(picture, (0, 0), 1.0).astype(np.float32) for picture in gray])


def static_against_flow(
    soft: Float32[ndarray, "T H W"], frame: int, tracks: Tracks, motion: Motion, focal: float, nearest: float
) -> Float[ndarray, " N"]:
    """How much worse a static world explains the patches around the points of `tracks` than their tracks do: the ratio
    of mean differences, at the best of the inverse depths 0..`nearest`; of past and future the better each.
    """
    height, width = soft.shape[1:]
    rays, centre = rays_of(tracks.start, focal, (width / 2, height / 2)), np.array([width / 2, height / 2])
    look = _patches(soft[frame], tracks.start)
    there = [soft[frame + offset] for offset in tracks.offsets]

    def cost(places: list[ndarray]) -> ndarray:
        misses = [np.minimum(np.abs(_patches(p, at) - look), TOP).mean(0) for p, at in zip(there, places, strict=True)]
        return np.stack(misses)

    along = _better_side(np.where(tracks.seen, cost(list(tracks.at)), TOP), tracks.offsets)
    best = np.full(len(rays), np.inf)
    for depth in np.linspace(0, nearest, DEPTHS):
        pixels = project(rays, np.full(len(rays), depth), focal, motion)[1]
        best = np.minimum(best, _better_side(cost(list(pixels.swapaxes(1, 2) + centre)), tracks.offsets))
    return best / (along + FLOOR)


def _patches(picture: ndarray, points: ndarray) -> ndarray:
    return np.stack([sample_map(picture, points + np.array(offset)) for offset in PATCH])


def _better_side(costs: ndarray, offsets: tuple[int, ...]) -> ndarray:
    sides = [[row for row, offset in enumerate(offsets) if offset * sign > 0] for sign in (-1, 1)]
    return np.min([costs[rows].mean(0) for rows in sides if rows], axis=0)
