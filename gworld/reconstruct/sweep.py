"""Points by plane sweep: where a sparse model has too few, depth is found by comparing pictures at guessed depths.

Each reference picture is compared with its neighbours on planes that are even in 1/z; the depth at which most agree
(normalised cross-correlation of small windows) is kept where it is clear, and where another reference found the same
surface. Source: Collins, "A space-sweep approach to true multi-image matching", 1996.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.pictures import Album, Picture
from gworld.scene.cameras import project_points

PLANES = 48
REFERENCES = 12
NEIGHBOURS = 4
LONGEST = 200
"""Pictures are compared at the resolution level whose longest side is nearest to this."""
ALIKE = 0.75
"""Least correlation of a match."""
CLEAR = 0.1
"""By how much the best depth must beat the mean of all depths."""
TEXTURE = 2e-4
"""Least variance of grey values in a window."""
AGREE = 0.03
"""Two references agree when their depths differ by less than this share."""


def sweep_points(album: Album, near: float, far: float) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
    """Points and colours of surfaces between the depths `near` and `far` that at least two references agree on."""
    pictures = min(album.levels, key=lambda level: abs(max(level[0].rgb.shape[:2]) - LONGEST))
    count = len(pictures)
    chosen = sorted({round(index * (count - 1) / max(REFERENCES - 1, 1)) for index in range(min(REFERENCES, count))})
    depths = {view: reference_depth(pictures, view, near, far) for view in chosen}
    places, colours = [], []
    for view, depth in depths.items():
        points, rows, columns = _lift(pictures[view], depth)
        votes = torch.zeros(len(points), dtype=torch.int32, device=points.device)
        for other, other_depth in depths.items():
            if other != view:
                votes += _agrees(pictures[other], other_depth, points)
        places.append(points[votes > 0])
        colours.append(pictures[view].truth[rows, columns][votes > 0])
    return torch.cat(places), torch.cat(colours)


def reference_depth(pictures: tuple[Picture, ...], view: int, near: float, far: float) -> Float[Tensor, "H V"]:
    """Depth of one picture by comparison with its neighbours; 0 where it is not clear."""
    reference = pictures[view]
    grey = _grey(reference)
    mean, variance = _window(grey), _window(grey * grey) - _window(grey).square()
    share = torch.linspace(0, 1, PLANES, device=grey.device)
    planes = 1 / ((1 - share) / near + share / far)
    chosen = _neighbours(pictures, view, float(planes.median()))
    neighbours = [(pictures[index], _grey(pictures[index])) for index in chosen]
    scores = []
    for depth in planes:
        each = torch.stack([_correlation(reference, other, (grey, mean, variance), depth) for other in neighbours])
        scores.append(each.topk(min(2, len(neighbours)), dim=0).values.mean(0))  # the others may be hidden there
    volume = torch.stack(scores)
    best, index = volume.max(0)
    clear = (best > ALIKE) & (best - volume.mean(0) > CLEAR) & (variance > TEXTURE)
    clear &= (index > 0) & (index < PLANES - 1)
    if reference.mask is not None:
        clear &= reference.mask
    return torch.where(clear, 1 / _refined(1 / planes, volume, index), torch.zeros_like(best))


def _refined(inverse: Tensor, volume: Tensor, index: Tensor) -> Tensor:
    """Inverse depth at the top of the parabola through the best plane and its two neighbours."""
    middle = index.clamp(1, PLANES - 2)
    below, top, above = (volume.gather(0, (middle + shift)[None])[0] for shift in (-1, 0, 1))
    bend = (below - 2 * top + above).clamp_max(-1e-6)
    offset = (0.5 * (below - above) / bend).clamp(-0.5, 0.5)
    return inverse[middle] + offset * (inverse[1] - inverse[0])


def _correlation(
    reference: Picture, other: tuple[Picture, Tensor], windows: tuple[Tensor, Tensor, Tensor], depth: Tensor
) -> Tensor:
    """Normalised cross-correlation of windows, were the whole picture at one depth; -1 outside the other picture.

    `other` is a picture and its grey values, `windows` the reference's grey values, their window means and variances.
    """
    (picture, other_grey), (grey, mean, variance) = other, windows
    points, _, _ = _lift(reference, depth.expand_as(grey))
    pixels, z = project_points(picture.camera, points)
    size = pixels.new_tensor([picture.camera.width, picture.camera.height])
    grid = (pixels[0] * 2 / size - 1).reshape(1, *grey.shape, 2)
    warped = torch.nn.functional.grid_sample(other_grey[None, None], grid, align_corners=False)[0, 0]
    inside = ((grid[0].abs() < 1).all(-1)) & (z[0].reshape(grey.shape) > 0)
    other_mean = _window(warped)
    other_variance = _window(warped * warped) - other_mean.square()
    covariance = _window(grey * warped) - mean * other_mean
    value = covariance / (variance.clamp_min(1e-8) * other_variance.clamp_min(1e-8)).sqrt()
    return torch.where(inside & (other_variance > 0.1 * TEXTURE), value, torch.full_like(value, -1.0))


def _neighbours(pictures: tuple[Picture, ...], view: int, depth: float) -> list[int]:
    """The views that see the middle of this one's scene from the most telling angles, about a tenth of a radian."""
    poses = torch.stack([picture.camera.world_from_camera[0] for picture in pictures])
    target = poses[view, :3, 3] + depth * poses[view, :3, 2]
    rays = torch.nn.functional.normalize(target - poses[:, :3, 3], dim=1)
    angle = torch.linalg.cross(rays, rays[view].expand_as(rays)).norm(dim=1).asin()
    facing = (poses[:, :3, 2] * poses[view, :3, 2]).sum(1) > 0.5
    wrong = (angle.clamp_min(1e-4) / 0.12).log().abs() + 100.0 * ~facing
    wrong[view] = torch.inf
    return wrong.argsort(stable=True)[: min(NEIGHBOURS, len(pictures) - 1)].tolist()


def _lift(picture: Picture, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """World points of all pixels with a depth, and their rows and columns."""
    rows, columns = (depth > 0).nonzero(as_tuple=True)
    K, pose = picture.camera.K[0], picture.camera.world_from_camera[0]
    z = depth[rows, columns]
    x, y = (columns + 0.5 - K[0, 2]) / K[0, 0], (rows + 0.5 - K[1, 2]) / K[1, 1]
    return torch.stack([x * z, y * z, z], 1) @ pose[:3, :3].T + pose[:3, 3], rows, columns


def _agrees(picture: Picture, depth: Tensor, points: Tensor) -> Tensor:
    pixels, z = project_points(picture.camera, points)
    column, row = pixels[0].floor().long().unbind(1)
    height, width = depth.shape
    inside = (column >= 0) & (row >= 0) & (column < width) & (row < height) & (z[0] > 0)
    there = depth[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return inside & (there > 0) & ((there - z[0]).abs() < AGREE * z[0])


def _grey(picture: Picture) -> Tensor:
    return picture.truth.mean(-1)


def _window(values: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(values[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
