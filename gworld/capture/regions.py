"""From scattered evidence to clean regions: smoothing within edges, two thresholds, holes and specks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray


def guided_mean(
    gray: UInt8[ndarray, "H W"], top: Float[ndarray, "h w"], bottom: Float[ndarray, "h w"], radius: int = 6
) -> Float[ndarray, "H W"]:
    """The weighted mean `top` / `bottom` over a neighbourhood that respects the picture's edges, at its size.

    A guided filter (He et al. 2013) of both with the picture as guide; `radius` in pixels. 0 where nothing is known.
    """
    import cv2

    height, width = gray.shape
    guide = cv2.GaussianBlur(gray, (0, 0), 1.0).astype(np.float32) / 255
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(values: ndarray) -> ndarray:
        return cv2.blur(values, size)

    centre = mean(guide)
    spread = mean(guide * guide) - centre**2 + 0.02**2

    def smooth(values: ndarray) -> ndarray:
        full = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        average = mean(full)
        slope = (mean(full * guide) - average * centre) / spread
        return mean(slope) * guide + mean(average - slope * centre)

    weight = np.maximum(smooth(bottom), 0)
    return np.where(weight > 0.02, smooth(top) / np.maximum(weight, 0.02), 0.0)


def hysteresis(score: Float[ndarray, "H W"], low: float, high: float) -> Bool[ndarray, "H W"]:
    """Connected regions above `low` that somewhere exceed `high`."""
    import cv2

    _, labels = cv2.connectedComponents((score > low).astype(np.uint8), connectivity=8)
    strong = np.unique(labels[score > high])
    return np.isin(labels, strong[strong > 0])


def clean_regions(mask: Bool[ndarray, "H W"], smallest: float = 0.0008, holes: float = 0.004) -> Bool[ndarray, "H W"]:
    """Without threads, specks below a share `smallest` of the picture, and holes below a share `holes`."""
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, kernel)
    filled = 1 - drop_small(1 - drop_small(closed, smallest * mask.size), holes * mask.size)
    return filled.astype(bool)


def drop_small(mask: UInt8[ndarray, "H W"], area: float) -> UInt8[ndarray, "H W"]:
    """A mask of 0 and 1 without its regions of fewer than `area` pixels."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= area
    keep[0] = False
    return keep[labels].astype(np.uint8)


def grow(mask: Bool[ndarray, "H W"], pixels: float) -> Bool[ndarray, "H W"]:
    """A mask grown by a distance in pixels."""
    import cv2

    if pixels <= 0 or not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= pixels
