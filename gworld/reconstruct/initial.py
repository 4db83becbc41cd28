"""Where a fit starts: Gaussians on the sparse points or measured depth, and a few in the open space behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.pictures import Album, Picture
from gworld.reconstruct.sweep import sweep_points
from gworld.scene.cameras import project_points
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import sh_from_rgb

OPACITY = 0.1
LONELY = 8.0
"""A point this many times farther from its neighbours than the median point is taken for an outlier."""
FEW = 1000
"""Fewer points than this are helped out by a plane sweep, and by Gaussians anywhere in the depths of the scene."""
DEPTH_SAMPLES = 400_000


@dataclass(frozen=True)
class Extent:
    """How large a scene is for its cameras.

    `width` is half the width of the pictures at the scene's median depth: a length that a Gaussian's learning rate and
    regularisers are measured in, so that they mean the same share of a picture in every scene. `near` and `far` bound
    the depths at which the scene lies; `centre` is its middle.
    """

    centre: Float[Tensor, " 3"]
    width: float
    near: float
    far: float


def measure_extent(album: Album, points: Float[Tensor, "P 3"]) -> Extent:
    """The extent of the points as the cameras see them; without points, that of where the cameras look."""
    pictures = album.levels[0]
    eyes = torch.stack([p.camera.world_from_camera[0, :3, 3] for p in pictures])
    depths, widths = [], []
    for picture in pictures:
        seen, depth = _seen(picture, points)
        near_far = depth[seen]
        if picture.depth is not None and bool((picture.depth > 0).any()):
            near_far = picture.depth[picture.depth > 0]
        if len(near_far) >= 8:
            depths.append(_quantiles(near_far))
            widths.append(0.5 * picture.camera.width / float(picture.camera.K[0, 0, 0]))
    if not depths:
        target = _looked_at(pictures)
        distances = (eyes - target).norm(dim=1).clamp_min(1e-6)
        depths = [torch.stack([0.2 * d, d, 2.0 * d]) for d in distances]
        widths = [0.5 * p.camera.width / float(p.camera.K[0, 0, 0]) for p in pictures]
    _, middle, high = torch.stack(depths).median(0).values.tolist()
    low = float(torch.quantile(torch.stack(depths)[:, 0], 0.05))  # the views that come nearest decide
    slope = float(np.median(widths))
    axes = torch.stack([p.camera.world_from_camera[0, :3, 2] for p in pictures])
    centre = points.median(0).values if len(points) >= 8 else (eyes + middle * axes).mean(0)
    return Extent(centre, middle * slope, low, high)


def initial_gaussians(
    album: Album, points: Float[Tensor, "P 3"], colours: Float[Tensor, "P 3"], count: int, seed: int
) -> Gaussians:
    """At most `count` Gaussians: on depth where it was measured, else on sparse and swept points, else in the open.

    Points far from all others are dropped; a twentieth of the count is spread over what lies behind the points, so
    that backgrounds have something to grow from. colours in 0..1, one for each point. SH of degree 0.
    """
    generator = torch.Generator().manual_seed(seed)
    extent = measure_extent(album, points)
    measured = _from_depth(album, count, generator)
    if measured is not None:
        points, colours = measured
    else:
        keep = _together(points)
        points, colours = points[keep], colours[keep]
        if len(points) < FEW:
            swept, swept_colours = sweep_points(album, max(0.7 * extent.near, 1e-3 * extent.width), 1.5 * extent.far)
            points, colours = torch.cat([points, swept]), torch.cat([colours, swept_colours])
    chosen = torch.randperm(len(points), generator=generator)[: int(0.95 * count)].to(points.device)
    points, colours = points[chosen], colours[chosen]
    behind = len(points) >= FEW
    spread = count // 20 if behind else max(count // 2 - len(points), count // 20)
    more, more_colours = in_the_open(album, extent, spread, generator, behind)
    return gaussians_at(torch.cat([points, more]), torch.cat([colours, more_colours]), extent.width)


def gaussians_at(points: Float[Tensor, "P 3"], colours: Float[Tensor, "P 3"], width: float) -> Gaussians:
    """Round, faint Gaussians as large as the mean distance to their three nearest neighbours."""
    spacing = neighbour_distance(points).clamp(1e-4 * width, 0.3 * width)
    count = len(points)
    identity = points.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1)
    return Gaussians(
        means=points.clone(),
        quats_wxyz=identity,
        log_scales=spacing.log()[:, None].repeat(1, 3),
        opacity_logits=torch.full_like(spacing, float(np.log(OPACITY / (1 - OPACITY)))),
        sh=sh_from_rgb(colours)[:, None].contiguous(),
        links=torch.zeros(count, dtype=torch.int32, device=points.device),
    )


def neighbour_distance(points: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
    """Root mean squared distance to the three nearest other points (one unit where there are none)."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return points.new_ones(len(points))
    array = points.detach().cpu().double().numpy()
    distance, _ = cKDTree(array).query(array, k=min(4, len(array)))
    return torch.from_numpy(np.sqrt((distance[:, 1:] ** 2).mean(1))).to(points)


