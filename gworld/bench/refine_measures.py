"""What the refine bench measures pictures by, and the plain filters it stands beside."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.appearance import fit_exposure
from gworld.refine.inputs import follow
from gworld.render.metrics import psnr, ssim
from gworld.scene.clip import Clip, correspond, link_points, sample

BAND = 0.05
"""Relative step of depth that makes an edge."""
REACH = 2
"""Pixels over which a shift of edges is looked for."""


def quality(pictures: Float[Tensor, "T H V 3"], truth: Float[Tensor, "T H V 3"]) -> tuple[float, float]:
    """Mean PSNR (dB) and SSIM of frames."""
    return float(psnr(pictures, truth).clamp(max=99).mean()), float(ssim(pictures, truth).mean())


def quality_in_light(pictures: Float[Tensor, "T H V 3"], truth: Float[Tensor, "T H V 3"]) -> tuple[float, float]:
    """The same of the right halves, after the gain and offset per channel that suit the left halves best: photos differ
    in exposure, and a held-out one does not tell its own."""
    half = pictures.shape[2] // 2
    right = []
    for picture, photo in zip(pictures, truth, strict=True):
        gain, offset = fit_exposure(picture[:, :half], photo[:, :half])
        right.append((picture[:, half:] * gain + offset).clamp(0, 1))
    return quality(torch.stack(right), truth[:, :, half:])


def flicker(pictures: Float[Tensor, "T H V 3"], clip: Clip) -> float:
    """Mean difference of each frame to the one before, warped by the rendered flow, where it shows the same surface."""
    total, weight = 0.0, 0.0
    for t in range(1, len(clip)):
        place, kept = follow(clip[t], clip[t - 1], link_points(clip[t]))
        off = (pictures[t] - sample(pictures[t - 1], place)).abs().mean(-1)
        total, weight = total + float((off * kept).sum()), weight + float(kept.sum())
    return total / max(weight, 1e-9)


def disagreement(pictures: Float[Tensor, "T H V 3"], clip: Clip) -> float:
    """Mean difference between what each view and the next show of one surface."""
    total, weight = 0.0, 0.0
    for t in range(len(clip) - 1):
        place, sure = correspond(clip[t], clip[t + 1])
        off = (pictures[t] - sample(pictures[t + 1], place[0])).abs().mean(-1)
        total, weight = total + float((off * sure[0]).sum()), weight + float(sure.sum())
    return total / max(weight, 1e-9)


def edge_shift(pictures: Float[Tensor, "T H V 3"], clip: Clip) -> float:
    """By how many pixels edges of depth appear elsewhere than in the render, mean over frames.

    The shift at which the gradients of the picture match those of the render best, around edges of depth.
    """
    found = []
    for t in range(len(clip)):
        depth = clip.depth[t]
        band = torch.zeros_like(depth, dtype=torch.bool)
        step = BAND * depth[:, 1:]
        band[:, 1:] |= (depth[:, 1:] - depth[:, :-1]).abs() > step
        band[1:] |= (depth[1:] - depth[:-1]).abs() > BAND * depth[1:]
        mine, theirs = _slope(pictures[t]), _slope(clip.rgb[t])
        scores = {}
        for down in range(-REACH, REACH + 1):
            for right in range(-REACH, REACH + 1):
                moved = torch.roll(mine, (down, right), (0, 1))
                scores[(down, right)] = -float(((moved - theirs).square() * band).sum())
        best = max(scores, key=lambda key: (scores[key], -abs(key[0]) - abs(key[1])))
        found.append(float(np.hypot(*best)))
    return sum(found) / len(found)


def bilateral(pictures: Float[Tensor, "T H V 3"]) -> Float[Tensor, "T H V 3"]:
    """Each frame smoothed within its edges (OpenCV's bilateral filter, 5 pixels)."""
    return _each(pictures, lambda picture: cv2.bilateralFilter(picture, 5, 0.08, 2.0))


def total_variation(pictures: Float[Tensor, "T H V 3"]) -> Float[Tensor, "T H V 3"]:
    """Each frame without small variation. Source: Chambolle, "An algorithm for total variation minimization", 2004."""
    return _each(pictures, lambda picture: np.stack([_chambolle(picture[..., c]) for c in range(3)], axis=-1))


def _chambolle(image: np.ndarray, weight: float = 0.03, steps: int = 30) -> np.ndarray:
    dual = np.zeros((2, *image.shape), np.float32)
    for _ in range(steps):
        inner = _divergence(dual) - image / weight
        slope = np.zeros_like(dual)
        slope[0, :-1], slope[1, :, :-1] = np.diff(inner, axis=0), np.diff(inner, axis=1)
        dual = (dual + 0.25 * slope) / (1 + 0.25 * np.sqrt((slope**2).sum(0)))
    return np.asarray(image - weight * _divergence(dual), np.float32)


def _divergence(field: np.ndarray) -> np.ndarray:
    out = field[0] + field[1]
    out[1:] -= field[0, :-1]
    out[:, 1:] -= field[1, :, :-1]
    return np.asarray(out)


def _each(pictures: Tensor, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    done = [change(np.ascontiguousarray(picture.numpy(), np.float32)) for picture in pictures]
    return torch.from_numpy(np.stack(done)).clamp(0, 1)


def _slope(picture: Float[Tensor, "H V 3"]) -> Float[Tensor, "H V"]:
    grey = picture.mean(-1)
    out = torch.zeros_like(grey)
    out[:, 1:] += grey.diff(dim=1).abs()
    out[1:] += grey.diff(dim=0).abs()
    return out
