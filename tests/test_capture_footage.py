"""Footage on disk: what is written comes back, and what is damaged is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gworld.capture.footage import FILE, Footage, FootageCamera, Shot, load_footage, save_footage, shots_of
from gworld.errors import InputError


def some_footage(folder: Path) -> Footage:
    cameras = (
        FootageCamera("left", 64, 48, "left.mp4", (50.0, 50.0, 32.0, 24.0), (0.1, 0.0, 0.0, 0.0), 30.0),
        FootageCamera("photos", 32, 32, photos=True),
    )
    (folder / "images").mkdir(parents=True)
    shots = (
        Shot("left-000010", 0, folder / "images" / "b.png", 10, 0.33, sharpness=2.0),
        Shot("left-000002", 0, folder / "images" / "a.png", 2, 0.06, folder / "masks" / "a.png"),
        Shot("photo", 1, folder / "images" / "c.png", depth=folder / "depth" / "c.png"),
    )
    return Footage(folder, cameras, shots, depth_scale=0.0002)


def test_round_trip_and_order(tmp_path: Path) -> None:
    footage = some_footage(tmp_path / "footage")
    save_footage(footage)
    assert load_footage(footage.folder) == footage
    assert [shot.index for shot in shots_of(footage, 0)] == [2, 10]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("cameras"),
        lambda data: data["shots"][0].update(camera=7),
        lambda data: data["shots"][0].update(name="photo"),
        lambda data: data["shots"][0].update(image="../../etc/passwd"),
        lambda data: data["shots"][0].update(surprise=1),
        lambda data: data.update(format="else"),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage) -> None:
    footage = some_footage(tmp_path / "footage")
    save_footage(footage)
    data = json.loads((footage.folder / FILE).read_text())
    damage(data)
    (footage.folder / FILE).write_text(json.dumps(data))
    with pytest.raises(InputError):
        load_footage(footage.folder)
