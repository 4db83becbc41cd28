"""Surfaces into flat Gaussians: evenly spread discs that close the surface and stop at its edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from gworld.agents.options import SkinOptions
from gworld.agents.surfaces import shape_surfaces
from gworld.agents.tree import Skeleton, Surface
from gworld.errors import InputError
from gworld.geometry import quat_from_matrix
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.harmonics import C1, sh_from_rgb

SPREAD = 0.62
"""Standard deviation in the surface over the spacing: neighbours blend into a closed, sharp surface."""
EDGE = 0.6
"""Standard deviation across a sharp edge over the distance to it: a row of discs ends about at the edge."""
SHARP = np.cos(np.radians(35.0))
CANDIDATES, ROUNDS = 6, 2


def skin_robot(skeleton: Skeleton, options: SkinOptions = SkinOptions()) -> Gaussians:  # noqa: B008 (frozen)
    """Gaussians of every link's shapes in the frames of the links; `links` index the skeleton's links.

    Collision shapes stand in where a robot has no visual ones at all. Raises `InputError` for a robot without shapes
    and for one so large that it needs more than `options.maximum` Gaussians.
    """
    visible = [shape for shape in skeleton.shapes if not shape.collision] or list(skeleton.shapes)
    if not visible:
        raise InputError(f"robot `{skeleton.name}` has no shapes; one with visual geometry is needed.")
    parts = []
    surfaces = [(shape.link, surface) for shape in visible for surface in shape_surfaces(shape)]
    _check_total([surface for _, surface in surfaces], options, f"robot `{skeleton.name}`")
    for number, (link, surface) in enumerate(surfaces):
        part = skin_surface(surface, replace(options, seed=options.seed + number))
        parts.append(replace(part, links=torch.full_like(part.links, link)))
    return join_gaussians(parts)


def skin_surfaces(
    surfaces: Sequence[Surface],
    source: str,
    options: SkinOptions = SkinOptions(),  # noqa: B008 (frozen)
) -> Gaussians:
    """Gaussians of one rigid object's surfaces, all of link 0; `source` names it in errors."""
    _check_total(surfaces, options, source)
    return join_gaussians(
        [skin_surface(surface, replace(options, seed=options.seed + i)) for i, surface in enumerate(surfaces)]
    )


def skin_surface(surface: Surface, options: SkinOptions = SkinOptions()) -> Gaussians:  # noqa: B008 (frozen)
    """Flat Gaussians over one surface (link 0), at least one.

    Area-uniform candidates are grouped around centres that move to the middle of their group, which spreads them like
    blue noise (centroidal Voronoi, Du, Faber, Gunzburger, SIAM Review 1999); each centre's size is that of its group,
    its colour the group's mean. Opposite sides of thin walls are kept apart. Across a sharp edge, discs shrink so that
    the outline stays at the edge. Both sides are visible.
    """
    area = float(_areas(surface).sum())
    if not 0 < area < float("inf"):
        raise InputError("a surface has no area; triangles of a finite size above zero are needed.")
    count = max(1, round(area * options.per_square_metre))
    rng = np.random.default_rng(options.seed)
    face, corner = _sample(surface, max(CANDIDATES * count, 64), rng)
    points = (surface.vertices[surface.faces[face]] * corner[:, :, None]).sum(axis=1)
    normals = _normals(surface)[face]
    spacing = np.sqrt(area / count)
    centre, group = _spread(points, normals, count, spacing, rng)
    size = np.bincount(group, minlength=len(centre)) * (area / len(points))
    rgb = _colors(surface, face, corner)
    mean = np.stack([np.bincount(group, rgb[:, k], len(centre)) for k in range(3)], axis=1)
    rgb = mean / np.maximum(np.bincount(group, minlength=len(centre)), 1)[:, None]
    axes, sigma = _discs(surface, points[centre], normals[centre], np.sqrt(size), spacing)
    depth = options.inset * spacing * _is_thick(points[centre], normals[centre], spacing)
    scales = np.concatenate([sigma, np.full((len(centre), 1), options.thickness * spacing)], axis=1)
    return Gaussians(
        means=torch.tensor(points[centre] - depth[:, None] * normals[centre], dtype=torch.float32),
        quats_wxyz=quat_from_matrix(torch.tensor(axes, dtype=torch.float32)),
        log_scales=torch.tensor(np.log(scales), dtype=torch.float32),
        opacity_logits=torch.full((len(centre),), float(np.log(options.opacity / (1 - options.opacity)))),
        sh=_shade(rgb, normals[centre], options.headlight),
        links=torch.zeros(len(centre), dtype=torch.int32),
    )