def in_the_open(
    album: Album, extent: Extent, count: int, generator: torch.Generator, behind: bool
) -> tuple[Tensor, Tensor]:
    """Points on rays through random pixels, in their colours: `behind` the scene, or anywhere in its depths.

    Depths are drawn evenly in 1/z, so that they lie denser where parallax tells them apart. Fewer than `count` where
    most of that space is close to some camera or masked.
    """
    pictures = album.levels[-1]
    near, far = (extent.far, 6 * extent.far) if behind else (max(extent.near, 1e-3 * extent.width), 1.5 * extent.far)
    eyes = torch.stack([picture.camera.world_from_camera[0, :3, 3] for picture in pictures])
    places, colours = [], []
    each = -(-4 * count // len(pictures))
    for picture in pictures:
        height, width = picture.rgb.shape[:2]
        pixel = torch.rand(each, 2, generator=generator).to(picture.rgb.device)
        share = torch.rand(each, generator=generator).to(pixel)
        z = 1 / (share / far + (1 - share) / near)
        column, row = (pixel[:, 0] * width).long(), (pixel[:, 1] * height).long()
        place, colour = _unproject(picture, column + 0.5, row + 0.5, z), picture.truth[row, column]
        usable = torch.cdist(place, eyes).amin(1) > extent.near  # what floats before another camera would hide all
        if picture.mask is not None:
            usable &= picture.mask[row, column]
        places.append(place[usable])
        colours.append(colour[usable])
    found, seen = torch.cat(places), torch.cat(colours)
    order = torch.randperm(len(found), generator=generator)[:count].to(found.device)
    return found[order], seen[order]


def _from_depth(album: Album, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Points of the measured depth of all views, thinned evenly; None where no view has enough of it."""
    places, colours = [], []
    pictures = [p for p in album.levels[0] if p.depth is not None and int((p.depth > 0).sum()) > 100]
    each = min(DEPTH_SAMPLES, 2 * count) // max(len(pictures), 1) + 1
    for picture in pictures:
        assert picture.depth is not None
        usable = picture.depth > 0 if picture.mask is None else (picture.depth > 0) & picture.mask
        rows, columns = usable.nonzero(as_tuple=True)
        chosen = torch.randperm(len(rows), generator=generator)[:each].to(rows.device)
        rows, columns = rows[chosen], columns[chosen]
        places.append(_unproject(picture, columns + 0.5, rows + 0.5, picture.depth[rows, columns]))
        colours.append(picture.truth[rows, columns])
    return (torch.cat(places), torch.cat(colours)) if places else None


def _unproject(picture: Picture, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    K, pose = picture.camera.K[0], picture.camera.world_from_camera[0]
    local = torch.stack([(x - K[0, 2]) / K[0, 0] * z, (y - K[1, 2]) / K[1, 1] * z, z], dim=1)
    return local @ pose[:3, :3].T + pose[:3, 3]


def _together(points: Tensor) -> Tensor:
    """Which points are finite and have neighbours."""
    finite = points.isfinite().all(1)
    distance = neighbour_distance(torch.where(finite[:, None], points, torch.zeros_like(points)))
    if not len(points):
        return finite
    return finite & (distance <= LONELY * distance[finite].median().clamp_min(1e-12))


def _seen(picture: Picture, points: Tensor) -> tuple[Tensor, Tensor]:
    pixels, depth = project_points(picture.camera, points)
    size = pixels.new_tensor([picture.camera.width, picture.camera.height])
    inside = ((pixels[0] >= 0) & (pixels[0] < size)).all(1) & (depth[0] > 0)
    return inside, depth[0]


def _quantiles(values: Tensor) -> Tensor:
    values = values[:: max(1, len(values) // 100_000)].float()
    return torch.quantile(values, values.new_tensor([0.02, 0.5, 0.98]))


def _looked_at(pictures: tuple[Picture, ...]) -> Tensor:
    """The point nearest to all optical axes, by least squares."""
    eyes = torch.stack([p.camera.world_from_camera[0, :3, 3] for p in pictures])
    axes = torch.stack([p.camera.world_from_camera[0, :3, 2] for p in pictures])
    across = torch.eye(3, device=eyes.device) - axes[:, :, None] * axes[:, None, :]
    system = across.sum(0) + 1e-4 * torch.eye(3, device=eyes.device)
    return torch.linalg.solve(system, (across @ eyes[:, :, None]).sum(0)[:, 0] + 1e-4 * (eyes + axes).mean(0))
