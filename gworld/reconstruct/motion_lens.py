"""Lenses that a calibration leaves out: distortion and the middle of the picture, and footage without them.

A pinhole's pixel p lies in the picture at c + d + (1 + k1 r^2 + k2 r^4 + k3 r^6) (p - c) and what a tilted lens adds by
p1, p2, where c is the calibration's principal point, d what it is off, and r the distance from c in focal lengths
(Brown, 1966; OpenCV's signs). A lens is told by k1 k2 dx dy k3 p1 p2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.motion_film import Film
from gworld.scene.cameras import Cameras

FREE = 7
"""Numbers that tell a lens."""
WIDEST = 2.5
"""Squared distance (focal lengths) up to which the polynomial holds; beyond, what is bent grows no more: no pixel from
outside folds back into the picture."""
ROUNDS = 12
"""Of the fixed-point iteration that takes a lens away; lenses that bend by a tenth are exact to 1e-6 pixels by then."""


def bent(pixels: Float[Tensor, "*B 2"], K: Float[Tensor, "3 3"], lens: Float[Tensor, " 7"]) -> Float[Tensor, "*B 2"]:
    """Where a pinhole's pixels lie in a picture taken through a lens (dx, dy in pixels)."""
    ray = (pixels - K[:2, 2]) / K.diagonal()[:2]
    square = ray.square().sum(-1, keepdim=True).clamp_max(WIDEST)
    k1, k2, _, _, k3, p1, p2 = lens
    grown = (k1 * square + k2 * square**2 + k3 * square**3) * ray
    slanted = 2 * ray.prod(-1, keepdim=True) * lens[5:7]
    slanted = slanted + (square + 2 * ray.square().clamp_max(WIDEST)) * torch.stack([p2, p1])
    return pixels + lens[2:4] + (grown + slanted) * K.diagonal()[:2]


def unbent(pixels: Float[Tensor, "*B 2"], K: Float[Tensor, "3 3"], lens: Float[Tensor, " 7"]) -> Float[Tensor, "*B 2"]:
    """The pinhole's pixels of those in a picture taken through a lens: `bent` the other way round."""
    straight = pixels
    for _ in range(ROUNDS):
        straight = straight + pixels - bent(straight, K, lens)
    return straight


def straightened(films: Sequence[Film], cameras: Cameras, lenses: Float[Tensor, "C 7"]) -> list[Film]:
    """Films as pinhole cameras of the same K would have taken them; what lies outside repeats the rim."""
    import cv2

    rows, columns = np.indices((cameras.height, cameras.width)) + 0.5
    grid = torch.from_numpy(np.stack([columns, rows], axis=-1))
    done = []
    for film, K, lens in zip(films, cameras.K.double(), lenses.double(), strict=True):
        x, y = (bent(grid, K, lens) - 0.5).float().unbind(-1)
        maps = x.contiguous().numpy(), y.contiguous().numpy()
        shown = [
            cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for picture in film.pictures
        ]
        done.append(replace(film, pictures=np.stack(shown)))
    return done


def lensed(cameras: Cameras, lenses: Float[Tensor, "C 7"]) -> Cameras:
    """The cameras as footage that keeps its bending needs them: OpenCV distortion, the middle moved."""
    K, bend = cameras.K.clone(), torch.zeros(len(cameras), 8)
    K[:, :2, 2] += lenses[:, 2:4].to(K)
    bend[:, :5] = lenses[:, [0, 1, 5, 6, 4]].float()
    return replace(cameras, K=K, model="opencv", distortion=bend)
