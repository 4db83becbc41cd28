"""Known poses: every layout gives the same cameras, footage finds its own among them, misfits are one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.capture.calibration import FORMAT, read_calibration, write_calibration
from gworld.capture.footage import Footage, FootageCamera, Shot
from gworld.capture.known import known_views, match_known, resize_view
from gworld.errors import GWorldError, InputError
from gworld.formats.registry import write_views
from gworld.scene.cameras import look_at
from gworld.scene.views import View, Views


def a_picture(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(path)
    return path


def some_views(folder: Path, count: int = 3, width: int = 64, height: int = 48) -> Views:
    K = torch.tensor([[60.0, 0, 31], [0, 61, 25], [0, 0, 1]], dtype=torch.float64)
    eyes = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    poses = look_at(eyes, torch.tensor([0.0, 0.1, -5.0], dtype=torch.float64))
    views = [
        View(f"{i:04d}.png", width, height, K, poses[i], image=a_picture(folder / f"images/{i:04d}.png", width, height))
        for i in range(count)
    ]
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Views(tuple(views), points, torch.zeros(7, 3, dtype=torch.uint8))


def some_footage(folder: Path, names: list[str], camera: str = "photos", **size: int) -> Footage:
    size = {"width": 64, "height": 48} | size
    shots = tuple(
        Shot(name, 0, folder / "images" / f"{name}.png", index, 0.1 * index) for index, name in enumerate(names)
    )
    return Footage(folder, (FootageCamera(camera, size["width"], size["height"], f"{camera}.mp4"),), shots)


def diagonal(*sizes: float) -> list[list[float]]:
    return [[size if row == column else 0 for column in range(4)] for row, size in enumerate(sizes)]


def assert_same(found: Views, truth: Views) -> None:
    assert len(found) == len(truth)
    for one, other in zip(sorted(found.views, key=lambda v: v.name), truth.views, strict=True):
        assert torch.allclose(one.K, other.K) and (one.width, one.height) == (other.width, other.height)
        assert torch.allclose(one.world_from_camera, other.world_from_camera, atol=1e-9)


@pytest.mark.parametrize("layout", ["sparse/0", "transforms.json"])
def test_colmap_and_nerfstudio_folders_give_the_same_views(tmp_path: Path, layout: str) -> None:
    truth = some_views(tmp_path)
    (tmp_path / layout).parent.mkdir(exist_ok=True)
    write_views(truth, tmp_path / layout)
    found = known_views(tmp_path)
    assert_same(found, truth)
    assert len(found.points) == 7 and not found.metric
    matched = match_known(some_footage(tmp_path / "footage", ["0002", "0000"]), found)
    assert [view.name for view in matched.views] == ["0000", "0002"]
    assert torch.allclose(matched.views[1].world_from_camera, truth.views[2].world_from_camera)
    assert matched.views[1].time == 0.0 and matched.views[1].image == tmp_path / "footage/images/0002.png"


def test_a_smaller_set_of_pictures_takes_its_masks_depth_and_intrinsics_along(tmp_path: Path) -> None:
    truth = some_views(tmp_path)
    write_views(truth, tmp_path / "transforms.json")
    for view in truth.views:
        a_picture(tmp_path / "images_2" / view.name, 32, 24)
        a_picture(tmp_path / "masks" / view.name, 64, 48, "L")
        a_picture(tmp_path / "masks_2" / view.name, 32, 24, "L")
        a_picture(tmp_path / "depths" / view.name, 64, 48, "I;16")
    whole = known_views(tmp_path)
    assert [view.mask == tmp_path / "masks" / view.name for view in whole.views] == [True] * 3
    assert all(view.depth for view in whole.views)
    for view in truth.views:
        (tmp_path / "depths" / view.name).unlink()
    small = known_views(tmp_path, downscale=2)
    assert {(view.width, view.height) for view in small.views} == {(32, 24)}
    assert torch.allclose(small.views[0].K[:2], truth.views[0].K[:2] / 2)
    assert (
        small.views[0].image == tmp_path / "images_2/0000.png" and small.views[0].mask == tmp_path / "masks_2/0000.png"
    )
    a_picture(tmp_path / "depths" / "0001.png", 64, 48, "I;16")
    with pytest.raises(InputError, match="another size"):
        known_views(tmp_path, downscale=2)
    for view in truth.views:  # only the small set is left
        (tmp_path / "images" / view.name).unlink()
        (tmp_path / "depths" / view.name).unlink(missing_ok=True)
    assert known_views(tmp_path).views[0].width == 32


def test_pictures_of_another_shape_and_missing_ones_are_refused(tmp_path: Path) -> None:
    truth = some_views(tmp_path)
    (tmp_path / "sparse").mkdir()
    write_views(truth, tmp_path / "sparse/0")
    a_picture(tmp_path / "images/0001.png", 48, 64)
    with pytest.raises(InputError, match="turned after it was posed"):
        known_views(tmp_path)
    a_picture(tmp_path / "images/0001.png", 64, 40)
    with pytest.raises(InputError, match="another shape"):
        known_views(tmp_path)
    (tmp_path / "images/0001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        known_views(tmp_path)
    (tmp_path / "images/0001.png").unlink()
    with pytest.raises(InputError, match=r"0001\.png` is missing"):
        known_views(tmp_path)
    with pytest.raises(InputError, match="1, 2, 4 or 8"):
        known_views(tmp_path, downscale=3)
    a_picture(tmp_path / "images/0001.png", 128, 96)
    doubled = known_views(tmp_path).views[1]
    assert doubled.width == 128 and torch.allclose(doubled.K[:2], 2 * truth.views[1].K[:2])
    assert resize_view(doubled, 64, 48).K[0, 0] == pytest.approx(60.0)


def test_footage_without_a_known_pose_or_with_two_is_refused(tmp_path: Path) -> None:
    truth = some_views(tmp_path)
    with pytest.raises(InputError, match="camera `photos` has no known pose: none of `0000`, `0001`, `0002` is called"):
        match_known(some_footage(tmp_path, ["a", "b"]), truth)
    with pytest.raises(InputError, match="no pictures"):
        match_known(Footage(tmp_path, (FootageCamera("a", 1, 1),), ()), truth)
    twice = replace(truth, views=(*truth.views, replace(truth.views[0], name="right/0000.png")))
    with pytest.raises(InputError, match="may be any of"):
        match_known(some_footage(tmp_path, ["0000"]), twice)
    by_folder = match_known(some_footage(tmp_path, ["0000"], camera="right"), twice)
    assert by_folder.views[0].name == "0000"
    with pytest.raises(InputError, match="another shape"):
        match_known(some_footage(tmp_path, ["0000"], width=64, height=64), truth)


@pytest.mark.parametrize("axes", ["opencv", "opengl"])
def test_a_calibration_of_fixed_cameras_poses_every_picture_of_them(tmp_path: Path, axes: str) -> None:
    truth = some_views(tmp_path)
    flip = (
        torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)) if axes == "opengl" else torch.eye(4).double()
    )
    cameras = [
        {
            "name": f"cam{i}",
            "width": 64,
            "height": 48,
            "K": view.K.tolist() if i else [60, 61, 31, 25],
            "distortion": [0.1, -0.02] if i == 2 else [],
            "world_from_camera": (view.world_from_camera @ flip).tolist()[: 3 + i % 2],
        }
        for i, view in enumerate(truth.views)
    ]
    file = tmp_path / "cameras.json"
    file.write_text(json.dumps({"format": FORMAT, "axes": axes, "metric": True, "cameras": cameras}))
    found = known_views(file)
    assert_same(found, replace(truth, views=truth.views))
    assert found.metric and found.views[2].model == "opencv" and found.views[2].distortion[:3] == (0.1, -0.02, 0.0)
    matched = match_known(
        some_footage(tmp_path, ["cam1-000000", "cam1-000007"], camera="cam1", width=32, height=24), found
    )
    assert len(matched) == 2 and matched.metric
    assert torch.equal(matched.views[0].world_from_camera, matched.views[1].world_from_camera)
    assert torch.allclose(matched.views[0].K[:2], truth.views[1].K[:2] / 2)
    write_calibration(found, tmp_path / "again.json")
    assert_same(read_calibration(tmp_path / "again.json"), truth)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d.update(axes="y-up"), "`axes` is"),
        (lambda d: d.update(cameras=[]), "a list `cameras` of 1"),
        (lambda d: d["cameras"][0].update(width=0), "whole number of pixels"),
        (lambda d: d["cameras"][0].update(K=[1, 2, 3]), "focal lengths"),
        (lambda d: d["cameras"][0].update(K=[-60, 60, 1, 1]), "focal lengths"),
        (lambda d: d["cameras"][0].update(K="x"), "focal lengths"),
        (lambda d: d["cameras"][0].update(world_from_camera=diagonal(2, 1, 1)), "no rigid pose"),
        (lambda d: d["cameras"][0].update(world_from_camera=diagonal(1, 1, -1)), "no rigid pose"),
        (lambda d: d["cameras"][0].update(world_from_camera=[0, 0, 0, 0, 0, 0, 0]), "no rigid pose"),
        (lambda d: d["cameras"][0].update(world_from_camera=None), "list of numbers"),
        (lambda d: d["cameras"][0].update(distortion=[0.1] * 9), "distortion terms"),
        (lambda d: d["cameras"][0].update(lens=1), "unknown fields"),
        (lambda d: d["cameras"].append(d["cameras"][0]), "one name"),
        (lambda d: d.update(format="other"), "no calibration|frames"),
    ],
)  # fmt: skip
def test_a_damaged_calibration_is_one_sentence(tmp_path: Path, damage, says: str) -> None:
    camera = {"name": "a", "width": 4, "height": 3, "K": [3, 3, 2, 1.5], "world_from_camera": [0, 0, 1, 1, 0, 0, 0]}
    value = {"format": FORMAT, "axes": "opencv", "cameras": [camera]}
    file = tmp_path / "c.json"
    file.write_text(json.dumps(value))
    assert known_views(file).views[0].world_from_camera[2, 3] == 1
    damage(value)
    file.write_text(json.dumps(value))
    with pytest.raises(GWorldError, match=says) as caught:
        known_views(file)
    assert "\n" not in str(caught.value)


def test_real_calibrated_cameras_see_the_robots_base_and_the_table(real_data: Path) -> None:
    folder = real_data / "embodied_gaussians/examples/embodied_environments/pusht_embodied"
    found = known_views(folder / "sample_demos/0")
    assert found.metric and {view.name for view in found.views} == {"220422302296", "234222302164", "234222303707"}
    plane = json.loads((folder / "environment/ground_plane.json").read_text())["plane"]
    for view in found.views:
        pose = view.world_from_camera.numpy()
        assert pose[2, 3] > 0.3 and pose[2, 2] < 0, "above the table, looking down"
        centre, normal = pose[:3, 3], np.array(plane[:3])
        reach = -(centre @ normal + plane[3]) / (pose[:3, 2] @ normal)
        seen = centre + reach * pose[:3, 2]
        assert 0.2 < reach < 2.0 and np.abs(seen - [0.5, 0, 0]).max() < 0.6, "the middle of the picture is on the table"
    shots = some_footage(folder, ["f1"], camera="234222303707", width=480, height=270)
    assert match_known(shots, found).views[0].K[0, 0] == pytest.approx(241.9, abs=0.1)


def test_real_photos_find_their_colmap_poses(real_data: Path) -> None:
    found = known_views(real_data / "skull_ccby")
    assert len(found) == 64 and len(found.points) > 1000
    assert all(view.image and (view.width, view.height) == (1296, 864) for view in found.views)
