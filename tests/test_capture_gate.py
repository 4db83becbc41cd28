"""The gate: good poses pass, and each kind of bad ones is refused with what was measured and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gworld.capture.footage import load_footage
from gworld.capture.gate import GateOptions, PoseQuality, check_quality, measure_quality
from gworld.capture.matching import MatchOptions, match_footage
from gworld.capture.sfm import solve
from gworld.capture.stillness import check_motion, measure_motion
from gworld.data.room_files import write_room
from gworld.data.rooms import RoomOptions, film_room
from gworld.errors import InputError

GOOD = PoseQuality(60, 60, 1, 9000, 0.4, 9.0, 20.0, 60.0, 0.01, 0.98)
SHORT = {"frames": 10, "width": 240, "height": 180, "seed": 2}


def test_good_poses_pass() -> None:
    check_quality(GOOD, "film")


@pytest.mark.parametrize(
    ("wrong", "fact"),
    [
        ({"registered": 20}, "only 20 of 60 pictures"),
        ({"registered": 2, "pictures": 2}, "only 2 of 2 pictures"),
        ({"moving": 0.4}, "40% of the coherent motion contradicts"),
        ({"moving": float("nan")}, "contradicts"),
        ({"parallax": 1.0}, "1.0 degrees of parallax"),
        ({"points": 12}, "only 12 points"),
        ({"error": 4.0}, "err by 4.0 pixels"),
        ({"track": 2.1}, "seen in 2.1 pictures"),
        ({"field": 170.0}, "field of view of 170 degrees"),
    ],
)
def test_each_fault_is_named_with_the_figures_and_three_ways_out(wrong: dict, fact: str) -> None:
    with pytest.raises(InputError, match=fact) as refused:
        check_quality(replace(GOOD, **wrong), "film.mp4", GateOptions())
    text = str(refused.value)
    assert text.startswith("`film.mp4`: ") and "Measured: " in text
    assert text.rsplit(". ", 1)[1].count(";") == 2, "three things to do"
    assert refused.value.exit_code == 3


def matched_film(folder: Path, **film):
    write_room(film_room(RoomOptions(**{**SHORT, **film})), folder / "film")
    return match_footage(load_footage(folder / "film"), folder / "work", MatchOptions(wanted=600))


@pytest.mark.parametrize(
    ("film", "fact"),
    [
        ({"path": "still", "noise": 2.0}, "the camera stands still"),
        ({"path": "still", "moving": 0.2}, "the camera stands still"),
        ({"path": "turn"}, "only turns on the spot"),
    ],
)
def test_a_camera_without_parallax_is_recognised(tmp_path: Path, film: dict, fact: str) -> None:
    with pytest.raises(InputError, match=fact):
        check_motion(matched_film(tmp_path, **film))


def test_a_moving_camera_is_none_of_these(tmp_path: Path) -> None:
    matched = matched_film(tmp_path, length=1.0)
    check_motion(matched)
    motion = measure_motion(matched)
    assert motion is not None and motion.still < 0.1 and motion.turning < 0.8 and motion.travel > 0.01


def test_movers_that_fill_the_picture_are_found_out(tmp_path: Path) -> None:
    """All pictures may be registered: what breaks the motion found tells that it is not the only one."""
    matched = matched_film(tmp_path, length=1.2, moving=0.6, frames=12)
    measured = [measure_quality(solution, matched) for solution in solve(matched, tmp_path / "work")]
    assert measured
    for quality in measured:
        with pytest.raises(InputError):
            check_quality(quality, "film")
    assert min(quality.moving for quality in measured) > GateOptions().moving
