"""Balls under three laws with exact truth: uniform motion, parabola, collision, and many balls between walls.

Motion is in the x-z plane (z up) and solved from event to event in closed form, so truth carries no step error. The
ranges are those of the `phys` bench; the reference for the task is Kang et al., "How far is video generation from
world model: a physical law perspective", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float

from gworld.data.shapes import box, plain, sphere
from gworld.errors import InputError, UsageError
from gworld.scene.cameras import Cameras, look_at
from gworld.scene.episode import Episode
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.harmonics import sh_from_rgb
from gworld.scene.links import Link
from gworld.scene.world import Entity, World

DT, FRAMES = 0.1, 32
LAWS = ("uniform", "parabola", "collision")
COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
LEVELS = ("r1", "v1", "r1 r2", "v1 v2", "r1 v1", "all")
"""Which of two balls' sizes and speeds lie outside the training range in the six levels of the collision law."""
FOCAL = 400.0
"""Distance of the camera in views' widths: from there a ball is a disc to a part in ten thousand."""


@dataclass(frozen=True)
class LawOptions:
    """How a law's world works and what is drawn."""

    gravity: float = 2.5
    """Acceleration downward in the parabola, units per second squared."""
    restitution: float = 1.0
    """Speed of parting over speed of closing."""
    density_power: float = 0.0
    """Density goes with the radius to this power: 0 means equal densities, mass with r^2."""
    density_spread: float = 0.0
    """Standard deviation of the logarithm of each ball's density, which no picture shows."""


@dataclass(frozen=True)
class Trial:
    """One generated motion of N balls over T frames: centres and velocities [T,N,2], radii, masses and all contacts.

    `events` holds (time, first ball, second ball), the second being -1 .. -4 for the left, right, lower, upper wall.
    """

    centers: Float[np.ndarray, "T N 2"]
    velocities: Float[np.ndarray, "T N 2"]
    radii: Float[np.ndarray, " N"]
    masses: Float[np.ndarray, " N"]
    width: float
    gravity: float = 0.0
    walls: bool = False
    events: tuple[tuple[float, int, int], ...] = field(default=())


def draw_trials(
    law: str, count: int, seed: int, *, outside: str = "", options: LawOptions = LawOptions(), balls: int = 2
) -> list[Trial]:
    """`count` motions of a law: `uniform`, `parabola`, `collision` or `combo` (`balls` balls between walls).

    `outside` says what lies outside the training range: nothing, `r`, `v` or `r v` for one ball, one of `LEVELS` for
    two. Raises `UsageError` for an unknown law or level.
    """
    rng = np.random.default_rng([seed, *map(ord, law + outside)])
    if law in ("uniform", "parabola") and outside in ("", "r", "v", "r v"):
        return [_single(law, outside, options, rng) for _ in range(count)]
    if law == "collision" and outside in ("", *LEVELS):
        return [_collision(outside, options, rng) for _ in range(count)]
    if law == "combo" and not outside:
        return [_combo(balls, options, rng) for _ in range(count)]
    raise UsageError(f"there is no law `{law}` with `{outside}` outside its range; laws are {', '.join(LAWS)}, combo.")


def in_view(trial: Trial) -> np.ndarray:
    """Frames by balls [T,N] in which a ball is wholly inside the view."""
    return (np.abs(trial.centers) + trial.radii[:, None] <= trial.width / 2).all(axis=-1)


def law_world(trial: Trial, detail: int = 7) -> World:
    """The balls (and walls) of a trial as Gaussians, `detail` of them per radius, with one camera that sees them all.

    Gravity is told as a direction: its strength is for the model to learn.
    """
    parts, links, entities = [], [Link("world")], [Entity("scene", "static", (0,))]
    if trial.walls:
        parts.append(_walls(trial.width))
    for index, radius in enumerate(trial.radii):
        ball = sphere(radius, radius / detail, plain(*COLORS[index % len(COLORS)]))
        ball = flat_color(ball, COLORS[index % len(COLORS)])
        parts.append(replace(ball, links=torch.full_like(ball.links, index + 1)))
        x, z = trial.centers[0, index].tolist()
        links.append(Link(f"ball{index}", (x, 0.0, z, 1.0, 0.0, 0.0, 0.0), 0))
        entities.append(Entity(f"ball{index}", "object", (index + 1,)))
    down = (0.0, 0.0, -1.0 if trial.gravity else 0.0)
    return World(join_gaussians(parts), tuple(links), tuple(entities), law_camera(trial.width), down)


def law_camera(width: float, pixels: int = 0) -> Cameras:
    """A camera of `pixels` (default 6.4 per unit) that looks along +y at a view `width` wide, nearly without
    perspective."""
    pixels = pixels or round(6.4 * width)
    eye = torch.tensor([[0.0, -FOCAL * width, 0.0]], dtype=torch.float64)
    focal = FOCAL * pixels
    matrix = torch.tensor([[[focal, 0, pixels / 2], [0, focal, pixels / 2], [0, 0, 1]]], dtype=torch.float64)
    return Cameras(matrix, look_at(eye, torch.zeros(1, 3, dtype=torch.float64)), pixels, pixels, names=("view",))


