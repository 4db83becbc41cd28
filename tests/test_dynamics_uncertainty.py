"""Intervals that cover what they say, on balls whose densities no picture shows; and actions read off two frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.bench.bias_lattice import rail_drives
from gworld.data.lattice import SECONDS, draw_walks, lattice_episode, lattice_world
from gworld.data.laws import DT, LawOptions, draw_trials, law_episode, law_world
from gworld.dynamics.inverse import between_frames, infer_actions, usual_actions
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import Recordings, gather_recordings
from gworld.dynamics.saved import load_calibration, save_model
from gworld.dynamics.state import motion_from_poses
from gworld.dynamics.uncertainty import (
    KEY,
    NINETY,
    Calibration,
    SpreadConfig,
    calibrate,
    calibration_from,
    deviations,
    foretell_windows,
    roll_out_surely,
)
from gworld.errors import InputError, UsageError
from gworld.scene.world import WorldState
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.files import read_rollout, write_rollout
from gworld.simulate.learned import Learned
from gworld.simulate.run import run_engine


def balls(seed: int) -> Recordings:
    trials = draw_trials("collision", 10, seed, options=LawOptions(density_spread=0.4))
    return gather_recordings([law_world(t) for t in trials], [law_episode(t) for t in trials])


def known_laws() -> Dynamics:
    model = Dynamics(NetworkConfig())
    with torch.no_grad():
        for value in (model.free.fall, model.free.drag, model.free.spin_drag, model.materials.grip):
            value.fill_(0.0)
        for value in (model.materials.skin, model.residual.gate, *model.materials.shape.parameters()):
            value.zero_()
        model.materials.power.fill_(2 / 3)
        model.materials.bounce.fill_(1.0)
    return model


def test_intervals_cover_held_out_errors() -> None:
    config = SpreadConfig(copies=3, place=1e-4, speed=1e-3, mass=0.4, floor=1e-5)
    model = known_laws()
    calibration = calibrate(model, balls(1), (0.5, 2.0), 2, config)
    test = balls(2)
    found, truth = foretell_windows(model, test, 2.0, 2, config)
    std = deviations(found, test.scene.dt, calibration)
    error = (found.poses[..., :3, 3] - truth).norm(dim=-1)[:, -1, 1:]
    share = float((error <= NINETY * std[:, -1, 1:]).float().mean())
    assert 0.75 <= share <= 1.0
    assert std[:, -1, 1:].median() < 2.0 * std[:, -1, 1:].mean()


def test_a_rollout_tells_its_deviations_and_moves_as_without(tmp_path: Path) -> None:
    trial = draw_trials("collision", 1, 0)[0]
    world = law_world(trial)
    first = motion_from_poses(law_episode(trial).link_poses[None, :3], DT)
    state = WorldState(first.world_from_link[0], first.twists[0], torch.zeros(0, 3, 7))
    told = Calibration((0.5, 1.0), ((1.0, 1.0), (1.5, 3.0), (0.5, 0.5)), SpreadConfig(copies=2))
    save_model(known_laws(), tmp_path / "sure", told=told)
    assert load_calibration(tmp_path / "sure") == told
    rollout, end = roll_out_surely(known_laws(), world, state, {}, 12, DT, told)
    assert rollout.link_std is not None and rollout.link_std.shape == (13, 3)
    assert (rollout.link_std[0] == 0).all() and (rollout.link_std[1:, 1:] > 0).all()
    assert torch.equal(end.world_from_link[:, :3, 3], rollout.link_poses[-1, :, :3])
    with pytest.raises(InputError, match="link_std"):
        replace(rollout, link_std=-rollout.link_std)


def test_a_damaged_calibration_is_refused() -> None:
    assert calibration_from({}) is None
    for told in ({"seconds": [1.0]}, {"seconds": [1.0], "factors": [[1]], "config": {}}, [], "sure"):
        with pytest.raises(InputError):
            calibration_from({KEY: told})


def test_a_simulation_tells_how_sure_it_is_and_moves_as_without(tmp_path: Path) -> None:
    trial = draw_trials("collision", 1, 0)[0]
    world = law_world(trial)
    first = motion_from_poses(law_episode(trial).link_poses[None, :3], DT)
    state = WorldState(first.world_from_link[0], first.twists[0], torch.zeros(0, 3, 7))
    told = Calibration((0.5, 1.0), ((1.0, 1.0), (1.5, 3.0), (0.5, 0.5)), SpreadConfig(copies=2))
    stepper = Learned(world, known_laws(), DT, calibration=told)
    engine = Engine(world, stepper, EngineOptions(step=DT))
    runs = []
    for sure in (False, True):
        engine.reset(0, state)
        runs.append(run_engine(engine, lambda _: {}, 12, deviations=sure).rollouts[0])
    assert torch.equal(runs[0].link_poses, runs[1].link_poses) and runs[0].link_std is None
    beside, _ = roll_out_surely(known_laws(), world, state, {}, 12, DT, told)
    assert runs[1].link_std is not None and beside.link_std is not None
    assert torch.allclose(runs[1].link_std, beside.link_std, rtol=1e-4)
    write_rollout(runs[1], tmp_path / "sure.parquet")
    again = read_rollout(tmp_path / "sure.parquet")
    assert again.link_std is not None and torch.equal(again.link_std, runs[1].link_std)
    with pytest.raises(UsageError, match="calibrated"):
        run_engine(Engine(world, Learned(world, known_laws(), DT)), lambda _: {}, 1, deviations=True)


def test_moves_are_read_off_two_frames() -> None:
    walks = draw_walks(4, 0, 12, agents=2)
    world = lattice_world((0, 1))
    data = gather_recordings([world], [lattice_episode(walk) for walk in walks], rail_drives(world, 5))
    model = Dynamics(NetworkConfig(substeps=1, residual=False))
    with torch.no_grad():
        model.actuation.gain.fill_(1.0)
        model.actuation.lag.fill_(-6.0)
        model.actuation.thrust.fill_(8.0)
    windows = torch.tensor([[episode, frame] for episode in range(4) for frame in range(10)])
    scene, start, after = between_frames(data, windows, model.belief)
    found = infer_actions(model, scene, start, after, data.drives, usual_actions(data))
    for rail in (0, 1):
        steps = np.stack([walks[e].cells[f + 1, rail] - walks[e].cells[f, rail] for e, f in windows.tolist()])
        moved = torch.from_numpy(steps).float() != 0
        got = SECONDS * found[f"walker{rail}"][:, 0]
        assert torch.allclose(got[moved], torch.from_numpy(steps).float()[moved], atol=0.05)
        assert (got.abs() <= 1.0).all()
