"""Where bodies meet and which space they take, from the Gaussians themselves: closest gaps, and an occupancy grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.errors import UsageError
from gworld.geometry import matrix_from_quat, normalize_quat
from gworld.scene.world import World

OPAQUE = 0.3
"""Gaussians below this opacity are no surface."""
WIDTH = 1.5
"""Standard deviations that a Gaussian reaches as a piece of surface."""
SAMPLES = 256
"""Surface points that stand for a link."""
MAX_CELLS = 1 << 27


@dataclass(frozen=True)
class Contacts:
    """Q places where links of different entities are nearer than a margin: the closest one of each pair of links.

    world [Q] which world; links [Q,2] (the moving one first, link 0 is the static scene); gap [Q] metres, 0 where
    they touch or overlap; point [Q,3] between the two surfaces; normal [Q,3] from the second to the first.
    """

    world: Int[Tensor, " Q"]
    links: Int[Tensor, "Q 2"]
    gap: Float[Tensor, " Q"]
    point: Float[Tensor, "Q 3"]
    normal: Float[Tensor, "Q 3"]

    def __len__(self) -> int:
        return len(self.gap)


class Surfaces:
    """The surfaces of a world's links as points with their Gaussians' shapes; made once, asked for every state.

    A gap is how far a point of one link is outside the nearest Gaussian of the other, taken as a flat box of `WIDTH`
    standard deviations, the least of both ways: thin Gaussians on a surface touch when their surfaces do. How deep
    bodies overlap is not told, for a surface has no inside: the gap is 0 then.
    """

    def __init__(self, world: World, samples: int = SAMPLES) -> None:
        from scipy.spatial import cKDTree

        gaussians = world.gaussians
        solid = torch.sigmoid(gaussians.opacity_logits) > OPAQUE
        axes = matrix_from_quat(normalize_quat(gaussians.quats_wxyz.detach().float()))
        roots = axes * gaussians.log_scales.detach().float().exp()[:, None]
        self.owner = _owners(world)
        self.rows: dict[int, Tensor] = {}
        for link in range(1, len(world.links)):
            found = (solid & (gaussians.links == link)).nonzero()[:, 0]
            if len(found):
                self.rows[link] = found[torch.linspace(0, len(found) - 1, min(samples, len(found))).round().long()]
        self._means, self._roots = gaussians.means.detach().float(), roots
        self._still = (solid & (gaussians.links == 0)).nonzero()[:, 0]
        self._tree = cKDTree(self._means[self._still].numpy()) if len(self._still) else None
        self._reach = {link: float(self._means[rows].norm(dim=1).max()) for link, rows in self.rows.items()}

    def contacts(self, world_from_link: Float[Tensor, "W L 4 4"], margin: float = 0.005) -> Contacts:
        """Pairs of links of different entities whose gap is below `margin` metres, in each world."""
        found: list[tuple[int, int, int, float, Tensor, Tensor]] = []
        for world, poses in enumerate(world_from_link.float()):
            placed = {link: self._placed(link, poses[link]) for link in self.rows}
            for first in self.rows:
                for second in self.rows:
                    apart = float((poses[first, :3, 3] - poses[second, :3, 3]).norm())
                    near = apart < self._reach[first] + self._reach[second] + margin
                    if first < second and self.owner[first] != self.owner[second] and near:
                        found.append((world, first, second, *_closest(placed[first], placed[second])))
                if self._tree is not None and self.owner[first] != self.owner[0]:
                    found.append((world, first, 0, *self._closest_still(placed[first])))
        kept = [entry for entry in found if entry[3] < margin]
        columns = list(zip(*kept, strict=True)) if kept else [()] * 6
        return Contacts(
            torch.tensor(columns[0], dtype=torch.int64),
            torch.tensor([entry[1:3] for entry in kept], dtype=torch.int64).reshape(-1, 2),
            torch.tensor(columns[3], dtype=torch.float32),
            torch.stack(columns[4]) if kept else torch.zeros(0, 3),
            torch.stack(columns[5]) if kept else torch.zeros(0, 3),
        )

    def _placed(self, link: int, pose: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows[link]
        return self._means[rows] @ pose[:3, :3].T + pose[:3, 3], pose[:3, :3] @ self._roots[rows]

    def _closest_still(self, body: tuple[Tensor, Tensor]) -> tuple[float, Tensor, Tensor]:
        assert self._tree is not None
        _, nearest = self._tree.query(body[0].numpy(), k=1)
        rows = self._still[torch.from_numpy(np.asarray(nearest, np.int64))]
        return _least(body[0], body[0].mean(0), self._means[rows], self._roots[rows])


def occupancy(
    world: World, world_from_link: Float[Tensor, "L 4 4"], cell: float, low: tuple[float, ...], high: tuple[float, ...]
) -> Int[Tensor, "X Y Z"]:
    """The link that fills each cell of a grid between `low` and `high` (m), -1 where none does; moving links win.

    A Gaussian fills the cells of its centre and of the points one standard deviation along its axes.
    """
    extent = [(b - a) / cell for a, b in zip(low, high, strict=True)]
    size = [max(1, int(np.ceil(part - 1e-6))) for part in extent] if cell > 0 else [0]
    if not 0 < float(np.prod([float(n) for n in size])) <= MAX_CELLS:
        raise UsageError(f"a grid of {size} cells of {cell} m was asked for; 1 to {MAX_CELLS} cells are possible.")
    gaussians = world.gaussians
    solid = torch.sigmoid(gaussians.opacity_logits) > OPAQUE
    means, links = gaussians.means[solid].float(), gaussians.links[solid].long()
    axes = matrix_from_quat(normalize_quat(gaussians.quats_wxyz[solid].float()))
    roots = axes * gaussians.log_scales[solid].float().exp()[:, None]
    points = torch.cat([means[:, None], means[:, None] + roots.mT, means[:, None] - roots.mT], dim=1)
    pose = world_from_link.float()[links]
    points = points @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
    index = ((points - points.new_tensor(low)) / cell).floor().long()
    inside = ((index >= 0) & (index < torch.tensor(size))).all(-1)
    grid = torch.full(size, -1, dtype=torch.int64).flatten()
    flat = (index[..., 0] * size[1] + index[..., 1]) * size[2] + index[..., 2]
    owners = links[:, None].expand(-1, points.shape[1])
    grid.scatter_reduce_(0, flat[inside], owners[inside], "amax")
    return grid.view(size)


def _owners(world: World) -> list[int]:
    owner = [-1] * len(world.links)
    for index, entity in enumerate(world.entities):
        for link in entity.links:
            owner[link] = index
    return owner


def _closest(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[float, Tensor, Tensor]:
    """Gap, middle and normal of two links: the better one of both ways."""
    apart = torch.cdist(first[0], second[0])
    to_second, to_first = apart.argmin(dim=1), apart.argmin(dim=0)
    one = _least(first[0], first[0].mean(0), second[0][to_second], second[1][to_second])
    two = _least(second[0], second[0].mean(0), first[0][to_first], first[1][to_first])
    return one if one[0] <= two[0] else (two[0], two[1], -two[2])


def _least(a: Tensor, center: Tensor, b: Tensor, root_b: Tensor) -> tuple[float, Tensor, Tensor]:
    """The smallest gap of points `a` [P,3], of a body about `center`, to the Gaussians that are nearest to them."""
    scales = root_b.norm(dim=1).clamp_min(1e-9)
    axes = root_b / scales[:, None]
    local = (axes.mT @ (a - b)[..., None])[..., 0]
    over = (local.abs() - WIDTH * scales).clamp_min(0.0)
    gap = over.norm(dim=1)
    best = int(gap.argmin())
    flat = axes[best, :, int(scales[best].argmin())]
    flat = flat * (1.0 if float(flat @ (center - b[best])) >= 0 else -1.0)
    away = axes[best] @ (over[best] * local[best].sign())
    normal = away / gap[best] if float(gap[best]) > 1e-6 else flat
    return float(gap[best]), (a[best] + b[best]) / 2, normal
