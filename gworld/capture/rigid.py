"""The rigid motion that most of the picture follows: one camera among a few neighbouring pictures, point by point.

Tracks x_is of points i of one picture in its neighbours s are explained by camera motions (R_s, t_s) and one inverse
depth rho_i >= 0 per point, x_is ~ K (R_s r_i + rho_i t_s) with r_i = K^-1 x_i, by Gauss-Newton in which the depths are
eliminated (Schur complement). A Geman-McClure kernel whose scale shrinks step by step (graduated non-convexity, Yang
et al. 2020) lets the largest rigid group win; what is left over per point says whether it moves by itself. Unlike the
epipolar constraint of two views, depths shared by several views also betray motion along the epipolar lines, and a
camera that only turns, or a scene that is flat, is no special case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

NEAREST = 20.0
"""Largest inverse depth, in units of the median one."""
AHEAD = 0.05
"""Points nearer than this share of the median depth are projected as if they were that far."""
DAMPING = 1e-3
BLOCK = 32
SCALES = (8.0, 4.0, 2.0, 1.0, 1.0)
"""Pixels at which the kernel gives way, step by step."""
DIRECTIONS = ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


@dataclass(frozen=True)
class Tracks:
    """Where points `start` [N,2] of a picture lie in those `offsets` pictures away: `at` [S,N,2] pixels, `seen`."""

    start: Float[ndarray, "N 2"]
    at: Float[ndarray, "S N 2"]
    seen: Bool[ndarray, "S N"]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Motion:
    """Camera motions `rotation`, `shift` (units of the median depth) and their mean cost per observation."""

    rotation: Float[ndarray, "S 3 3"]
    shift: Float[ndarray, "S 3"]
    cost: float


def rays_of(points: ndarray, focal: float, centre: tuple[float, float]) -> ndarray:
    """Directions [N,3] with z = 1 of pixels [N,2]."""
    flat = (points - np.asarray(centre)) / focal
    return np.concatenate([flat, np.ones((len(flat), 1))], 1)


def targets_of(tracks: Tracks, centre: tuple[float, float]) -> ndarray:
    """Where the tracks lie in each neighbour: pixels [S,2,N] from the centre."""
    return np.ascontiguousarray((tracks.at - np.asarray(centre)).swapaxes(1, 2))


def fit_motion(tracks: Tracks, focal: float, centre: tuple[float, float], guess: Motion | None = None) -> Motion:
    """The dominant rigid motion of the tracks, from `guess` or from several directions of travel, the cheapest kept."""
    rays = rays_of(tracks.start, focal, centre)
    seen = tracks.seen.astype(np.float64)
    target = targets_of(tracks, centre)
    few = slice(None, None, max(1, len(rays) // 400))
    starts = [] if guess is None else [guess]
    starts += [_guess(tracks.offsets, np.asarray(direction, float)) for direction in DIRECTIONS]
    trials = [_descend(rays[few], target[:, :, few], seen[:, few], focal, start, SCALES[:3], 3) for start in starts]
    best = min(trials, key=lambda motion: motion.cost)
    return _descend(rays, target, seen, focal, best, SCALES[2:], 4)


def _guess(offsets: tuple[int, ...], direction: ndarray) -> Motion:
    steps = np.asarray(offsets, float)[:, None]
    return Motion(np.tile(np.eye(3), (len(offsets), 1, 1)), 0.02 * steps * direction, np.inf)


def _descend(
    rays: ndarray, target: ndarray, seen: ndarray, focal: float, start: Motion, scales: tuple[float, ...], rounds: int
) -> Motion:
    rotation, shift, depth = start.rotation.copy(), start.shift.copy(), np.ones(len(rays))
    for scale in scales:
        for _ in range(rounds):
            depth = best_depth(rays, target, seen, focal, Motion(rotation, shift, 0.0), scale, depth)
            turn, move, nudge = _step(rays, target, seen, focal, (rotation, shift, depth), scale)
            rotation = _exp(turn) @ rotation
            shift = shift + move
            depth = np.clip(depth + nudge, 0, NEAREST)
            unit = np.median(depth)
            if unit > 1e-3:
                depth, shift = depth / unit, shift * unit
    square = residuals(rays, target, focal, Motion(rotation, shift, 0.0), depth)
    cost = float((seen * square / (square + scales[-1] ** 2)).sum() / max(1.0, seen.sum()))
    return Motion(rotation, shift, cost)


def project(rays: ndarray, depth: ndarray, focal: float, motion: Motion) -> tuple[ndarray, ndarray]:
    """Points [S,3,N] in each neighbour's axes and their pixels [S,2,N] from the centre."""
    points = motion.rotation @ rays.T + motion.shift[:, :, None] * depth
    return points, focal * points[:, :2] / np.maximum(points[:, 2:], AHEAD)


def residuals(rays: ndarray, target: ndarray, focal: float, motion: Motion, depth: ndarray) -> ndarray:
    """Squared distances [S,N] in pixels between where points lie (`target` [S,2,N]) and where the motion puts them."""
    return _square(target - project(rays, depth, focal, motion)[1])