def _check_total(surfaces: Sequence[Surface], options: SkinOptions, source: str) -> None:
    if not (options.per_square_metre > 0 and 0 < options.opacity < 1 and options.thickness > 0):
        raise InputError(
            f"skin options {options} cannot be used; density and thickness above 0 and opacity in 0..1 are needed."
        )
    total = sum(float(_areas(surface).sum()) for surface in surfaces) * options.per_square_metre
    if not total <= options.maximum:
        raise InputError(
            f"{source} needs {total:.3g} Gaussians; at most {options.maximum} are made. Lower `per_square_metre` (now "
            f"{options.per_square_metre:g}), or check that its unit is the metre."
        )


def _areas(surface: Surface) -> np.ndarray:
    a, b, c = surface.vertices[surface.faces].transpose(1, 0, 2)
    return 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)


def _normals(surface: Surface) -> np.ndarray:
    a, b, c = surface.vertices[surface.faces].transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.maximum(length, 1e-300), [0.0, 0.0, 1.0])


def _sample(surface: Surface, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Area-uniform points: the face [S] and the barycentric weights [S,3] of each; strata keep small parts covered."""
    cumulative = np.cumsum(_areas(surface))
    place = (np.arange(count) + rng.random(count)) / count * cumulative[-1]
    face = np.minimum(np.searchsorted(cumulative, place, side="right"), len(cumulative) - 1)
    root, v = np.sqrt(rng.random(count)), rng.random(count)
    return face, np.stack([1 - root, root * (1 - v), root * v], axis=1)


def _spread(
    points: np.ndarray, normals: np.ndarray, count: int, spacing: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the chosen candidates, about `count`, and the group each candidate belongs to."""
    from scipy.spatial import cKDTree

    space = np.concatenate([points, normals * spacing], axis=1)
    # Candidates come in strata along the faces: one from every few starts more evenly than any.
    centre = np.floor((np.arange(count) + rng.random(count)) * (len(points) / count)).astype(int)
    for _ in range(ROUNDS):
        group = cKDTree(space[centre]).query(space)[1]
        members = np.maximum(np.bincount(group, minlength=len(centre)), 1)
        middle = np.stack([np.bincount(group, space[:, k], len(centre)) for k in range(6)], axis=1) / members[:, None]
        # The candidate nearest to the middle of its group lies on the surface; the middle itself may not.
        distance = ((space - middle[group]) ** 2).sum(axis=1)
        order = np.lexsort((distance, group))
        centre = order[np.unique(group[order], return_index=True)[1]]
    return centre, cKDTree(space[centre]).query(space)[1]


def _is_thick(points: np.ndarray, normals: np.ndarray, spacing: float) -> np.ndarray:
    """Where no disc that faces the other way is near: there, discs may lie below the surface."""
    from scipy.spatial import cKDTree

    near = min(16, len(points))
    distance, index = cKDTree(points).query(points, k=near, distance_upper_bound=1.5 * spacing)
    distance, index = distance.reshape(-1, near), np.minimum(index.reshape(-1, near), len(points) - 1)
    facing = (normals[index] * normals[:, None]).sum(axis=2)
    return ~((facing < -0.5) & np.isfinite(distance)).any(axis=1)


def _discs(
    surface: Surface, points: np.ndarray, normals: np.ndarray, local: np.ndarray, spacing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Axes [N,3,3] (columns: two in the surface, the normal) and in-surface standard deviations [N,2]."""
    sigma = SPREAD * np.clip(local, 0.4 * spacing, 1.6 * spacing)
    sigma = np.stack([sigma, sigma], axis=1)
    helper = np.eye(3)[np.argmin(np.abs(normals), axis=1)]
    first = np.cross(normals, helper)
    edge, direction = _edge_samples(surface, spacing / 3)
    if len(edge):
        from scipy.spatial import cKDTree

        distance, nearest = cKDTree(edge).query(points, distance_upper_bound=2 * spacing)
        close = np.isfinite(distance)
        along = direction[nearest[close]]
        offset = edge[nearest[close]] - points[close]
        offset -= (offset * along).sum(axis=1, keepdims=True) * along
        across = np.cross(along, normals[close])
        usable = np.linalg.norm(across, axis=1) > 0.3
        rows = np.flatnonzero(close)[usable]
        first[rows] = across[usable]
        gap = np.linalg.norm(offset[usable], axis=1)
        sigma[rows, 0] = np.minimum(sigma[rows, 0], np.maximum(EDGE * gap, 0.12 * spacing))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(normals, first), normals], axis=-1), sigma


def _edge_samples(surface: Surface, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Points every `step` metres along sharp edges and open borders, with the edges' directions."""
    _, vertex = np.unique(np.round(surface.vertices / max(step * 1e-3, 1e-9)), axis=0, return_inverse=True)
    faces = vertex.reshape(-1)[surface.faces]
    normals = _normals(surface)
    ends = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    owner = np.repeat(np.arange(len(faces)), 3)
    position = surface.vertices[surface.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)]
    keep = ends[:, 0] != ends[:, 1]
    ends, owner, position = ends[keep], owner[keep], position[keep]
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    ends, owner, position = ends[order], owner[order], position[order]
    fresh = np.ones(len(ends), bool)
    fresh[1:] = (ends[1:] != ends[:-1]).any(axis=1)
    starts = np.flatnonzero(fresh)
    uses = np.diff(np.append(starts, len(ends)))
    partner = np.minimum(starts + 1, len(ends) - 1)
    bend = (normals[owner[starts]] * normals[owner[partner]]).sum(axis=1)
    sharp = starts[(uses != 2) | (bend < SHARP)]
    begin, end = position[sharp, 0], position[sharp, 1]
    length = np.linalg.norm(end - begin, axis=1)
    pieces = np.maximum(np.ceil(length / step).astype(int), 1)
    which = np.repeat(np.arange(len(sharp)), pieces)
    share = (np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + 0.5) / pieces[which]
    direction = (end - begin) / np.maximum(length, 1e-12)[:, None]
    return begin[which] + share[:, None] * (end - begin)[which], direction[which]


def _colors(surface: Surface, face: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Colours [S,3] in 0..1 at points given by face and barycentric weights."""
    if surface.texture is not None and surface.uv is not None:
        height, width = surface.texture.shape[:2]
        uv = (surface.uv[face] * corner[:, :, None]).sum(axis=1)
        column = np.floor((uv[:, 0] % 1.0) * width).astype(int) % width
        row = np.floor(((1.0 - uv[:, 1]) % 1.0) * height).astype(int) % height
        return surface.texture[row, column] / 255.0
    if surface.rgb is not None:
        return np.clip((surface.rgb[face] * corner[:, :, None]).sum(axis=1), 0.0, 1.0)
    return np.full((len(face), 3), 0.6)


def _shade(rgb: np.ndarray, normals: np.ndarray, headlight: float) -> torch.Tensor:
    """Colours whose brightness is 1 - h + h cos(angle between view and normal): exact in degree 1."""
    sh = np.zeros((len(rgb), 4, 3))
    sh[:, 0] = sh_from_rgb(rgb * (1 - headlight))
    tilt = normals[:, [1, 2, 0]] * [1.0, -1.0, 1.0] * (headlight / C1)
    sh[:, 1:] = tilt[:, :, None] * rgb[:, None, :]
    return torch.tensor(sh if headlight else sh[:, :1], dtype=torch.float32)
