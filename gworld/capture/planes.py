"""Dominant planes of a sparse point cloud: floors, tables and walls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

MAX_POINTS = 6000
_TRIALS = 300


@dataclass(frozen=True)
class Plane:
    """Points with `normal . x = offset`: a unit normal [3] float64, an offset, the share of all points on it, and
    their middle [3].
    """

    normal: Float[Tensor, " 3"]
    offset: float
    share: float
    middle: Float[Tensor, " 3"]


def find_planes(
    points: Float[Tensor, "P 3"], thickness: float, least_share: float = 0.05, most: int = 6, seed: int = 0
) -> tuple[Plane, ...]:
    """Planes by RANSAC, the largest first; points within `thickness` of one are taken away before the next is sought.

    Source: Fischler and Bolles, CACM 1981. Large clouds are thinned to `MAX_POINTS`.
    """
    random = torch.Generator().manual_seed(seed)
    left = points.double()
    if len(left) > MAX_POINTS:
        left = left[torch.randperm(len(left), generator=random)[:MAX_POINTS]]
    whole = len(left)
    planes: list[Plane] = []
    while len(planes) < most and len(left) >= max(12, least_share * whole):
        rows = torch.randint(len(left), (_TRIALS, 3), generator=random)
        corners = left[rows]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals = torch.nn.functional.normalize(normals, dim=1)
        offsets = (normals * corners[:, 0]).sum(1)
        near = ((left @ normals.T - offsets).abs() < thickness) & (normals.norm(dim=1) > 0.5)  # not of one point twice
        best = int(near.sum(0).argmax())
        on = near[:, best]
        for _ in range(3):
            middle = left[on].mean(0)
            normal = torch.linalg.svd(left[on] - middle, full_matrices=False)[2][2]
            offset = float(normal @ middle)
            on = (left @ normal - offset).abs() < thickness
            if int(on.sum()) < 3:
                break
        share = float(on.sum()) / whole
        if share < least_share:
            break
        planes.append(Plane(normal, offset, share, left[on].mean(0)))
        left = left[~on]
    return tuple(planes)