def best_depth(
    rays: ndarray, target: ndarray, seen: ndarray, focal: float, motion: Motion, scale: float, depth: ndarray
) -> ndarray:
    """Inverse depths [N] after two robust Gauss-Newton steps from `depth`."""
    for _ in range(2):
        points, pixels = project(rays, depth, focal, motion)
        slope = _slope(points, focal, motion.shift)
        error = target - pixels
        weight = seen * _weight(_square(error), scale)
        top = (weight * _dot(slope, error)).sum(0)
        bottom = (weight * _square(slope)).sum(0) + 1e-3 * scale**2
        depth = np.clip(depth + top / bottom, 0, NEAREST)
    return depth


def _square(values: ndarray) -> ndarray:
    return values[:, 0] ** 2 + values[:, 1] ** 2


def _dot(one: ndarray, two: ndarray) -> ndarray:
    return one[:, 0] * two[:, 0] + one[:, 1] * two[:, 1]


def _slope(points: ndarray, focal: float, shift: ndarray) -> ndarray:
    """d pixel / d inverse depth [S,2,N]."""
    ahead = np.maximum(points[:, 2:], AHEAD)
    return focal * (shift[:, :2, None] - points[:, :2] / ahead * shift[:, 2:, None]) / ahead


def _weight(square: ndarray, scale: float) -> ndarray:
    """Geman-McClure."""
    return (scale**2 / (scale**2 + square)) ** 2


def _step(
    rays: ndarray, target: ndarray, seen: ndarray, focal: float, state: tuple[ndarray, ndarray, ndarray], scale: float
) -> tuple[ndarray, ndarray, ndarray]:
    """One Gauss-Newton step: turns [S,3], moves [S,3], changes of inverse depth [N]."""
    rotation, shift, depth = state
    points, pixels = project(rays, depth, focal, Motion(rotation, shift, 0.0))
    error = target - pixels
    weight = seen * _weight(_square(error), scale)
    jacobian, slope = _jacobian(points, shift, depth, focal), _slope(points, focal, shift)
    weighted = jacobian * weight[:, None, :, None]  # [S,2,N,6]
    count, number = weight.shape
    flat = weighted.reshape(count, 2 * number, 6).swapaxes(1, 2)
    camera = flat @ jacobian.reshape(count, 2 * number, 6)
    right = (flat * error.reshape(count, 1, 2 * number)).sum(2)
    mixed = (weighted * slope[..., None]).sum(1)  # [S,N,6]
    bottom = (weight * _square(slope)).sum(0) + 1e-3 * scale**2
    top = (weight * _dot(slope, error)).sum(0)
    tall = mixed.swapaxes(1, 2).reshape(6 * count, number)
    matrix = -_product(tall / bottom, tall)
    for index in range(count):
        block = slice(6 * index, 6 * index + 6)
        matrix[block, block] += camera[index]
    diagonal = np.einsum("sii->si", camera).reshape(-1)
    matrix += np.diag(DAMPING * diagonal + 1e-6 * (1 + diagonal.max()))
    solution = np.linalg.solve(matrix, right.reshape(-1) - (tall * (top / bottom)).sum(1))
    nudge = (top - (solution[:, None] * tall).sum(0)) / bottom
    return solution.reshape(count, 6)[:, :3], solution.reshape(count, 6)[:, 3:], nudge


def _product(one: ndarray, two: ndarray) -> ndarray:
    """`one @ two.T` of wide matrices in blocks so small that no BLAS starts threads, which would cost far more."""
    pad = -one.shape[1] % BLOCK
    parts = [np.pad(values, ((0, 0), (0, pad))).reshape(len(values), -1, BLOCK) for values in (one, two)]
    return (parts[0].transpose(1, 0, 2) @ parts[1].transpose(1, 2, 0)).sum(0)


def _jacobian(points: ndarray, shift: ndarray, depth: ndarray, focal: float) -> ndarray:
    """d pixel / d (turn, move) [S,2,N,6], the turn applied from the left."""
    ahead = np.maximum(points[:, 2], AHEAD)
    inverse = focal / ahead
    across, down = points[:, 0] / ahead, points[:, 1] / ahead
    x, y, z = np.moveaxis(points - shift[:, :, None] * depth, 1, 0)
    none = np.zeros_like(x)
    first = (-across * y, z + across * x, -y, depth + none, none, -across * depth)
    second = (-z - down * y, down * x, x, none, depth + none, -down * depth)
    return np.stack([np.stack(first, -1), np.stack(second, -1)], 1) * inverse[:, None, :, None]


def _exp(turn: ndarray) -> ndarray:
    """Rotations [S,3,3] of rotation vectors [S,3] (Rodrigues)."""
    angle = np.linalg.norm(turn, axis=-1)[:, None, None]
    cross = np.zeros((len(turn), 3, 3))
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -turn[:, 2], turn[:, 1], -turn[:, 0]
    cross = cross - np.swapaxes(cross, -1, -2)
    safe = np.maximum(angle, 1e-12)
    return np.eye(3) + np.sin(safe) / safe * cross + (1 - np.cos(safe)) / safe**2 * cross @ cross
