"""One instant: how badly states explain the pictures, and the state that explains them best.

A pixel's residuals are its colour against what moves drawn over the plate, and the drawn opacity against how surely
the pixel shows something else than the plate. Both count by Geman and McClure's robust function, so that shadows,
ghosts in the plate and strangers before the bodies weigh little. The derivative is taken from pictures of states to
both sides, all of one batch: exact at outlines, where opacity, not colour, moves. Levenberg-Marquardt then solves for
the step; its matrix is kept for the smoother and the uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.motion_bodies import Bodies, between, moved
from gworld.reconstruct.motion_draw import Box, box_of, draw, drifted
from gworld.reconstruct.motion_film import Level, Shot

COLOUR, OUTLINE, TURN = 0.12, 0.45, 3.0
"""Residuals of colour (0..1) and opacity that count as one; their squared sum at which a pixel counts half."""
STEP = 0.4
"""Pixels by which a body's farthest point is moved to either side for the derivative."""
BATCH = 48


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
            square, _, _ = _residuals(bodies, states[rows], level, shot, camera, None, weights, velocity)
            total[rows] += (TURN * square / (TURN + square)).sum((1, 2)).double()
    return total


def fit_state(
    bodies: Bodies,
    level: Level,
    shot: Shot,
    prior: Prior,
    start: Float[Tensor, " S"],
    steps: int,
    weights: Weights = Weights(),
) -> Solved:
    """Levenberg-Marquardt from `start` at one level."""
    pitch = STEP * _metres_per_pixel(bodies, level, start)
    delta = torch.diag(pitch / bodies.reach)
    state, damping = start, 1e-3
    best: tuple[float, Tensor, Tensor, Tensor, float] | None = None
    tried = state
    for number in range(steps + 1):
        cost, gradient, matrix, misfit = _normal(bodies, tried, delta, level, shot, prior.velocity, weights)
        pull = between(bodies, prior.state, tried)
        whole = cost + 0.5 * float((prior.precision * pull * pull).sum())
        if best is None or whole < best[0]:
            gain = 1.0 if best is None else (best[0] - whole) / max(whole, 1e-9)
            best, state = (whole, gradient + prior.precision * pull, matrix, tried, misfit), tried
            damping = max(damping * 0.3, 1e-6)
            if gain < 1e-4:
                break
        else:
            damping = min(damping * 10, 1e3)
        if number == steps:
            break
        square = best[2] + torch.diag(prior.precision)
        loaded = square + damping * torch.diag(square.diagonal()) + 1e-9 * torch.eye(len(square), dtype=square.dtype)
        step = -torch.linalg.solve(loaded, best[1])
        step = step * min(1.0, 12 * pitch / STEP / float((step.abs() * bodies.reach).amax() + 1e-12))
        if float((step.abs() * bodies.reach).amax()) < 0.01 * pitch:
            break
        tried = moved(bodies, state, step)
    assert best is not None
    return Solved(best[3], best[2], best[0], best[4])


