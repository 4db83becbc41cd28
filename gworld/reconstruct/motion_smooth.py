"""From frame-by-frame states to one smooth motion, with what is known about each state.

Each state was found with a Gauss-Newton matrix: firm where the pictures bind it, soft where a body is hidden or blurs.
The smooth motion is the mean of all motions with white accelerations, given these states; how strong accelerations are
is measured from the states themselves, per component, so that quick motion is not rounded off (Rauch, Tung, Striebel
1965; Barfoot, State Estimation for Robotics, 2017, 3.2 and 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from gworld.reconstruct.motion_bodies import Bodies, between, moved

WIDEST = 2.0
"""Metres (and metres per second) within which what nothing binds is believed to be."""
LEAST_ACCELERATION = 0.02
ROUNDS = 2


@dataclass(frozen=True, eq=False)
class Smooth:
    """States [T,S] at every time, and the covariance [T,P,P] of steps from them."""

    states: Float[Tensor, "T S"]
    covariance: Float[Tensor, "T P P"]


def smooth_states(
    bodies: Bodies,
    times: Float[ndarray, " T"],
    states: Float[Tensor, "T S"],
    matrices: Float[Tensor, "T P P"],
    fitted: ndarray,
    smoothness: float,
) -> Smooth:
    """Smooth motion through states of which those `fitted [T]` were fitted (the others are fillers without weight).

    `matrices` are inverse covariances in steps from the states (zero where not fitted).
    """
    count, size = len(times), bodies.size
    # Coordinates that add up small steps: free of the wrap of angles, and a step of the smoother is a step of the body.
    # All are in metres that a body's farthest point moves, which makes joints and shifts alike.
    reach = bodies.reach.numpy()
    way = torch.cat([torch.zeros(1, size), between(bodies, states[:-1], states[1:]).cumsum(0)]).double().numpy() * reach
    matrix = matrices.double().numpy() * fitted[:, None, None] / np.outer(reach, reach)
    if count < 3 or smoothness <= 0:
        covariance = np.linalg.inv(matrix + np.eye(size) / WIDEST**2)
        return Smooth(states, torch.from_numpy(covariance / np.outer(reach, reach)))
    strength, result, covariance = _roughness(times, way, fitted), way, matrix
    for _ in range(ROUNDS):
        result, covariance = _smoothed(times, way, matrix, strength / np.sqrt(smoothness))
        strength = np.maximum(2 * np.sqrt((_accelerations(times, result) ** 2).mean(0)), LEAST_ACCELERATION)
    step = torch.from_numpy((result - way) / reach)
    return Smooth(moved(bodies, states, step), torch.from_numpy(covariance / np.outer(reach, reach)))


def _roughness(times: ndarray, way: ndarray, fitted: ndarray) -> ndarray:
    """A first guess of each component's accelerations: those of a moving mean of the fitted states."""
    rows = np.flatnonzero(fitted)
    width = max(1, min(7, len(rows) // 3))
    kernel = np.ones(width) / width
    calm = np.stack([np.convolve(column, kernel, mode="valid") for column in way[rows].T], axis=1)
    when = np.convolve(times[rows], kernel, mode="valid")
    if len(when) < 4:
        return np.ones(way.shape[1])
    return np.maximum(np.sqrt((_accelerations(when, calm) ** 2).mean(0)), LEAST_ACCELERATION)


def _second(times: ndarray) -> ndarray:
    """Weights [T-2,3] that give the second derivative at the inner times."""
    one, two = np.diff(times)[:-1], np.diff(times)[1:]
    return np.stack([2 / (one * (one + two)), -2 / (one * two), 2 / (two * (one + two))], axis=1)


def _accelerations(times: ndarray, way: ndarray) -> ndarray:
    weights = _second(times)
    return weights[:, :1] * way[:-2] + weights[:, 1:2] * way[1:-1] + weights[:, 2:] * way[2:]


def _smoothed(
    times: ndarray, way: ndarray, matrix: ndarray, strength: ndarray
) -> tuple[Float[ndarray, "T P"], Float[ndarray, "T P P"]]:
    """Means and covariances of places, from a Kalman filter over places and velocities and a pass back."""
    count, size = way.shape
    typical = float(np.median(np.diff(times)))
    power = strength**2 * typical  # an acceleration that keeps for one typical gap
    mean, spread = np.zeros(2 * size), np.eye(2 * size) * WIDEST**2
    mean[:size] = way[0]
    ahead_means, ahead, means, spreads, moves = [], [], [], [], []
    for row in range(count):
        gap = float(times[row] - times[row - 1]) if row else 0.0
        move = np.eye(2 * size)
        move[:size, size:] = gap * np.eye(size)
        noise = np.block(
            [
                [np.diag(power * gap**3 / 3), np.diag(power * gap**2 / 2)],
                [np.diag(power * gap**2 / 2), np.diag(power * gap)],
            ]
        )
        mean, spread = move @ mean, move @ spread @ move.T + noise
        ahead_means.append(mean)
        ahead.append(spread)
        moves.append(move)
        known = matrix[row]
        gain = spread[:, :size] @ known @ np.linalg.inv(np.eye(size) + spread[:size, :size] @ known)
        mean = mean + gain @ (way[row] - mean[:size])
        spread = spread - gain @ spread[:size]
        spread = (spread + spread.T) / 2
        means.append(mean)
        spreads.append(spread)
    for row in range(count - 2, -1, -1):
        back = np.linalg.solve(ahead[row + 1], moves[row + 1] @ spreads[row]).T
        means[row] = means[row] + back @ (means[row + 1] - ahead_means[row + 1])
        spreads[row] = spreads[row] + back @ (spreads[row + 1] - ahead[row + 1]) @ back.T
    return np.stack(means)[:, :size], np.stack(spreads)[:, :size, :size]
