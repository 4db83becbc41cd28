"""Dense optical flow between neighbouring pictures, chained into tracks over several of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray

from gworld.capture.rigid import Tracks

SLACK, SLACK_PER_PIXEL = 0.8, 0.04
"""Pixels, and share of the flow, that going there and back may miss the start by."""
ALIKE, BLAND = 0.6, 5.0
"""Correlation that a followed patch keeps, and the contrast (of 255) below which none is asked for."""


def stretch_gray(pictures: UInt8[ndarray, "T H W 3"]) -> UInt8[ndarray, "T H W"]:
    """Luminance with each picture's 1st and 99th percentile at 0 and 255, so that bland footage has texture too."""
    gray = pictures[..., 0] * np.float32(0.299)
    gray += pictures[..., 1] * np.float32(0.587)
    gray += pictures[..., 2] * np.float32(0.114)
    low, high = np.percentile(gray[:, ::3, ::3].reshape(len(gray), -1), [1, 99], axis=1)
    scale = 255 / np.maximum(high - low, 8)
    stretched = (gray - low[:, None, None].astype(np.float32)) * scale[:, None, None].astype(np.float32)
    return np.clip(np.rint(stretched), 0, 255).astype(np.uint8)


def _search() -> Any:
    """Dense inverse search (Kroeger et al. 2016) at its middle setting."""
    import cv2

    make: Any = getattr(cv2, "DISOpticalFlow_create")  # noqa: B009 (missing in OpenCV's stubs)
    return make(getattr(cv2, "DISOPTICAL_FLOW_PRESET_MEDIUM", 2))


def chain_flows(gray: UInt8[ndarray, "T H W"]) -> tuple[Float32[ndarray, "P H W 2"], Float32[ndarray, "P H W 2"]]:
    """Flows t to t+1 and back, P = T - 1 of each."""
    search = _search()
    shape = (max(0, len(gray) - 1), *gray.shape[1:], 2)
    ahead, back = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for index in range(len(gray) - 1):
        ahead[index] = search.calc(gray[index], gray[index + 1], None)
        back[index] = search.calc(gray[index + 1], gray[index], None)
    return ahead, back


def texture_of(gray: UInt8[ndarray, "H W"]) -> Float32[ndarray, "H W"]:
    """0..1: how well a point can be followed, from the smaller eigenvalue of the structure tensor."""
    import cv2

    weak = cv2.cornerMinEigenVal(cv2.GaussianBlur(gray, (0, 0), 1.0).astype(np.float32), 7)
    return weak**2 / (weak**2 + 15.0**2)


def track_points(
    gray: UInt8[ndarray, "T H W"],
    start: Float[ndarray, "N 2"],
    flows: tuple[Float32[ndarray, "P H W 2"], Float32[ndarray, "P H W 2"]],
    frame: int,
    offsets: tuple[int, ...],
) -> Tracks:
    """Follow points (pixels, centres at +0.5) of picture `frame` to those at `offsets` that exist.

    A track ends where it leaves the picture or where the flow back does not return; it is not seen where the picture
    around it looks unlike its start, which is how a hidden point shows that has slid onto what hides it.
    """
    ahead, back = flows
    look = _patches(gray[frame], start)
    count, (height, width) = len(ahead) + 1, ahead.shape[1:3]
    at, seen, kept = [], [], []
    for sign in (-1, 1):
        point, alive = start.astype(np.float32), np.ones(len(start), bool)
        for step in range(1, max(abs(offset) for offset in offsets) + 1):
            here = frame + sign * (step - 1)
            if not 0 <= here + sign < count:
                break
            there, home = (ahead[here], back[here]) if sign > 0 else (back[here - 1], ahead[here - 1])
            move = sample_map(there, point)
            reached = point + move
            miss = np.linalg.norm(move + sample_map(home, reached), axis=1)
            inside = ((reached >= 0.5) & (reached <= (width - 0.5, height - 0.5))).all(1)
            alive = alive & inside & (miss < SLACK + SLACK_PER_PIXEL * np.linalg.norm(move, axis=1))
            point = reached
            if sign * step in offsets:
                at.append(point)
                seen.append(alive & _alike(look, _patches(gray[frame + sign * step], point)))
                kept.append(sign * step)
    if not kept:
        return Tracks(start, np.zeros((0, len(start), 2)), np.zeros((0, len(start)), bool), ())
    return Tracks(start, np.stack(at).astype(np.float64), np.stack(seen), tuple(kept))


