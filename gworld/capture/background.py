"""What moves before a standing camera: pixels that leave the background they usually show by more than its noise."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from gworld.capture.regions import clean_regions, hysteresis

SAMPLES = 90
"""Pictures that the background is taken from."""
USUAL = 0.35
"""Share of the time that a pixel must look alike for that look to be its background."""
FLOOR = 2.0
"""Levels of 255: no camera is quieter than this, for JPEG and rounding."""
LOW, HIGH = 2.8, 6.0
"""Units of the noise at which a pixel may belong to a mover, and at which it starts one."""
SOFT_EDGE = 0.35
"""Pixels by which edges tremble without anything moving."""


def find_foreground(
    pictures: UInt8[ndarray, "T H W 3"], to_middle: Float[ndarray, "T 2 3"]
) -> tuple[Bool[ndarray, "T H W"], UInt8[ndarray, "H W 3"]]:
    """Masks of what differs from the background, and the background.

    `to_middle` are the small similarities that take each picture onto the middle one (pixels). Exposure and white
    balance are fitted per picture; the noise of each pixel is measured from the quieter part of its own differences.
    """
    steady = np.stack([_warp(picture, fit) for picture, fit in zip(pictures, to_middle, strict=True)])
    chosen = np.unique(np.linspace(0, len(steady) - 1, min(len(steady), SAMPLES)).round().astype(int))
    background = np.median(steady[chosen], axis=0).astype(np.float32)
    gains = [_balance(picture, background) for picture in steady]
    background = _usual(np.stack([_apply(steady[index], gains[index]) for index in chosen]))
    gains = [_balance(picture, background) for picture in steady]
    noise = _noise(np.stack([_apply(steady[i], gains[i]) - background for i in chosen]), background)
    masks = []
    for picture, gain, fit in zip(steady, gains, to_middle, strict=True):
        score = _distance(_apply(picture, gain) - background, noise)
        found = clean_regions(hysteresis(score, LOW, HIGH), holes=0.03)
        masks.append(_warp(found.astype(np.uint8), fit, back=True) > 0)
    return np.stack(masks), np.clip(np.rint(background), 0, 255).astype(np.uint8)


def _warp(picture: ndarray, fit: ndarray, back: bool = False) -> ndarray:
    import cv2

    if np.allclose(fit, np.eye(2, 3), atol=1e-6):
        return picture
    # The similarities speak of pixel centres at +0.5, OpenCV of centres at whole numbers.
    moved = fit.copy()
    moved[:, 2] += fit[:, :2] @ (0.5, 0.5) - 0.5
    flags = (cv2.INTER_NEAREST if picture.ndim == 2 else cv2.INTER_LINEAR) | (cv2.WARP_INVERSE_MAP if back else 0)
    size = (picture.shape[1], picture.shape[0])
    return cv2.warpAffine(picture, moved, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _balance(picture: ndarray, background: ndarray) -> ndarray:
    """Gain and offset [2,3] per channel that take a picture to the background, from the half that agrees best."""
    one = picture[::3, ::3].reshape(-1, 3).astype(np.float32)
    two = background[::3, ::3].reshape(-1, 3)
    fair = ((one > 4) & (one < 250) & (two > 4) & (two < 250)).all(1)
    if fair.sum() < 50:
        return np.array([[1.0] * 3, [0.0] * 3], np.float32)
    one, two = one[fair], two[fair]
    keep = np.ones(len(one), bool)
    found = np.zeros((2, 3), np.float32)
    found[0] = np.median(two, 0) / np.maximum(np.median(one, 0), 1)
    for _ in range(6):
        miss = np.abs(one * found[0] + found[1] - two).max(1)
        keep = miss <= np.median(miss)
        mean_one, mean_two = one[keep].mean(0), two[keep].mean(0)
        around = one[keep] - mean_one
        # Pulled towards a gain of the means' ratio, for bland pictures hold no gain and offset apart.
        prior = mean_two / np.maximum(mean_one, 1)
        power = (around**2).mean(0)
        slope = ((around * (two[keep] - mean_two)).mean(0) + 25 * prior) / (power + 25)
        found = np.stack([slope, mean_two - slope * mean_one]).astype(np.float32)
    return found


def _apply(picture: ndarray, gain: ndarray) -> ndarray:
    return picture.astype(np.float32) * gain[0] + gain[1]


def _usual(stack: ndarray) -> ndarray:
    """The most usual colour [H,W,3]: the mean over the tightest run of luminance that holds `USUAL` of the time."""
    count = len(stack)
    run = max(1, round(USUAL * count))
    if count < 8:
        return np.median(stack, axis=0)
    order = np.argsort(stack.mean(-1), axis=0)
    bright = np.take_along_axis(stack.mean(-1), order, 0)
    first = (bright[run - 1 :] - bright[: count - run + 1]).argmin(0)
    total = np.zeros(stack.shape[1:], np.float32)
    for step in range(run):
        index = np.take_along_axis(order, (first + step)[None], 0)
        total += np.take_along_axis(stack, index[..., None], 0)[0]
    return total / run


def _noise(difference: ndarray, background: ndarray) -> ndarray:
    """Standard deviation [H,W,3] per pixel: of its quieter differences, of trembling edges, and a floor."""
    import cv2

    # The 30th percentile of |x| is 0.385 sigma for Gaussian noise; movers stay above it.
    quiet = np.percentile(np.abs(difference), 30, axis=0).astype(np.float32) / 0.385
    quiet = np.maximum(cv2.blur(quiet, (7, 7)), np.median(quiet, axis=(0, 1)))
    across, down = cv2.Sobel(background, -1, 1, 0, scale=0.125), cv2.Sobel(background, -1, 0, 1, scale=0.125)
    edge = SOFT_EDGE * np.sqrt(across**2 + down**2)
    return np.sqrt(quiet**2 + edge**2 + FLOOR**2)


def _distance(difference: ndarray, noise: ndarray) -> ndarray:
    """Differences in units of the noise [H,W], over a small neighbourhood and the colour that differs most."""
    import cv2

    score = np.abs(cv2.GaussianBlur(difference / noise, (0, 0), 1.0))
    # The blur of sigma 1 leaves 0.28 of white noise; 0.5 allows for noise that JPEG and debayering made smooth.
    return score.max(-1) / 0.5
