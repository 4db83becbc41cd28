"""What a history tells: hidden densities and restitution, velocities, and how sure one may be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gworld.data.laws import DT, LawOptions, Trial, draw_trials, law_episode, law_world
from gworld.data.orbits import OrbitOptions, draw_orbits, orbit_strength
from gworld.dynamics.history import read_history
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.rollout import predict_poses
from gworld.dynamics.state import motion_from_poses
from gworld.dynamics.tokens import Scene, compile_scene
from gworld.errors import InputError


def known_laws(config: NetworkConfig) -> Dynamics:
    """A network with the true numbers of balls that bounce, instead of a training."""
    model = Dynamics(config)
    with torch.no_grad():
        for value in (model.free.fall, model.free.drag, model.free.spin_drag, model.materials.grip):
            value.fill_(0.0)
        for value in (model.materials.skin, model.residual.gate, *model.materials.shape.parameters()):
            value.zero_()
        model.materials.power.fill_(2 / 3)
        model.materials.bounce.fill_(1.0)
    return model


def seen(trials: list[Trial]) -> tuple[Scene, torch.Tensor]:
    poses = torch.stack([law_episode(trial).link_poses for trial in trials])
    return compile_scene([law_world(trial) for trial in trials], DT), poses


def test_a_collision_tells_hidden_densities() -> None:
    trials = draw_trials("collision", 3, 2, options=LawOptions(density_spread=0.6))
    scene, poses = seen(trials)
    reading = read_history(known_laws(NetworkConfig()), scene, poses[:, :26])
    density = torch.from_numpy(np.stack([t.masses / t.radii**2 for t in trials])).log()
    truth = (density[:, 0] - density[:, 1]).float()
    belief = reading.motion.belief[:, 1:, 0]
    assert truth.abs().max() > 0.25
    assert torch.allclose(belief[:, 0] - belief[:, 1], truth, atol=0.02)
    assert (reading.misfit < 1e-3).all()
    half = 0.7 / 2**0.5  # a collision tells the ratio of two masses, hence half of what is unknown of each
    assert torch.allclose(reading.spread[:, 1:, 0], torch.full((3, 2), half), atol=0.06)
    before = read_history(known_laws(NetworkConfig()), scene, poses[:, :4])
    assert before.motion.belief.abs().max() < 1e-3 and before.spread[:, 1:, 0].min() > 0.65


def test_a_wall_tells_a_hidden_restitution() -> None:
    trials = [draw_trials("combo", 1, seed, balls=1, options=LawOptions(restitution=0.7))[0] for seed in (7, 9)]
    scene, poses = seen(trials)
    reading = read_history(known_laws(NetworkConfig(belief=2)), scene, poses[:, :15])
    assert torch.allclose(1.0 + 0.5 * reading.motion.belief[:, 1, 1], torch.tensor(0.7), atol=0.01)
    assert (reading.spread[:, 1, 1] < 0.01).all()


def test_beliefs_make_later_motion_right() -> None:
    scene, poses = seen(draw_trials("combo", 1, 319, balls=2, options=LawOptions(density_spread=0.6)))
    model = known_laws(NetworkConfig())
    half, rest = poses[:, :16], poses[:, 16:]  # the balls meet in both parts
    told = read_history(model, scene, half).motion
    assert told.belief.abs().max() > 0.4

    def error(belief: torch.Tensor) -> float:
        with torch.no_grad():
            got = predict_poses(model, scene, replace(told, belief=belief), {}, rest.shape[1])
        return float((got[:, :, 1:, :3, 3] - rest[:, :, 1:, :3]).norm(dim=-1).mean())

    assert error(told.belief) < error(torch.zeros_like(told.belief))


def test_an_orbit_tells_its_velocity_better_than_three_frames_do() -> None:
    trials = draw_orbits(4, 0, OrbitOptions(frames=16))
    scene, poses = seen(trials)
    model = known_laws(NetworkConfig(forces=True, contact=False))
    with torch.no_grad():
        model.forces.strength.fill_(orbit_strength(-2.0) * np.pi / (4 / 3 * np.pi) ** (2 / 3))
        model.forces.exponent.fill_(-2.0)
    noisy = poses.clone()
    noisy[:, :, 1:, [0, 2]] += 1e-3 * torch.randn(4, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    truth = torch.stack([torch.from_numpy(t.velocities[-1]) for t in trials]).float()

    def off(twists: torch.Tensor) -> float:
        return float((twists[:, 1:, [0, 2]] - truth).norm(dim=-1).mean())

    read = off(read_history(model, scene, noisy).motion.twists)
    assert read < 0.2 * off(motion_from_poses(noisy[:, -3:], DT).twists)
    assert read < 0.005


def test_bodies_of_a_history_may_be_in_any_order_and_absent() -> None:
    trials = [draw_trials("combo", 1, 3, balls=2)[0], draw_trials("combo", 1, 4, balls=1)[0]]
    scene = compile_scene([law_world(trial) for trial in trials], DT)
    poses = torch.zeros(2, 12, 3, 7)
    poses[..., 3] = 1.0
    for row, trial in enumerate(trials):
        poses[row, :, : len(trial.radii) + 1] = law_episode(trial).link_poses[:12]
    model = known_laws(NetworkConfig())
    plain = read_history(model, scene, poses).motion
    order = torch.tensor([0, 2, 1])
    turned = read_history(model, replace(scene, solid=scene.solid[:, order]), poses[:, :, order]).motion
    assert torch.allclose(plain.twists[:, order], turned.twists, atol=1e-4)
    assert torch.isfinite(plain.twists).all() and torch.isfinite(plain.belief).all()


def test_a_short_history_is_refused() -> None:
    scene, poses = seen(draw_trials("collision", 1, 0))
    with pytest.raises(InputError, match="at least 4"):
        read_history(known_laws(NetworkConfig()), scene, poses[:, :3])
