"""One instant: how badly states explain the pictures, and the state that explains them best.

A pixel's residuals are its colour against what moves drawn over the plate, and the drawn opacity against how surely
the pixel shows something else than the plate. Both count by Charbonnier's robust function, so that shadows, ghosts in
the plate and strangers before the bodies weigh little. The derivative is taken from pictures of states to
both sides, all of one batch: exact at outlines, where opacity, not colour, moves. Levenberg-Marquardt then solves for
the step; its matrix is kept for the smoother and the uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.motion_bodies import Bodies, between, moved, poses_of, root_steps, strayed, turned_away
from gworld.reconstruct.motion_draw import Box, box_of, draw_poses, drifted
from gworld.reconstruct.motion_film import Level, Shot

COLOUR, OUTLINE, TURN = 0.12, 0.45, 3.0
"""Residuals of colour (0..1) and opacity that count as one; their squared sum at which a pixel counts half."""
UNKNOWN = 0.8
"""Colour residual per channel of a plate that was never seen: between that of a fitting body and of a wrong one."""
STEP = 0.4
"""Pixels by which a body's farthest point is moved to either side for the derivative."""
FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
BATCH = 48
ALIKE = 24.0
"""Full-size pixels that err alike (a model's outline, a shadow): as many count as one."""


@dataclass(frozen=True, eq=False)
class Weights:
    """How much colour and outline count (1, 1 when colours are known; 0.2, 1 for bodies not yet painted)."""

    colour: float = 1.0
    outline: float = 1.0


@dataclass(frozen=True, eq=False)
class Prior:
    """Where a state was expected, how firmly per component of a step (inverse variances [P]), and its velocity [P]."""

    state: Float[Tensor, " S"]
    precision: Float[Tensor, " P"]
    velocity: Float[Tensor, " P"] | None = None


@dataclass(frozen=True, eq=False)
class Solved:
    """A state, the pictures' own Gauss-Newton matrix there [P,P], its cost (prior included) beyond that of the bare
    plate, and the mean robust square of the covered pixels: what tells a lost body."""

    state: Float[Tensor, " S"]
    matrix: Float[Tensor, "P P"]
    cost: float
    misfit: float


def costs(
    bodies: Bodies, states: Float[Tensor, "W S"], level: Level, shot: Shot, weights: Weights = Weights(),
    velocity: Float[Tensor, " P"] | None = None,
) -> Float[Tensor, " W"]:  # fmt: skip
    """How badly each of W states explains whole pictures: robust squares, summed over pixels and cameras."""
    total = torch.zeros(len(states), dtype=torch.float64)
    for camera in range(len(level.cameras)):
        for first in range(0, len(states), BATCH):
            rows = slice(first, first + BATCH)
            here = drifted(bodies, states[rows], velocity, float(shot.late[camera]))
            residual, _ = _residuals(bodies, poses_of(bodies, here), level, shot, camera, None, weights)
            square = residual.square().sum(-1)
            total[rows] += _robust(square).sum((1, 2)).double()
    if bodies.squares:
        total += alike(level) * turned_away(bodies, poses_of(bodies, states)).square().sum(-1)
    return total + 2 * alike(level) * strayed(bodies, states)[0]


def fit_state(
    bodies: Bodies,
    level: Level,
    shot: Shot,
    prior: Prior,
    start: Float[Tensor, " S"],
    steps: int,
    weights: Weights = Weights(),
) -> Solved:
    """Levenberg-Marquardt from `start` at one level.

    Where outlines are apart, far-out residuals make the step short; so a few multiples of it are tried at once.
    """
    pitch = STEP * metres_per_pixel(bodies, level, start)
    state, damping = start, 1e-3
    factors = torch.tensor(FACTORS, dtype=torch.float64)
    for number in range(steps + 1):
        ahead, behind, span = _sides(bodies, state, pitch)
        around = torch.cat([state[None], ahead, behind])

        def poses_at(camera: int, around: Tensor = around) -> Tensor:
            return poses_of(bodies, drifted(bodies, around, prior.velocity, float(shot.late[camera])))

        cost, gradient, matrix, misfit = _normal(bodies, state, poses_at, span, level, shot, weights)
        pull = between(bodies, prior.state, state)
        square = matrix + torch.diag(prior.precision)
        moving, tries = number < steps, 0
        while moving:
            loaded = square + damping * torch.diag(square.diagonal()) + 1e-9 * torch.eye(len(square)).double()
            step = -torch.linalg.solve(loaded, gradient + prior.precision * pull)
            size = float((step.abs() * bodies.reach).amax())
            moving = size > 0.02 * pitch
            if not moving:
                break
            lengths = factors * min(1.0, 8 * pitch / STEP / (size * float(factors[-1])))
            line = moved(bodies, state, step * lengths[:, None])
            found = costs(bodies, line, level, shot, weights, prior.velocity) / (2 * alike(level))
            away = between(bodies, prior.state, line)
            found = found + 0.5 * (prior.precision * away * away).sum(-1)
            best = int(found.argmin())
            if best > 0:
                state, damping = line[best], max(damping * 0.3, 1e-6)
                moving = bool(found[0] - found[best] > 1e-4 * found[0].abs())
                break
            damping, tries = min(max(damping, 1e-3) * 30, 1e4), tries + 1
            moving = tries < 3
        if not moving:
            break
    return Solved(state, matrix, cost, misfit)


