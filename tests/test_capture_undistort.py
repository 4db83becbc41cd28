"""Undistorted pictures: a point drawn where the lens puts it appears where the pinhole camera puts it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.capture.undistort import undistort_views
from gworld.data.rooms import RoomOptions, film_room
from gworld.errors import InputError
from gworld.scene.views import View, Views

WIDTH, HEIGHT = 160, 120
K = torch.tensor([[120.0, 0, 83.0], [0, 118.0, 57.0], [0, 0, 1]], dtype=torch.float64)
LENSES = {
    "opencv": (-0.2, 0.05, 0.003, -0.002, 0.0, 0.0, 0.0, 0.0),
    "fisheye": (0.03, -0.01, 0.0, 0.0),
}


def distorted(points: np.ndarray, model: str) -> np.ndarray:
    """Pixels of camera points [N,3], by OpenCV (whose pixel centres lie at whole numbers)."""
    import cv2

    matrix = K.numpy().copy()
    matrix[:2, 2] -= 0.5
    terms = np.array(LENSES[model][:4])
    project = cv2.fisheye.projectPoints if model == "fisheye" else cv2.projectPoints
    given = points.reshape(-1, 1, 3)
    pixels, _ = project(given, np.zeros(3), np.zeros(3), matrix, terms)
    return pixels.reshape(-1, 2) + 0.5


def blob_picture(centre: np.ndarray) -> np.ndarray:
    """A soft dot whose middle lies at a pixel position."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    return np.rint(255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 8)).astype(np.uint8)


def middle_of(picture: np.ndarray) -> np.ndarray:
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    weight = picture.astype(float) ** 2
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def a_view(folder: Path, name: str, picture: np.ndarray, model: str, **files: Path) -> View:
    path = folder / name
    Image.fromarray(np.repeat(picture[..., None], 3, axis=2)).save(path)
    terms = LENSES.get(model, ())
    return View(name, WIDTH, HEIGHT, K, torch.eye(4, dtype=torch.float64), model, terms, image=path, **files)


@pytest.mark.parametrize("model", sorted(LENSES))
def test_points_fall_where_the_pinhole_camera_puts_them(tmp_path: Path, model: str) -> None:
    points = np.array([[0.0, 0.0, 1.0], [0.4, 0.28, 1.0], [-0.5, -0.3, 1.0], [0.45, -0.33, 1.0]])
    for index, (point, pixel) in enumerate(zip(points, distorted(points, model), strict=True)):
        view = a_view(tmp_path, f"{index}.png", blob_picture(pixel), model)
        flat = undistort_views(Views((view,)), tmp_path / f"out{index}").views[0]
        assert flat.model == "pinhole" and not flat.distortion
        wanted = (flat.K.numpy() @ point)[:2]
        found = middle_of(np.asarray(Image.open(flat.image))[..., 0])
        assert np.abs(found - wanted).max() < 0.1, (model, index, found, wanted)


def test_no_pixel_is_missing_and_masks_and_depth_follow(tmp_path: Path) -> None:
    mask, depth = tmp_path / "m.png", tmp_path / "d.png"
    half = np.where(np.arange(WIDTH) < 83, 255, 0).astype(np.uint8)
    Image.fromarray(np.repeat(half[None], HEIGHT, 0)).save(mask)
    Image.fromarray(np.full((HEIGHT, WIDTH), 1234, np.uint16)).save(depth)
    view = a_view(tmp_path, "v.png", np.full((HEIGHT, WIDTH), 200, np.uint8), "opencv", mask=mask, depth=depth)
    flat = undistort_views(Views((view,)), tmp_path / "out").views[0]
    picture = np.asarray(Image.open(flat.image))
    assert picture.min() == picture.max() == 200
    assert set(np.unique(np.asarray(Image.open(flat.mask)))) == {0, 255}
    edge = np.flatnonzero(np.asarray(Image.open(flat.mask))[57] == 0)[0]
    assert abs(edge - 83) <= 1
    levels = np.asarray(Image.open(flat.depth))
    assert levels.dtype == np.uint16 and (levels == 1234).all()


def test_a_pinhole_picture_is_copied_as_it_is(tmp_path: Path) -> None:
    view = a_view(tmp_path, "v.png", blob_picture(np.array([20.0, 30.0])), "pinhole")
    flat = undistort_views(Views((view,)), tmp_path / "out").views[0]
    assert flat.image.read_bytes() == view.image.read_bytes() and torch.equal(flat.K, K)


def test_generated_distortion_is_undone(tmp_path: Path) -> None:
    """A distorted film of the room, undistorted by its lens, equals the film of a pinhole camera."""
    size = {"frames": 1, "width": WIDTH, "height": HEIGHT, "seed": 3}
    bent = film_room(RoomOptions(radial=-0.12, **size))
    Image.fromarray(bent.pictures[0]).save(tmp_path / "bent.png")
    pose = torch.from_numpy(bent.world_from_camera[0])
    terms = (-0.12, *[0.0] * 7)
    view = View("b.png", WIDTH, HEIGHT, torch.from_numpy(bent.K), pose, "opencv", terms, image=tmp_path / "bent.png")
    flat = undistort_views(Views((view,)), tmp_path / "out").views[0]
    straight = film_room(RoomOptions(**size))
    zoom = float(flat.K[0, 0] / bent.K[0, 0])
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    spot = np.stack([(x - WIDTH / 2) / zoom + WIDTH / 2, (y - HEIGHT / 2) / zoom + HEIGHT / 2], -1)
    import cv2

    maps = (spot - 0.5).astype(np.float32)
    wanted = cv2.remap(straight.pictures[0], maps[..., 0], maps[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    off = np.abs(np.asarray(Image.open(flat.image)).astype(float) - wanted)[4:-4, 4:-4]
    assert off.mean() < 8 and 0.8 < zoom <= 1.0


def test_what_cannot_be_undistorted_is_said(tmp_path: Path) -> None:
    good = a_view(tmp_path, "v.png", np.zeros((HEIGHT, WIDTH), np.uint8), "opencv")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    from dataclasses import replace

    for image, fact in (("bad.png", "cannot be read"), ("small.png", "20 x 20"), ("gone.png", "cannot be read")):
        with pytest.raises(InputError, match=fact):
            undistort_views(Views((replace(good, image=tmp_path / image),)), tmp_path / "out")
    with pytest.raises(InputError, match="panorama"):
        undistort_views(Views((replace(good, model="equirectangular", distortion=()),)), tmp_path / "out")
    with pytest.raises(InputError, match="has no picture"):
        undistort_views(Views((replace(good, image=None),)), tmp_path / "out")
