"""Where the robots stand: their roots refined together with joint values at instants of the whole recording."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.geometry import se3_log
from gworld.reconstruct.motion_bodies import Bodies, moved, with_bases
from gworld.reconstruct.motion_film import Film, Level, shot_at
from gworld.reconstruct.motion_fit import STEP, derivatives, metres_per_pixel
from gworld.reconstruct.motion_options import TrackOptions

INSTANTS, ROUNDS = 16, 4
LEVER = 0.5
"""Metres from a root at which its turn is felt: what a radian counts as."""


def refine_bases(
    bodies: Bodies,
    level: Level,
    films: list[Film],
    times: np.ndarray,
    states: Float[Tensor, "T S"],
    options: TrackOptions,
    misfit: Float[Tensor, " T"],
) -> tuple[Bodies, Float[Tensor, "T S"]]:
    """The bodies with refined roots, and the states, of which the instants looked at are refitted on the way.

    Only the half of the instants that fit best is believed (`misfit`). At every one the joints are eliminated (Schur
    complement), so that a root explains what no joint values can.
    """
    fair = np.flatnonzero((misfit <= misfit.median()).numpy())
    rows = fair[np.unique(np.linspace(0, len(fair) - 1, INSTANTS).round().astype(int))]
    shots = [shot_at(films, float(times[row]), level) for row in rows]
    sigma = torch.tensor([options.base_sigma] * 3 + [options.base_sigma / LEVER] * 3).double().repeat(len(bodies.arms))
    pitch = STEP * metres_per_pixel(bodies, level, states[0])
    reach = torch.tensor([1.0] * 3 + [LEVER] * 3).double().repeat(len(bodies.arms))
    given = [arm.base for arm in bodies.arms]
    states = states.clone()
    for _ in range(ROUNDS):
        count = len(sigma)
        square, right = torch.diag(1 / sigma**2), torch.zeros(count, dtype=torch.float64)
        kept = []
        for shot, row in zip(shots, rows, strict=True):
            matrix, gradient = derivatives(bodies, level, shot, states[row], pitch, pitch / reach)
            inner = matrix[count:, count:] + torch.diag((0.02 / bodies.reach) ** -2)
            cross = matrix[:count, count:]
            solved = torch.linalg.solve(inner, torch.cat([cross.T, gradient[count:, None]], dim=1))
            square = square + matrix[:count, :count] - cross @ solved[:, :-1]
            right = right + gradient[:count] - cross @ solved[:, -1]
            kept.append((row, solved))
        away = torch.cat([_twist(first, arm.base) for first, arm in zip(given, bodies.arms, strict=True)])
        step = -torch.linalg.solve(square, right + away / sigma**2)
        step = step * min(1.0, 0.02 / float((step.abs() * reach).amax() + 1e-12))
        bodies = with_bases(bodies, step.reshape(-1, 6))
        for row, solved in kept:
            states[row] = moved(bodies, states[row], -(solved[:, -1] + solved[:, :-1] @ step))
    return bodies, states


def _twist(first: Tensor, now: Tensor) -> Tensor:
    return se3_log(torch.linalg.inv(first) @ now)
