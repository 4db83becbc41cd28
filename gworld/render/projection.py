"""Projection of Gaussians into one camera, in plain torch: the formulas of `api.py`, readable and differentiable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gworld.geometry import invert_transform, matrix_from_quat, transform_points
from gworld.render.api import (
    CLAMP_FRUSTUM,
    DILATION,
    LARGEST,
    MAX_COVARIANCE,
    MIN_ALPHA,
    RenderOptions,
)
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import evaluate_sh

EXTENT_SLACK = 1e-5
"""Added to the squared Mahalanobis radius, so that rounding of alpha never pushes a pixel out of the bound."""


@dataclass(frozen=True)
class Splats:
    """Gaussians as one camera sees them.

    centres [V,2] pixels; depths [V] metres; covariances [V,3] the dilated xx, xy, yy in pixels^2; determinants [V];
    opacities [V] with compensation; colours [V,3].
    """

    centres: Float[Tensor, "V 2"]
    depths: Float[Tensor, " V"]
    covariances: Float[Tensor, "V 3"]
    determinants: Float[Tensor, " V"]
    opacities: Float[Tensor, " V"]
    colours: Float[Tensor, "V 3"]


def camera_from_links(
    world_from_link: Float[Tensor, "W L 4 4"], world_from_camera: Float[Tensor, "C 4 4"]
) -> Float[Tensor, "W C L 4 4"]:
    """The pose of every link in every camera of every world."""
    return invert_transform(world_from_camera)[None, :, None] @ world_from_link[:, None]


def pose_of_gaussians(gaussians: Gaussians, frame_from_link: Float[Tensor, "L 4 4"]) -> Float[Tensor, "N 4 4"]:
    """The transform that moves each Gaussian: its link's, or the weighted sum of its links' for soft bodies."""
    if gaussians.soft_links is None or gaussians.soft_weights is None:
        return frame_from_link[gaussians.links.long()]
    weights = gaussians.soft_weights.to(frame_from_link.dtype)
    return (weights[..., None, None] * frame_from_link[gaussians.soft_links.long()]).sum(1)


def project(
    gaussians: Gaussians,
    camera_from_link: Float[Tensor, "L 4 4"],
    cameras: Cameras,
    index: int,
    options: RenderOptions,
) -> Splats:
    """All Gaussians in camera `index`, one row each; rows that cannot be drawn may hold anything (see `visible_rows`).

    Source: Zwicker et al., "EWA Splatting", 2002, eqs. 24-31; compensation as in Yu et al., "Mip-Splatting", 2024.
    """
    K = cameras.K[index].to(gaussians.means.dtype)
    pose = pose_of_gaussians(gaussians, camera_from_link)
    rotation = pose[:, :3, :3]
    centre = transform_points(pose, gaussians.means[:, None])[:, 0]
    axes = _projection_jacobian(centre, K, cameras.width, cameras.height) @ rotation @ scaled_axes(gaussians)
    xx, xy, yy = (axes[:, 0] ** 2).sum(-1), (axes[:, 0] * axes[:, 1]).sum(-1), (axes[:, 1] ** 2).sum(-1)
    # Cauchy-Binet: the determinant as a sum of squares keeps its digits where xx * yy - xy^2 loses them all.
    before = torch.linalg.cross(axes[:, 0], axes[:, 1]).square().sum(-1)
    after = before + DILATION * (xx + yy) + DILATION**2
    opacities = torch.sigmoid(gaussians.opacity_logits)
    if options.antialiased:
        opacities = opacities * (before / after).sqrt()
    direction = torch.nn.functional.normalize((rotation.transpose(-1, -2) @ centre[..., None])[..., 0], dim=-1)
    return Splats(
        centres=_pixel(centre, K),
        depths=centre[:, 2],
        covariances=torch.stack([xx + DILATION, xy, yy + DILATION], dim=-1),
        determinants=after,
        opacities=opacities,
        colours=evaluate_sh(gaussians.sh, direction),
    )


def project_visible(
    gaussians: Gaussians,
    camera_from_link: Float[Tensor, "L 4 4"],
    cameras: Cameras,
    index: int,
    options: RenderOptions,
) -> tuple[Int[Tensor, " V"], Splats]:
    """The rows that camera `index` can see, nearest first (equal depths in index order), and their splats.

    The choice is made without gradient on all rows; only the chosen ones are projected again with it, so that a bad
    row never enters the graph.
    """
    with torch.no_grad():
        everything = project(gaussians, camera_from_link, cameras, index, options)
        keep = visible_rows(gaussians, everything, cameras.width, cameras.height, options)
        rows = keep.nonzero()[:, 0]
        rows = rows[torch.sort(everything.depths[rows], stable=True).indices]
    return rows, project(select_gaussians(gaussians, rows), camera_from_link, cameras, index, options)


def visible_rows(
    gaussians: Gaussians, splats: Splats, width: int, height: int, options: RenderOptions
) -> Bool[Tensor, " N"]:
    """Which rows are sound, between the planes, opaque enough and touch the image."""
    # Comparisons with NaN are false: each test below states what a good row fulfils, so bad ones fail.
    keep = sound_rows(gaussians) & (splats.depths > options.near) & (splats.depths < options.far)
    keep &= (splats.covariances[:, [0, 2]] <= MAX_COVARIANCE).all(-1) & (splats.opacities >= MIN_ALPHA)
    half = half_extents(splats)
    low, high = splats.centres - half, splats.centres + half
    size = splats.centres.new_tensor([width, height])
    return keep & ((high > 0) & (low < size)).all(-1)


def sound_rows(gaussians: Gaussians) -> Bool[Tensor, " N"]:
    """Which rows have finite attributes of bounded size and a quaternion that can be normalised."""
    columns = [gaussians.means, gaussians.quats_wxyz, gaussians.log_scales, gaussians.opacity_logits[:, None]]
    columns.append(gaussians.sh.flatten(1))
    if gaussians.soft_weights is not None:
        columns.append(gaussians.soft_weights)
    sound = torch.stack([(column.abs() <= LARGEST).all(-1) for column in columns]).all(0)
    norm = gaussians.quats_wxyz.norm(dim=-1)
    return sound & (norm >= 1 / LARGEST) & (norm <= LARGEST) & (gaussians.log_scales.exp() <= LARGEST).all(-1)


def half_extents(splats: Splats) -> Float[Tensor, "V 2"]:
    """Half width and height of the box around the ellipse on which alpha reaches MIN_ALPHA, in pixels."""
    radius_sq = 2 * torch.log(splats.opacities / MIN_ALPHA).clamp_min(0) + EXTENT_SLACK
    return (radius_sq[:, None] * splats.covariances[:, [0, 2]]).sqrt()


def project_centres(
    gaussians: Gaussians, camera_from_link: Float[Tensor, "L 4 4"], cameras: Cameras, index: int, near: float
) -> tuple[Float[Tensor, "N 2"], Bool[Tensor, " N"]]:
    """Pixel positions of the centres in camera `index`, and which lie in front of its near plane (others give 0)."""
    K = cameras.K[index].to(gaussians.means.dtype)
    centre = transform_points(pose_of_gaussians(gaussians, camera_from_link), gaussians.means[:, None])[:, 0]
    front = centre[:, 2] > near
    safe = torch.where(front[:, None], centre, torch.ones_like(centre))
    return torch.where(front[:, None], _pixel(safe, K), torch.zeros_like(safe[:, :2])), front


def _pixel(centre: Float[Tensor, "N 3"], K: Float[Tensor, "3 3"]) -> Float[Tensor, "N 2"]:
    return centre[:, :2] / centre[:, 2:] * K[[0, 1], [0, 1]] + K[:2, 2]


def scaled_axes(gaussians: Gaussians) -> Float[Tensor, "N 3 3"]:
    """The square root R S of the covariance: a Gaussian's axes as columns, as long as its standard deviations."""
    quats = gaussians.quats_wxyz / gaussians.quats_wxyz.norm(dim=-1, keepdim=True)
    return matrix_from_quat(quats) * gaussians.log_scales.exp()[:, None, :]


def _projection_jacobian(
    centre: Float[Tensor, "N 3"], K: Float[Tensor, "3 3"], width: int, height: int
) -> Float[Tensor, "N 2 3"]:
    """Derivative of the pixel position by the position in the camera, at a point held near the view."""
    focal = K[[0, 1], [0, 1]]
    limit = CLAMP_FRUSTUM * 0.5 * focal.new_tensor([width, height]) / focal
    x, y, z = centre.unbind(-1)
    tangent_x = (x / z).clamp(-limit[0], limit[0])
    tangent_y = (y / z).clamp(-limit[1], limit[1])
    zero = torch.zeros_like(z)
    rows = [focal[0] / z, zero, -focal[0] * tangent_x / z, zero, focal[1] / z, -focal[1] * tangent_y / z]
    return torch.stack(rows, dim=-1).reshape(-1, 2, 3)
