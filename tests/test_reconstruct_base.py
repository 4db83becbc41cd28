"""A robot's base: found by drawing it before MuJoCo's own pictures, by markers, and by the motion of a wrist camera."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gworld.agents.skeleton import read_robot
from gworld.agents.tree import Skeleton, subtree
from gworld.capture.boards import parse_board
from gworld.data.simulators import open_scene
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_world import scene_world, write_models
from gworld.errors import InputError, MissingBackendError
from gworld.geometry import invert_transform, quat_from_matrix, rotvec_from_quat, se3_exp, transform_from_pose
from gworld.reconstruct.base import (
    LookOptions,
    Sight,
    base_from_hand_eye,
    base_from_marked_hand,
    base_from_markers,
    base_from_pictures,
    world_plates,
)
from gworld.reconstruct.motion_film import Film, Plates, first_plates
from gworld.scene.cameras import Cameras, look_at
from tests.test_capture_boards import film

SMALL = LookOptions(instants=4, population=32, rounds=14, finest=1)


def twist(*values: float) -> Tensor:
    return se3_exp(torch.tensor(values, dtype=torch.float64))


def apart(one: Tensor, two: Tensor) -> tuple[float, float]:
    """Metres and degrees."""
    turn = rotvec_from_quat(quat_from_matrix(one[:3, :3].T @ two[:3, :3])).norm()
    return float((one[:3, 3] - two[:3, 3]).norm()), math.degrees(float(turn))


class Shown:
    """An arm of our own simulated scene in 16 postures before two cameras, its true base, what stands behind it."""

    def __init__(self, folder: Path) -> None:
        simulation = open_scene("arms", SceneOptions(agents=1, objects=1, cameras=2, width=192, height=144))
        simulation.reset(2)
        world, (name, actor) = scene_world(simulation, spacing=0.01), next(iter(simulation.agents.items()))
        assert simulation.cameras is not None
        self.cameras: Cameras = replace(simulation.cameras, names=(), links=())
        self.plates: Plates = world_plates(world, self.cameras)
        rng, values, pictures = np.random.default_rng(0), [], ([], [])
        low, high = np.array(actor.spec.low), np.array(actor.spec.high)
        for step in range(64):
            if step % 16 == 0:
                target = rng.uniform(0.7 * low, 0.7 * high)
            simulation.step({name: target})
            if step % 4 == 3:
                values.append(simulation.joints(name))
                for camera in range(2):
                    pictures[camera].append(simulation.draw(camera, truth=False).rgb)
        self.values, self.times = torch.tensor(np.array(values)), torch.arange(len(values)) / 10.0
        self.films = [Film(self.times.double().numpy(), np.stack(each)) for each in pictures]
        model = folder / write_models(simulation, folder)[name]
        self.robot: Skeleton = subtree(read_robot(model, name), "base", name)
        first = transform_from_pose(torch.tensor(simulation.link_poses()))[actor.links[0]]
        self.base = first @ invert_transform(torch.tensor(self.robot.links[0].parent_from_link).double())
        simulation.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    try:
        return Shown(tmp_path_factory.mktemp("arm"))
    except MissingBackendError as error:
        pytest.skip(str(error))


def test_a_displaced_base_is_found_by_looking(shown: Shown) -> None:
    near = shown.base.clone()
    near[:3, 3] += torch.tensor([0.06, -0.06, 0.05])  # 10 cm
    near[:3, :3] = twist(0, 0, 0, 0.06, -0.06, 0.15)[:3, :3] @ near[:3, :3]  # 10 degrees
    assert apart(near, shown.base)[0] > 0.098 and apart(near, shown.base)[1] > 9.8
    fit = base_from_pictures(
        shown.robot, shown.values, shown.times, shown.films, shown.cameras, shown.plates, near, SMALL, whole=True
    )
    place, turn = apart(fit.world_from_base, shown.base)
    assert place < 0.004 and turn < 0.5
    assert place < 6 * fit.position_sigma and fit.position_sigma < 0.003 and fit.explained > 0.2


def test_a_base_is_found_before_plates_of_the_footage_itself(shown: Shown) -> None:
    near = shown.base @ twist(0.03, 0.02, -0.02, 0, 0.03, 0.05)
    plates = first_plates(shown.films, np.zeros((0, 3)))
    values = shown.values.clone()
    values[3] = torch.nan  # a row that was not recorded is left out
    options = replace(SMALL, reach=0.05, turn=0.1)
    fit = base_from_pictures(shown.robot, values, shown.times, shown.films, shown.cameras, plates, near, options)
    place, turn = apart(fit.world_from_base, shown.base)
    assert place < 0.005 and turn < 0.6


def test_a_robot_that_is_not_there_is_not_found(shown: Shown) -> None:
    arguments = (shown.robot, shown.values, shown.times, shown.films, shown.cameras, shown.plates)
    options = replace(SMALL, reach=0.05, turn=0.1, rounds=3, population=12, instants=2, finest=2)
    with pytest.raises(InputError, match="explains only"):
        base_from_pictures(*arguments, shown.base @ twist(0.5, 0.2, 0, 0, 0, 2.0), options, whole=True)
    still = shown.values[:1].expand_as(shown.values)
    with pytest.raises(InputError, match="never move"):
        base_from_pictures(shown.robot, still, *arguments[2:], shown.base, options)
    with pytest.raises(InputError, match="has all joint values"):
        base_from_pictures(shown.robot, still * torch.nan, *arguments[2:], shown.base, options)


K = torch.tensor([[520.0, 0, 322], [0, 515, 238], [0, 0, 1]], dtype=torch.float64)
TAG = parse_board("tag:36h11:7:0.12m")


def rig(count: int) -> Cameras:
    eyes = torch.tensor([[0.5, -0.3, 0.5], [0.35, 0.35, 0.45], [0.7, 0.1, 0.4]], dtype=torch.float64)[:count]
    poses = look_at(eyes, torch.tensor([0.2, 0.05, 0.0], dtype=torch.float64))
    return Cameras(K.expand(count, 3, 3).clone(), poses, 640, 480)


def picture(cameras: Cameras, camera: int, world_from_board: Tensor) -> Tensor:
    return film(TAG, (0.12, 0.12), invert_transform(world_from_board) @ cameras.world_from_camera[camera])


def test_a_base_is_found_by_a_tag_of_known_place() -> None:
    truth, offset = twist(0.05, -0.02, 0.01, 0.02, -0.03, 0.6), twist(0.15, 0.05, 0.02, 0, 0, 0.4)
    cameras = rig(3)
    sights = [Sight(row, picture(cameras, row, truth @ offset), offset) for row in range(3)]
    fit = base_from_markers(cameras, sights, TAG)
    place, turn = apart(fit.world_from_base, truth)
    assert place < 0.001 and turn < 0.15
    assert fit.position_sigma < 0.002 and "3 pictures" in fit.how
    with pytest.raises(InputError, match="none of 1 pictures shows the marker"):
        base_from_markers(cameras, [replace(sights[0], picture=torch.full((480, 640, 3), 90).byte())], TAG)
    moved = [replace(sights[0], base_from_board=offset @ twist(0.1, 0, 0, 0, 0, 0)), *sights[1:]]
    with pytest.raises(InputError, match="pixels off the best base"):
        base_from_markers(cameras, moved, TAG)


def test_a_base_is_found_by_a_tag_somewhere_on_a_moving_link() -> None:
    truth, hidden = twist(0.0, 0.05, -0.1, 0, 0, 0.3), twist(0.02, 0.01, 0.05, 0.1, 0.05, 0.2)
    cameras, generator = rig(1), torch.Generator().manual_seed(3)
    sights = []
    for _ in range(9):
        away = torch.randn(6, generator=generator, dtype=torch.float64) * torch.tensor(
            [0.05, 0.05, 0.02, 0.3, 0.3, 0.3]
        )
        hand = twist(0.2, 0.0, 0.05, 0, 0, 0) @ se3_exp(away)
        sights.append(Sight(0, picture(cameras, 0, truth @ hand @ hidden), hand))
    place, turn = apart(base_from_marked_hand(cameras, sights, TAG).world_from_base, truth)
    assert place < 0.004 and turn < 0.5


def test_a_base_is_found_by_the_motion_of_a_wrist_camera() -> None:
    generator = torch.Generator().manual_seed(1)
    truth, mount = twist(0.4, -0.2, 0.8, 0.02, 0.01, 1.2), twist(0.03, 0.0, 0.06, 0.1, -0.2, 0.05)
    spread = torch.tensor([0.15, 0.15, 0.1, 0.3, 0.3, 0.5], dtype=torch.float64)
    hands = torch.stack([twist(0.5, 0, 0.3, 0, 0, 0) @ se3_exp(torch.randn(6, generator=generator).double() * spread)
                         for _ in range(40)])  # fmt: skip
    noise = se3_exp(torch.randn(40, 6, generator=generator).double() * 0.001)
    cameras = truth @ hands @ mount @ noise
    fit, found = base_from_hand_eye(cameras, hands)
    assert apart(fit.world_from_base, truth)[0] < 0.002 and apart(fit.world_from_base, truth)[1] < 0.1
    assert apart(found, mount)[0] < 0.002 and fit.position_sigma < 0.002
    shrunk = cameras.clone()
    shrunk[:, :3, 3] *= 0.5
    with pytest.raises(InputError, match="the world's unit is"):
        base_from_hand_eye(shrunk, hands)
