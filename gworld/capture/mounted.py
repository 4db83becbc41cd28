"""What rides along with a moving camera: a gripper before a wrist camera, a bonnet, burnt-in text."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy import ndarray

from gworld.capture.regions import clean_regions

PASSING = 1.0
"""Pixels: only between pictures whose typical flow exceeds this does standing in place say anything."""


def find_mounted(
    gray: UInt8[ndarray, "T H W"], flows: tuple[Float32[ndarray, "P H W 2"], Float32[ndarray, "P H W 2"]]
) -> Bool[ndarray, "H W"]:
    """True where the picture stays while the rest passes.

    Edges that keep their place and direction mark it; it reaches as far as brightness hardly changes from them.
    """
    import cv2

    speed = np.linalg.norm(flows[0], axis=-1)
    typical = np.median(speed[:, ::4, ::4], axis=(1, 2))
    telling = np.flatnonzero(typical > PASSING)
    if len(telling) < 8:
        return np.zeros(gray.shape[1:], bool)
    telling = telling[np.unique(np.linspace(0, len(telling) - 1, min(len(telling), 60)).astype(int))]
    halting = (speed[telling] < 0.25 * typical[telling, None, None]).mean(0)
    smooth = np.stack([cv2.GaussianBlur(gray[index], (0, 0), 1.0).astype(np.float32) for index in telling])
    across = np.stack([cv2.Sobel(picture, -1, 1, 0, scale=0.125) for picture in smooth])
    down = np.stack([cv2.Sobel(picture, -1, 0, 1, scale=0.125) for picture in smooth])
    common = np.hypot(np.median(across, 0), np.median(down, 0))
    single = np.median(np.hypot(across, down), 0)
    edge = (common > 3.0) & (common > 0.6 * single) & (halting > 0.5)
    spread = np.median(np.abs(smooth - np.median(smooth, 0)), 0)
    calm = (halting > 0.5) & (spread < max(6.0, 0.4 * float(np.median(spread))))
    return _reach(edge, calm | edge)


def _reach(edge: ndarray, calm: ndarray) -> ndarray:
    """Calm regions whose outline, away from the picture's border, runs along lasting edges."""
    import cv2

    near = cv2.dilate(edge.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    calm = cv2.morphologyEx(calm.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    number, labels = cv2.connectedComponents(calm, connectivity=8)
    kept = np.zeros(edge.shape, bool)
    for label in range(1, number):
        region = labels == label
        rim = region & (cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
        if region.sum() > 0.001 * region.size and rim.any() and near[rim].mean() > 0.4:
            kept |= region
    return clean_regions(kept, 0.001)