def law_poses(trial: Trial) -> Float[torch.Tensor, "T L 7"]:
    """The true poses of the world and the balls."""
    frames, count = trial.centers.shape[:2]
    poses = torch.zeros(frames, count + 1, 7)
    poses[..., 3] = 1.0
    poses[:, 1:, 0] = torch.from_numpy(trial.centers[..., 0]).float()
    poses[:, 1:, 2] = torch.from_numpy(trial.centers[..., 1]).float()
    return poses


def law_episode(trial: Trial) -> Episode:
    """The true motion of a trial as an episode of link poses (the walls are link 0)."""
    names = ("world", *(f"ball{index}" for index in range(trial.centers.shape[1])))
    times = torch.arange(len(trial.centers), dtype=torch.float64) * DT
    return Episode(times, link_poses=law_poses(trial), link_names=names, behaviour="null", source="generated laws")


def energy_of(trial: Trial, centers: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Kinetic and potential energy [T] of balls at `centers` with `velocities` [T,N,2], in the trial's masses."""
    kinetic = 0.5 * (trial.masses * (velocities**2).sum(-1)).sum(-1)
    return kinetic + trial.gravity * (trial.masses * centers[..., 1]).sum(-1)


def move_balls(
    start: Trial, centers: np.ndarray, velocities: np.ndarray, restitution: float, frames: int = FRAMES
) -> Trial:
    """Advance balls from their centres and velocities [N,2], event by event, with the sizes and laws of `start`.

    Raises `InputError` when balls overlap at the beginning.
    """
    place, speed = centers.astype(float).copy(), velocities.astype(float).copy()
    gaps = _distances(place, start.radii)
    if (gaps < -1e-9).any():
        raise InputError(f"balls overlap by {-gaps.min():.3g} at the start; apart they must be.")
    down = np.array([0.0, -start.gravity])
    track, rates, events, now = [place.copy()], [speed.copy()], [], 0.0
    for frame in range(1, frames):
        end = frame * DT
        for _ in range(10_000):
            wait, first, second = _next_event(start, place, speed, end - now)
            place += speed * wait + 0.5 * down * wait**2
            speed += down * wait
            now += wait
            if first < 0:
                break
            _collide(start, place, speed, first, second, restitution)
            events.append((now, first, second))
        now = end
        track.append(place.copy())
        rates.append(speed.copy())
    return replace(start, centers=np.stack(track), velocities=np.stack(rates), events=tuple(events))


def flat_color(gaussians: Gaussians, color: Sequence[float]) -> Gaussians:
    """The same Gaussians in one colour that no light or direction changes."""
    sh = sh_from_rgb(torch.tensor(color, dtype=torch.float32)).expand(len(gaussians), 1, 3)
    return replace(gaussians, sh=sh.clone())


def _next_event(trial: Trial, place: np.ndarray, speed: np.ndarray, limit: float) -> tuple[float, int, int]:
    best, first, second = limit, -1, -1
    count = len(place)
    for a in range(count):
        for b in range(a + 1, count):
            wait = _meeting(place[a] - place[b], speed[a] - speed[b], trial.radii[a] + trial.radii[b])
            if wait < best:
                best, first, second = wait, a, b
        if trial.walls:
            for wall in range(4):
                axis, sign = wall // 2, 1.0 if wall % 2 else -1.0
                gap = trial.width / 2 - trial.radii[a] - sign * place[a, axis]
                pull = -sign * trial.gravity if axis == 1 else 0.0
                wait = _reach(gap, sign * speed[a, axis], pull)
                if wait < best:
                    best, first, second = wait, a, -1 - wall
    return best, first, second


def _meeting(offset: np.ndarray, speed: np.ndarray, reach: float) -> float:
    """When two balls `offset` apart touch; infinity when they never do."""
    closing = float(offset @ speed)
    if closing >= 0:
        return math.inf
    square = float(speed @ speed)
    root = closing**2 - square * (float(offset @ offset) - reach**2)
    return math.inf if root < 0 else max(0.0, (-closing - math.sqrt(root)) / square)


def _reach(gap: float, speed: float, pull: float) -> float:
    """When something that moves at `speed`, accelerated by `pull`, has gone `gap`; infinity when it never does."""
    gap = max(gap, 0.0)
    if pull == 0.0:
        return gap / speed if speed > 0 else math.inf
    root = speed**2 + 2 * pull * gap
    if root < 0:
        return math.inf
    if pull > 0:
        wait = (-speed + math.sqrt(root)) / pull
        return wait if speed > 0 or wait > 1e-12 else math.inf
    return (speed - math.sqrt(root)) / -pull if speed > 0 else math.inf


def _collide(trial: Trial, place: np.ndarray, speed: np.ndarray, a: int, b: int, restitution: float) -> None:
    if b < 0:
        axis = (-1 - b) // 2
        speed[a, axis] *= -restitution
        return
    normal = (place[a] - place[b]) / np.linalg.norm(place[a] - place[b])
    closing = float((speed[a] - speed[b]) @ normal)
    impulse = -(1 + restitution) * closing / (1 / trial.masses[a] + 1 / trial.masses[b])
    speed[a] += impulse / trial.masses[a] * normal
    speed[b] -= impulse / trial.masses[b] * normal


def _distances(place: np.ndarray, radii: np.ndarray) -> np.ndarray:
    gaps = [np.linalg.norm(place[a] - place[b]) - radii[a] - radii[b] for a in range(len(place)) for b in range(a)] or [
        math.inf
    ]
    return np.array(gaps)


def _masses(radii: np.ndarray, options: LawOptions, rng: np.random.Generator) -> np.ndarray:
    spread = np.exp(options.density_spread * rng.standard_normal(len(radii)))
    return np.pi * radii ** (2 + options.density_power) * spread


def _pick(rng: np.random.Generator, outside: bool, inside: tuple[float, float], beyond: Sequence[tuple]) -> float:
    low, high = beyond[int(rng.integers(len(beyond)))] if outside else inside
    return float(rng.uniform(low, high))


def _single(law: str, outside: str, options: LawOptions, rng: np.random.Generator) -> Trial:
    """One ball that stays wholly in a view of 10 x 10 for at least 8 frames."""
    gravity = options.gravity if law == "parabola" else 0.0
    while True:
        radius = _pick(rng, "r" in outside.split(), (0.7, 1.4), ((0.3, 0.6), (1.5, 2.0)))
        speed = _pick(rng, "v" in outside.split(), (1.0, 4.0), ((0.0, 0.8), (4.5, 6.0)))
        angle = rng.uniform(0, 2 * np.pi)
        place = rng.uniform(-5 + radius, 5 - radius, (1, 2))
        trial = Trial(place[None], place[None], np.array([radius]), np.ones(1), 10.0, gravity)
        moved = move_balls(trial, place, speed * np.array([[np.cos(angle), np.sin(angle)]]), 1.0)
        if in_view(moved)[:8].all():
            return replace(moved, masses=_masses(moved.radii, options, rng))


def _collision(outside: str, options: LawOptions, rng: np.random.Generator) -> Trial:
    """Two balls that meet near the middle of a view 40 wide, at any angle."""
    far = {"r1", "v1", "r2", "v2"} if outside == "all" else set(outside.split())
    while True:
        radii = np.array([_pick(rng, f"r{i}" in far, (0.5, 1.5), ((0.3, 0.4), (1.7, 2.0))) for i in (1, 2)])
        speed = np.array([_pick(rng, f"v{i}" in far, (1.0, 4.0), ((0.0, 0.8), (4.5, 6.0))) for i in (1, 2)])
        when = rng.uniform(4 * DT, (FRAMES - 9) * DT)
        angles = rng.uniform(0, 2 * np.pi, 3)
        normal = np.array([np.cos(angles[0]), np.sin(angles[0])])
        rates = speed[:, None] * np.stack([np.cos(angles[1:]), np.sin(angles[1:])], axis=1)
        if (rates[0] - rates[1]) @ normal > -0.3 * max(speed.max(), 0.5):
            continue  # they part, or graze
        middle = rng.uniform(-2, 2, 2)
        meeting = np.stack([middle + radii[0] * normal, middle - radii[1] * normal])
        place = meeting - rates * when
        trial = Trial(place[None], rates[None], radii, _masses(radii, options, rng), 40.0)
        if (np.abs(place) + radii[:, None] < 20).all():
            return move_balls(trial, place, rates, options.restitution)


def _combo(balls: int, options: LawOptions, rng: np.random.Generator) -> Trial:
    """Several balls in a box of 10 x 10."""
    while True:
        radii = rng.uniform(0.5, 0.9, balls)
        place = rng.uniform(-5, 5, (balls, 2)) * (1 - radii[:, None] / 5)
        if (_distances(place, radii) < 0.1).any():
            continue
        angle, speed = rng.uniform(0, 2 * np.pi, balls), rng.uniform(1.0, 3.0, balls)
        rates = speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        trial = Trial(place[None], rates[None], radii, _masses(radii, options, rng), 10.0, walls=True)
        moved = move_balls(trial, place, rates, options.restitution)
        if not moved.events or moved.events[0][0] > 2.5 * DT:  # the first three frames tell the velocities
            return moved


def _walls(width: float) -> Gaussians:
    """Four walls around the view, white, just outside it."""
    thick, half = 0.5, width / 2
    parts = []
    for axis in (0, 2):
        for sign in (-1.0, 1.0):
            size, center = [width + 2 * thick, 1.0, width + 2 * thick], [0.0, 0.0, 0.0]
            size[axis], center[axis] = thick, sign * (half + thick / 2)
            parts.append(flat_color(box(size, 0.25, plain(1, 1, 1), center), (1.0, 1.0, 1.0)))
    return join_gaussians(parts)
