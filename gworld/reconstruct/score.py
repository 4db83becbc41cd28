"""How well a fit draws views it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.appearance import fit_exposure
from gworld.reconstruct.pictures import Album, Picture
from gworld.reconstruct.step import Setting, draw
from gworld.render.metrics import psnr
from gworld.scene.gaussians import Gaussians

FIGURES = ("psnr", "ssim", "psnr_half", "ssim_half")


@dataclass(frozen=True)
class Score:
    """Means over the held-out views, and the `psnr` of each in `views`. Where a view has a mask, only its pixels count.

    `psnr` and `ssim` are the whole picture as drawn, with the fitted views' mean exposure and the poses as given.
    `psnr_half` and `ssim_half` are of the right half of each picture, after gain and offset per channel were fitted on
    its left half: the exposure of an unseen picture cannot be known otherwise.
    """

    psnr: float
    ssim: float
    psnr_half: float
    ssim_half: float
    views: dict[str, float]


def score_views(setting: Setting, album: Album, gaussians: Gaussians, background: Tensor | None = None) -> Score | None:
    """Score Gaussians on the views of `album` at full resolution; None where there are none."""
    if not len(album):
        return None
    rows = []
    with torch.no_grad():
        for picture in album.levels[0]:
            image = draw(setting, gaussians, picture, picture.camera.world_from_camera, background).image
            rows.append(score_image(setting, image.clamp(0, 1), picture))
    means = torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist()
    own = dict(zip(album.names, (row[0] for row in rows), strict=True))
    return Score(**dict(zip(FIGURES, means, strict=True)), views=own)


def score_image(setting: Setting, image: Float[Tensor, "H V 3"], picture: Picture) -> list[float]:
    """The figures of one picture, in the order of `FIGURES`; NaN where nothing counts."""
    truth, half = picture.truth, picture.rgb.shape[1] // 2
    mask = torch.ones_like(truth[..., 0], dtype=torch.bool) if picture.mask is None else picture.mask
    gain, offset = fit_exposure(image[:, :half], truth[:, :half], mask[:, :half])
    right = (image[:, half:] * gain + offset).clamp(0, 1).contiguous()
    return [*_likeness(setting, image, truth, mask), *_likeness(setting, right, truth[:, half:], mask[:, half:])]


def _likeness(setting: Setting, image: Tensor, truth: Tensor, mask: Tensor) -> tuple[float, float]:
    if not bool(mask.any()):
        return math.nan, math.nan
    loss = setting.tools.loss(image, truth.contiguous(), ssim_weight=1.0, mask=mask.contiguous())
    return float(psnr(image, truth, mask)), 1.0 - float(loss)
