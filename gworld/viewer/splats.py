"""A world as what a browser draws: one cloud of splats per link, colours by what is asked, the visible ones of many."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.geometry import matrix_from_quat, normalize_quat
from gworld.scene.harmonics import rgb_from_sh
from gworld.scene.world import World

COLOURS = ("rgb", "agent", "link", "uncertainty", "coverage")
LEVELS = 12
"""Steps of the scale of uncertainty: splats travel again only where a link goes from one to another."""
SURE, HALF, UNSURE = (0.15, 0.35, 0.75), (0.95, 0.8, 0.25), (0.8, 0.12, 0.1)
STATIC = (0.62, 0.62, 0.62)
MOST_GROWTH = 4.0
SHADE = 0.25
"""Part of its own brightness that a Gaussian keeps when it is coloured by whose it is: shapes stay readable."""


@dataclass(frozen=True)
class Cloud:
    """The splats of one link in its frame: centres [M,3] m, covariances [M,3,3] m^2, opacities [M,1].

    `rows` are theirs among the world's Gaussians. viser draws one colour per splat: view-dependent colour (SH above
    degree 0) is left to the true pixels.
    """

    link: int
    rows: Int[np.ndarray, " M"]
    centers: Float[np.ndarray, "M 3"]
    covariances: Float[np.ndarray, "M 3 3"]
    opacities: Float[np.ndarray, "M 1"]


def make_clouds(world: World, limit: int) -> list[Cloud]:
    """The splats of every link that has some; of more than `limit` a part that covers as much (see `thin_out`)."""
    gaussians = world.gaussians
    kept, growth = thin_out(world, limit)
    with torch.no_grad():
        rotation = matrix_from_quat(normalize_quat(gaussians.quats_wxyz[kept].float()))
        axes = rotation * (growth.to(rotation) * gaussians.log_scales[kept].float().exp().T).T[:, None, :]
        covariances = (axes @ axes.transpose(-1, -2)).cpu().numpy()
        opacities = torch.sigmoid(gaussians.opacity_logits[kept].float())[:, None].cpu().numpy()
    means, owners, rows = (part.cpu().numpy() for part in (gaussians.means[kept].float(), gaussians.links[kept], kept))
    found = []
    for link in range(len(world.links)):
        own = np.flatnonzero(owners == link)
        if len(own):
            found.append(Cloud(link, rows[own], means[own], covariances[own], opacities[own]))
    return found


def thin_out(world: World, limit: int) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
    """About `limit` Gaussians that stand for all, in their order, and by how much each grows to cover for the others.

    What moves is thinned only where it is more than half of the limit. Within each of the two, chances go with the
    root of opacity times area, between keeping what is large and keeping detail, and areas grow by one over the chance.
    """
    gaussians = world.gaussians
    if len(gaussians) <= limit:
        return torch.arange(len(gaussians)), torch.ones(len(gaussians))
    scales = gaussians.log_scales.detach().float().cpu().sort(dim=1).values
    area = torch.sigmoid(gaussians.opacity_logits.detach().float().cpu()) * scales[:, 1:].sum(1).exp()
    score = area.double().sqrt()
    static = gaussians.links.cpu() == 0
    room = min(int((~static).sum()), limit // 2 if bool(static.any()) else limit)
    rows, growth = [], []
    for group, places in ((~static, room), (static, limit - room)):
        own = torch.nonzero(group)[:, 0]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))]
        chance = (score[own] * places / score[own].sum().clamp_min(1e-300)).clamp(max=1) if len(own) > places else None
        if chance is None:
            drawn, grown = own, torch.ones(len(own), dtype=torch.float64)
        else:
            ticks = chance.cumsum(0).floor()
            picked = ticks.diff(prepend=ticks.new_zeros(1)) > 0
            drawn, grown = own[picked], chance[picked].rsqrt().clamp(max=MOST_GROWTH)
        rows.append(drawn)
        growth.append(grown.float())
    joined, factors = torch.cat(rows), torch.cat(growth)
    order = joined.argsort()
    return joined[order], factors[order]


def colours_of(
    world: World, mode: str, views: Int[np.ndarray, " N"] | None = None, levels: Int[np.ndarray, " L"] | None = None
) -> Float[np.ndarray, "N 3"]:
    """A colour in 0..1 for every Gaussian: its own, its agent's or object's, its link's, how sure its link's place is
    (by `levels`, see `level_of`), or how many `views` saw it."""
    own = rgb_from_sh(world.gaussians.sh[:, 0].detach().float()).clamp(0, 1).cpu().numpy()
    if mode == "rgb":
        return own
    if mode == "coverage" and views is not None:
        return coverage_colours(views)
    links = world.gaussians.links.cpu().numpy()
    palette = np.tile(np.array(STATIC), (len(world.links), 1))
    if mode == "uncertainty":
        if levels is not None:
            palette[1:] = scale_colours(levels[1:] / LEVELS)
        return _shaded(palette[links], own)
    bodies = [entity for entity in world.entities if entity.kind != "static"]
    for index, entity in enumerate(bodies):
        palette[list(entity.links)] = hue(index)
    if mode == "link":
        palette[1:] = [hue(index) for index in range(len(world.links) - 1)]
    return _shaded(palette[links], own)


def _shaded(colours: Float[np.ndarray, "N 3"], own: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    return np.clip(colours * (1 - SHADE + 2 * SHADE * own.mean(axis=1, keepdims=True)), 0, 1)


def level_of(std: Float[np.ndarray, " L"], top: float) -> Int[np.ndarray, " L"]:
    """On which of the `LEVELS` above 0 standard deviations are, of a scale that ends at `top` in the same unit."""
    return np.ceil(LEVELS * np.clip(std / max(top, 1e-12), 0, 1) - 1e-6).astype(np.int64)


def scale_colours(share: Float[np.ndarray, " S"]) -> Float[np.ndarray, "S 3"]:
    """Blue for sure (0), over yellow, to red for the least sure (1)."""
    low, middle, high = (np.array(colour) for colour in (SURE, HALF, UNSURE))
    part = np.clip(share, 0, 1)[..., None]
    return np.where(part < 0.5, low + 2 * part * (middle - low), middle + (2 * part - 1) * (high - middle))


def coverage_colours(views: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N 3"]:
    """Red for never seen, over yellow for seen once, to green for eight views or more."""
    share = np.clip(np.log2(1 + views) / np.log2(9), 0, 1)[:, None]
    red, yellow, green = np.array([0.8, 0.15, 0.1]), np.array([0.9, 0.75, 0.1]), np.array([0.1, 0.65, 0.25])
    low = red + (yellow - red) * np.minimum(3 * share, 1)
    return low + (green - low) * np.clip(1.5 * share - 0.5, 0, 1)


def hue(index: int) -> tuple[float, float, float]:
    """The colour of a body by its number: neighbours differ, for hues are a golden section apart."""
    return colorsys.hsv_to_rgb((0.58 + 0.618034 * index) % 1.0, 0.65, 0.9)
