"""COLMAP models: ours read by pycolmap, pycolmap's read by us, every camera model, rigs, and damaged files."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.errors import GWorldError, InputError, UsageError
from gworld.formats.camera_models import MODELS, colmap_camera
from gworld.formats.colmap import read_colmap, write_colmap
from gworld.geometry import invert_transform, transform_from_pose, transform_points
from gworld.scene.cameras import project_points
from gworld.scene.views import View, Views, cameras_of

pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed: pip install 'pycolmap>=4.1.1,<5'")

GOOD_PARAMS = {
    "f": 500.0, "fx": 510.0, "fy": 490.0, "cx": 321.5, "cy": 238.25, "w": 640.0, "h": 480.0, "omega": 0.3,
    "alpha": 0.6, "beta": 1.1, "k": -0.02, "k0": 0.01, "k1": -0.05, "k2": 0.02, "p1": 0.003, "p2": -0.002, "k3": 0.004,
    "k4": 0.001, "k5": -0.002, "k6": 0.0005, "sx1": 0.001, "sy1": 0.002, "p0": 0.001, "s0": 0.001, "s1": 0.0, "s2": 0.0,
    "s3": 0.001,
}  # fmt: skip


def params_of(name: str) -> list[float]:
    return [GOOD_PARAMS[key] for key in MODELS[name].params]


def make_views(count: int = 5, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    poses = torch.randn(count, 7, generator=generator, dtype=torch.float64)
    world_from_camera = transform_from_pose(poses)
    K = torch.tensor([[500.0, 0, 320], [0, 505, 240], [0, 0, 1]], dtype=torch.float64)
    views = tuple(View(f"cam/{i:03}.jpg", 640, 480, K, world_from_camera[i], camera_id=1) for i in range(count))
    points = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    colors = torch.randint(0, 256, (7, 3), generator=generator, dtype=torch.uint8)
    return Views(views, points, colors)


def synthetic(folder: Path, rigs: int = 2, cameras: int = 2, model: str = "OPENCV") -> pycolmap.Reconstruction:
    pycolmap.set_random_seed(3)
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=rigs,
        num_cameras_per_rig=cameras,
        num_frames_per_rig=3,
        num_points3D=40,
        sensor_from_rig_rotation_stddev=20.0,
        sensor_from_rig_translation_stddev=0.3,
        camera_model_id=getattr(pycolmap.CameraModelId, model),
        camera_params=params_of(model),
        camera_width=640,
        camera_height=480,
    )
    reconstruction = pycolmap.synthesize_dataset(options)
    for name in ("bin", "txt"):
        (folder / name).mkdir(parents=True)
    reconstruction.write_binary(str(folder / "bin"))
    reconstruction.write_text(str(folder / "txt"))
    return reconstruction


def assert_same_poses(views: Views, reconstruction: pycolmap.Reconstruction, tolerance: float = 1e-12) -> None:
    theirs = {image.name: image.cam_from_world().matrix() for image in reconstruction.images.values()}
    assert len(theirs) == len(views)
    for view in views.views:
        ours = invert_transform(view.world_from_camera)[:3].numpy()
        np.testing.assert_allclose(ours, theirs[view.name], atol=tolerance)


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_rigs_of_pycolmap_are_read(tmp_path, form):
    reconstruction = synthetic(tmp_path)
    views = read_colmap(tmp_path / form)
    assert_same_poses(views, reconstruction)
    ids = sorted(reconstruction.points3D)
    np.testing.assert_allclose(views.points.numpy(), [reconstruction.points3D[i].xyz for i in ids], atol=1e-12)
    np.testing.assert_array_equal(views.colors.numpy(), [reconstruction.points3D[i].color for i in ids])
    assert {view.camera_id for view in views.views} == set(reconstruction.cameras)


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_frames_win_over_the_poses_of_images(tmp_path, form):
    """COLMAP takes the pose from rig and frame; an edited frame must move the images, as it does for COLMAP."""
    reconstruction = synthetic(tmp_path)
    for frame in reconstruction.frames.values():
        moved = frame.rig_from_world
        moved.translation = moved.translation + np.array([0.5, -1.0, 2.0])
        frame.rig_from_world = moved
    (tmp_path / "moved").mkdir()
    getattr(reconstruction, "write_binary" if form == "bin" else "write_text")(str(tmp_path / "moved"))
    shutil.copy(tmp_path / "moved" / f"frames.{form}", tmp_path / form / f"frames.{form}")
    assert_same_poses(read_colmap(tmp_path / form), pycolmap.Reconstruction(str(tmp_path / form)))
    assert_same_poses(read_colmap(tmp_path / form), reconstruction)


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_models_without_rigs_are_read(tmp_path, form):
    reconstruction = synthetic(tmp_path)
    for name in ("rigs", "frames"):
        (tmp_path / form / f"{name}.{form}").unlink()
    assert_same_poses(read_colmap(tmp_path / form), reconstruction)


@pytest.mark.parametrize("text", [False, True])
def test_pycolmap_reads_what_we_write(tmp_path, text):
    views = make_views()
    write_colmap(views, tmp_path / "model", text)
    theirs = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert_same_poses(views, theirs)
    points = np.array([theirs.points3D[i].xyz for i in sorted(theirs.points3D)])
    np.testing.assert_array_equal(points, views.points.numpy())
    np.testing.assert_array_equal([theirs.points3D[i].color for i in sorted(theirs.points3D)], views.colors.numpy())
    image = next(image for image in theirs.images.values() if image.name == "cam/002.jpg")
    world = torch.tensor([[0.3, -0.2, 0.1], [1.0, 1.0, 1.0]], dtype=torch.float64)
    pixels, depth = project_points(cameras_of(views, torch.float64), world)
    for index in range(2):
        projected = image.project_point(world[index].numpy())
        if depth[2, index] > 0:
            np.testing.assert_allclose(projected, pixels[2, index].numpy(), rtol=1e-9)
        else:
            assert projected is None


@pytest.mark.parametrize("text", [False, True])
def test_round_trip_is_exact(tmp_path, text):
    views = make_views()
    write_colmap(views, tmp_path / "a", text)
    again = read_colmap(tmp_path / "a")
    assert [view.name for view in again.views] == [view.name for view in views.views]
    for ours, theirs in zip(again.views, views.views, strict=True):
        torch.testing.assert_close(ours.world_from_camera, theirs.world_from_camera, atol=1e-14, rtol=0)
        assert torch.equal(ours.K, theirs.K)
        assert (ours.width, ours.height, ours.model) == (640, 480, "pinhole")
    assert torch.equal(again.points, views.points)
    assert torch.equal(again.colors, views.colors)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_every_camera_model_keeps_its_parameters(tmp_path, name, text):
    camera = pycolmap.Camera(model=name, width=640, height=480, params=params_of(name), camera_id=1)
    kind = MODELS[name].kind
    view = replace(
        make_views(1).views[0],
        model=kind,
        source_model=name,
        source_params=tuple(params_of(name)),
        distortion=tuple(GOOD_PARAMS[k] if k in MODELS[name].params else 0.0 for k in distortion_names(kind)),
        K=torch.from_numpy(calibration(camera, name)),
    )
    write_colmap(Views((view,)), tmp_path / "m", text)
    theirs = pycolmap.Reconstruction(str(tmp_path / "m")).cameras[1]
    assert theirs.model.name == name
    assert list(theirs.params) == params_of(name)
    again = read_colmap(tmp_path / "m").views[0]
    assert (again.model, again.source_model, list(again.source_params)) == (kind, name, params_of(name))


def calibration(camera: pycolmap.Camera, name: str) -> np.ndarray:
    if name == "EQUIRECTANGULAR":
        return np.array([[640 / (2 * np.pi), 0, 320], [0, 480 / np.pi, 240], [0, 0, 1]])
    return camera.calibration_matrix()


def distortion_names(kind: str) -> tuple[str, ...]:
    return {"opencv": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"), "fisheye": ("k1", "k2", "k3", "k4")}.get(
        kind, ()
    )


def project(view: View, local: np.ndarray) -> np.ndarray:
    """Pixels of camera-frame points by OpenCV's documented formulas (calib3d and fisheye modules), or a panorama's."""
    x, y, z = local.T
    if view.model == "equirectangular":
        planes = np.stack([np.arctan2(x, z), np.arctan2(y, np.hypot(x, z)), np.ones_like(x)])
    elif view.model == "fisheye":
        radius = np.hypot(x, y)
        theta = np.arctan2(radius, z)
        k = view.distortion
        bent = theta * (1 + k[0] * theta**2 + k[1] * theta**4 + k[2] * theta**6 + k[3] * theta**8)
        planes = np.stack([x / radius * bent, y / radius * bent, np.ones_like(x)])
    else:
        u, v = x / z, y / z
        k1, k2, p1, p2, k3, k4, k5, k6 = view.distortion or (0.0,) * 8
        r2 = u * u + v * v
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        du = 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
        dv = p1 * (r2 + 2 * v * v) + 2 * p2 * u * v
        planes = np.stack([u * radial + du, v * radial + dv, np.ones_like(u)])
    return (view.K.numpy() @ planes)[:2].T


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].kind != "other"])
def test_our_model_projects_as_colmap_does(tmp_path, name):
    camera = pycolmap.Camera(model=name, width=640, height=480, params=params_of(name), camera_id=1)
    reconstruction = pycolmap.Reconstruction()
    reconstruction.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(name="a.png", camera_id=1, image_id=1)
    reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    reconstruction.write_binary(str(tmp_path))
    local = np.random.default_rng(0).uniform([-0.5, -0.5, 0.8], [0.5, 0.5, 2.0], (50, 3))
    view = read_colmap(tmp_path).views[0]
    np.testing.assert_allclose(project(view, local), camera.img_from_cam(local), atol=1e-9)


def test_a_changed_view_is_not_written_with_its_old_camera(tmp_path):
    synthetic(tmp_path)
    view = read_colmap(tmp_path / "bin").views[0]
    assert colmap_camera(view).params == tuple(params_of("OPENCV"))
    undistorted = replace(view, model="pinhole", distortion=())
    assert colmap_camera(undistorted).model == "PINHOLE"
    assert colmap_camera(replace(view, distortion=(0.1, 0.0, 0.0, 0.0, 0.2))).model == "FULL_OPENCV"
    with pytest.raises(InputError, match="skew"):
        colmap_camera(replace(view, model="pinhole", K=view.K + torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]])))
    with pytest.raises(InputError, match="Undistort"):
        colmap_camera(replace(view, model="other", source_model="FISHEYE624", source_params=()))


def test_models_without_an_equal_are_refused_where_one_is_needed(tmp_path):
    synthetic(tmp_path, model="THIN_PRISM_FISHEYE")
    views = read_colmap(tmp_path / "bin")
    assert {view.model for view in views.views} == {"other"}
    with pytest.raises(InputError, match="THIN_PRISM_FISHEYE"):
        cameras_of(views)


def test_far_from_the_origin_nothing_is_lost(tmp_path):
    views = make_views()
    offset = torch.tensor([4.2e6, 1.7e5, 4.78e6], dtype=torch.float64)
    far = torch.eye(4, dtype=torch.float64)
    far[:3, 3] = offset
    moved = tuple(replace(view, world_from_camera=far @ view.world_from_camera) for view in views.views)
    write_colmap(replace(views, views=moved, points=transform_points(far, views.points)), tmp_path / "far")
    again = read_colmap(tmp_path / "far")
    assert (again.points - offset - views.points).abs().max() < 1e-8
    error = max(
        (a.world_from_camera[:3, 3] - b.world_from_camera[:3, 3]).abs().max()
        for a, b in zip(again.views, moved, strict=True)
    )
    assert error < 1e-7


def test_images_and_masks_are_found_beside_the_model(tmp_path):
    views = make_views(2)
    write_colmap(views, tmp_path / "sparse" / "0")
    (tmp_path / "images" / "cam").mkdir(parents=True)
    (tmp_path / "masks" / "cam").mkdir(parents=True)
    (tmp_path / "images" / "cam" / "000.jpg").write_bytes(b"x")
    (tmp_path / "masks" / "cam" / "000.jpg.png").write_bytes(b"x")
    first, second = read_colmap(tmp_path).views
    assert first.image == tmp_path / "images" / "cam" / "000.jpg"
    assert first.mask == tmp_path / "masks" / "cam" / "000.jpg.png"
    assert second.image is None
    assert second.mask is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "C:\\x.jpg", "x" * 300])
@pytest.mark.parametrize("text", [False, True])
def test_names_that_lead_outside_are_refused(tmp_path, name, text):
    view = replace(make_views(1).views[0], name=name)
    write_colmap(Views((view,)), tmp_path / "m", text)
    with pytest.raises(InputError, match="image name"):
        read_colmap(tmp_path / "m")


def test_writing_replaces_nothing_but_models(tmp_path):
    views = make_views()
    target = tmp_path / "m"
    write_colmap(views, target)
    with pytest.raises(UsageError, match="exists"):
        write_colmap(views, target)
    write_colmap(views, target, text=True, overwrite=True)
    assert sorted(entry.name for entry in target.iterdir()) == ["cameras.txt", "images.txt", "points3D.txt"]
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="gworld did not write"):
        write_colmap(views, tmp_path, overwrite=True)
    assert (tmp_path / "images").is_dir()


def test_text_refuses_names_with_spaces(tmp_path):
    view = replace(make_views(1).views[0], name="a b.jpg")
    with pytest.raises(InputError, match="white space"):
        write_colmap(Views((view,)), tmp_path / "m", text=True)
    assert not (tmp_path / "m").exists()
    write_colmap(Views((view,)), tmp_path / "m")
    assert read_colmap(tmp_path / "m").views[0].name == "a b.jpg"


def test_missing_model_says_what_is_needed(tmp_path):
    with pytest.raises(InputError, match="holds no COLMAP model"):
        read_colmap(tmp_path)


def test_unknown_camera_models_are_refused_by_name(tmp_path):
    write_colmap(make_views(1), tmp_path / "m", text=True)
    file = tmp_path / "m" / "cameras.txt"
    file.write_text(file.read_text().replace("PINHOLE", "SPHERE9"))
    with pytest.raises(InputError, match="SPHERE9 is not known"):
        read_colmap(tmp_path / "m")
    write_colmap(make_views(1), tmp_path / "b")
    file = tmp_path / "b" / "cameras.bin"
    file.write_bytes(file.read_bytes()[:12] + (99).to_bytes(4, "little") + file.read_bytes()[16:])
    with pytest.raises(InputError, match="camera model 99 is not known"):
        read_colmap(tmp_path / "b")


def test_counts_are_checked_before_anything_is_taken(tmp_path):
    write_colmap(make_views(), tmp_path / "m")
    for name in ("cameras", "images", "points3D"):
        file = tmp_path / "m" / f"{name}.bin"
        whole = file.read_bytes()
        for count in (1 << 20, 1 << 40, (1 << 64) - 1):
            file.write_bytes(count.to_bytes(8, "little") + whole[8:])
            with pytest.raises(InputError, match="promises"):
                read_colmap(tmp_path / "m")
        file.write_bytes(whole)


def mutate(data: bytes, rng: random.Random) -> bytes:
    choice = rng.randrange(4)
    if not data or choice == 0:
        return data[: rng.randrange(len(data) + 1)]
    at = rng.randrange(len(data))
    if choice == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if choice == 2:
        value = rng.choice(
            [b"\xff" * 8, b"\0" * 8, b"\0\0\0\0\0\0\xf8\x7f", b"\0\0\0\0\0\0\xf0\x7f", b"nan ", b"1e999 ", b"-1 "]
        )
        return data[:at] + value + data[at + len(value) :]
    return data[:at] + data[at : at + rng.randrange(64)] + data[at:]


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_damaged_models_are_one_sentence(tmp_path, form):
    synthetic(tmp_path, rigs=1)
    folder, rng = tmp_path / form, random.Random(0)
    files = sorted(folder.iterdir())
    assert len(files) == 5
    refused = 0
    for round_ in range(300):
        file = files[round_ % 5]
        whole = file.read_bytes()
        file.write_bytes(mutate(whole, rng))
        try:
            views = read_colmap(folder)
            assert torch.isfinite(views.points).all()
            for view in views.views:
                assert torch.isfinite(view.world_from_camera).all()
                assert torch.isfinite(view.K).all()
        except GWorldError:
            refused += 1
        file.write_bytes(whole)
    assert refused > 50


def test_the_skull_agrees_with_pycolmap(real_data, tmp_path):
    model = real_data / "skull_ccby" / "sparse" / "0"
    theirs = pycolmap.Reconstruction(str(model))
    views = read_colmap(real_data / "skull_ccby")
    assert len(views) == 64
    assert all(view.image is not None for view in views.views)
    assert_same_poses(views, theirs)
    assert len(views.points) == len(theirs.points3D)
    write_colmap(views, tmp_path / "m")
    assert_same_poses(read_colmap(tmp_path / "m"), theirs, 1e-12)
    assert pycolmap.Reconstruction(str(tmp_path / "m")).cameras[1].params.tolist() == theirs.cameras[1].params.tolist()