def search(
    bodies: Bodies,
    level: Level,
    shot: Shot,
    middle: Float[Tensor, " S"],
    spread: Float[Tensor, " P"],
    generator: torch.Generator,
    *,
    count: int = 96,
    rounds: int = 30,
    weights: Weights = Weights(),
) -> Float[Tensor, "E S"]:
    """The best states that a population finds around `middle` (uniform within `spread` to either side), best first.

    Differential evolution, current-to-best (Storn and Price, 1997): each state is moved towards one of the best and by
    a difference of two others, and replaced only by what is better than itself, so that many guesses live on.
    """
    size = bodies.size
    draw_ = 2 * torch.rand(count, size, generator=generator, dtype=torch.float64) - 1
    draw_[0] = 0
    pool = moved(bodies, middle, draw_ * spread)
    value = costs(bodies, pool, level, shot, weights)
    for _ in range(rounds):
        elite = value.argsort()[: max(3, count // 8)]
        guide = elite[torch.randint(len(elite), (count,), generator=generator)]
        pair = torch.randint(count, (2, count), generator=generator)
        rate = 0.3 + 0.6 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
        step = rate * (between(bodies, pool, pool[guide]) + between(bodies, pool[pair[0]], pool[pair[1]]))
        step = step * (torch.rand(count, size, generator=generator) < 0.8)
        step += 0.01 * spread * torch.randn(count, size, generator=generator, dtype=torch.float64)
        inside = torch.minimum(torch.maximum(between(bodies, middle, pool) + step, -spread), spread)
        fresh = moved(bodies, middle, inside)
        price = costs(bodies, fresh, level, shot, weights)
        better = price < value
        pool, value = torch.where(better[:, None], fresh, pool), torch.where(better, price, value)
    return pool[value.argsort()[: max(3, count // 8)]]


def alike(level: Level) -> float:
    """How many of a level's pixels count as one."""
    return max(1.0, ALIKE / level.shrink**2)


def derivatives(
    bodies: Bodies, level: Level, shot: Shot, state: Float[Tensor, " S"], pitch: float, roots: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "BP BP"], Float[Tensor, " BP"]]:
    """Gauss-Newton matrix and gradient by the roots' six components (moved by `roots` to either side), then by P."""
    ahead, behind, span = _sides(bodies, state, pitch)
    roots_ahead = [poses_of(part, state) for part in root_steps(bodies, roots)]
    roots_behind = [poses_of(part, state) for part in root_steps(bodies, -roots)]
    here = poses_of(bodies, state[None])
    poses = torch.cat(
        [here, torch.stack(roots_ahead), poses_of(bodies, ahead), torch.stack(roots_behind), poses_of(bodies, behind)]
    )
    _, gradient, matrix, _ = _normal(
        bodies, state, lambda _: poses, torch.cat([2 * roots, span]), level, shot, Weights()
    )
    return matrix, gradient


def _sides(bodies: Bodies, state: Tensor, pitch: float) -> tuple[Tensor, Tensor, Tensor]:
    """States to either side along each component, and how far apart they are (less at a limit)."""
    delta = torch.diag(pitch / bodies.reach)
    ahead, behind = moved(bodies, state, delta), moved(bodies, state, -delta)
    return ahead, behind, between(bodies, behind, ahead).diagonal().clamp_min(1e-12)


def _residuals(
    bodies: Bodies,
    poses: Float[Tensor, "W L 4 4"],
    level: Level,
    shot: Shot,
    camera: int,
    box: Box | None,
    weights: Weights,
) -> tuple[Tensor, Tensor]:
    """The residuals [W,h,w,4] and the opacity [W,h,w] in a box."""
    drawn = draw_poses(bodies, poses, level, camera, box)
    top, left, bottom, right = drawn.box
    part = (camera, slice(top, bottom), slice(left, right))
    alpha, rgb = drawn.alpha[..., None], shot.rgb[part]
    known = level.known[part][..., None]
    bare = (shot.behind[part] - rgb) * known + UNKNOWN * COLOUR * (1 - known)
    colour = (drawn.rgb * level.gains[camera] - alpha * rgb + (1 - alpha) * bare) * (weights.colour / COLOUR)
    outline = (drawn.alpha - shot.other[part]) * level.known[part] * (weights.outline / OUTLINE)
    return torch.cat([colour, outline[..., None]], dim=-1), drawn.alpha


def _robust(square: Tensor) -> Tensor:
    """Charbonnier's function: squares near zero, straight lines far out.

    One that levels off would be blind to a white arm beside its picture on a black table: all pixels are then outliers.
    """
    return 2 * TURN * ((1 + square / TURN).sqrt() - 1)


def _bare(level: Level, shot: Shot, camera: int, box: Box, weights: Weights) -> Float[Tensor, "h w"]:
    """The robust squares of a box without any body."""
    part = (camera, slice(box[0], box[2]), slice(box[1], box[3]))
    known = level.known[part]
    bare = (shot.behind[part] - shot.rgb[part]) * known[..., None] + UNKNOWN * COLOUR * (1 - known[..., None])
    square = bare.square().sum(-1) * (weights.colour / COLOUR) ** 2
    square = square + (shot.other[part] * known * weights.outline / OUTLINE).square()
    return _robust(square)


def _normal(
    bodies: Bodies,
    state: Float[Tensor, " S"],
    poses_at: Callable[[int], Float[Tensor, "W L 4 4"]],
    span: Float[Tensor, " M"],
    level: Level,
    shot: Shot,
    weights: Weights,
) -> tuple[float, Tensor, Tensor, float]:
    """Cost, gradient, Gauss-Newton matrix and misfit at a state, from each camera's poses here and to either side."""
    cost, covered, missed, count = 0.0, 0.0, 0.0, len(span)
    gradient = torch.zeros(count, dtype=torch.float64)
    matrix = torch.zeros(count, count, dtype=torch.float64)
    share = alike(level)
    for camera in range(len(level.cameras)):
        box = box_of(bodies, state[None], level, camera)
        if box is None:
            continue
        residual, alpha = _residuals(bodies, poses_at(camera), level, shot, camera, box, weights)
        here = residual[0]
        square = here.square().sum(-1)
        root = (1 + square / TURN).pow(-0.25)[..., None]  # the square root of the robust weight
        slope = (residual[1 : 1 + count] - residual[1 + count :]) / span[:, None, None, None].float()
        rows = (slope * root).reshape(count, -1)
        gradient += (rows @ (here * root).reshape(-1)).double()
        matrix += (rows @ rows.T).double()
        robust = _robust(square)
        # What the bare plate would cost is taken off, so that it does not matter how far the box reaches.
        cost += 0.5 * float((robust - _bare(level, shot, camera, box, weights)).sum())
        covered += float(alpha[0].sum())
        missed += float((alpha[0] * robust).sum())
    cost, gradient, matrix = cost / share, gradient / share, matrix / share
    if bodies.squares:
        away = turned_away(bodies, poses_at(0))
        rows = (away[1 : 1 + count] - away[1 + count :]) / span[:, None]
        cost, gradient = cost + 0.5 * float(away[0].square().sum()), gradient + rows @ away[0]
        matrix = matrix + rows @ rows.T
    own = slice(count - bodies.size, count)
    price, pull, bend = strayed(bodies, state)
    cost, gradient[own], matrix[own, own] = cost + float(price), gradient[own] + pull, matrix[own, own] + bend.diag()
    return cost, gradient, matrix, missed / max(covered, 1.0)


def metres_per_pixel(bodies: Bodies, level: Level, state: Tensor) -> float:
    """The size of a pixel at the bodies, of the camera that sees them largest."""
    means, links = bodies.gaussians.means[::17].double(), bodies.gaussians.links[::17].long()
    poses = poses_of(bodies, state)[links]
    points = (poses[:, :3, :3] @ means[..., None])[..., 0] + poses[:, :3, 3]
    depth = points @ level.eyes[:, 2, :3].T + level.eyes[:, 2, 3]
    typical = torch.where(depth > 0.05, depth, torch.full_like(depth, torch.nan)).nanmedian(0).values
    sizes = typical / level.cameras.K[:, 0, 0]
    return float(torch.where(sizes.isnan(), torch.full_like(sizes, torch.inf), sizes).amin().clamp_max(1.0))
