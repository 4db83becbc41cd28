"""Gaussians, cameras and episodes refuse what does not fit together, and their verbs keep what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gworld as gw
from gworld.errors import InputError
from gworld.formats.convert import gaussians_from_table
from gworld.scene.cameras import Cameras, intrinsics, look_at, project_points, resize_cameras
from gworld.scene.episode import Episode, Video
from gworld.scene.gaussians import Gaussians, gaussians_to, join_gaussians, select_gaussians, with_sh_degree
from tests.tables import random_table


@pytest.fixture
def gaussians() -> Gaussians:
    return gaussians_from_table(random_table(count=20, degree=2, links=3))


def test_shapes_are_checked(gaussians: Gaussians) -> None:
    # While tests run the annotations are checked first; in use it is the noun that refuses.
    with pytest.raises((InputError, TypeError), match="quats_wxyz"):
        replace(gaussians, means=gaussians.means[:5], quats_wxyz=gaussians.quats_wxyz)
    with pytest.raises(InputError, match=r"K in 1, 4, 9, 16"):
        replace(gaussians, sh=gaussians.sh[:, :5])
    with pytest.raises(InputError, match="come together"):
        replace(gaussians, soft_links=torch.zeros(20, 4, dtype=torch.int32))


def test_joining_pads_degrees_and_soft_links(gaussians: Gaussians) -> None:
    flat = with_sh_degree(gaussians, 0)
    weights = torch.full((20, 4), 0.25)
    soft = replace(flat, soft_links=torch.zeros(20, 4, dtype=torch.int32), soft_weights=weights)
    joined = join_gaussians([gaussians, soft])
    assert len(joined) == 40 and joined.sh_degree == 2
    assert joined.soft_weights is not None and joined.soft_weights[:20, 0].eq(1).all()
    assert torch.equal(joined.sh[:20], gaussians.sh) and joined.sh[20:, 1:].abs().max() == 0
    with pytest.raises(InputError, match="no parts"):
        join_gaussians([])
    part = select_gaussians(joined, torch.arange(5))
    assert len(part) == 5 and part.soft_links is not None
    assert gaussians_to(joined, dtype=torch.float64).means.dtype == torch.float64
    assert gaussians_to(joined, dtype=torch.float64).links.dtype == torch.int32


def test_camera_looks_at_its_target_with_up_upward() -> None:
    eye, target = torch.tensor([[3.0, -2.0, 1.5]]), torch.tensor([[0.0, 0.0, 0.5]])
    cameras = Cameras(intrinsics(640, 480, 0.8)[None], look_at(eye, target), 640, 480)
    pixels, depth = project_points(cameras, torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.9]]))
    torch.testing.assert_close(pixels[0, 0], torch.tensor([320.0, 240.0]), atol=1e-3, rtol=0)
    assert pixels[0, 1, 1] < 240 and depth[0, 0] > 0
    torch.testing.assert_close(torch.linalg.det(cameras.world_from_camera[:, :3, :3]), torch.ones(1))
    straight_down = look_at(torch.tensor([[0.0, 0.0, 5.0]]), torch.zeros(1, 3))
    assert torch.isfinite(straight_down).all()
    half = resize_cameras(cameras, 320, 240)
    torch.testing.assert_close(
        project_points(half, torch.tensor([[0.1, 0.2, 0.3]]))[0] * 2,
        project_points(cameras, torch.tensor([[0.1, 0.2, 0.3]]))[0],
    )
    with pytest.raises(InputError, match="at least 1 x 1"):
        replace(cameras, width=0)
    with pytest.raises(InputError, match="names has 2 entries"):
        replace(cameras, names=("a", "b"))
    assert len(cameras[-1]) == 1 and len(cameras[0:0]) == 0


def test_episode_clock_and_rows_are_checked() -> None:
    times = torch.arange(4.0)
    good = Episode(times, actions={"left": torch.zeros(4, 3)}, joints={"left": torch.zeros(4, 3)})
    assert len(good) == 4
    with pytest.raises(InputError, match="do not increase"):
        Episode(times.flip(0))
    with pytest.raises((InputError, TypeError), match="actions"):
        Episode(times, actions={"left": torch.zeros(3, 3)})
    with pytest.raises(InputError, match="link_poses has shape"):
        Episode(times, link_poses=torch.zeros(4, 2, 7), link_names=("a",))
    with pytest.raises(InputError, match="link_poses has shape"):
        Episode(times, link_poses=torch.zeros(4, 0, 7), link_names=("a",))
    video = Video("front", Path("front.mp4"), times)
    cameras = Cameras(torch.eye(3).expand(2, 3, 3), torch.eye(4).expand(2, 4, 4), 4, 4)
    with pytest.raises(InputError, match="2 cameras are given for 1 videos"):
        Episode(times, videos=(video,), cameras=cameras)


def test_the_python_face_is_complete() -> None:
    for name in gw.__all__:
        assert getattr(gw, name) is not None
    assert set(gw.__all__) <= set(dir(gw))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gw.nonsense
