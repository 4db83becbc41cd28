"""What several fits of the same photos show: where they agree they are to be trusted, where not, their median is.

Fits that differ by their seed alone agree where the photos decide and differ by chance where they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.clip import Clip
from gworld.scene.gaussians import Gaussians

DIFFER = 0.02
"""Standard deviation of what fits show, of 0..1, from which their agreement adds no trust."""


@torch.no_grad()
def drawn_by(
    others: Sequence[Gaussians],
    frame: Clip,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
) -> Float[Tensor, "K H V 3"]:
    """What other fits show of a frame (a clip of length 1): the same camera, links where they stand in it."""
    height, width = frame.alpha.shape[1:]
    camera = Cameras(frame.K, frame.world_from_camera, width, height)
    pictures = []
    for other in others:
        rgb = render(other, frame.world_from_link[0], camera, outputs=("rgb",), options=options).rgb
        assert rgb is not None
        pictures.append(rgb[0, 0].clamp(0, 1).cpu())
    return torch.stack(pictures)


def settle(frame: Clip, others: Float[Tensor, "K H V 3"]) -> Clip:
    """The frame with the median of all fits where it is in doubt, and with trust where they agree.

    Where the frame's confidence is 1 its picture stays. With one other fit the median is the mean.
    """
    fits = torch.cat([frame.rgb, others])
    middle = fits.sort(dim=0).values
    half = len(fits) // 2
    median = middle[half] if len(fits) % 2 else middle[half - 1 : half + 1].mean(0)
    rgb = frame.rgb[0] + (1 - frame.confidence[0])[..., None] * (median - frame.rgb[0])
    agree = 1 - (fits.std(dim=0).mean(-1) / DIFFER).clamp(max=1)
    return replace(frame, rgb=rgb[None], confidence=torch.maximum(frame.confidence, agree[None]))
