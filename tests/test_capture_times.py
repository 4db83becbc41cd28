"""Times of frames from a file beside the video."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gworld.capture.footage import Footage, FootageCamera, Shot
from gworld.capture.times import read_times, set_times
from gworld.errors import InputError, UsageError

EUROC = "#timestamp [ns],filename\n1403636579763555584,a.png\n1403636579813555456,b.png\n"


@pytest.mark.parametrize(
    ("name", "text", "times"),
    [
        ("t.txt", "0.5\n0.75\n\n1\n", [0.5, 0.75, 1.0]),
        ("t.csv", "time,frame\n0.0,0\n.04,1\n", [0.0, 0.04]),
        ("data.csv", EUROC, [0.0, 0.049999872]),
        ("t.csv", "1700000000.25\n1700000000.5\n", [0.0, 0.25]),
        ("t.json", "[0, 0.5, 2]", [0.0, 0.5, 2.0]),
        ("t.json", '{"timestamps": [3, 4.5]}', [3.0, 4.5]),
    ],
)
def test_files_of_times(tmp_path: Path, name: str, text: str, times: list[float]) -> None:
    (tmp_path / name).write_text(text)
    assert read_times(tmp_path / name) == pytest.approx(times, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "text", "fact"),
    [
        ("t.txt", "", "holds no time"),
        ("t.txt", "0\n1\n1\n", "time 3: 1 does not come after 1"),
        ("t.txt", "0\nsoon\n", "line 2: 'soon'"),
        ("t.txt", "0\ninf\n", "line 2"),
        ("t.csv", "#timestamp [ns],filename\n1.5,a.png\n", "whole nanoseconds"),
        ("t.json", '{"time": [1]}', "no list of times"),
        ("t.json", "[1, true]", "entry 2"),
    ],
)
def test_bad_times_are_one_sentence(tmp_path: Path, name: str, text: str, fact: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(fact)):
        read_times(tmp_path / name)


def test_each_camera_has_its_own_times(tmp_path: Path) -> None:
    cameras = tuple(FootageCamera(name, 4, 3, f"{name}.mp4") for name in "ab")
    shots = tuple(Shot(f"s{k}", k % 2, tmp_path / f"{k}.png", k, 0.1 * k) for k in range(4))
    footage = set_times(Footage(tmp_path, cameras, shots), [(0,), (1,)], [[0, 1, 2], [10, 11, 12, 13]])
    assert [shot.time for shot in footage.shots] == [0, 11, 2, 13]
    with pytest.raises(InputError, match="frame 3 of its video, but there are times for 2"):
        set_times(footage, [(0,), (1,)], [[0, 1], [10, 11, 12, 13]])
    with pytest.raises(UsageError, match="one for each"):
        set_times(footage, [(0,), (1,)], [[0, 1]])
