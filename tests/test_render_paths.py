"""Camera paths: where they pass, where they look, and camera-path files of nerfstudio."""

from __future__ import annotations

import json
import math

import pytest
import torch

from gworld.errors import InputError
from gworld.geometry import quat_from_matrix as quat
from gworld.geometry import rotvec_from_quat, se3_exp
from gworld.render.paths import bulk, fit_view, orbit, path_cameras, read_camera_path, spline
from gworld.scene.cameras import project_points
from tests.scenes import random_cameras


@pytest.mark.parametrize("up", [None, (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (1.0, -2.0, 0.5)])
def test_an_orbit_keeps_its_distance_and_its_centre_in_the_middle(up):
    center = torch.tensor([0.3, -0.2, 1.0])
    axis = torch.nn.functional.normalize(torch.tensor(up or (0.0, 0.0, 1.0)), dim=0)
    poses = orbit(center, 2.0, 0.7, 24, None if up is None else torch.tensor(up))
    offset = poses[:, :3, 3] - center
    torch.testing.assert_close(offset @ axis, torch.full((24,), 0.7), atol=1e-5, rtol=0)
    torch.testing.assert_close((offset - 0.7 * axis).norm(dim=-1), torch.full((24,), 2.0), atol=1e-5, rtol=0)
    pixels, depth = project_points(path_cameras(poses, 64, 48), center[None])
    torch.testing.assert_close(pixels[:, 0], torch.tensor([32.0, 24.0]).expand(24, 2), atol=1e-3, rtol=0)
    assert (depth > 0).all()
    assert float((poses[:, :3, 1] @ axis).max()) < 0, "down in the image is down in the world"
    steps = (offset - offset.roll(1, 0)).norm(dim=-1)
    assert float(steps.max() - steps.min()) < 1e-5, "the last step closes the circle"


def keyframes(count: int = 5):
    return random_cameras(3, count)


def test_a_spline_passes_its_first_and_last_keyframe():
    keys = keyframes()
    path = spline(keys, 100)
    assert len(path) == 100
    for at in (0, -1):
        torch.testing.assert_close(path.world_from_camera[at], keys.world_from_camera[at], atol=1e-4, rtol=0)
        torch.testing.assert_close(path.K[at], keys.K[at], atol=1e-3, rtol=0)


def test_a_spline_passes_near_every_keyframe_in_order_without_jumps():
    keys = keyframes()
    path = spline(keys, 2000)
    distance = torch.cdist(keys.world_from_camera[:, :3, 3], path.world_from_camera[:, :3, 3])
    assert float(distance.min(dim=1).values.max()) < 5e-3
    assert (distance.argmin(dim=1).diff() > 0).all()
    at = distance.argmin(dim=1)
    turned = path.world_from_camera[at, :3, :3].transpose(-1, -2) @ keys.world_from_camera[:, :3, :3]
    assert float(rotvec_from_quat(quat(turned)).norm(dim=-1).max()) < 0.02
    step = path.world_from_camera[:, :3, 3].diff(dim=0).norm(dim=-1)
    assert float(step.max()) < 20 * float(step.mean())
    kink = path.world_from_camera[:, :3, 3].diff(n=2, dim=0).norm(dim=-1)
    assert float(kink.max()) < 0.05 * float(step.max()), "the velocity is continuous"
    turn = path.world_from_camera[:-1, :3, :3].transpose(-1, -2) @ path.world_from_camera[1:, :3, :3]
    assert float(rotvec_from_quat(quat(turn)).norm(dim=-1).max()) < 0.05
    gram = path.world_from_camera[:, :3, :3].transpose(-1, -2) @ path.world_from_camera[:, :3, :3]
    torch.testing.assert_close(gram, torch.eye(3).expand(2000, 3, 3), atol=1e-5, rtol=0)


def test_a_closed_spline_comes_back():
    path = spline(keyframes(), 500, closed=True)
    first, last = path.world_from_camera[0], path.world_from_camera[-1]
    step = path.world_from_camera[:, :3, 3].diff(dim=0).norm(dim=-1)
    assert 0 < float((first - last)[:3, 3].norm()) < 3 * float(step.max())


def test_keyframes_at_one_place_are_a_pure_turn():
    keys = path_cameras(se3_exp(torch.tensor([[0.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1.0], [0, 0, 0, 0, 0, 2.0]])), 8, 8)
    path = spline(keys, 21)
    assert path.world_from_camera.isfinite().all() and float(path.world_from_camera[:, :3, 3].abs().max()) < 1e-6
    angle = torch.atan2(path.world_from_camera[:, 1, 0], path.world_from_camera[:, 0, 0])
    torch.testing.assert_close(angle, torch.linspace(0, 2, 21), atol=1e-4, rtol=0)
    same = spline(path_cameras(torch.eye(4).expand(2, 4, 4), 8, 8), 3)
    assert same.world_from_camera.isfinite().all()


def test_a_spline_needs_two_keyframes():
    with pytest.raises(InputError, match="1 keyframes"):
        spline(keyframes(1), 10)


def test_fit_view_ignores_outliers_and_bad_points():
    means = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([5.0, -3.0, 2.0])
    plain = fit_view(means, 64, 48)
    dirty = means.clone()
    dirty[:20] = 1e6
    dirty[20:30] = float("nan")
    view = fit_view(dirty, 64, 48)
    assert float((view.world_from_camera - plain.world_from_camera).abs().max()) < 0.8, "of a distance of ten"
    pixels, depth = project_points(view, means)
    inside = (pixels >= 0).all(-1) & (pixels[..., 0] <= 64) & (pixels[..., 1] <= 48) & (depth > 0)
    assert 0.9 < float(inside.float().mean()) <= 1.0
    spread = pixels[0].std(dim=0)
    assert float(spread[1]) > 48 / 10, "the scene fills the picture"


@pytest.mark.parametrize("count", [0, 1])
def test_fit_view_of_nothing_or_one_point_still_is_a_camera(count: int):
    view = fit_view(torch.full((count, 3), 2.0), 32, 32)
    assert view.world_from_camera.isfinite().all()
    assert bulk(torch.zeros(count, 3))[1] > 0


def path_file(tmp_path, **changes):
    pose = [[1, 0, 0, 0.5], [0, 0, -1, -2], [0, 1, 0, 0.25], [0, 0, 0, 1]]
    frame = {"camera_to_world": [value for row in pose for value in row], "fov": 60, "aspect": 1.5}
    data = {
        "camera_type": "perspective", "render_width": 96, "render_height": 64, "fps": 24, "seconds": 2.0,
        "camera_path": [frame, {**frame, "camera_to_world": pose, "fov": 40}],
    } | changes  # fmt: skip
    file = tmp_path / "path.json"
    file.write_text(json.dumps(data))
    return file


def test_nerfstudio_paths_become_opencv_cameras(tmp_path):
    cameras, fps = read_camera_path(path_file(tmp_path))
    assert fps == 24 and (cameras.width, cameras.height, len(cameras)) == (96, 64, 2)
    assert float(cameras.K[0, 1, 1]) == pytest.approx(32 / math.tan(math.radians(30)), rel=1e-6)
    assert float(cameras.K[1, 0, 0]) == pytest.approx(32 / math.tan(math.radians(20)), rel=1e-6)
    # This OpenGL camera stands at y = -2 and looks along +y with z up: in OpenCV axes forward is +y and down is -z.
    torch.testing.assert_close(cameras.world_from_camera[0, :3, 2], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(cameras.world_from_camera[0, :3, 1], torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(cameras.world_from_camera[1, :3, 3], torch.tensor([0.5, -2.0, 0.25]))


def test_frame_rate_without_fps_follows_from_the_duration(tmp_path):
    file = path_file(tmp_path)
    data = json.loads(file.read_text())
    del data["fps"]
    file.write_text(json.dumps(data))
    assert read_camera_path(file)[1] == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"camera_path": []}, "no list `camera_path`"),
        ({"camera_path": {"a": 1}}, "no list `camera_path`"),
        ({"camera_path": [3]}, "not an object"),
        ({"camera_type": "equirectangular"}, "equirectangular"),
        ({"render_width": 0}, "render_width = 0"),
        ({"render_height": "64"}, "render_height = '64'"),
        ({"render_width": 10**9}, "render_width"),
        ({"fps": True}, "fps = True"),
        ({"camera_path": [{"fov": 60}]}, "camera_to_world"),
        ({"camera_path": [{"camera_to_world": [1e300] * 16, "fov": 60}]}, "4 x 4 finite"),
        ({"camera_path": [{"camera_to_world": [1] * 16, "fov": 60}]}, "not a rotation"),
        ({"camera_path": [{"camera_to_world": ["1"] * 16, "fov": 60}]}, "4 x 4 finite"),
    ],
)
def test_bad_paths_are_one_sentence(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        read_camera_path(path_file(tmp_path, **changes))


def test_a_path_of_another_kind_of_file_is_refused(tmp_path):
    file = tmp_path / "path.json"
    for text in ("[]", "{", '"x"', '{"camera_path": NaN}'):
        file.write_text(text)
        with pytest.raises(InputError, match=r"path\.json"):
            read_camera_path(file)
