"""Where a robot stands, by drawing it: known joint values, fixed calibrated cameras, an unknown root.

One root explains the pictures of all instants and cameras at once. A population is searched on small pictures within
`reach` and `turn` of where the robot is thought to be; the best few are refined from coarse to fine by
Levenberg-Marquardt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.tree import Skeleton
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, quat_from_rotvec, transform_from
from gworld.reconstruct.base_sight import (
    LookOptions,
    Sighting,
    bare_residuals,
    boxes_of,
    costs_of,
    normal_equations,
    open_sighting,
    painted,
    residuals_of,
    robust,
    shifted,
)
from gworld.reconstruct.motion_film import Film, Plates
from gworld.scene.cameras import Cameras

FACTORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of a step that are tried: residuals far out make it short."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class LookFit:
    """A root found by looking: world_from_base [4,4]; standard deviations (m, rad) from the pictures alone; the share
    of the difference between pictures and plates, in the robot's pixels, that drawing it explains."""

    world_from_base: Float[Tensor, "4 4"]
    position_sigma: float
    rotation_sigma: float
    explained: float


def base_from_pictures(
    skeleton: Skeleton,
    values: Float[Tensor, "T V"],
    times: Float[Tensor, " T"],
    films: Sequence[Film],
    cameras: Cameras,
    plates: Plates,
    near: Float[Tensor, "4 4"],
    options: LookOptions = LookOptions(),  # noqa: B008 (frozen)
    *,
    whole: bool = False,
    progress: Progress | None = None,
) -> LookFit:
    """The root of a robot of known joint values (rows with NaN are left out) in the footage of fixed cameras.

    `near` is where the root is thought to be. `plates` show the scene without the robot; links that never move in its
    root are in plates made of the footage itself, so only moving links are compared unless the robot is missing from
    the plates as a `whole`. Raises `InputError` when the robot is not seen where it is searched for, or nothing moves.
    """
    sight = open_sighting(skeleton, values, times, list(films), cameras, plates, options, whole)
    starts = _search(sight, near.double(), options, progress)
    shrinks = [shrink for shrink in sorted(sight.levels, reverse=True) if shrink >= options.finest]
    rated = []
    for start in starts:
        base = _refine(sight, start, shrinks[0], 8)
        rated.append((float(costs_of(sight, shrinks[0], base[None], everything=True)[0]), base))
    base = min(rated, key=lambda pair: pair[0])[1]
    for number, shrink in enumerate(shrinks):
        sight = painted(sight, base, shrink)
        base = _refine(sight, base, shrink, 10)
        if progress is not None:
            progress("refine", number + 1, len(shrinks))
    return _judged(sight, base, shrinks[-1], options)


