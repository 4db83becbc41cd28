"""Bodies that attract each other across a distance, with exact truth: a heavy one and lighter ones around it.

The force between two bodies is `strength * m_a m_b r^exponent` along their line, equal and opposite, in the x-z plane;
motion is integrated to ten digits. The probe that these orbits serve is Vafa et al., "What has a foundation model
found? Using inductive bias to probe for world models", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from gworld.data.laws import DT, Trial

DISTANCE, PACE = 3.5, 1.0
"""Distance (units) at which a circle is run through at this speed (units/s), whatever the exponent."""
HEAVY, LIGHT = (0.6, 1.0), (0.15, 0.3)
"""Radii of the body in the middle and of those around it."""


@dataclass(frozen=True)
class OrbitOptions:
    """What attracts and what is drawn."""

    exponent: float = -2.0
    """Power of the distance in the force: -2 is Newton's, 1 a spring's."""
    planets: int = 1
    """Bodies around the heavy one."""
    frames: int = 48
    """Instants, a tenth of a second apart; an orbit takes about 22 s."""
    distances: tuple[float, float] = (2.5, 5.0)
    """Distances from the heavy body at the start, units."""
    drift: float = 0.0
    """Speed at which all bodies move along together, in a drawn direction, units/s."""


def draw_orbits(count: int, seed: int, options: OrbitOptions = OrbitOptions()) -> list[Trial]:
    """`count` motions of 1 + `planets` bodies that never touch, centred at the start; mass goes with radius squared."""
    rng = np.random.default_rng([seed, 77, options.planets, round(100 * options.exponent) + 1000])
    found: list[Trial] = []
    while len(found) < count:
        trial = _draw(options, rng)
        gaps = _distances(trial.centers)
        reach = trial.radii[:, None] + trial.radii + np.where(np.eye(len(trial.radii)), -np.inf, 0.0)
        if (gaps > 1.2 * reach).all() and np.abs(trial.centers[:, 0]).max() < 40.0:
            found.append(trial)
    return found


def orbit_strength(exponent: float) -> float:
    """The force between unit masses at unit distance, by which usual orbits run at `PACE`."""
    mass = np.pi * np.mean(HEAVY) ** 2
    return float(PACE**2 / (mass * DISTANCE ** (exponent + 1)))


def move_bodies(
    start: Trial, places: Float[np.ndarray, "N 2"], speeds: Float[np.ndarray, "N 2"], exponent: float, frames: int
) -> Trial:
    """Bodies of the sizes and masses of `start` from places and velocities, for `frames` instants `DT` apart."""
    strength, count = orbit_strength(exponent), len(places)

    def change(_: float, state: np.ndarray) -> np.ndarray:
        place, speed = state.reshape(2, count, 2)
        return np.concatenate([speed.ravel(), accelerations(place, start.masses, exponent, strength).ravel()])

    times = np.arange(frames) * DT
    first = np.concatenate([places.ravel(), speeds.ravel()])
    done = solve_ivp(change, (0.0, times[-1] + 1e-9), first, "DOP853", times, rtol=1e-10, atol=1e-10)
    path = done.y.T.reshape(frames, 2, count, 2)
    return Trial(path[:, 0], path[:, 1], start.radii, start.masses, start.width)


def accelerations(
    place: Float[np.ndarray, "N 2"], masses: Float[np.ndarray, " N"], exponent: float, strength: float
) -> Float[np.ndarray, "N 2"]:
    """What each body is accelerated by, units/s^2."""
    line = place[None] - place[:, None]
    far = np.linalg.norm(line, axis=-1) + np.eye(len(place))
    return (strength * masses[None, :, None] * (far ** (exponent - 1.0))[..., None] * line).sum(axis=1)


def orbit_energy(trial: Trial, places: np.ndarray, speeds: np.ndarray, exponent: float) -> Float[np.ndarray, " T"]:
    """Kinetic and potential energy [T] at places and velocities [T,N,2]; the potential of r^-1 is a logarithm."""
    kinetic = 0.5 * (trial.masses * (speeds**2).sum(-1)).sum(-1)
    far = _distances(places)
    rows, columns = np.triu_indices(len(trial.masses), 1)
    r, product = far[:, rows, columns], (trial.masses[:, None] * trial.masses)[rows, columns]
    power = exponent + 1.0
    well = np.log(r) if abs(power) < 1e-9 else r**power / power
    return kinetic + orbit_strength(exponent) * (product * well).sum(-1)


def _distances(places: np.ndarray) -> np.ndarray:
    return np.linalg.norm(places[:, :, None] - places[:, None], axis=-1)


def _draw(options: OrbitOptions, rng: np.random.Generator) -> Trial:
    radii = np.array([rng.uniform(*HEAVY), *rng.uniform(*LIGHT, options.planets)])
    masses = np.pi * radii**2
    angle = rng.uniform(0, 2 * np.pi, options.planets)
    away = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    along = np.stack([-away[:, 1], away[:, 0]], axis=1) * rng.choice([-1.0, 1.0], (options.planets, 1))
    far = rng.uniform(*options.distances, (options.planets, 1))
    circle = np.sqrt(orbit_strength(options.exponent) * (masses[0] + masses[1:, None]) * far ** (options.exponent + 1))
    speed = circle * (rng.uniform(0.8, 1.15, far.shape) * along + rng.uniform(-0.15, 0.15, far.shape) * away)
    places, speeds = np.concatenate([[[0.0, 0.0]], far * away]), np.concatenate([[[0.0, 0.0]], speed])
    share = (masses / masses.sum())[:, None]
    places, speeds = places - (share * places).sum(0), speeds - (share * speeds).sum(0)
    turn = rng.uniform(0, 2 * np.pi)
    speeds = speeds + options.drift * np.array([np.cos(turn), np.sin(turn)])
    empty = Trial(places[None], speeds[None], radii, masses, 20.0)
    return move_bodies(empty, places, speeds, options.exponent, options.frames)
