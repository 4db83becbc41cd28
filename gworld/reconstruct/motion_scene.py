"""What stands behind tracked bodies as a static scene: the plates of standing cameras, laid flat on a plane.

Cameras that stand still show no depth, so that the scene is what they see on the plane where it happens: a table, a
floor. Each picture's pixels become flat Gaussians there, each place by the camera that sees it finest; their colours,
which differ by direction where the plane shines, are fitted to all plates.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import quat_from_matrix
from gworld.reconstruct.motion_film import Plates
from gworld.reconstruct.motion_options import PlaneOptions
from gworld.reconstruct.motion_rig import plane_points
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import sh_from_rgb

NEAR = 0.05
SPREAD, THIN = 0.6, 0.05
"""Standard deviation of a Gaussian over the distance to its neighbours, and of its thickness over its smaller width."""
OPACITY = 0.97
UNKNOWN = 0.02
"""What a pixel of a plate that was never seen (filled from around) counts beside one that was."""
RATE = 0.03


def plane_gaussians(
    plates: Plates,
    cameras: Cameras,
    plane: tuple[float, float, float, float],
    options: PlaneOptions = PlaneOptions(),  # noqa: B008 (frozen)
) -> Gaussians:
    """Static Gaussians (SH degree 1, link 0) on the plane a x + b y + c z + d = 0 that show each camera its plate.

    Raises `InputError` when no camera looks at the plane within reach.
    """
    level = torch.tensor(plane, dtype=torch.float64)
    level = level / level[:3].norm()
    poses, K = cameras.world_from_camera.double(), cameras.K.double()
    parts = []
    for camera in range(len(cameras)):
        pixels = _lattice(cameras.width, cameras.height, options.pitch)
        points = plane_points(pixels, K[camera], poses[camera], level)
        own, seen = _footprint(points, K[camera], poses[camera], level, cameras)
        kept = seen & (own <= _finest(points, K, poses, level, cameras)) & _near(points, poses[camera], options.far)
        if not bool(kept.any()):
            continue
        pixels, points = pixels[kept], points[kept]
        sides = [
            plane_points(pixels + torch.tensor(shift).double(), K[camera], poses[camera], level) - points
            for shift in ((1.0, 0.0), (0.0, 1.0))
        ]
        parts.append(_flat(points, torch.stack(sides, dim=-1), _colours(plates.pictures[camera], pixels), options))
    if not parts:
        raise InputError("no camera looks at the plane that the scene is to be laid on. Give the table's or floor's.")
    joined = [torch.cat(columns) for columns in zip(*parts, strict=True)]
    gaussians = Gaussians(*joined, links=torch.zeros(len(joined[0]), dtype=torch.int32))
    return _fitted(gaussians, plates, cameras, options.steps)


def _lattice(width: int, height: int, pitch: float) -> Float[Tensor, "M 2"]:
    columns, rows = (
        (torch.arange(max(1, round(size / pitch)), dtype=torch.float64) + 0.5) * size / max(1, round(size / pitch))
        for size in (width, height)
    )
    return torch.cartesian_prod(columns, rows)


def _footprint(
    points: Tensor, K: Tensor, pose: Tensor, level: Tensor, cameras: Cameras
) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Area of the plane that a pixel covers at each point, and whether the camera sees the point."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    depth = local[:, 2]
    pixels = (local @ K.T)[:, :2] / depth.clamp_min(NEAR)[:, None]
    size = pixels.new_tensor([cameras.width, cameras.height])
    seen = (depth > NEAR) & ((pixels > 0) & (pixels < size)).all(-1)
    slope = ((points - pose[:3, 3]) @ level[:3]).abs() / local.norm(dim=-1).clamp_min(1e-9)
    area = depth.clamp_min(NEAR) ** 2 / (K[0, 0] * K[1, 1]) / slope.clamp_min(1e-3)
    return area, seen


def _finest(points: Tensor, K: Tensor, poses: Tensor, level: Tensor, cameras: Cameras) -> Float[Tensor, " M"]:
    """The smallest footprint that any camera has at each point."""
    found = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for camera in range(len(cameras)):
        area, seen = _footprint(points, K[camera], poses[camera], level, cameras)
        found = torch.where(seen, torch.minimum(found, area), found)
    return found


def _near(points: Tensor, pose: Tensor, far: float) -> Bool[Tensor, " M"]:
    return (points - pose[:3, 3]).norm(dim=-1) < far


def _colours(picture: Float[np.ndarray, "H W 3"], pixels: Float[Tensor, "M 2"]) -> Float[Tensor, "M 3"]:
    height, width = picture.shape[:2]
    column, row = pixels.long().unbind(-1)
    return torch.from_numpy(picture)[row.clamp(0, height - 1), column.clamp(0, width - 1)].float()


def _flat(points: Tensor, sides: Float[Tensor, "M 3 2"], colours: Tensor, options: PlaneOptions) -> tuple[Tensor, ...]:
    """Means, rotations, scales, opacities and colours of discs as large as their pixels' places on the plane."""
    axes, sizes, _ = torch.linalg.svd(sides, full_matrices=False)
    normal = torch.linalg.cross(axes[..., 0], axes[..., 1])
    quats = quat_from_matrix(torch.cat([axes, normal[..., None]], dim=-1))
    widths = SPREAD * options.pitch * sizes
    scales = torch.cat([widths, THIN * widths[:, 1:]], dim=-1)
    logit = float(np.log(OPACITY / (1 - OPACITY)))
    sh = torch.zeros(len(points), 4, 3)
    sh[:, 0] = sh_from_rgb(colours)
    return points.float(), quats.float(), scales.log().float(), torch.full((len(points),), logit), sh


def _fitted(gaussians: Gaussians, plates: Plates, cameras: Cameras, steps: int) -> Gaussians:
    """The Gaussians with the colours, by direction, that show the plates best (Adam; Kingma and Ba, 2015)."""
    wanted = torch.from_numpy(plates.pictures).float()
    weight = torch.from_numpy(plates.known.astype(np.float32)).clamp_min(UNKNOWN)[..., None]
    sh = gaussians.sh.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([sh], lr=RATE)
    views = replace(cameras, names=(), links=())
    for _ in range(steps):
        optimiser.zero_grad()
        shown = render(replace(gaussians, sh=sh), None, views, outputs=("rgb",)).rgb
        assert shown is not None
        (weight * (shown[0] - wanted).square()).sum().backward()
        optimiser.step()
    return replace(gaussians, sh=sh.detach())
