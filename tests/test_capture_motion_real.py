"""Moving things in short pieces of real recordings, and in the bundled clip; the real ones may be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gworld.capture.motion import Movers, find_movers
from gworld.capture.video import read_frames
from tests.conftest import ROOT


def movers_of(path: Path, indices: range, focal: float = 130.0) -> Movers:
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    pictures = [frame.pixels for frame in read_frames(path, max_side=160, indices=indices)]
    return find_movers(np.stack(pictures), focal)


def test_nothing_of_the_bundled_clip_moves() -> None:
    found = movers_of(ROOT / "assets" / "tabletop.mp4", range(20, 60, 4))
    assert found.kind == "moving" and found.trusted and found.explained > 0.9 and found.masks.mean() < 0.004


def test_a_dog_before_a_hand_held_camera(real_data: Path) -> None:
    found = movers_of(real_data / "videos" / "dog-example.mp4", range(30, 50, 2))
    rows, columns = np.nonzero(found.masks.any(0))
    assert found.kind == "moving" and found.trusted and 0.01 < found.masks.mean() < 0.12
    assert 0.35 < np.median(columns) / 160 < 0.75 and 0.2 < np.median(rows) / 90 < 0.85


def test_road_and_sky_before_a_car_are_left_whole(real_data: Path) -> None:
    """Both are bland: flow there is a guess, and no witness."""
    found = movers_of(real_data / "videos" / "urban_freeway_front_tele_30fov.mp4", range(40, 60, 2), 230.0)
    assert found.masks.mean() < 0.06 and found.masks[:, :25, :80].mean() < 0.03


def test_the_gripper_before_a_wrist_camera_rides_along(real_data: Path) -> None:
    found = movers_of(real_data / "droid" / "videos" / "1" / "2.mp4", range(4, 24, 2))
    assert found.kind == "moving" and 0.05 < found.mounted < 0.35
    lower, upper = found.masks[:, 80:], found.masks[:, :50]
    assert lower.mean() > 0.35 and upper.mean() < 0.15
