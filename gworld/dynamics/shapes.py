"""What a link is to dynamics: a solid, found from the Gaussians on its surface; colours are never looked at.

A link whose Gaussians lie on a sphere is a ball, exact in closed form. Any other is a signed distance field on a grid
(negative inside) with points spread over its surface; volume, centre of mass and inertia are those of the solid inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, normalize_quat
from gworld.scene.gaussians import Gaussians, select_gaussians

ROUND = 0.01
"""Largest spread of the Gaussians' distances from one centre, as part of the radius, of what is taken for a ball."""
GRID = 36
"""Cells of a distance field along each side."""
SEALS = (1.6, 2.2, 3.0)
"""How far free space keeps from the surface at first, over what it may keep in the end."""
ASTRAY = 0.1
"""How far from the surface a point on it may lie, over the spacing of Gaussians."""
FLATTEST = 0.1
"""Least width of a cell along one axis, over the widest: what is thinner than that has too little inside to be met."""
POINTS, CORNERS = 96, 40
"""Points on the surface of a solid that can touch, and of these how many are looked for as corners."""
OPAQUE = 0.3
SMALLEST_PLANE = 1 / 80
"""Surface that a plane must hold to count, over that of the static scene or of the square the objects take up."""
NEIGHBOURS, CROWD = 12, 6
SEAM = 0.2
"""By how much (spacings of Gaussians) faces may reach past each other and still meet in a convex edge."""
FACES = 128
"""Normals, spread over a solid's Gaussians, along which no point of its surface may be farther out than these."""
FLAT, SMALL = 0.25, 0.1
"""Thickness over width below which a Gaussian is a piece of surface; its greatest width over the objects' spread."""


@dataclass(frozen=True)
class Solid:
    """One link's solid, about its centre of mass and in the axes of its link.

    center [3] of mass in the link's frame; radius of a ball, 0 for others; bound the distance of the farthest point;
    volume m^3; inertia [3,3] per mass (m^2); points [M,3] on the surface; field [G,G,G] signed distances at the
    corners of a grid that begins at `low` [3] with cells `cell` [3] wide: what is flat has flat cells, lest its faces
    lean near its edges. A ball has one point, its centre, and no field.
    skin is the width of a typical Gaussian (m): how far it reaches beyond its centre is learned.
    """

    center: Float[Tensor, " 3"]
    radius: float
    bound: float
    volume: float
    inertia: Float[Tensor, "3 3"]
    points: Float[Tensor, "M 3"]
    skin: float
    field: Float[Tensor, "G G G"] | None = None
    low: Float[Tensor, " 3"] | None = None
    cell: Float[Tensor, " 3"] | None = None


def solid_from_gaussians(gaussians: Gaussians) -> Solid:
    """The solid whose surface these Gaussians (of one link, in its frame) cover.

    Raises `InputError` for fewer than four opaque Gaussians or ones that span no volume.
    """
    means, normals, sizes = _surface(gaussians)
    if len(means) < 4:
        raise InputError(f"a link has {len(means)} opaque Gaussians; at least 4 are needed to know its shape.")
    center, radius, spread = _fit_sphere(means)
    if spread < ROUND:
        eye = torch.eye(3, dtype=torch.float64)
        volume = 4 / 3 * np.pi * radius**3
        points, skin = torch.zeros(1, 3, dtype=torch.float64), float(np.median(sizes))
        return Solid(torch.from_numpy(center), radius, radius, volume, 0.4 * radius**2 * eye, points, skin)
    return _solid_from_surface(means, normals, sizes)


