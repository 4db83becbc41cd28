"""Generated laws: exact motion, conserved quantities, ranges as the bench states them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gworld.data.laws import (
    DT,
    LEVELS,
    LawOptions,
    draw_trials,
    energy_of,
    in_view,
    law_episode,
    law_world,
    move_balls,
)
from gworld.errors import InputError, UsageError


def test_parabola_is_the_closed_form() -> None:
    trial = draw_trials("parabola", 1, 3)[0]
    t = np.arange(len(trial.centers)) * DT
    fall = trial.centers[0, 0] + trial.velocities[0, 0] * t[:, None] + 0.5 * np.array([0.0, -2.5]) * t[:, None] ** 2
    np.testing.assert_allclose(trial.centers[:, 0], fall, atol=1e-12)


@pytest.mark.parametrize("level", ["", *LEVELS])
def test_collisions_lie_in_their_ranges_and_conserve(level: str) -> None:
    for trial in draw_trials("collision", 5, 1, outside=level):
        far = {"r1", "r2", "v1", "v2"} if level == "all" else set(level.split())
        for index in (0, 1):
            radius = trial.radii[index]
            assert (0.5 <= radius <= 1.5) != (f"r{index + 1}" in far)
            speed = np.linalg.norm(trial.velocities[0, index])
            assert (1.0 <= speed <= 4.0) != (f"v{index + 1}" in far)
        momentum = (trial.masses[:, None] * trial.velocities).sum(axis=1)
        np.testing.assert_allclose(momentum, np.tile(momentum[:1], (32, 1)), atol=1e-9)
        energy = energy_of(trial, trial.centers, trial.velocities)
        np.testing.assert_allclose(energy, energy[0], rtol=1e-9)
        first = trial.events[0][0]
        assert first + 1e-9 >= 4 * DT and first <= (32 - 9) * DT + 1e-9
        gap = np.linalg.norm(trial.centers[:, 0] - trial.centers[:, 1], axis=-1) - trial.radii.sum()
        assert gap.min() > -1e-9


def test_balls_between_walls_stay_inside_and_keep_their_energy() -> None:
    for trial in draw_trials("combo", 3, 0, balls=5):
        assert (np.abs(trial.centers) + trial.radii[:, None] <= 5 + 1e-9).all()
        energy = energy_of(trial, trial.centers, trial.velocities)
        np.testing.assert_allclose(energy, energy[0], rtol=1e-9)
        assert min((event[0] for event in trial.events), default=1.0) > 0.2


def test_restitution_takes_energy_and_density_changes_mass() -> None:
    soft = draw_trials("collision", 1, 0, options=LawOptions(restitution=0.5))[0]
    energy = energy_of(soft, soft.centers, soft.velocities)
    assert energy[-1] < energy[0] * (1 - 1e-6)
    heavy = draw_trials("collision", 1, 0, options=LawOptions(density_power=1.0))[0]
    np.testing.assert_allclose(heavy.masses, np.pi * heavy.radii**3)


def test_worlds_and_episodes_agree_and_draws_repeat() -> None:
    first, again = draw_trials("collision", 2, 9), draw_trials("collision", 2, 9)
    np.testing.assert_array_equal(first[1].centers, again[1].centers)
    world, episode = law_world(first[0]), law_episode(first[0])
    assert torch.allclose(world.rest_poses()[:, :3, 3], episode.link_poses[0, :, :3])
    assert in_view(first[0])[:, 0].any()


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="no law"):
        draw_trials("spring", 1, 0)
    trial = draw_trials("collision", 1, 0)[0]
    with pytest.raises(InputError, match="overlap"):
        move_balls(trial, np.zeros((2, 2)), np.zeros((2, 2)), 1.0)
