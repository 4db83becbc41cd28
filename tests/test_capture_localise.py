"""Fixed cameras in a scan: found to a centimetre and half a degree where the scan shows what they see, else refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gworld.data.rooms as rooms
from gworld.capture.landmarks import Landmarks, find_landmarks
from gworld.capture.localise import FixedCamera, LocaliseOptions, localise_camera, localise_cameras
from gworld.capture.sift import find_features, match_mutual, still_picture
from gworld.errors import InputError
from gworld.scene.cameras import look_at
from gworld.scene.views import View, Views

LENS = np.array([[250.0, 0, 160], [0, 250, 120], [0, 0, 1]])


def film(poses: np.ndarray | None, monkeypatch: pytest.MonkeyPatch, **options: float) -> rooms.Room:
    """The room filmed from given places with another lens than the scan's."""
    if poses is not None:
        monkeypatch.setattr(rooms, "_path", lambda options, random: poses)
        monkeypatch.setattr(rooms, "_lens", lambda options, random: LENS)
    count = 10 if poses is None else len(poses)
    return rooms.film_room(rooms.RoomOptions(frames=count, length=2.4, **options))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Views:
    folder = tmp_path_factory.mktemp("scan")
    room = rooms.film_room(rooms.RoomOptions(frames=10, length=2.4))
    views = []
    for index, (picture, pose) in enumerate(zip(room.pictures, room.world_from_camera, strict=True)):
        Image.fromarray(picture).save(folder / f"{index:03d}.png")
        K, pose = torch.from_numpy(room.K), torch.from_numpy(pose)
        views.append(View(f"{index:03d}.png", 320, 240, K, pose, image=folder / f"{index:03d}.png"))
    return Views(tuple(views), metric=True)


@pytest.fixture(scope="module")
def landmarks(scan: Views) -> Landmarks:
    return find_landmarks(scan)


def places_off_the_path(scan: Views) -> np.ndarray:
    """Two cameras high up that look at the middle of the room."""
    middle = scan.views[5].world_from_camera[:3, 3]
    angle = float(torch.atan2(middle[1], middle[0]))
    spots = [(1.7, 0.2, 2.3), (2.7, -0.3, 2.5)]
    eyes = [[reach * np.cos(angle + turn), reach * np.sin(angle + turn), height] for reach, turn, height in spots]
    target = [-0.5 * np.cos(angle), -0.5 * np.sin(angle), 0.9]
    return look_at(torch.tensor(eyes).double(), torch.tensor([target] * 2).double()).numpy()


@pytest.mark.parametrize(("known", "radial", "noise"), [(False, -0.1, 3.0), (True, 0.0, 0.0)])
def test_a_camera_off_the_path_is_found_to_a_centimetre(
    scan: Views, landmarks: Landmarks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, radial: float,
    noise: float,
) -> None:  # fmt: skip
    truth = places_off_the_path(scan)
    room = film(truth, monkeypatch, radial=radial, noise=noise)
    for index, (picture, pose) in enumerate(zip(room.pictures, truth, strict=True)):
        file = tmp_path / f"{index}.png"
        Image.fromarray(picture).save(file)
        K = (250.0, 250.0, 160.0, 120.0) if known else ()
        found = localise_camera(landmarks, FixedCamera(f"wall{index}", 320, 240, (file,), K))
        turn = found.view.world_from_camera[:3, :3].numpy().T @ pose[:3, :3]
        assert np.linalg.norm(found.view.world_from_camera[:3, 3].numpy() - pose[:3, 3]) < 0.01
        assert np.degrees(np.arccos(min(1.0, (np.trace(turn) - 1) / 2))) < 0.1
        assert found.matches > 100 and found.cells >= 10 and found.error < 1.0
        assert found.place_spread < 0.02 and found.turn_spread < 0.01
        assert found.view.name == f"wall{index}" and float(found.view.K[0, 0]) == pytest.approx(250, rel=0.01)
        if not known:
            assert found.view.distortion[0] == pytest.approx(radial, abs=0.03)


def test_moving_things_vanish_and_masks_hold(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ground = random.integers(0, 255, (40, 60), dtype=np.uint8)
    files = []
    for index in range(9):
        picture = ground.copy()
        picture[:, 5 * index : 5 * index + 8] = 255
        files.append(tmp_path / f"{index}.png")
        Image.fromarray(picture).save(files[-1])
    assert (still_picture(files, 60, 40) == ground).mean() > 0.98
    with pytest.raises(InputError, match="61 x 40 are needed"):
        still_picture(files, 61, 40)
    picture = rooms.film_room(rooms.RoomOptions(frames=1)).pictures[0].mean(2).astype(np.uint8)
    mask = np.full((240, 320), 255, np.uint8)
    mask[:, :160] = 0
    whole, half = find_features(picture), find_features(picture, mask)
    assert len(half.pixels) < len(whole.pixels) and half.pixels[:, 0].min() >= 160
    small = find_features(picture, max_side=160)
    assert small.pixels[:, 0].max() > 200, "pixels are those of the picture as it came"
    pairs = match_mutual(whole.descriptors, whole.descriptors[::-1], ratio=1.01)
    assert (pairs.sum(1) == len(whole.pixels) - 1).mean() > 0.95


def test_a_camera_that_sees_another_room_is_refused(
    scan: Views, landmarks: Landmarks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = film(places_off_the_path(scan)[:1], monkeypatch, seed=8)
    Image.fromarray(other.pictures[0]).save(tmp_path / "other.png")
    Image.new("RGB", (320, 240), (90, 90, 90)).save(tmp_path / "grey.png")
    for name in ("other", "grey"):
        with pytest.raises(InputError, match=f"camera `{name}`.*[Ss]can") as caught:
            localise_camera(landmarks, FixedCamera(name, 320, 240, (tmp_path / f"{name}.png",)))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no pictures"):
        localise_camera(landmarks, FixedCamera("none", 320, 240, ()))


def test_a_scan_that_gives_no_landmarks_is_refused(scan: Views, tmp_path: Path) -> None:
    spun = tuple(
        replace(view, world_from_camera=scan.views[-1 - i].world_from_camera) for i, view in enumerate(scan.views)
    )
    with pytest.raises(InputError, match="landmarks; 50 are needed"):
        localise_cameras(replace(scan, views=spun[:4]), [], LocaliseOptions())
    with pytest.raises(InputError, match="undistort"):
        find_landmarks(Views((replace(scan.views[0], model="opencv"),)))
    with pytest.raises(InputError, match="no picture"):
        find_landmarks(Views((replace(scan.views[0], image=None),)))
    with pytest.raises(InputError, match="0 pictures gives 0 landmarks"):
        find_landmarks(Views(()))


def test_landmarks_lie_on_the_surfaces(landmarks: Landmarks) -> None:
    assert len(landmarks.points) > 500 and set(landmarks.owners) == set(range(len(landmarks.points)))
    inside = (
        (np.abs(landmarks.points[:, :2]) < 3.25).all(1)
        & (landmarks.points[:, 2] > -0.05)
        & (landmarks.points[:, 2] < 3.05)
    )
    assert inside.mean() > 0.97
    walls = np.abs(np.abs(landmarks.points[:, :2]).max(1) - 3.2)
    floor = np.abs(landmarks.points[:, 2])
    on = np.minimum(walls, floor)
    assert np.median(on[on < 0.1]) < 0.015
