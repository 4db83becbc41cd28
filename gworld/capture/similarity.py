"""Similarities: the change of frame, with scale, that turns a reconstruction into a metric, upright world."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import transform_from
from gworld.scene.views import Views


@dataclass(frozen=True)
class Similarity:
    """A target frame from a source frame: `target = scale * rotation @ source + translation`.

    rotation [3,3], translation [3] in the target's unit, both float64; scale above 0, in target units per source unit.
    """

    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, " 3"]
    scale: float = 1.0

    def __post_init__(self) -> None:
        finite = bool(torch.isfinite(self.rotation).all() and torch.isfinite(self.translation).all())
        if not (finite and math.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"a similarity has the scale {self.scale}; finite numbers and a scale above 0 are needed.")


def identity_similarity() -> Similarity:
    """The similarity that changes nothing."""
    return Similarity(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))


def compose_similarity(second: Similarity, first: Similarity) -> Similarity:
    """The similarity that does `first`, then `second`."""
    moved = second.scale * second.rotation @ first.translation + second.translation
    return Similarity(second.rotation @ first.rotation, moved, second.scale * first.scale)


def invert_similarity(similarity: Similarity) -> Similarity:
    """The similarity that leads back."""
    back = similarity.rotation.T
    return Similarity(back, -(back @ similarity.translation) / similarity.scale, 1.0 / similarity.scale)


def move_points(similarity: Similarity, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Points of the source frame in the target frame."""
    rotation, translation = similarity.rotation.to(points), similarity.translation.to(points)
    return similarity.scale * points @ rotation.T + translation


def move_poses(similarity: Similarity, source_from_a: Float[Tensor, "N 4 4"]) -> Float[Tensor, "N 4 4"]:
    """Rigid poses in the target frame: turned, and moved with the scale; they stay rigid."""
    rotation = similarity.rotation.to(source_from_a) @ source_from_a[:, :3, :3]
    return transform_from(rotation, move_points(similarity, source_from_a[:, :3, 3]))


def apply_similarity(
    views: Views, similarity: Similarity, metric: bool | None = None, depth_scale: float | None = None
) -> Views:
    """The same views in the target frame: cameras and points are moved, pictures and K stay.

    `metric` says whether lengths are metres afterwards; None keeps the flag where the scale is 1 and drops it where it
    is not. Depth maps follow the scale, as maps rendered from these views do; maps of a depth sensor keep their own
    unit, which is given as `depth_scale` (metres per stored unit).
    """
    unscaled = abs(similarity.scale - 1.0) < 1e-9
    known = (views.metric and unscaled) if metric is None else metric
    moved = views.views
    if len(views):
        poses = move_poses(similarity, torch.stack([view.world_from_camera.double() for view in views.views]))
        moved = tuple(
            replace(view, world_from_camera=pose.to(view.world_from_camera.dtype))
            for view, pose in zip(views.views, poses, strict=True)
        )
    points = move_points(similarity, views.points.double()).to(views.points.dtype)
    units = views.depth_scale * similarity.scale if depth_scale is None else depth_scale
    return replace(views, views=moved, points=points, metric=known, depth_scale=units)


def fit_similarity(
    source: Float[Tensor, "N 3"], target: Float[Tensor, "N 3"], with_scale: bool = True
) -> tuple[Similarity, Float[Tensor, " N"]]:
    """The similarity that takes `source` points to `target` points with the least squares, and what is left of each.

    The residuals [N] are lengths in the target's unit. Source: Umeyama, PAMI 1991. Raises `InputError` for fewer than
    three points, and for points on one line, which leave the turn about it open.
    """
    if len(source) < 3 or len(source) != len(target):
        raise InputError(f"{len(source)} and {len(target)} points are to be aligned; three pairs or more are needed.")
    source, target = source.double(), target.double()
    middles = source.mean(0), target.mean(0)
    p, q = source - middles[0], target - middles[1]
    left, sizes, right = torch.linalg.svd(q.T @ p)
    flat = torch.linalg.svdvals(p)
    if not float(flat[1]) > 1e-6 * float(flat[0]) or not float(sizes[1]) > 1e-12 * float(sizes[0]):
        raise InputError("the points to be aligned lie on one line; points off it are needed to fix the turn about it.")
    signs = torch.ones(3, dtype=torch.float64)
    signs[2] = torch.sign(torch.linalg.det(left @ right))
    rotation = left @ torch.diag(signs) @ right
    scale = float((sizes * signs).sum() / (p * p).sum()) if with_scale else 1.0
    similarity = Similarity(rotation, middles[1] - scale * rotation @ middles[0], scale)
    return similarity, (move_points(similarity, source) - target).norm(dim=1)
