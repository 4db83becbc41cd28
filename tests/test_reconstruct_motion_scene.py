"""Plates laid flat on a plane, and what agents were told by how they moved, against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.agents.skeleton import read_robot
from gworld.bench.track_scene import ARM, PART
from gworld.errors import InputError
from gworld.reconstruct.motion_actions import actions_from_joints
from gworld.reconstruct.motion_film import Plates
from gworld.reconstruct.motion_options import PlaneOptions
from gworld.reconstruct.motion_rig import plane_points
from gworld.reconstruct.motion_scene import plane_gaussians
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.world import ActionSpec

WIDTH, HEIGHT, LEVEL = 80, 60, 0.2


def two_cameras() -> Cameras:
    eyes = torch.tensor([[0.7, 0.0, 1.0], [-0.5, 0.6, 1.2]])
    poses = look_at(eyes, torch.tensor([0.0, 0.0, LEVEL]).expand(2, 3), torch.tensor([0.0, 0.0, 1.0]))
    return Cameras(intrinsics(WIDTH, HEIGHT, math.radians(50)).expand(2, 3, 3), poses, WIDTH, HEIGHT)


def checks(cameras: Cameras, gains: tuple[float, float]) -> np.ndarray:
    """A smooth pattern on the plane, brighter for one camera than for the other, as a shining table is."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    pixels = torch.from_numpy(np.stack([columns, rows], -1).reshape(-1, 2))
    pictures = []
    for camera, gain in enumerate(gains):
        pose, K = cameras.world_from_camera[camera].double(), cameras.K[camera].double()
        points = plane_points(pixels, K, pose, torch.tensor([0.0, 0.0, 1.0, -LEVEL]).double()).numpy()
        wave = 0.5 + 0.25 * np.sin(14 * points[:, 0]) * np.cos(11 * points[:, 1])
        pictures.append(gain * np.stack([wave, 0.8 * wave, 1 - wave], -1).reshape(HEIGHT, WIDTH, 3))
    return np.stack(pictures).astype(np.float32)


def test_a_scene_laid_on_the_plane_shows_every_camera_its_plate() -> None:
    cameras = two_cameras()
    pictures = checks(cameras, (1.0, 0.7))
    known = np.ones(pictures.shape[:3], bool)
    known[0, :10] = False
    pictures[0, :10] = 0.0
    found = plane_gaussians(Plates(pictures, known), cameras, (0.0, 0.0, 2.0, -2 * LEVEL), PlaneOptions(1.5, 5.0, 30))
    assert torch.allclose(found.means[:, 2], torch.tensor(LEVEL), atol=1e-5)
    assert set(found.links.tolist()) == {0}
    # Flat on the plane: the shortest axis is its normal, so that dynamics finds the table by them.
    thin = found.log_scales.exp()
    assert bool((thin[:, 2] < 0.1 * thin[:, :2].amin(1)).all())
    with torch.no_grad():
        shown = render(found, None, cameras, outputs=("rgb",)).rgb
    assert shown is not None
    inner = known & (np.indices(known.shape)[1] > 12)
    for camera in range(2):
        error = (shown[0, camera].numpy() - pictures[camera])[inner[camera]]
        assert -10 * np.log10(np.square(error).mean()) > 30


def test_a_camera_that_looks_away_from_the_plane_is_refused() -> None:
    cameras = two_cameras()
    plates = Plates(np.zeros((2, HEIGHT, WIDTH, 3), np.float32), np.ones((2, HEIGHT, WIDTH), bool))
    with pytest.raises(InputError, match="no camera looks at the plane"):
        plane_gaussians(plates, cameras, (0.0, 0.0, 1.0, -3.0), PlaneOptions(4.0, 5.0, 1))


def test_actions_lead_from_each_step_to_the_next(tmp_path: Path) -> None:
    parts = "".join(
        PART.format(i=i, parent="base" if i == 0 else "part0", half=0.1, w=0.05, d=0.05, length=0.2, color="grey",
                    at=0.12, axis="0 1 0") for i in range(2)
    )  # fmt: skip
    (tmp_path / "arm.urdf").write_text(ARM.format(links=parts))
    robot = read_robot(tmp_path / "arm.urdf", "arm")
    times = torch.tensor([0.0, 0.5, 0.75])
    joints = torch.tensor([[0.0, 0.1], [0.2, 0.1], [0.3, 5.0]])
    spec = ActionSpec(
        ("joint0/position", "joint1/velocity", "hand/x"), ("rad", "rad/s", "m"), (-2.4, -3, -1), (2.4, 3, 1)
    )
    told = actions_from_joints(spec, robot, times, joints)
    assert torch.allclose(told[:, 0], torch.tensor([0.2, 0.3, 0.3]))
    assert torch.allclose(told[:, 1], torch.tensor([0.0, 3.0, 0.0]))  # 19.6 rad/s is beyond the limit
    assert bool(told[:, 2].isnan().all())
