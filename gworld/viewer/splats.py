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

COLOURS = ("rgb", "agent", "link", "coverage")
STATIC = (0.62, 0.62, 0.62)
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
    """The splats of every link that has some; of more than `limit` those that cover the most are kept."""
    gaussians = world.gaussians
    kept = most_visible(world, limit)
    with torch.no_grad():
        rotation = matrix_from_quat(normalize_quat(gaussians.quats_wxyz[kept].float()))
        axes = rotation * gaussians.log_scales[kept].float().exp()[:, None, :]
        covariances = (axes @ axes.transpose(-1, -2)).cpu().numpy()
        opacities = torch.sigmoid(gaussians.opacity_logits[kept].float())[:, None].cpu().numpy()
    means, owners, rows = (part.cpu().numpy() for part in (gaussians.means[kept].float(), gaussians.links[kept], kept))
    found = []
    for link in range(len(world.links)):
        own = np.flatnonzero(owners == link)
        if len(own):
            found.append(Cloud(link, rows[own], means[own], covariances[own], opacities[own]))
    return found


def most_visible(world: World, limit: int) -> Int[Tensor, " M"]:
    """Rows of the `limit` Gaussians with the most opacity times area, in their order; all where they are fewer."""
    gaussians = world.gaussians
    if len(gaussians) <= limit:
        return torch.arange(len(gaussians))
    area = gaussians.log_scales.detach().float().sort(dim=1).values[:, 1:].sum(1)
    weight = torch.nn.functional.logsigmoid(gaussians.opacity_logits.detach().float()) + area
    return weight.topk(limit).indices.sort().values.cpu()


def colours_of(world: World, mode: str, views: Int[np.ndarray, " N"] | None = None) -> Float[np.ndarray, "N 3"]:
    """A colour in 0..1 for every Gaussian: its own, its agent's or object's, its link's, or how many `views` saw it."""
    own = rgb_from_sh(world.gaussians.sh[:, 0].detach().float()).clamp(0, 1).cpu().numpy()
    if mode == "rgb":
        return own
    if mode == "coverage" and views is not None:
        return coverage_colours(views)
    links = world.gaussians.links.cpu().numpy()
    palette = np.tile(np.array(STATIC), (len(world.links), 1))
    bodies = [entity for entity in world.entities if entity.kind != "static"]
    for index, entity in enumerate(bodies):
        palette[list(entity.links)] = hue(index)
    if mode == "link":
        palette[1:] = [hue(index) for index in range(len(world.links) - 1)]
    brightness = own.mean(axis=1, keepdims=True)
    return np.clip(palette[links] * (1 - SHADE + 2 * SHADE * brightness), 0, 1)


def coverage_colours(views: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N 3"]:
    """Red for never seen, over yellow for seen once, to green for eight views or more."""
    share = np.clip(np.log2(1 + views) / np.log2(9), 0, 1)[:, None]
    red, yellow, green = np.array([0.8, 0.15, 0.1]), np.array([0.9, 0.75, 0.1]), np.array([0.1, 0.65, 0.25])
    low = red + (yellow - red) * np.minimum(3 * share, 1)
    return low + (green - low) * np.clip(1.5 * share - 0.5, 0, 1)


def hue(index: int) -> tuple[float, float, float]:
    """The colour of a body by its number: neighbours differ, for hues are a golden section apart."""
    return colorsys.hsv_to_rgb((0.58 + 0.618034 * index) % 1.0, 0.65, 0.9)