def _search(sight: Sighting, near: Tensor, options: LookOptions, progress: Progress | None) -> list[Tensor]:
    """The best roots that a population finds around `near`, best first.

    Differential evolution, current-to-best (Storn and Price, 1997).
    """
    generator = torch.Generator().manual_seed(options.seed)
    tilt = min(options.tilt, options.turn)
    spread = torch.tensor([options.reach] * 3 + [tilt, tilt, options.turn], dtype=torch.float64)
    count, shrink = options.population, max(sight.levels)

    def bases(steps: Tensor) -> Tensor:
        turn = matrix_from_quat(quat_from_rotvec(steps[:, 3:]))
        return transform_from(turn @ near[:3, :3], near[:3, 3] + steps[:, :3])

    def price(steps: Tensor) -> Tensor:
        return costs_of(sight, shrink, bases(steps), everything=False)

    pool = (2 * torch.rand(count, 6, generator=generator, dtype=torch.float64) - 1) * spread
    pool[0] = 0
    value = price(pool)
    for number in range(options.rounds):
        elite = value.argsort()[: max(3, count // 8)]
        guide = elite[torch.randint(len(elite), (count,), generator=generator)]
        pair = torch.randint(count, (2, count), generator=generator)
        rate = 0.3 + 0.6 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
        step = rate * (pool[guide] - pool + pool[pair[0]] - pool[pair[1]])
        step = step * (torch.rand(count, 6, generator=generator) < 0.8)
        step = step + 0.01 * spread * torch.randn(count, 6, generator=generator, dtype=torch.float64)
        fresh = torch.minimum(torch.maximum(pool + step, -spread), spread)
        cost = price(fresh)
        better = cost < value
        pool, value = torch.where(better[:, None], fresh, pool), torch.where(better, cost, value)
        if progress is not None:
            progress("search", number + 1, options.rounds)
    best = value.argsort()
    kept = [best[0]]
    for row in best[1:]:  # a second and a third valley, where there are any
        if len(kept) < 3 and all(float(((pool[row] - pool[old]) / spread).abs().amax()) > 0.15 for old in kept):
            kept.append(row)
    return [bases(pool[row][None])[0] for row in kept]


def _refine(sight: Sighting, base: Tensor, shrink: int, steps: int) -> Tensor:
    """Levenberg-Marquardt at one size; several multiples of every step are tried, for far residuals make it short."""
    damping, factors = 1e-3, torch.tensor(FACTORS, dtype=torch.float64)
    for _ in range(steps):
        gradient, matrix, pitch = normal_equations(sight, shrink, base)
        best = 0
        for _ in range(3):
            loaded = matrix + damping * torch.diag(matrix.diagonal()) + 1e-9 * torch.eye(6, dtype=torch.float64)
            step = -torch.linalg.solve(loaded, gradient)
            size = float(step.abs().amax())
            if size < 0.02 * pitch:
                return base
            line = shifted(sight, base, step * (factors * min(1.0, 20 * pitch / size))[:, None])
            found = costs_of(sight, shrink, line, everything=True)
            best = int(found.argmin())
            if best > 0:
                break
            damping = max(damping, 1e-3) * 30
        if best == 0 or bool(found[0] - found[best] < 1e-5 * found[0].abs()):
            return line[best]
        base, damping = line[best], max(damping * 0.3, 1e-6)
    return base


def _judged(sight: Sighting, base: Tensor, shrink: int, options: LookOptions) -> LookFit:
    """The fit with its uncertainty and what it explains; raises `InputError` when that is too little."""
    missed, bare = 0.0, 0.0
    for instant, camera, box in boxes_of(sight, shrink, base[None]):
        residual, alpha = residuals_of(sight, shrink, base[None], instant, camera, box)
        missed += float((alpha[0] * robust(residual[0].square().sum(-1))).sum())
        bare += float((alpha[0] * robust(bare_residuals(sight, shrink, instant, camera, box).square().sum(-1))).sum())
    explained = 1 - missed / bare if bare > 0 else 0.0
    if explained < options.least:
        raise InputError(
            f"drawing the robot explains only {max(explained, 0.0):.0%} of what is seen where it would stand; "
            f"{options.least:.0%} are needed. Check joints, clocks and cameras, search further from `--find.near` "
            "(`--find.look.reach`, `--find.look.turn`), or give the base."
        )
    _, matrix, _ = normal_equations(sight, shrink, base)
    covariance = torch.linalg.inv(matrix + 1e-9 * torch.eye(6, dtype=torch.float64))
    turn = covariance[3:, 3:] / sight.radius**2
    # From the middle, about which the steps turn, to the root: what is unsure of the turn shifts the root.
    x, y, z = (-sight.middle).tolist()
    lever = torch.tensor([[0, z, -y], [-z, 0, x], [y, -x, 0]], dtype=torch.float64) / sight.radius
    jacobian = torch.cat([torch.eye(3, dtype=torch.float64), lever], dim=1)
    place = jacobian @ covariance @ jacobian.T
    return LookFit(base, float(place.trace().sqrt()), float(turn.trace().sqrt()), explained)
