"""Orbits for a long time: where bodies are after several turns, beside baselines and the true law, and their energy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gworld.bench.bias_orbits import orbit_recordings
from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_most
from gworld.data.laws import Trial
from gworld.data.orbits import OrbitOptions, draw_orbits, move_bodies, orbit_energy
from gworld.dynamics.baselines import ConstantVelocity, Copy, Plain, PlainConfig
from gworld.dynamics.history import read_history
from gworld.dynamics.network import Dynamics, Model
from gworld.dynamics.recordings import split_recordings
from gworld.dynamics.rollout import roll_motion
from gworld.dynamics.state import Motion
from gworld.dynamics.tokens import Scene
from gworld.dynamics.train import TrainConfig, train

SEEN, TURN = 16, 220
"""Frames that are watched, and frames of about one turn."""


def long_rows(model: Dynamics, exponent: float, given: BenchInput) -> Iterator[Row]:
    """Median error of the lighter body after 1, 3 and 9 turns, and the energy created on the way."""
    turns = (1,) if given.quick else (1, 3, 9)
    count, frames = 8, SEEN + TURN * turns[-1] + 1
    trials = draw_orbits(count, 7000 + given.seed, OrbitOptions(exponent=exponent, frames=frames))
    data = orbit_recordings(trials)
    start = read_history(model, data.scene, data.poses[:, :SEEN]).motion
    others: dict[str, Model] = {
        "plain network": _learn_plain(exponent, given), "constant velocity": ConstantVelocity(), "copy": Copy(),
    }  # fmt: skip
    with torch.no_grad():
        rolled = {name: _tracks(other, data.scene, start, frames - SEEN) for name, other in others.items()}
        ours, speeds = _tracks(model, data.scene, start, frames - SEEN)
    oracle = np.stack([_oracle(trial, start, row, exponent, frames - SEEN) for row, trial in enumerate(trials)])
    truth = np.stack([trial.centers[SEEN:] for trial in trials])
    label = f"orbits, exponent {exponent:g}"
    for turn in turns:
        at = turn * TURN - 1

        def error(places: np.ndarray, at: int = at) -> float:
            off = np.linalg.norm(places[:, at, 1] - truth[:, at, 1], axis=-1)
            return float(np.median(np.nan_to_num(off, nan=1e9)))

        best = min(error(places) for places, _ in rolled.values())
        note = f"baseline: the best of {', '.join(rolled)}; an orbit is about 3.5 units in radius"
        yield at_most(f"{label}, after {turn} turn{'s' * (turn > 1)}", error(ours), "units", 0.5 * best, best, note)
        yield Row(f"{label}, after {turn} turn{'s' * (turn > 1)}, true law from the state read", error(oracle), "units")
        for name, (places, _) in rolled.items():
            yield Row(f"{label}, after {turn} turn{'s' * (turn > 1)}, {name}", error(places), "units")
    created = []
    for row, trial in enumerate(trials):
        energy = orbit_energy(trial, ours[row], speeds[row], exponent)
        kinetic = 0.5 * float((trial.masses * (speeds[row, 0] ** 2).sum(-1)).sum())
        created.append((energy.max() - energy[0]) / kinetic)
    yield at_most(f"{label}, energy created in {turns[-1]} turns, part of the kinetic", max(created), "part", 1e-3)


def _tracks(model: Model, scene: Scene, start: Motion, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and velocities [W,T,N,2] after each step."""
    places, speeds = [], []
    for motion in roll_motion(model, scene, start, {}, steps):
        places.append(motion.world_from_link[:, 1:, :3, 3])
        speeds.append(motion.twists[:, 1:, :3])
    return _plane(places), _plane(speeds)


def _plane(parts: list[Tensor]) -> np.ndarray:
    return torch.stack(parts, dim=1)[..., [0, 2]].double().numpy()


def _oracle(trial: Trial, start: Motion, row: int, exponent: float, steps: int) -> np.ndarray:
    place = start.world_from_link[row, 1:, :3, 3][:, [0, 2]].double().numpy()
    speed = start.twists[row, 1:, :3][:, [0, 2]].double().numpy()
    return move_bodies(trial, place, speed, exponent, steps + 1).centers[1:]


def _learn_plain(exponent: float, given: BenchInput) -> Plain:
    data = orbit_recordings(draw_orbits(60, 1000 + given.seed, OrbitOptions(exponent=exponent)))
    learn, judge = split_recordings(data, 0.15, torch.Generator().manual_seed(given.seed))
    model = Plain(PlainConfig(links=3, length=3.0, seed=given.seed))
    steps = 100 if given.quick else 1200
    train(model, learn, judge, TrainConfig(steps=steps, batch=128, horizons=(1, 2, 4), rate=0.01, every=100, noise=0.0))
    return model