def _patches(gray: ndarray, points: ndarray) -> ndarray:
    """Values [25, N] around points, two pixels apart, without their mean."""
    import cv2

    smooth = cv2.GaussianBlur(gray, (0, 0), 1.0).astype(np.float32)
    around = [sample_map(smooth, points + np.array([x, y])) for y in range(-4, 5, 2) for x in range(-4, 5, 2)]
    values = np.stack(around)
    return values - values.mean(0)


def _alike(one: ndarray, two: ndarray) -> ndarray:
    """Whether patches correlate; bland ones always do."""
    power_one, power_two = (one**2).mean(0), (two**2).mean(0)
    return (one * two).mean(0) > ALIKE * np.sqrt(power_one * power_two) - BLAND**2


def sample_map(values: Float32[ndarray, "H W *C"], points: Float[ndarray, "N 2"]) -> Float32[ndarray, "N *C"]:
    """Bilinear values of a map at pixels (centres at +0.5), the border repeated."""
    import cv2

    spot = (points - 0.5).astype(np.float32)
    # OpenCV remaps at most 32767 columns, so the points stand in rows of 256.
    rows = -(-len(spot) // 256)
    padded = np.zeros((rows * 256, 2), np.float32)
    padded[: len(spot)] = spot
    grid = padded.reshape(rows, 256, 2)
    found = cv2.remap(values, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found).reshape(rows * 256, *values.shape[2:])[: len(spot)]


def still_share(gray: UInt8[ndarray, "T H W"], samples: int = 12) -> tuple[float, Float[ndarray, "T 2 3"]]:
    """How much of the picture a standing camera explains, and the small similarity that takes each picture to the
    middle one (identity where none is needed).

    The share, 0..1, is that of textured points whose displacement to the middle picture follows one similarity that
    moves no corner by more than 3 % of the picture's width: the lower quartile over the pictures looked at.
    """
    import cv2

    count, height, width = gray.shape
    middle = count // 2
    spots = texture_spots(gray[middle], 8)
    chosen = np.unique(np.linspace(0, count - 1, min(count, samples)).round().astype(int))
    search = _search()
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], float)
    corner = (np.abs(spots / (width, height) - 0.5) > 0.25).all(1)
    shares, still = [], np.tile(np.eye(2, 3), (count, 1, 1))
    found = {}
    for index in chosen:
        if index == middle or len(spots) < 20:
            continue
        flow = search.calc(gray[middle], gray[index], None)
        moved = spots + sample_map(flow, spots)
        fit, inside = cv2.estimateAffinePartial2D(
            moved.astype(np.float32), spots.astype(np.float32), method=cv2.RANSAC, ransacReprojThreshold=1.0
        )
        if fit is None:
            shares.append(0.0)
            continue
        shift = np.abs(corners @ fit.T - corners[:, :2]).max()
        # What rides along with a moving camera stands in place too, but on one side; a room stands in every corner.
        standing = inside[corner].mean() if corner.sum() >= 8 else 1.0
        shares.append(float(inside.mean()) if shift < 0.03 * width and standing >= 0.4 else 0.0)
        found[int(index)] = fit if shift > 0.3 else np.eye(2, 3)
    if found:
        for index in range(count):
            still[index] = found[min(found, key=lambda known: abs(known - index))] if index != middle else np.eye(2, 3)
    return (float(np.percentile(shares, 25)) if shares else 1.0), still


def texture_spots(gray: UInt8[ndarray, "H W"], cell: int) -> Float[ndarray, "N 2"]:
    """The best point to follow in each square of `cell` pixels that has one (pixels, centres at +0.5)."""
    texture = texture_of(gray)
    height, width = (size // cell * cell for size in gray.shape)
    blocks = texture[:height, :width].reshape(height // cell, cell, width // cell, cell).swapaxes(1, 2)
    flat = blocks.reshape(*blocks.shape[:2], -1)
    best = flat.argmax(-1)
    rows = np.arange(blocks.shape[0])[:, None] * cell + best // cell
    columns = np.arange(blocks.shape[1])[None] * cell + best % cell
    good = flat.max(-1) > 0.5
    return np.stack([columns[good], rows[good]], -1) + 0.5


def mask_at(mask: Bool[ndarray, "H W"], points: Float[ndarray, "N 2"]) -> Bool[ndarray, " N"]:
    """Values of a mask under points."""
    row = np.clip(points[:, 1].astype(int), 0, mask.shape[0] - 1)
    return mask[row, np.clip(points[:, 0].astype(int), 0, mask.shape[1] - 1)]
