"""Models of the laws, learned afresh: the network, a plain network on the same data and budget, the untrained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gworld.data.laws import LawOptions, Trial, draw_trials, law_episode, law_world
from gworld.dynamics.baselines import Plain, PlainConfig
from gworld.dynamics.network import Dynamics, Model, NetworkConfig
from gworld.dynamics.recordings import Recordings, gather_recordings, split_recordings
from gworld.dynamics.rollout import roll_motion
from gworld.dynamics.state import Motion, motion_from_poses
from gworld.dynamics.tokens import Scene, compile_scene
from gworld.dynamics.train import TrainConfig, train

PLAIN_LAW = LawOptions()

EPISODES = 300
"""Motions from which each law is learned."""


def law_recordings(trials: Sequence[Trial]) -> Recordings:
    """Trials as recordings, their geometry from their Gaussians."""
    return gather_recordings([law_world(trial) for trial in trials], [law_episode(trial) for trial in trials])


def learn_law(
    law: str, seed: int, steps: int, options: LawOptions = PLAIN_LAW, episodes: int = EPISODES, balls: int = 2
) -> Dynamics:
    """The network, trained on motions within the training range."""
    model = Dynamics(NetworkConfig(seed=seed))
    train(model, *_halves(law, seed, options, episodes, balls), TrainConfig(steps=steps, seed=seed))
    return model


def learn_plain(law: str, seed: int, steps: int, episodes: int = EPISODES) -> Plain:
    """A plain network on the same motions, with at least as many steps and windows."""
    data, held_out = _halves(law, seed, LawOptions(), episodes, 2)
    model = Plain(PlainConfig(links=data.scene.solid.shape[1], length=3.0, seed=seed))
    config = TrainConfig(steps=8 * steps, batch=128, horizons=(1, 2, 4), rate=0.01, seed=seed, patience=1000)
    train(model, data, held_out, replace(config, every=200))
    return model


def predict(model: Model, trials: Sequence[Trial], context: Tensor, steps: int) -> tuple[Scene, list[Motion], Motion]:
    """Motions of W worlds after each step from poses [W,K,L,7] seen before, the sizes of `trials`; and their start."""
    scene = compile_scene([law_world(trial) for trial in trials], 0.1)
    with torch.no_grad():
        start = motion_from_poses(context, scene.dt)
        if isinstance(model, Dynamics):
            start = model.observe(scene, context)
        return scene, list(roll_motion(model, scene, start, {}, steps)), start


def _halves(law: str, seed: int, options: LawOptions, episodes: int, balls: int) -> tuple[Recordings, Recordings]:
    data = law_recordings(draw_trials(law, episodes, 1000 + seed, options=options, balls=balls))
    return split_recordings(data, 0.15, torch.Generator().manual_seed(seed))
