"""Links that are held square: how far they are turned away, and fits that keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.bench.track_scene import Scene, film_scene
from gworld.errors import UsageError
from gworld.geometry import quat_from_rotvec, quat_multiply, rotvec_from_quat
from gworld.reconstruct.motion import TrackOptions
from gworld.reconstruct.motion_bodies import Bodies, bodies_of, moved, poses_of, turned_away, with_bases
from gworld.reconstruct.motion_draw import scene_plates
from gworld.reconstruct.motion_film import levels_of, shot_at
from gworld.reconstruct.motion_fit import Prior, Weights, costs, derivatives, fit_state


def squared(folder: Path, sigma: float = 0.01) -> tuple[Scene, Bodies]:
    scene = film_scene(folder, 1, width=64, height=48)
    options = TrackOptions(square=("part1",), square_sigma=sigma)
    return scene, bodies_of(scene.world, scene.robots, options)


def test_turn_away_is_that_of_the_joints_wherever_the_root_stands(tmp_path: Path) -> None:
    _, bodies = squared(tmp_path)
    state = bodies.start.clone()
    state[:3] = torch.tensor([0.3, 0.2, -0.4])
    away = turned_away(bodies, poses_of(bodies, torch.stack([state, state])))
    turn = torch.zeros(2, 3, dtype=torch.float64)
    turn[0, 2], turn[1, 1] = 0.3, 0.2  # the first joint turns about z, the second about y
    wanted = rotvec_from_quat(quat_multiply(quat_from_rotvec(turn[0]), quat_from_rotvec(turn[1]))) / 0.01
    torch.testing.assert_close(away[0].abs(), wanted.abs(), atol=1e-4, rtol=0)
    tilted = with_bases(bodies, torch.tensor([[0.1, 0.0, 0.2, 0.3, -0.2, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(turned_away(tilted, poses_of(tilted, state)), away[0], atol=1e-4, rtol=0)


def test_fit_brings_a_link_square_and_leaves_the_joints_beyond_it(tmp_path: Path) -> None:
    scene, bodies = squared(tmp_path)
    plates = scene_plates(scene.world, scene.cameras)
    level = levels_of(scene.cameras, plates, (1,))[1]
    shot = shot_at(scene.films, 0.0, level)
    state = bodies.start.clone()
    state[:3] = torch.tensor([0.2, -0.15, 0.4])
    blind, weak = Weights(0.0, 0.0), torch.full((bodies.size,), 1e-3, dtype=torch.float64)
    solved = fit_state(bodies, level, shot, Prior(state, weak), state, 12, blind)
    assert float(turned_away(bodies, poses_of(bodies, solved.state)).abs().max()) < 0.05  # of a sigma
    assert abs(float(solved.state[2]) - 0.4) < 1e-3
    before, after = costs(bodies, torch.stack([state, solved.state]), level, shot, blind)
    assert float(after) < 1e-3 * float(before)
    assert np.isclose(float(solved.matrix[0, 0]), 1 / 0.01**2, rtol=0.02)
    matrix, _ = derivatives(bodies, level, shot, solved.state, 0.001, torch.full((6,), 0.001, dtype=torch.float64))
    assert float(matrix[6, 6]) > 1 / 0.01**2 > float(matrix[8, 8] - matrix[6, 6])


def test_unknown_link_is_one_sentence(tmp_path: Path) -> None:
    scene = film_scene(tmp_path, 1, width=64, height=48)
    with pytest.raises(UsageError, match="no link `wrist`"):
        bodies_of(scene.world, scene.robots, TrackOptions(square=("wrist",)))


def test_steps_keep_squares(tmp_path: Path) -> None:
    _, bodies = squared(tmp_path)
    step = torch.zeros(bodies.size, dtype=torch.float64)
    step[2] = 0.3  # a joint beyond the link that is held
    here, there = (
        turned_away(bodies, poses_of(bodies, one)) for one in (bodies.start, moved(bodies, bodies.start, step))
    )
    torch.testing.assert_close(here, there)


def test_height_over_the_root_is_held_where_asked(tmp_path: Path) -> None:
    scene = film_scene(tmp_path, 1, width=64, height=48)
    options = TrackOptions(square=("arm/part2",), square_sigma=1.0, square_rise=0.01)
    bodies = bodies_of(scene.world, scene.robots, options)
    state = bodies.start.clone()
    state[1] += 0.4
    here, there = poses_of(bodies, bodies.start), poses_of(bodies, state)
    away = turned_away(bodies, there)
    assert away.shape == (4,)
    link = bodies.arms[0].links[3]
    risen = there[link, 2, 3] - here[link, 2, 3]
    assert abs(float(risen)) > 0.005
    torch.testing.assert_close(away[3], risen / 0.01, atol=1e-3, rtol=0)
