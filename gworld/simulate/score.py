"""How a prediction compares with the truth: places of bodies and pixels, beside copying and constant velocity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.dynamics.state import move_frames
from gworld.render.api import RenderOptions
from gworld.render.metrics import psnr
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.world import World

CHANGED = 0.06
"""Difference from the first frame, of 1, at which a pixel counts as one in which something moved."""
DISPLACED = 0.01
"""Metres by which a body must truly have moved to be counted as moved."""


@dataclass(frozen=True)
class Pixels:
    """PSNR in dB of T frames, mean over C cameras: the whole picture [T], and where something moved [T] (NaN: nowhere).

    A pixel moved where the footage, or this row's own picture, is no longer what it was in the first frame.
    """

    full: Float[Tensor, " T"]
    moving: Float[Tensor, " T"]


def coast(
    start: Float[Tensor, "L 4 4"], twists: Float[Tensor, "L 6"], times: Float[Tensor, " T"]
) -> Float[Tensor, "T L 4 4"]:
    """Links that go on with their first velocity (m/s, rad/s), at times since then in seconds."""
    drift = twists[None] * times[:, None, None].to(twists)
    return torch.stack([move_frames(start, row[:, :3], row[:, 3:]) for row in drift])


def body_errors(
    world: World, predicted: Float[Tensor, "T L 4 4"], truth: Float[Tensor, "T L 4 4"]
) -> dict[str, Float[Tensor, " T"]]:
    """Metres between where each body is and where it should be, mean over its links; static ones are left out."""
    gap = (predicted[..., :3, 3] - truth[..., :3, 3]).norm(dim=-1)
    return {
        entity.name: gap[:, list(entity.links)].mean(1)
        for entity in world.entities
        if entity.kind != "static" and entity.links
    }


def displaced(world: World, truth: Float[Tensor, "T L 4 4"]) -> dict[str, Float[Tensor, " T"]]:
    """Metres from where each body stood first, mean over its links."""
    return body_errors(world, truth, truth[:1].expand_as(truth))


def motion_ratio(world: World, predicted: Float[Tensor, "T L 4 4"], truth: Float[Tensor, "T L 4 4"]) -> float:
    """Length of all bodies' predicted paths over that of the true ones, of links that truly move a centimetre."""

    def ways(poses: Tensor) -> Tensor:
        return poses[:, :, :3, 3].diff(dim=0).norm(dim=-1).sum(0)

    own = [link for entity in world.entities if entity.kind != "static" for link in entity.links]
    true = ways(truth)[own]
    counted = true > DISPLACED
    return float(ways(predicted)[own][counted].sum() / true[counted].sum()) if bool(counted.any()) else float("nan")


def draw_rows(world: World, cameras: Cameras, poses: Float[Tensor, "T L 4 4"]) -> Float[Tensor, "T C H V 3"]:
    """Pictures of a motion from all cameras."""
    options = RenderOptions(background=world.background or (0.0, 0.0, 0.0))
    with torch.no_grad():
        drawn = [
            render(world.gaussians, chunk, cameras, outputs=("rgb",), options=options).rgb for chunk in poses.split(4)
        ]
    return torch.cat([part for part in drawn if part is not None]).clamp(0, 1)


def score_pixels(
    world: World,
    cameras: Cameras,
    rows: Mapping[str, Float[Tensor, "T L 4 4"]],
    footage: Float[Tensor, "T C H V 3"],
) -> dict[str, Pixels]:
    """Every row's pictures against the footage of the same instants; the first instant is where all rows start."""
    changed = changed_pixels(footage)
    found = {}
    for name, poses in rows.items():
        drawn = draw_rows(world, cameras, poses)
        mask = changed | changed_pixels(drawn)
        whole = psnr(drawn, footage).mean(1)
        parts = torch.stack([psnr(*pair) for pair in zip(drawn.flatten(0, 1), footage.flatten(0, 1),
                                                         mask.flatten(0, 1), strict=True)])  # fmt: skip
        found[name] = Pixels(whole, parts.reshape(drawn.shape[:2]).nanmean(1))
    return found


def changed_pixels(pictures: Float[Tensor, "T C H V 3"]) -> Bool[Tensor, "T C H V"]:
    """Where pictures differ from the first."""
    return (pictures - pictures[:1]).abs().amax(-1) > CHANGED


def interval(values: Sequence[float] | Tensor) -> tuple[float, float, float]:
    """Median, and the 10th and 90th percentile, of what is a number; NaN of nothing."""
    data = np.asarray(values, np.float64).ravel()
    data = data[np.isfinite(data)]
    if not len(data):
        return float("nan"), float("nan"), float("nan")
    middle, low, high = np.percentile(data, [50, 10, 90])
    return float(middle), float(low), float(high)