def planes_from_gaussians(gaussians: Gaussians, inside: Float[Tensor, "N 3"]) -> Float[Tensor, "Q 4"]:
    """Half-spaces `n . x >= d` (rows n, d) bounded by large flat parts of a static scene, with all of `inside` free.

    Only flat Gaussians that are small beside the room the objects take up tell of surfaces: of a fitted scene, most
    are blobs. Planes are found one after the other, the one with the most surface first. A plane counts when most of
    `inside` stands over its surface (a table's top, not its edge), none behind it, and no other counts before it.
    """
    places = inside.double().numpy()
    span = float(np.ptp(places, axis=0).max()) if len(places) > 1 else np.inf
    axes = gaussians.log_scales.detach().double().exp().sort(dim=1).values
    sheets = (axes[:, 0] < FLAT * axes[:, 1]) & (axes[:, 2] < max(SMALL * span, 2.0 * float(axes[:, 2].median())))
    means, normals, sizes = _surface(select_gaussians(gaussians, sheets))
    area = sizes**2
    if not len(means):
        return torch.zeros(0, 4, dtype=torch.float64)
    least, left = SMALLEST_PLANE * min(area.sum(), 2.0 * span**2), np.ones(len(means), bool)
    planes: list[np.ndarray] = []
    for _ in range(24):
        if area[left].sum() < least:
            break
        best, support = _best_plane(means[left], normals[left], sizes[left], area[left])
        near = np.abs(means @ best[:3] - best[3]) < np.maximum(sizes, 1e-9)
        flat = left & near & (np.abs(normals @ best[:3]) > 0.98)
        if support < least or not flat.any():
            break
        left &= ~flat
        normal = np.average(normals[flat] * np.sign(normals[flat] @ best[:3])[:, None], axis=0, weights=area[flat])
        normal /= np.linalg.norm(normal)
        height = float(np.average(means[flat] @ normal, weights=area[flat]))
        if not _stands_over(places, normal, height, means[flat], float(sizes[flat].max())):
            continue
        for sign in (1.0, -1.0):
            if (places @ (sign * normal) >= sign * height - 1e-3 * np.abs(places).max(initial=1e-9)).all():
                planes.append(np.array([*(sign * normal), sign * height]))
                break
    kept = [p for p in planes if not any(q is not p and q[:3] @ p[:3] > 0.999 and q[3] > p[3] for q in planes)]
    return torch.from_numpy(np.array(kept).reshape(-1, 4))


def _stands_over(places: np.ndarray, normal: np.ndarray, height: float, surface: np.ndarray, size: float) -> bool:
    """Whether the feet of most `places` on a plane lie on the surface that makes it."""
    from scipy.spatial import cKDTree

    feet = places - (places @ normal - height)[:, None] * normal
    return bool((cKDTree(surface).query(feet)[0] < 2 * size).mean() > 0.5)


