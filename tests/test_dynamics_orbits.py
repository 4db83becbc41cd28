"""Bodies that attract across a distance: exact orbits, and their law found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gworld.data.laws import DT, law_episode, law_world
from gworld.data.orbits import OrbitOptions, draw_orbits, move_bodies, orbit_energy, orbit_strength
from gworld.dynamics.forces import fit_forces
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import Recordings, gather_recordings
from gworld.dynamics.rollout import roll_motion
from gworld.dynamics.state import still_motion
from gworld.geometry import transform_from_pose


def recordings_of(exponent: float, count: int) -> Recordings:
    trials = draw_orbits(count, 1, OrbitOptions(exponent=exponent))
    return gather_recordings([law_world(t) for t in trials], [law_episode(t) for t in trials])


def known_forces(exponent: float, substeps: int = 2) -> Dynamics:
    """A network with the true law of orbits and nothing else, instead of a training."""
    model = Dynamics(NetworkConfig(forces=True, contact=False, residual=False, substeps=substeps))
    with torch.no_grad():
        for value in (model.free.fall, model.free.drag, model.free.spin_drag):
            value.fill_(0.0)
        for value in model.materials.shape.parameters():
            value.zero_()
        model.materials.power.fill_(2 / 3)
        # mass is volume^(2/3) in the network, pi r^2 in the truth
        model.forces.strength.fill_(orbit_strength(exponent) * np.pi / (4 / 3 * np.pi) ** (2 / 3))
        model.forces.exponent.fill_(exponent)
    return model


@pytest.mark.parametrize("exponent", [-2.0, 1.0])
def test_a_circle_is_run_through_at_its_known_speed(exponent: float) -> None:
    trial = draw_orbits(1, 0, OrbitOptions(exponent=exponent))[0]
    trial = replace(trial, masses=np.array([1.0, 1e-9]))
    far = 3.0
    rate = np.sqrt(orbit_strength(exponent) * far ** (exponent - 1))
    moved = move_bodies(trial, np.array([[0, 0], [far, 0]]), np.array([[0, 0], [0, far * rate]]), exponent, 100)
    angle = rate * DT * np.arange(100)
    np.testing.assert_allclose(moved.centers[:, 1], far * np.stack([np.cos(angle), np.sin(angle)], 1), atol=1e-7)


@pytest.mark.parametrize("exponent", [-2.0, -1.0, 1.0])
def test_orbits_keep_energy_and_momentum_and_never_touch(exponent: float) -> None:
    for trial in draw_orbits(4, 3, OrbitOptions(exponent=exponent, planets=2)):
        energy = orbit_energy(trial, trial.centers, trial.velocities, exponent)
        np.testing.assert_allclose(energy, energy[0], atol=1e-7 * np.abs(energy).max())
        momentum = (trial.masses[:, None] * trial.velocities).sum(axis=1)
        np.testing.assert_allclose(momentum, 0.0, atol=1e-8)
        gap = np.linalg.norm(trial.centers[:, 0] - trial.centers[:, 1], axis=-1)
        assert (gap > trial.radii[:2].sum()).all()


@pytest.mark.parametrize("exponent", [-2.0, 0.0, 1.0])
def test_the_law_of_a_force_is_found_again(exponent: float) -> None:
    model = Dynamics(NetworkConfig(forces=True))
    data = recordings_of(exponent, 12)
    assert fit_forces(model.forces, model.materials, model.free, data) > 64
    with torch.no_grad():
        density = model.materials(data.scene, torch.zeros(*data.scene.solid.shape, 1)).log_mass[0, 1].exp()
        volume = data.scene.solids.volume[0] / data.scene.scale[0] ** 3
        weight = float(density / volume**model.materials.power)
        assert abs(float(model.forces.exponent) - exponent) < 0.01
        assert abs(float(model.materials.power) - 2 / 3) < 0.01
        assert float(model.free.drag) < 1e-3
        truth = orbit_strength(exponent) * np.pi / (4 / 3 * np.pi) ** (2 / 3)
        assert float(model.forces.strength) * weight == pytest.approx(truth, rel=0.02)


def test_a_repelling_force_is_told_from_an_attracting_one() -> None:
    data = recordings_of(-2.0, 6)
    place = data.poses.clone()
    pull = place[:, 2:, :, :3] - 2 * place[:, 1:-1, :, :3] + place[:, :-2, :, :3]
    bent = place[:, :1, :, :3] + (place[:, 1:2, :, :3] - place[:, :1, :, :3]) * torch.arange(48)[:, None, None]
    bent[:, 2:] -= pull.cumsum(1).cumsum(1)  # the same distances do not hold any more, the sign does
    model = Dynamics(NetworkConfig(forces=True))
    short = replace(data, poses=torch.cat([bent[:, :6], place[:, :6, :, 3:]], dim=-1))
    fit_forces(model.forces, model.materials, model.free, short)
    assert float(model.forces.strength.detach()) < 0


@pytest.mark.parametrize("exponent", [-2.0, 1.0])
def test_ten_orbits_create_no_energy_and_stay_where_they_belong(exponent: float) -> None:
    trial = draw_orbits(1, 5, OrbitOptions(exponent=exponent, frames=600))[0]
    data = gather_recordings([law_world(trial)], [law_episode(trial)])
    start = still_motion(transform_from_pose(data.poses[:, 0]))
    start.twists[0, 1:, [0, 2]] = torch.from_numpy(trial.velocities[0]).float()
    with torch.no_grad():
        motions = list(roll_motion(known_forces(exponent), data.scene, start, {}, 599))
    places = torch.stack([m.world_from_link[0, 1:, :3, 3] for m in motions]).double().numpy()[..., [0, 2]]
    speeds = torch.stack([m.twists[0, 1:, :3] for m in motions]).double().numpy()[..., [0, 2]]
    energy = orbit_energy(trial, places, speeds, exponent)
    kinetic = 0.5 * (trial.masses * (trial.velocities[0] ** 2).sum(-1)).sum()
    first = orbit_energy(trial, trial.centers[:1], trial.velocities[:1], exponent)[0]
    assert (energy - first).max() < 1e-3 * kinetic
    assert np.linalg.norm(places - trial.centers[1:], axis=-1).max() < 0.05
    assert np.abs((trial.masses[:, None] * speeds).sum(1)).max() < 1e-4
