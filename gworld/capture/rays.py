"""Rays of pixels, and the points where several of them meet."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import invert_transform
from gworld.scene.views import View

_ROUNDS = 5


def pixel_rays(view: View, pixels: Float[Tensor, "N 2"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Origins and directions (camera z = 1) in the world of pixels, whose centres lie at +0.5; lens errors are undone.

    Raises `InputError` for camera models other than pinhole and opencv.
    """
    K = view.K.double()
    flat = (pixels.double() - K[:2, 2]) / torch.stack([K[0, 0], K[1, 1]])
    if view.model == "opencv" and any(view.distortion):
        flat = _undistort(flat, view.distortion)
    elif view.model not in ("pinhole", "opencv"):
        raise InputError(f"view `{view.name}` has the camera model {view.model}; undistort its picture first.")
    pose = view.world_from_camera.double()
    local = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
    return pose[:3, 3].expand(len(flat), 3), local @ pose[:3, :3].T


def project_into(view: View, points: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Pixels and depths z of world points in a pinhole view; the pixels of points behind it mean nothing."""
    camera_from_world = invert_transform(view.world_from_camera.double())
    local = points.double() @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    image = local @ view.K.double().T
    return image[:, :2] / image[:, 2:], local[:, 2]


def meet_rays(
    origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]
) -> tuple[Float[Tensor, " 3"], float, float]:
    """The point nearest to all rays in angle, how far they miss it (radians, root mean square), their widest angle.

    Least squares over distances from the rays, weighed anew by the distance from the camera. Raises `InputError` for
    fewer than two rays and for rays that are parallel or meet behind a camera.
    """
    origins, units = origins.double(), torch.nn.functional.normalize(directions.double(), dim=1)
    if len(units) < 2:
        raise InputError(f"{len(units)} picture shows the point; two from different places are needed.")
    widest = float(torch.acos((units @ units.T).clamp(-1, 1)).max())
    across = torch.eye(3, dtype=torch.float64) - units[:, :, None] * units[:, None, :]
    weights = torch.ones(len(units), dtype=torch.float64)
    point = origins.mean(0)
    for _ in range(_ROUNDS):
        matrix = (weights[:, None, None] * across).sum(0)
        if widest < 1e-4 or float(torch.linalg.cond(matrix)) > 1e8:
            raise InputError("the rays to the point are parallel; pictures from places further apart are needed.")
        point = torch.linalg.solve(matrix, (weights[:, None, None] * across @ origins[:, :, None]).sum(0)[:, 0])
        weights = 1 / (point - origins).square().sum(1).clamp(min=1e-18)
    along = ((point - origins) * units).sum(1)
    if not bool((along > 0).all()):
        raise InputError("the rays to the point meet behind a camera; the pixels do not show one and the same point.")
    miss = torch.linalg.norm(torch.linalg.cross(point - origins, units), dim=1) / along
    return point, float(miss.square().mean().sqrt()), widest


def _undistort(flat: Tensor, terms: tuple[float, ...]) -> Tensor:
    """Undo OpenCV's lens model by fixed point; terms k1 k2 p1 p2 k3 k4 k5 k6."""
    k1, k2, p1, p2, k3, k4, k5, k6 = (*terms, *[0.0] * (8 - len(terms)))
    found = flat
    for _ in range(30):
        x, y = found.unbind(1)
        r2 = x * x + y * y
        radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        shift = torch.stack([2 * p1 * x * y + p2 * (r2 + 2 * x * x), p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], dim=1)
        found = (flat - shift) / radial[:, None]
    return found
