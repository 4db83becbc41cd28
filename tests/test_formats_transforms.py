"""transforms.json: what is applied to worlds is undone, names stay inside, damage is one sentence."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.errors import GWorldError, InputError
from gworld.formats.points import read_points, write_points
from gworld.formats.transforms import KINDS, read_transforms, write_transforms
from gworld.geometry import matrix_from_quat, transform_points
from gworld.scene.cameras import look_at
from gworld.scene.views import View, Views, cameras_of
from tests.posed import DISTORTION, make_views


def write_json(folder: Path, meta: dict) -> Path:
    file = folder / "transforms.json"
    file.write_text(json.dumps(meta))
    return file


def frame(name: str = "images/a.png", **more: object) -> dict:
    return {"file_path": name, "transform_matrix": np.eye(4).tolist(), **more}


INTRINSICS = {"w": 640, "h": 480, "fl_x": 500.0, "fl_y": 510.0, "cx": 320.0, "cy": 240.0}


@pytest.mark.parametrize("model", list(DISTORTION))
def test_round_trip_is_exact(tmp_path, model):
    views = replace(make_views(tmp_path, model), metric=True, depth_scale=0.25)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "m.png").write_bytes(b"x")
    first = replace(views.views[0], mask=tmp_path / "masks" / "m.png", depth=tmp_path / "images" / "001.png", time=1.5)
    views = replace(views, views=(first, *views.views[1:]))
    write_transforms(views, tmp_path / "transforms.json")
    again = read_transforms(tmp_path)
    assert (again.metric, again.depth_scale) == (True, 0.25)
    assert torch.equal(again.points, views.points)
    assert torch.equal(again.colors, views.colors)
    for ours, theirs in zip(again.views, views.views, strict=True):
        assert torch.equal(ours.K, theirs.K)
        torch.testing.assert_close(ours.world_from_camera, theirs.world_from_camera, atol=1e-14, rtol=0)
        for name in ("name", "width", "height", "model", "distortion", "image", "mask", "depth", "time", "camera_id"):
            assert getattr(ours, name) == getattr(theirs, name), name


def test_cameras_of_different_kinds_keep_their_own_intrinsics(tmp_path):
    views = make_views(tmp_path)
    other = replace(views.views[1], K=views.views[1].K * torch.tensor([2.0, 2.0, 1.0])[:, None], camera_id=7)
    straight = replace(views.views[2], model="pinhole", distortion=(), camera_id=9)
    views = replace(views, views=(views.views[0], other, straight))
    write_transforms(views, tmp_path / "transforms.json")
    again = read_transforms(tmp_path)
    assert [view.camera_id for view in again.views] == [1, 7, 9]
    assert [view.model for view in again.views] == ["opencv", "opencv", "pinhole"]
    assert torch.equal(again.views[1].K, other.K)
    fisheye = replace(views.views[0], model="fisheye", distortion=DISTORTION["fisheye"])
    with pytest.raises(InputError, match="a file holds one"):
        write_transforms(replace(views, views=(fisheye, other)), tmp_path / "transforms.json")


def test_opengl_axes(tmp_path):
    """A camera at (0, -3, 1) that looks along +y, with z up: its OpenGL axes are x right, y up, z back."""
    pose = look_at(torch.tensor([0.0, -3.0, 1.0]), torch.tensor([0.0, 0.0, 1.0])).double()
    view = View("a.png", 640, 480, torch.eye(3, dtype=torch.float64) + torch.diag(torch.tensor([499.0, 499, 0])), pose)
    write_transforms(Views((view,)), tmp_path / "transforms.json")
    written = json.loads((tmp_path / "transforms.json").read_text())["frames"][0]
    expected = [[1, 0, 0, 0], [0, 0, -1, -3], [0, 1, 0, 1], [0, 0, 0, 1]]
    np.testing.assert_allclose(written["transform_matrix"], expected, atol=1e-7)
    assert written["file_path"] == "images/a.png"


def test_what_was_applied_to_the_world_is_undone(tmp_path):
    """Poses and points saved in a turned, moved, scaled world come back in the original, metric one."""
    views = make_views(tmp_path)
    turn = matrix_from_quat(
        torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.2, 0.7], dtype=torch.float64), dim=0)
    )
    applied, shift, size, scale = torch.eye(4, dtype=torch.float64), torch.tensor([4.0, -2.0, 0.5]), 1.7, 0.11
    applied[:3, :3], applied[:3, 3] = size * turn, shift
    saved = []
    for view in views.views:
        pose = view.world_from_camera.clone()
        pose[:3, :3] = turn @ pose[:3, :3]
        pose[:3, 3] = scale * (size * turn @ pose[:3, 3] + shift)
        saved.append(replace(view, world_from_camera=pose))
    points = scale * transform_points(applied, views.points)
    write_transforms(replace(views, views=tuple(saved), points=points), tmp_path / "transforms.json")
    file = tmp_path / "transforms.json"
    meta = json.loads(file.read_text()) | {"applied_transform": applied[:3].tolist(), "applied_scale": scale}
    file.write_text(json.dumps(meta))
    again = read_transforms(file)
    torch.testing.assert_close(again.points, views.points, atol=1e-12, rtol=0)
    for ours, theirs in zip(again.views, views.views, strict=True):
        torch.testing.assert_close(ours.world_from_camera, theirs.world_from_camera, atol=1e-12, rtol=0)


@pytest.mark.parametrize("matrix", [np.diag([1.0, 1.0, -1.0]), np.zeros((3, 3)), np.diag([1.0, 2.0, 1.0])])
def test_a_world_that_is_no_similarity_is_refused(tmp_path, matrix):
    applied = np.concatenate([matrix, np.zeros((3, 1))], axis=1).tolist()
    with pytest.raises(InputError, match="applied_transform"):
        read_transforms(write_json(tmp_path, {**INTRINSICS, "applied_transform": applied, "frames": [frame()]}))


def test_nerf_synthetic_without_sizes_and_suffixes(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "train" / "r_0.png")
    file = write_json(tmp_path, {"camera_angle_x": 0.6911112, "frames": [frame("./train/r_0", rotation=0.01)]})
    view = read_transforms(file).views[0]
    assert (view.width, view.height, view.name, view.model) == (80, 60, "train/r_0", "pinhole")
    assert view.image == tmp_path / "train" / "r_0.png"
    focal = 0.5 * 80 / math.tan(0.5 * 0.6911112)
    np.testing.assert_allclose(view.K.numpy(), [[focal, 0, 40], [0, focal, 30], [0, 0, 1]])
    (tmp_path / "train" / "r_0.png").unlink()
    with pytest.raises(InputError, match="size is unknown"):
        read_transforms(file)


def test_instant_ngp_fields(tmp_path):
    meta = {**INTRINSICS, "k1": 0.1, "k2": 0.01, "k3": 0.001, "k4": 1e-4, "is_fisheye": True, "aabb_scale": 16}
    file = write_json(tmp_path, meta | {"integer_depth_scale": 0.5, "frames": [frame("a.png", sharpness=30.1)]})
    views = read_transforms(file)
    assert views.views[0].model == "fisheye"
    assert views.views[0].distortion == (0.1, 0.01, 0.001, 1e-4)
    assert views.views[0].image is None
    assert views.depth_scale == 0.5


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_camera_model_of_nerfstudio(tmp_path, kind):
    params = [0.01 * index for index in range(12 if kind == "FISHEYE624" else 6)]
    perspective = KINDS[kind] in ("pinhole", "opencv")
    if perspective:
        params[3] = 0.0  # the fourth radial term has its own test
    meta = {**INTRINSICS, "camera_model": kind, "distortion_params": params, "train_filenames": ["images/a.png"]}
    view = read_transforms(write_json(tmp_path, {**meta, "frames": [frame()]})).views[0]
    # nerfstudio applies distortion to every perspective camera, whatever its name says.
    assert view.model == ("opencv" if perspective else KINDS[kind])
    write_transforms(Views((view,)), tmp_path / "again.json")
    again = read_transforms(tmp_path / "again.json").views[0]
    for name in ("model", "distortion", "source_params", "source_model", "width", "height", "name"):
        assert getattr(again, name) == getattr(view, name), name
    assert torch.equal(again.K, view.K)


def test_a_fourth_radial_term_is_kept_but_has_no_equal(tmp_path):
    file = write_json(tmp_path, {**INTRINSICS, "k1": 0.1, "k4": 0.2, "frames": [frame()]})
    views = read_transforms(file)
    assert views.views[0].model == "other"
    assert views.views[0].source_params == (0.1, 0.0, 0.0, 0.2, 0.0, 0.0)
    with pytest.raises(InputError, match="Undistort"):
        cameras_of(views)


def test_cameras_nerfstudio_lacks_are_refused(tmp_path):
    view = make_views(tmp_path).views[0]
    full = replace(view, distortion=(0.1, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.0))
    with pytest.raises(InputError, match="FULL_OPENCV"):
        write_transforms(Views((full,)), tmp_path / "t.json")
    with pytest.raises(InputError, match="EUCM"):
        write_transforms(Views((replace(view, model="other", source_model="EUCM"),)), tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


def test_pictures_elsewhere_are_refused(tmp_path):
    views = make_views(tmp_path / "data")
    with pytest.raises(InputError, match="lies outside"):
        write_transforms(views, tmp_path / "out" / "transforms.json")


@pytest.mark.parametrize("key", ["file_path", "mask_path", "depth_file_path", "ply_file_path"])
@pytest.mark.parametrize("name", ["../images/x.jpg", "/etc/passwd", "a\\b.png", "C:/x.png"])
def test_names_that_lead_outside_are_refused(tmp_path, key, name):
    meta = {**INTRINSICS, "frames": [frame()]}
    (meta if key == "ply_file_path" else meta["frames"][0])[key] = name
    with pytest.raises(InputError, match="leads out of the folder"):
        read_transforms(write_json(tmp_path, meta))


def test_links_that_lead_outside_are_refused(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (inside / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match="leads out of the folder"):
        read_transforms(write_json(inside, {**INTRINSICS, "frames": [frame("a.png")]}))


BAD = {
    "no frames": {"frames": None},
    "frames of numbers": {"frames": [1, 2]},
    "no name": {"frames": [{"transform_matrix": np.eye(4).tolist()}]},
    "no pose": {"frames": [{"file_path": "a.png"}]},
    "short pose": {"frames": [frame() | {"transform_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}]},
    "mirrored pose": {"frames": [frame() | {"transform_matrix": np.diag([1.0, 1.0, -1.0, 1.0]).tolist()}]},
    "scaled pose": {"frames": [frame() | {"transform_matrix": np.diag([2.0, 2.0, 2.0, 1.0]).tolist()}]},
    "projective pose": {"frames": [frame() | {"transform_matrix": (np.eye(4) + np.eye(4)[::-1]).tolist()}]},
    "text in a pose": {"frames": [frame() | {"transform_matrix": [["x"] * 4] * 4}]},
    "zero focal": {"fl_x": 0},
    "negative focal": {"fl_x": -500.0},
    "text focal": {"fl_x": "500"},
    "flag as focal": {"fl_x": True},
    "huge focal": {"fl_x": 10**400},
    "no focal": {"fl_x": None, "fl_y": None},
    "wide angle": {"fl_x": None, "fl_y": None, "camera_angle_x": 3.2},
    "half a pixel": {"w": 640.5},
    "no pixels": {"h": 0},
    "too many pixels": {"h": 1 << 30},
    "unknown model": {"camera_model": "BANANA"},
    "model of the wrong kind": {"camera_model": ["OPENCV"]},
    "distortion of the wrong kind": {"distortion_params": {"k1": 0}},
    "text distortion": {"k1": "small"},
    "zero scale": {"applied_scale": 0},
    "number as name": {"frames": [frame(7)]},  # type: ignore[arg-type]  # the wrong kind is the point
    "number as mask": {"frames": [frame(mask_path=7)]},
    "long name": {"frames": [frame("x" * 5000)]},
    "end of text in a name": {"frames": [frame("a\0b")]},
    "text as time": {"frames": [frame(time="noon")]},
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_fields_are_one_sentence(tmp_path, case):
    file = write_json(tmp_path, {**INTRINSICS, "frames": [frame()], **BAD[case]})
    with pytest.raises(InputError, match=r"transforms\.json"):
        read_transforms(file)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"frames": [' * 5000, '{"frames": NaN}', '{"frames": [{"a": 1e999}]}']
)
def test_files_that_are_no_transforms(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(InputError):
        read_transforms(tmp_path)


def test_pictures_that_are_none_are_refused_by_name(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png"):
        read_transforms(write_json(tmp_path, {"camera_angle_x": 0.5, "frames": [frame("a.png")]}))


def test_poses_printed_with_few_digits_are_mended(tmp_path):
    pose = make_views(tmp_path).views[0].world_from_camera.numpy().round(4)
    view = read_transforms(
        write_json(tmp_path, {**INTRINSICS, "frames": [frame(transform_matrix=pose.tolist())]})
    ).views[0]
    rotation = view.world_from_camera[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-14, rtol=0)


def mutate(text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text))
    words = [b"null", b"1e999", b"-1", b"[]", b"{}", b'"', b"9" * 400, b"true", b"\xff", b"0", b'"../x"', b"NaN", b","]
    choice = rng.randrange(4)
    if choice == 0:
        return text[:at]
    if choice == 1:
        return text[:at] + rng.choice(words) + text[at + rng.randrange(12) :]
    if choice == 2:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    value = text.find(b": ", at) + 2
    end = text.find(b",", value)
    return text[:value] + rng.choice(words) + text[max(end, value) :]


def test_damaged_files_are_one_sentence(tmp_path):
    write_transforms(make_views(tmp_path), tmp_path / "transforms.json")
    rng = random.Random(0)
    file, cloud = tmp_path / "transforms.json", tmp_path / "sparse_pc.ply"
    refused = 0
    for round_ in range(400):
        target = cloud if round_ % 4 == 0 else file
        whole = target.read_bytes()
        target.write_bytes(mutate(whole, rng))
        try:
            views = read_transforms(tmp_path)
            assert torch.isfinite(views.points).all()
            for view in views.views:
                assert torch.isfinite(view.K).all()
                assert torch.isfinite(view.world_from_camera).all()
        except GWorldError:
            refused += 1
        target.write_bytes(whole)
    assert refused > 100


@pytest.mark.parametrize("header", ["ascii", "binary_big_endian", "binary_little_endian"])
def test_point_clouds_others_write(tmp_path, header):
    points = np.array([[1.5, -2.0, 3.25], [0.5, 0.25, -7.0]], np.float32)
    colors = np.array([[1, 2, 3], [250, 251, 252]], np.uint8)
    text = (
        f"ply\nformat {header} 1.0\ncomment x\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
    )
    text += "property uint8 red\nproperty uint8 green\nproperty uint8 blue\nend_header\n"
    if header == "ascii":
        body = b"1.5 -2.0 3.25 1 2 3\n0.5 0.25 -7 250 251 252\n"
    else:
        order = ">" if header == "binary_big_endian" else "<"
        row = [("p", f"{order}f4", 3), ("c", "u1", 3)]
        rows = np.zeros(2, row)
        rows["p"], rows["c"] = points, colors
        body = rows.tobytes()
    (tmp_path / "p.ply").write_bytes(text.encode() + body)
    read, found = read_points(tmp_path / "p.ply")
    np.testing.assert_array_equal(read, points)
    np.testing.assert_array_equal(found, colors)
    trimesh = pytest.importorskip("trimesh")
    write_points(tmp_path / "q.ply", read, found)
    theirs = trimesh.load(tmp_path / "q.ply")
    np.testing.assert_array_equal(theirs.vertices, points)
    np.testing.assert_array_equal(theirs.colors[:, :3], colors)