def _surface(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, shortest axes and widths of the opaque Gaussians, float64."""
    opaque = torch.sigmoid(gaussians.opacity_logits) > OPAQUE
    scales = gaussians.log_scales[opaque].double().exp()
    axes = matrix_from_quat(normalize_quat(gaussians.quats_wxyz[opaque].double()))
    thin = scales.argmin(dim=1)
    normals = axes[torch.arange(len(axes)), :, thin]
    return gaussians.means[opaque].double().numpy(), normals.numpy(), 2.0 * scales.median(dim=1).values.numpy()


def _fit_sphere(points: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Centre, radius and relative spread of the best sphere; least squares on |x|^2 = 2 c.x + k."""
    middle = points.mean(axis=0)
    local = points - middle
    system = np.concatenate([2 * local, np.ones((len(points), 1))], axis=1)
    found, _, rank, _ = np.linalg.lstsq(system, (local**2).sum(axis=1), rcond=None)
    if rank < 4:
        return middle, 0.0, np.inf
    radii = np.linalg.norm(local - found[:3], axis=1)
    return middle + found[:3], float(radii.mean()), float(radii.std() / max(radii.mean(), 1e-12))


def _best_plane(
    means: np.ndarray, normals: np.ndarray, sizes: np.ndarray, area: np.ndarray
) -> tuple[np.ndarray, float]:
    """The plane of one Gaussian that most surface lies in, of evenly chosen candidates."""
    best, most = np.zeros(4), -1.0
    for index in np.linspace(0, len(means) - 1, min(len(means), 128)).astype(int):
        normal = normals[index]
        height = means[index] @ normal
        on = (np.abs(means @ normal - height) < sizes) & (np.abs(normals @ normal) > 0.98)
        if area[on].sum() > most:
            best, most = np.array([*normal, height]), float(area[on].sum())
    return best, most


def _solid_from_surface(means: np.ndarray, normals: np.ndarray, sizes: np.ndarray) -> Solid:
    low, high = means.min(axis=0), means.max(axis=0)
    spacing = max(float(np.median(sizes)) / 1.24, _spacing(means))  # a fit to films shrinks Gaussians
    wide = float((high - low).max()) / (GRID - 7)
    if wide <= 0:
        raise InputError("a link's Gaussians lie in one point; a shape with an extent is needed.")
    room = 0.87 * max(wide, spacing)
    cell = np.maximum(high - low + 2 * (room + wide), FLATTEST * wide * GRID) / (GRID - 1)
    origin = (low + high) / 2 - cell * (GRID - 1) / 2
    ticks = [origin[axis] + cell[axis] * np.arange(GRID) for axis in range(3)]
    grid = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1)
    side = _sides(means, grid, cell, room)
    bare = _bare(means, normals, origin, cell, room, side)
    means, normals = means[bare], normals[bare]
    normals = _turned_out(means, normals, origin, cell, side, spacing)
    field = _distances(grid.reshape(-1, 3), means, normals, spacing, side.reshape(-1)).reshape(grid.shape[:3])
    slope = np.stack(np.gradient(field, *cell), axis=-1)
    across = np.linalg.norm(slope * cell, axis=-1) / np.maximum(np.linalg.norm(slope, axis=-1), 1e-9)
    weight = np.clip(0.5 - field / np.maximum(across, cell.min()), 0.0, 1.0)
    volume = float(weight.sum()) * float(cell.prod())
    center = (grid * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
    arm = grid - center
    spread = np.einsum("xyz,xyza,xyzb->ab", weight, arm, arm) / weight.sum() + np.diag(cell**2 / 12)
    inertia = np.eye(3) * np.trace(spread) - spread
    points = _spread_points(means, normals, spacing) - center
    return Solid(
        torch.from_numpy(center),
        0.0,
        float(np.linalg.norm(points, axis=1).max()),
        volume,
        torch.from_numpy(inertia),
        torch.from_numpy(points),
        float(np.median(sizes)),
        torch.from_numpy(field),
        torch.from_numpy(origin - center),
        torch.from_numpy(cell),
    )


def _spacing(means: np.ndarray) -> float:
    """Side of the square of surface that each point has to itself, from how far the `CROWD`th neighbour is."""
    from scipy.spatial import cKDTree

    crowd = min(CROWD, len(means) - 1)
    far = cKDTree(means).query(means, k=crowd + 1)[0][:, -1]
    return float(np.median(far)) * float(np.sqrt(np.pi / crowd))


def _sides(means: np.ndarray, grid: np.ndarray, cell: np.ndarray, room: float) -> np.ndarray:
    """Which corners of the grid are outside (1: reached from its border without coming nearer to the surface than
    `room`), enclosed (-1), or cannot be told so (0: near the surface).

    Through holes between Gaussians nothing may be reached: one stays farther away at first, as far as is needed for
    something to be enclosed, and what is reached and what is not then grow back to `room`.
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree

    far = cKDTree(means).query(grid.reshape(-1, 3))[0].reshape(grid.shape[:3])
    found: list[np.ndarray] = []
    for seal in SEALS:
        free = np.pad(far >= seal * room, 1, constant_values=True)
        labels, _ = ndimage.label(free)
        reached = labels == labels[0, 0, 0]
        parts = (reached, free & ~reached)
        grown = [ndimage.distance_transform_edt(~part, sampling=cell) <= (seal - 1) * room for part in parts]
        out, within = (part[1:-1, 1:-1, 1:-1] & (far >= room) for part in grown)
        found.append(np.where(out, 1, np.where(within & parts[1].any(), -1, 0)))
        if parts[1].any():
            return found[-1]
    return found[0]  # too thin to enclose anything


def _bare(
    means: np.ndarray, normals: np.ndarray, origin: np.ndarray, cell: np.ndarray, room: float, side: np.ndarray
) -> np.ndarray:
    """Which Gaussians lie on the outer surface, not within the solid, where parts that overlap have theirs: those above
    which there is as much room as free space keeps from a surface."""
    from scipy.spatial import cKDTree

    tree = cKDTree(means)
    bare = np.zeros(len(means), bool)
    for sign in (1.0, -1.0):
        clear = tree.query(means + sign * room * normals)[0] > 0.75 * room
        base = np.floor((means + sign * (room + 0.5 * cell.max()) * normals - origin) / cell).astype(int)
        for step in np.ndindex(2, 2, 2):
            at = np.clip(base + np.array(step), 0, GRID - 1)
            bare |= clear & (side[at[:, 0], at[:, 1], at[:, 2]] > 0)
    return bare if int(bare.sum()) >= 8 else np.ones(len(means), bool)


def _turned_out(
    means: np.ndarray, normals: np.ndarray, origin: np.ndarray, cell: np.ndarray, side: np.ndarray, spacing: float
) -> np.ndarray:
    """Normals that point out of the solid: to where free space is met, away from what is enclosed."""
    votes = np.zeros(len(means))
    for reach in (1.5, 2.0, 2.5, 3.0):
        for sign in (1.0, -1.0):
            at = np.rint((means + sign * reach * max(cell.max(), spacing) * normals - origin) / cell).astype(int)
            at = np.clip(at, 0, GRID - 1)
            votes += sign * side[at[:, 0], at[:, 1], at[:, 2]]
    middle = np.where(((means - means.mean(axis=0)) * normals).sum(axis=1) < 0, -1.0, 1.0)
    return normals * np.where(votes == 0, middle, np.sign(votes))[:, None]


def _distances(at: np.ndarray, means: np.ndarray, normals: np.ndarray, spacing: float, side: np.ndarray) -> np.ndarray:
    """Signed distances of points `at`: the tangent planes of the nearest Gaussians, cut where the surface is convex and
    joined where it is concave, so that edges stay sharp between the Gaussians that bound them."""
    from scipy.spatial import cKDTree

    tree = cKDTree(means)
    far, index = tree.query(at, k=min(NEIGHBOURS, len(means)))
    gaps = ((at[:, None] - means[index]) * normals[index]).sum(-1)
    first = index[:, :1]
    spread = ((means[index] - means[first]) * (normals[index] - normals[first])).sum(-1)  # normals part: convex
    turned = (normals[index] * normals[first]).sum(-1) < 0.7
    close = (far < far[:, :1] + 1.5 * spacing) & turned
    value = gaps[:, 0].copy()
    for k in range(1, gaps.shape[1]):
        cut, joined = close[:, k] & (spread[:, k] >= -SEAM * spacing), close[:, k] & (spread[:, k] < -SEAM * spacing)
        value = np.where(cut, np.maximum(value, gaps[:, k]), np.where(joined, np.minimum(value, gaps[:, k]), value))
    distant = far[:, 0] > 2.0 * spacing
    sign = np.where(distant & (side != 0), side, np.sign(value))
    size = np.where(distant, np.maximum(np.abs(value), 0.7 * far[:, 0]), np.abs(value))
    return sign * np.minimum(size, np.hypot(far[:, 0], 0.0) + spacing)


def _spread_points(means: np.ndarray, normals: np.ndarray, spacing: float) -> np.ndarray:
    """Points spread over the surface: its corners, found as the farthest ones in some directions, then each farthest
    from all before it.

    Gaussians lie inside their faces; moving each along its tangent plane to the rim of its own disc, and back to where
    the faces that it then stands out of end, reaches the edges.
    """
    tangent = np.cross(normals, np.where(np.abs(normals[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    other = np.cross(normals, tangent)
    ring = [means + 0.5 * spacing * (a * tangent + b * other) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)]
    points = np.concatenate(ring)
    for way in normals[:: max(1, len(normals) // FACES)]:
        beyond = points @ way - (means @ way)[normals @ way > 0.7].max()
        points = points - np.where((beyond > 0) & (beyond < 0.5 * spacing), beyond, 0.0)[:, None] * way
    value = _distances(points, means, normals, spacing, np.zeros(len(points)))
    points = points[np.abs(value) < ASTRAY * spacing]
    points = means if len(points) < 8 else points
    chosen = list(dict.fromkeys(np.argmax(points @ _directions(CORNERS).T, axis=0).tolist()))
    far = ((points[:, None] - points[chosen]) ** 2).sum(axis=2).min(axis=1)
    while len(chosen) < min(POINTS, len(points)):
        chosen.append(int(far.argmax()))
        far = np.minimum(far, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return points[chosen]


def _directions(count: int) -> np.ndarray:
    """Unit vectors [count,3] spread evenly over the sphere, along a spiral."""
    up = 1 - (2 * np.arange(count) + 1) / count
    turn = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    level = np.sqrt(1 - up**2)
    return np.stack([level * np.cos(turn), level * np.sin(turn), up], axis=1)
