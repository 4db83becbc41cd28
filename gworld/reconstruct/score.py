"""How well a fit draws views it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.appearance import fit_exposure
from gworld.reconstruct.pictures import Album, Picture
from gworld.reconstruct.step import Setting, draw
from gworld.render.metrics import psnr
from gworld.scene.gaussians import Gaussians

FIGURES = ("psnr", "ssim", "psnr_half", "ssim_half", "psnr_mask")


@dataclass(frozen=True)
class Score:
    """Means over the held-out views, and each view's own.

    `psnr` and `ssim` are the full frame as drawn, with the fitted views' mean exposure and the poses as given.
    `psnr_half` and `ssim_half` are of the right half of each picture, after gain and offset per channel were fitted on
    its left half: exposure of an unseen picture cannot be known otherwise. `psnr_mask` counts masked-in pixels only.
    """

    psnr: float
    ssim: float
    psnr_half: float
    ssim_half: float
    psnr_mask: float
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
    """The figures of one picture, in the order of `Score`."""
    truth, half = picture.truth, picture.rgb.shape[1] // 2
    gain, offset = fit_exposure(
        image[:, :half], truth[:, :half], None if picture.mask is None else picture.mask[:, :half]
    )
    right = (image[:, half:] * gain + offset).clamp(0, 1).contiguous()
    right_truth = truth[:, half:].contiguous()
    masked = float("nan")
    if picture.mask is not None and bool(picture.mask.any()):
        masked = float(psnr(image, truth, picture.mask))
    return [
        float(psnr(image, truth)),
        _ssim(setting, image, truth),
        float(psnr(right, right_truth)),
        _ssim(setting, right, right_truth),
        masked,
    ]


def _ssim(setting: Setting, image: Tensor, truth: Tensor) -> float:
    return 1.0 - float(setting.tools.loss(image, truth, ssim_weight=1.0))
