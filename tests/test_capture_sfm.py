"""Structure from motion on the generated room: pairs, features, masks, lenses, and poses against exact truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.bench.pose import score_views
from gworld.capture.footage import Footage, FootageCamera, Shot, load_footage
from gworld.capture.matching import MatchOptions, choose_pairs, lens_of, match_footage, open_database
from gworld.capture.sfm import SolveOptions, solve, views_of
from gworld.data.room_files import write_room
from gworld.data.rooms import RoomOptions, film_room
from gworld.errors import InputError

SHORT = {"frames": 12, "width": 240, "height": 180, "length": 1.2, "seed": 2}


def named(counts: list[int], photos: bool = False) -> Footage:
    cameras = tuple(FootageCamera(f"c{index}", 64, 48, photos=photos) for index in range(len(counts)))
    shots = tuple(
        Shot(f"c{camera}-{i:04d}", camera, Path(f"c{camera}-{i:04d}.png"))
        for camera, count in enumerate(counts)
        for i in range(count)
    )
    return Footage(Path(), cameras, shots)


def test_few_pictures_are_matched_each_with_each() -> None:
    assert len(choose_pairs(named([10, 6]))) == 16 * 15 // 2
    assert len(choose_pairs(named([70], photos=True))) == 70 * 69 // 2


def test_a_long_film_is_matched_near_far_and_over_the_whole() -> None:
    pairs = choose_pairs(named([300]), MatchOptions(overlap=10, spread=24))
    assert len(pairs) == len(set(pairs)) < 300 * 16 + 24 * 23 // 2
    steps = {int(b[-4:]) - int(a[-4:]) for a, b in pairs}
    assert set(range(1, 11)) | {16, 32, 64, 128, 256} <= steps and ("c0-0000", "c0-0299") in pairs
    assert all(a < b for a, b in pairs)


def test_two_cameras_meet_in_the_spread() -> None:
    pairs = choose_pairs(named([100, 100]))
    crossing = [pair for pair in pairs if pair[0][:2] != pair[1][:2]]
    assert len(crossing) >= 100


def test_lenses_are_told_to_colmap_in_its_own_order() -> None:
    camera = FootageCamera("c", 64, 48, K=(50.0, 51.0, 32.0, 24.0))
    assert lens_of(FootageCamera("c", 64, 48)) == ("SIMPLE_RADIAL", "")
    assert lens_of(camera) == ("PINHOLE", "50.0,51.0,32.0,24.0")
    assert lens_of(replace(camera, distortion=(0.1, 0.2, 0.0, 0.0)))[0] == "OPENCV"
    model, params = lens_of(replace(camera, distortion=(0.1, 0.2, 0.0, 0.0, 0.3)))
    assert model == "FULL_OPENCV" and params.count(",") == 11


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory):
    """A short film with a bent lens and a moving box, its masks, matched."""
    folder = tmp_path_factory.mktemp("film")
    room = film_room(RoomOptions(moving=0.13, radial=-0.08, **SHORT))
    write_room(room, folder / "film", masks=True)
    footage = load_footage(folder / "film")
    return room, match_footage(footage, folder / "work"), folder


def test_masked_pixels_get_no_features(filmed) -> None:
    room, matched, _ = filmed
    with open_database(matched.database) as database:
        for image in database.read_all_images():
            spots = database.read_keypoints(image.image_id)[:, :2].astype(int)
            moving = room.moving[int(Path(image.name).stem[-6:])]
            assert len(spots) > 200 and not moving[spots[:, 1].clip(0, 179), spots[:, 0].clip(0, 239)].any()


def test_poses_and_lens_are_found(filmed) -> None:
    room, matched, folder = filmed
    found = list(solve(matched, folder / "work", SolveOptions()))
    assert len(found) == 1 and found[0].how == "incremental" and found[0].registered == SHORT["frames"]
    views = views_of(found[0], matched)
    camera, degrees = score_views(views, room)
    assert camera < 4.0 and degrees < 0.5
    lens = views.views[0]
    assert lens.model == "opencv" and abs(lens.distortion[0] + 0.08) < 0.02
    assert abs(float(lens.K[0, 0]) / room.K[0, 0] - 1) < 0.02
    assert len(views.points) == len(views.colors) > 500 and not views.metric
    assert [view.name for view in views.views] == sorted(view.name for view in views.views)
    assert views.views[3].time == pytest.approx(0.3) and views.views[3].mask is not None


def test_the_same_film_gives_the_same_poses_bit_for_bit(filmed, tmp_path: Path) -> None:
    """Two threads and all: pictures are numbered in order and everything random has a seed."""
    _, matched, _ = filmed
    footage = replace(matched.footage, shots=matched.footage.shots[:5])
    poses = []
    for run in ("one", "two"):
        again = match_footage(footage, tmp_path / run, MatchOptions(wanted=300))
        found = views_of(next(solve(again, tmp_path / run)), again)
        poses.append(torch.stack([view.world_from_camera for view in found.views]))
    assert torch.equal(*poses)


def test_known_intrinsics_are_kept(filmed, tmp_path: Path) -> None:
    room, _, _ = filmed
    write_room(room, tmp_path / "film", masks=True, focal=True)
    footage = load_footage(tmp_path / "film")
    bent = replace(footage.cameras[0], distortion=(-0.08, 0.0, 0.0, 0.0))
    footage = replace(footage, cameras=(bent,), shots=footage.shots[:6])
    matched = match_footage(footage, tmp_path / "work")
    solution = next(solve(matched, tmp_path / "work"))
    view = views_of(solution, matched).views[0]
    assert np.allclose(view.K.numpy(), room.K) and view.distortion[:2] == (-0.08, 0.0)


def test_bland_pictures_lower_the_threshold(tmp_path: Path) -> None:
    write_room(film_room(RoomOptions(contrast=0.06, **{**SHORT, "frames": 3})), tmp_path / "film")
    matched = match_footage(load_footage(tmp_path / "film"), tmp_path / "work")
    assert matched.threshold < 0.002 and matched.features > 300


def test_what_shows_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shots = []
    for index in range(3):
        path = tmp_path / "images" / f"{index}.png"
        Image.new("RGB", (64, 48), (90, 90, 90)).save(path)
        shots.append(Shot(f"s{index}", 0, path))
    grey = Footage(tmp_path, (FootageCamera("c", 64, 48),), tuple(shots))
    with pytest.raises(InputError, match="points of interest"):
        match_footage(grey, tmp_path / "work")
    with pytest.raises(InputError, match="at least 2"):
        match_footage(replace(grey, shots=grey.shots[:1]), tmp_path / "work")
    shots[1].image.write_bytes(b"damaged")
    with pytest.raises(InputError, match="1 of 3 pictures cannot be read"):
        match_footage(grey, tmp_path / "work")