def search(
    bodies: Bodies,
    level: Level,
    shot: Shot,
    middle: Float[Tensor, " S"],
    spread: Float[Tensor, " P"],
    generator: torch.Generator,
    *,
    count: int = 256,
    rounds: int = 8,
    weights: Weights = Weights(),
) -> Float[Tensor, "E S"]:
    """The best states that a widening look around `middle` finds, best first.

    The first round draws from the whole spread, each later one around the best so far, ever closer, and among
    themselves (differential evolution, Storn and Price 1997, beside plain shrinking normals).
    """
    keep = max(8, count // 12)
    noise = torch.randn(count, bodies.size, generator=generator, dtype=torch.float64)
    pool = torch.cat([middle[None], moved(bodies, middle, noise * spread)])
    value = costs(bodies, pool, level, shot, weights)
    for number in range(rounds):
        order = value.argsort()[:keep]
        pool, value = pool[order], value[order]
        parents = torch.randint(keep, (3, count), generator=generator)
        cross = between(bodies, pool[parents[1]], pool[parents[2]]) * 0.7
        mask = torch.rand(count, bodies.size, generator=generator) < 0.7
        noise = torch.randn(count, bodies.size, generator=generator, dtype=torch.float64)
        steps = cross * mask + noise * spread * 0.35 * 0.62**number
        fresh = moved(bodies, pool[(parents[0].float() * torch.rand(count, generator=generator)).long()], steps)
        pool = torch.cat([pool, fresh])
        value = torch.cat([value, costs(bodies, fresh, level, shot, weights)])
    return pool[value.argsort()[:keep]]


def _residuals(
    bodies: Bodies,
    states: Float[Tensor, "W S"],
    level: Level,
    shot: Shot,
    camera: int,
    box: Box | None,
    weights: Weights,
    velocity: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared sum [W,h,w], the residuals themselves [W,h,w,4] and the opacity [W,h,w] in a box."""
    late = float(shot.late[camera])
    drawn = draw(bodies, drifted(bodies, states, velocity, late), level, camera, box)
    top, left, bottom, right = drawn.box
    part = (camera, slice(top, bottom), slice(left, right))
    over = drawn.rgb + (1 - drawn.alpha[..., None]) * level.plates[part]
    colour = (over - shot.rgb[part]) * (weights.colour / COLOUR)
    outline = (drawn.alpha - shot.other[part]) * level.known[part] * (weights.outline / OUTLINE)
    residual = torch.cat([colour, outline[..., None]], dim=-1)
    return residual.square().sum(-1), residual, drawn.alpha


def _bare(level: Level, shot: Shot, camera: int, box: Box, weights: Weights) -> Float[Tensor, "h w"]:
    """The robust squares of a box without any body."""
    part = (camera, slice(box[0], box[2]), slice(box[1], box[3]))
    colour = (level.plates[part] - shot.rgb[part]).square().sum(-1) * (weights.colour / COLOUR) ** 2
    square = colour + (shot.other[part] * level.known[part] * (weights.outline / OUTLINE)).square()
    return TURN * square / (TURN + square)


def _normal(
    bodies: Bodies,
    state: Float[Tensor, " S"],
    delta: Float[Tensor, "P P"],
    level: Level,
    shot: Shot,
    velocity: Tensor | None,
    weights: Weights,
) -> tuple[float, Tensor, Tensor, float]:
    """Cost, gradient, Gauss-Newton matrix and misfit at a state."""
    ahead, behind = moved(bodies, state, delta), moved(bodies, state, -delta)
    span = (between(bodies, behind, ahead) * torch.eye(len(delta), dtype=delta.dtype)).sum(-1).clamp_min(1e-12)
    states = torch.cat([state[None], ahead, behind])
    cost, covered, missed = 0.0, 0.0, 0.0
    gradient = torch.zeros(len(delta), dtype=torch.float64)
    matrix = torch.zeros(len(delta), len(delta), dtype=torch.float64)
    count = len(delta)
    for camera in range(len(level.cameras)):
        box = box_of(bodies, state[None], level, camera)
        if box is None:
            continue
        _, residual, alpha = _residuals(bodies, states, level, shot, camera, box, weights, velocity)
        here = residual[0]
        square = here.square().sum(-1)
        weight = (TURN / (TURN + square)) ** 2
        slope = (residual[1 : 1 + count] - residual[1 + count :]) / span[:, None, None, None].float()
        rows = (slope * weight[..., None].sqrt()).reshape(count, -1)
        gradient += (rows @ (here * weight[..., None].sqrt()).reshape(-1)).double()
        matrix += (rows @ rows.T).double()
        robust = TURN * square / (TURN + square)
        # What the bare plate would cost is taken off, so that it does not matter how far the box reaches.
        cost += 0.5 * float((robust - _bare(level, shot, camera, box, weights)).sum())
        covered += float(alpha[0].sum())
        missed += float((alpha[0] * robust).sum())
    return cost, gradient, matrix, missed / max(covered, 1.0)


def _metres_per_pixel(bodies: Bodies, level: Level, state: Tensor) -> float:
    """The size of a pixel at the bodies, of the camera that sees them largest."""
    from gworld.reconstruct.motion_bodies import poses_of

    means, links = bodies.gaussians.means[::17].double(), bodies.gaussians.links[::17].long()
    poses = poses_of(bodies, state)[links]
    points = (poses[:, :3, :3] @ means[..., None])[..., 0] + poses[:, :3, 3]
    depth = points @ level.eyes[:, 2, :3].T + level.eyes[:, 2, 3]
    typical = torch.where(depth > 0.05, depth, torch.full_like(depth, torch.nan)).nanmedian(0).values
    sizes = typical / level.cameras.K[:, 0, 0]
    return float(torch.where(sizes.isnan(), torch.full_like(sizes, torch.inf), sizes).amin().clamp_max(1.0))
