"""Flat Gaussians on the surfaces of simple shapes: what generated scenes are built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float

from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import C1, sh_from_rgb

Paint = Callable[[np.ndarray], np.ndarray]
"""Colours [N,3] in 0..1 of surface points [N,3] in the shape's own frame."""

LIGHT = np.array([0.35, -0.45, 0.82]) / np.linalg.norm([0.35, -0.45, 0.82])
OPACITY = 0.97
SPREAD = 0.62  # in-plane standard deviation over point spacing: neighbours blend into a closed, sharp surface
THICKNESS = 0.06  # standard deviation along the normal over point spacing


def box(size: Sequence[float], spacing: float, paint: Paint, center: Sequence[float] = (0, 0, 0)) -> Gaussians:
    """A closed box of edge lengths `size` (metres) with points about `spacing` metres apart."""
    half = np.asarray(size, np.float64) / 2
    points, normals = [], []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        grid_u, grid_v = np.meshgrid(_ticks(half[u], spacing), _ticks(half[v], spacing), indexing="ij")
        for sign in (-1.0, 1.0):
            face = np.zeros((grid_u.size, 3))
            face[:, axis], face[:, u], face[:, v] = sign * half[axis], grid_u.ravel(), grid_v.ravel()
            normal = np.zeros_like(face)
            normal[:, axis] = sign
            points.append(face)
            normals.append(normal)
    return _surface(np.concatenate(points), np.concatenate(normals), spacing, paint, center)


def cylinder(
    radius: float, height: float, spacing: float, paint: Paint, center: Sequence[float] = (0, 0, 0)
) -> Gaussians:
    """A closed upright cylinder (metres, axis along z) with points about `spacing` metres apart."""
    turns = max(8, int(np.ceil(2 * np.pi * radius / spacing)))
    angle, z = np.meshgrid(np.arange(turns) * (2 * np.pi / turns), _ticks(height / 2, spacing), indexing="ij")
    ring = np.stack([np.cos(angle.ravel()), np.sin(angle.ravel()), np.zeros(angle.size)], axis=1)
    side = ring * radius + np.stack([np.zeros(z.size), np.zeros(z.size), z.ravel()], axis=1)
    count = max(4, int(np.pi * radius**2 / spacing**2))
    index = np.arange(count) + 0.5
    distance, turn = radius * np.sqrt(index / count), index * np.pi * (3 - np.sqrt(5))
    cap = np.stack([distance * np.cos(turn), distance * np.sin(turn), np.full(count, height / 2)], axis=1)
    up = np.tile([0.0, 0.0, 1.0], (count, 1))
    points = np.concatenate([side, cap, cap * [1, 1, -1]])
    return _surface(points, np.concatenate([ring, up, -up]), spacing, paint, center)


def sphere(radius: float, spacing: float, paint: Paint, center: Sequence[float] = (0, 0, 0)) -> Gaussians:
    """A ball (metres) with points about `spacing` metres apart on a Fibonacci spiral."""
    count = max(16, int(4 * np.pi * radius**2 / spacing**2))
    index = np.arange(count) + 0.5
    z, turn = 1 - 2 * index / count, index * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - z * z)
    normals = np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)
    return _surface(normals * radius, normals, spacing, paint, center)


def plain(red: float, green: float, blue: float) -> Paint:
    """One colour everywhere."""
    return lambda points: np.tile([red, green, blue], (len(points), 1))


def checker(first: Sequence[float], second: Sequence[float], cell: float) -> Paint:
    """A three-dimensional checkerboard of `cell` metres."""

    def paint(points: np.ndarray) -> np.ndarray:
        odd = np.floor(points / cell + 1e-6).sum(axis=1).astype(int) % 2 == 1
        return np.where(odd[:, None], np.asarray(second, float), np.asarray(first, float))

    return paint


def grain(color: Sequence[float], contrast: float, wavelength: float) -> Paint:
    """Wood-like stripes along x, `wavelength` metres apart."""

    def paint(points: np.ndarray) -> np.ndarray:
        wobble = points[:, 1] + 0.02 * np.sin(points[:, 0] * 9.0) + 0.008 * np.sin(points[:, 0] * 31.0 + 1.0)
        rings = np.sin(wobble * (2 * np.pi / wavelength)) + 0.5 * np.sin(wobble * (5.3 * np.pi / wavelength))
        return np.clip(np.asarray(color, float) * (1 + contrast * rings[:, None]), 0.0, 1.0)

    return paint


def _ticks(half: float, spacing: float) -> np.ndarray:
    count = max(1, int(np.ceil(2 * half / spacing)))
    return (np.arange(count) + 0.5) * (2 * half / count) - half


def _surface(
    points: np.ndarray, normals: np.ndarray, spacing: float, paint: Paint, center: Sequence[float]
) -> Gaussians:
    count = len(points)
    shade = 0.55 + 0.45 * np.clip(normals @ LIGHT, 0.0, 1.0)
    sh = np.zeros((count, 4, 3))
    sh[:, 0] = sh_from_rgb(np.clip(paint(points) * shade[:, None], 0.0, 1.0))
    # A soft highlight: brighter when looked at against the mirrored light (degree 1, order y z x).
    mirror = 2 * (normals @ LIGHT)[:, None] * normals - LIGHT
    sh[:, 1:, :] = (-0.06 / C1 * mirror[:, [1, 2, 0]] * [-1, 1, -1])[:, :, None]
    scales = np.log(spacing * np.array([SPREAD, SPREAD, THICKNESS]))
    return Gaussians(
        means=torch.tensor(points + np.asarray(center, float), dtype=torch.float32),
        quats_wxyz=_quats_to(normals),
        log_scales=torch.tensor(np.tile(scales, (count, 1)), dtype=torch.float32),
        opacity_logits=torch.full((count,), float(np.log(OPACITY / (1 - OPACITY)))),
        sh=torch.tensor(sh, dtype=torch.float32),
        links=torch.zeros(count, dtype=torch.int32),
    )


def _quats_to(normals: np.ndarray) -> Float[torch.Tensor, "N 4"]:
    """Shortest rotations that take +z to the unit normals."""
    x, y, z = normals.T
    quats = np.stack([1 + z, -y, x, np.zeros(len(z))], axis=1)
    quats[z < -0.999999] = (0.0, 1.0, 0.0, 0.0)
    return torch.tensor(quats / np.linalg.norm(quats, axis=1, keepdims=True), dtype=torch.float32)
