"""The network on the laws: conserved quantities, equivariance, causality, recovery of what it was not told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gworld.data.laws import DT, draw_trials, law_episode, law_world
from gworld.dynamics.judge import validate
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import cut_batch, gather_recordings, split_recordings
from gworld.dynamics.rollout import predict_poses, roll_motion, roll_out
from gworld.dynamics.state import motion_from_poses, motion_from_states
from gworld.dynamics.tokens import Scene, compile_scene, scene_to
from gworld.dynamics.train import TrainConfig, train
from gworld.scene.world import World, WorldState


def known_laws(model: Dynamics) -> Dynamics:
    """A model with the collision law's true numbers, instead of a training."""
    with torch.no_grad():
        for name in ("fall", "drag", "spin_drag"):
            getattr(model.free, name).fill_(0.0)
        model.materials.power.fill_(2 / 3)
        model.materials.bounce.fill_(1.0)
        model.materials.grip.fill_(0.0)
        model.materials.skin.fill_(0.0)
        model.residual.gate.fill_(0.0)
        for parameter in model.materials.shape.parameters():
            parameter.zero_()
    return model


def scene_of(trials: list, dtype: torch.dtype = torch.float32) -> tuple[Scene, torch.Tensor]:
    scene = compile_scene([law_world(trial) for trial in trials], DT, dtype)
    return scene, torch.stack([law_episode(trial).link_poses for trial in trials]).to(dtype)


def test_collisions_follow_the_exact_solution() -> None:
    trials = draw_trials("collision", 12, 3)
    scene, poses = scene_of(trials)
    with torch.no_grad():
        got = predict_poses(known_laws(Dynamics()), scene, motion_from_poses(poses[:, :3], DT), {}, 29)
    assert torch.allclose(got[:, :, 1:, :3, 3], poses[:, 3:, 1:, :3], atol=2e-3)


def test_many_balls_conserve_momentum_and_create_no_energy() -> None:
    trials = draw_trials("combo", 6, 5, balls=5)
    scene, _ = scene_of(trials)
    scene = replace(scene, planes=scene.planes[:, :0])
    mass = torch.from_numpy(np.stack([trial.masses for trial in trials]))
    speed = torch.from_numpy(np.stack([trial.velocities[0] for trial in trials]))
    place = torch.from_numpy(np.stack([trial.centers[0] for trial in trials]))
    start = motion_from_poses(torch.stack([law_episode(t).link_poses[:1] for t in trials]), DT)
    twists = start.twists.clone()
    twists[:, 1:, [0, 2]] = (speed - 0.6 * place).float()  # drawn together, so that all meet
    energy, momentum = [], []
    with torch.no_grad():
        for motion in roll_motion(known_laws(Dynamics()), scene, replace(start, twists=twists), {}, 60):
            now = motion.twists[:, 1:, [0, 2]].double()
            energy.append((mass * now.square().sum(-1)).sum(1))
            momentum.append((mass[..., None] * now).sum(1))
    first = (mass * twists[:, 1:].double().square().sum(-1)).sum(1)
    assert (torch.stack(energy) <= first * 1.001).all()
    drift = (torch.stack(momentum) - momentum[0]).norm(dim=-1)
    size = (mass * twists[:, 1:, :3].double().norm(dim=-1)).sum(1)
    assert (drift / size).max() < 1e-4


def test_bodies_may_be_listed_in_any_order() -> None:
    trials = draw_trials("combo", 3, 8, balls=4)
    scene, poses = scene_of(trials, torch.float64)
    order = torch.tensor([0, 3, 1, 4, 2])
    model = Dynamics().double()  # untrained: all operators act, all at random
    start = motion_from_poses(poses[:, :3], DT)
    other = replace(scene, solid=scene.solid[:, order])
    moved = replace(start, world_from_link=start.world_from_link[:, order], twists=start.twists[:, order])
    with torch.no_grad():
        for _ in range(12):
            start, moved = model.step(scene, start), model.step(other, moved)
    assert (moved.world_from_link - start.world_from_link[:, order]).abs().max() < 1e-6


def test_colour_changes_no_motion() -> None:
    trial = draw_trials("collision", 1, 2)[0]
    world = law_world(trial)
    painted = replace(world, gaussians=replace(world.gaussians, sh=torch.rand_like(world.gaussians.sh)))
    poses = law_episode(trial).link_poses[None, :3]

    def last(some: World) -> torch.Tensor:
        return predict_poses(Dynamics(), compile_scene([some], DT), motion_from_poses(poses, DT), {}, 20)[0, -1]

    with torch.no_grad():
        assert torch.equal(last(world), last(painted))


def test_worlds_of_a_batch_do_not_feel_each_other() -> None:
    trials = draw_trials("combo", 3, 4, balls=3)
    scene, poses = scene_of(trials)
    alone, _ = scene_of(trials[1:2])
    model = known_laws(Dynamics())
    with torch.no_grad():
        together = predict_poses(model, scene, motion_from_poses(poses[:, :3], DT), {}, 20)[1]
        single = predict_poses(model, alone, motion_from_poses(poses[1:2, :3], DT), {}, 20)[0]
    assert torch.allclose(together, single, atol=1e-4)


def test_ten_runs_of_a_hundred_steps_equal_one_of_a_thousand() -> None:
    trial = draw_trials("combo", 1, 1, balls=3)[0]
    world = law_world(trial)
    first = motion_from_poses(law_episode(trial).link_poses[None, :3], DT)
    state = WorldState(first.world_from_link[0], first.twists[0], torch.zeros(0, 4, 7))
    model = known_laws(Dynamics(NetworkConfig(substeps=2)))
    whole, _ = roll_out(model, world, state, {}, 200, DT)
    part = state
    for _ in range(10):
        piece, part = roll_out(model, world, part, {}, 20, DT)
    assert torch.equal(whole.link_poses[-1], piece.link_poses[-1])
    assert torch.isfinite(whole.link_poses).all()
    assert motion_from_states([part]).twists.isfinite().all()


def test_training_recovers_the_collision_law_and_resumes_bit_for_bit(tmp_path) -> None:
    trials = draw_trials("collision", 60, 1)
    worlds, episodes = [law_world(t) for t in trials], [law_episode(t) for t in trials]
    data, held_out = split_recordings(gather_recordings(worlds, episodes), 0.2, torch.Generator().manual_seed(0))
    config = TrainConfig(steps=60, batch=32, horizons=(1, 3), every=20)
    before = validate(Dynamics(), held_out)
    whole = train(Dynamics(), data, held_out, config, tmp_path / "whole")
    assert validate(whole.model, held_out) < 0.2 * before
    assert 3 * float(whole.model.materials.power.detach()) == pytest.approx(2.0, abs=0.2)

    class StopError(Exception):
        pass

    def interrupt(step: int, loss: float) -> None:
        if step == 40:
            raise StopError

    with pytest.raises(StopError):
        train(Dynamics(), data, held_out, config, tmp_path / "cut", interrupt)
    again = train(Dynamics(), data, held_out, config, tmp_path / "cut")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_an_untrained_network_does_not_know_the_law() -> None:
    trials = draw_trials("parabola", 8, 2)
    data = gather_recordings([law_world(t) for t in trials], [law_episode(t) for t in trials])
    assert validate(Dynamics(), data) > 0.2
    batch = cut_batch(data, torch.tensor([[0, 2]]), 3)
    assert batch.poses.shape == (1, 3, 2, 7)
    assert scene_to(data.scene, "cpu", torch.float64).planes.dtype == torch.float64
