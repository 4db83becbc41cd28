"""The orbits of the inductive-bias probe: watched from frames that move, with noise, for longer and shorter times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gworld.bench.bias_models import Recurrent, learn_recurrent, relations
from gworld.bench.bias_probe import Inputs
from gworld.data.laws import DT, Trial, law_episode, law_world
from gworld.data.orbits import OrbitOptions, draw_orbits, move_bodies
from gworld.dynamics.history import HistoryConfig, read_history
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import Recordings, gather_recordings, split_recordings
from gworld.dynamics.tokens import Scene, compile_scene, select_worlds
from gworld.dynamics.train import TrainConfig, train

FRAMES = (8, 12, 16)
"""How long a sequence may be."""
NOISE, AWAY, DRIFT = 2e-3, 4.0, 0.4
"""Noise of places (units), how far the frame of reference is off, and how fast it moves (units/s)."""


@dataclass(frozen=True)
class Orbits:
    """Sequences of the same two bodies' places [n,K,2,2], as tensors by their length K, and the states they end in."""

    pair: Trial
    seen: dict[int, Tensor]
    states: dict[int, Tensor]
    truth: Tensor


def orbit_recordings(trials: list[Trial]) -> Recordings:
    """Orbits as recordings, their geometry from their Gaussians."""
    return gather_recordings([law_world(trial) for trial in trials], [law_episode(trial) for trial in trials])


def learn_orbits(exponent: float, seed: int, episodes: int, steps: int) -> Dynamics:
    """The network with forces across a distance, trained on orbits."""
    data = orbit_recordings(draw_orbits(episodes, 1000 + seed, OrbitOptions(exponent=exponent)))
    learn, judge = split_recordings(data, 0.15, torch.Generator().manual_seed(seed))
    model = Dynamics(NetworkConfig(forces=True, seed=seed))
    train(model, learn, judge, TrainConfig(steps=steps, noise=0.0, seed=seed))
    return model


def draw_probe(count: int, states: int, seed: int, exponent: float = -2.0, listed: int = 1) -> Orbits:
    """`count` sequences that end in `states` states, about equally often; `listed` -1 lists the two bodies the other
    way round. The same seed gives the same states, bodies and sequences."""
    options = OrbitOptions(exponent=exponent, frames=2)
    pair, *others = draw_orbits(states + 1, 5, options)
    ends = [_scaled_end(pair, other) for other in others]
    rng = np.random.default_rng(seed)
    seen: dict[int, list[np.ndarray]] = {frames: [] for frames in FRAMES}
    numbers: dict[int, list[int]] = {frames: [] for frames in FRAMES}
    for row in range(count):
        frames, state = FRAMES[row % len(FRAMES)], int(rng.integers(states))
        places, speeds = ends[state]
        back = move_bodies(pair, places, -speeds, exponent, frames).centers[::-1]
        turn, drift = rng.uniform(0, 2 * np.pi), rng.uniform(0, DRIFT)
        moving = drift * DT * np.arange(frames)[:, None] * np.array([np.cos(turn), np.sin(turn)])
        off = rng.uniform(-AWAY, AWAY, 2) + moving
        noisy = back + off[:, None] + NOISE * rng.standard_normal(back.shape)
        seen[frames].append(noisy[:, ::listed])
        numbers[frames].append(state)
    truth = np.stack([np.concatenate([p[1] - p[0], s[1] - s[0]]) for p, s in ends])
    return Orbits(
        pair,
        {k: torch.from_numpy(np.stack(v)).float() for k, v in seen.items()},
        {k: torch.tensor(v) for k, v in numbers.items()},
        torch.from_numpy(truth).float(),
    )


def read_orbits(model: Dynamics, orbits: Orbits, listed: int = 1) -> Inputs:
    """The network's state after reading each sequence through its own laws."""
    things, states = [], []
    config = HistoryConfig(noise=NOISE / 0.5, rounds=4)
    for frames, seen in orbits.seen.items():
        scene = _scene(orbits.pair, len(seen), listed)
        poses = torch.zeros(len(seen), frames, 3, 7)
        poses[..., 3] = 1.0
        poses[:, :, 1:, 0], poses[:, :, 1:, 2] = seen[..., 0], seen[..., 1]
        reading = read_history(model, scene, poses, config=config)
        things.append(relations(scene, reading.motion, static=False))
        states.append(orbits.states[frames])
    return Inputs(torch.cat(things), torch.cat(states))


def true_orbits(orbits: Orbits) -> Inputs:
    """The oracle: the true relative place and velocity."""
    states = torch.cat(list(orbits.states.values()))
    return Inputs(orbits.truth[states][:, None], states)


def learn_places(exponent: float, seed: int, steps: int) -> Recurrent:
    """A sequence model on the same orbits, seen in the same way: places in, their next change out."""
    model = Recurrent(4, 4, seed)
    trials = draw_orbits(200, 2000 + seed, OrbitOptions(exponent=exponent, frames=FRAMES[-1] + 1))
    places = torch.from_numpy(np.stack([trial.centers for trial in trials])).float()
    ticks = DT * torch.arange(places.shape[1])[:, None]

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(places), (64,), generator=generator)
        turn = 2 * torch.pi * torch.rand(64, generator=generator)
        pace = DRIFT * torch.rand(64, generator=generator)
        drift = (pace * torch.stack([turn.cos(), turn.sin()])).T[:, None] * ticks
        off = AWAY * (2 * torch.rand(64, 1, 2, generator=generator) - 1) + drift
        moved = places[rows] + off[:, :, None]
        noisy = moved + NOISE * torch.randn(moved.shape, generator=generator)
        return noisy[:, :-1].flatten(2) / AWAY, 10.0 * moved.diff(dim=1).flatten(2)

    learn_recurrent(model, draw, steps, seed)
    return model


def read_places(model: Recurrent, orbits: Orbits) -> Inputs:
    """The sequence model's hidden state after each sequence."""
    things = [model.things(seen.flatten(2) / AWAY) for seen in orbits.seen.values()]
    return Inputs(torch.cat(things), torch.cat(list(orbits.states.values())))


def _scaled_end(pair: Trial, other: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Another orbit's state for the two bodies of `pair`: the same relative place and velocity, momentum zero."""
    share = pair.masses[::-1] / pair.masses.sum()
    place, speed = (track[0, 1] - track[0, 0] for track in (other.centers, other.velocities))
    sign = np.array([-1.0, 1.0])
    return (sign * share)[:, None] * place, (sign * share)[:, None] * speed


def _scene(pair: Trial, count: int, listed: int) -> Scene:
    radii, masses = pair.radii[::listed], pair.masses[::listed]
    trial = Trial(pair.centers[:, ::listed], pair.velocities[:, ::listed], radii, masses, pair.width)
    return select_worlds(compile_scene([law_world(trial)], DT), torch.zeros(count, dtype=torch.int64))
