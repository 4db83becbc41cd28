"""The overlay shows every picture once, with its ignored area tinted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gworld.capture.footage import Footage, FootageCamera, Shot
from gworld.capture.overlay import tint, write_overlay
from gworld.errors import InputError
from gworld.render.video import read_video


def footage_of(folder: Path) -> Footage:
    ignored = np.full((96, 128), 255, np.uint8)
    ignored[:, 64:] = 0
    shots = []
    for index in range(3):
        path, mask = folder / f"p{index}.png", folder / f"m{index}.png"
        Image.fromarray(np.full((96, 128, 3), 120, np.uint8)).save(path)
        Image.fromarray(ignored).save(mask)
        shots.append(Shot(f"p{index}", 0, path, index, mask=mask if index else None))
    return Footage(folder, (FootageCamera("cam", 128, 96),), tuple(shots))


def test_the_masked_half_is_red_and_the_rest_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    assert write_overlay(footage_of(tmp_path), path) == 3
    frames = [frame.astype(int) for frame in read_video(path)]
    assert len(frames) == 3
    below = (slice(40, 90), slice(None))
    assert np.abs(frames[0][below] - 120).max() < 12
    for frame in frames[1:]:
        left, right = frame[40:90, 5:58], frame[40:90, 70:123]
        assert np.abs(left - 120).max() < 12
        assert (right[..., 0] - right[..., 1]).mean() > 80


def test_tint_leaves_what_is_used_untouched() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    ignored = np.zeros((20, 30), bool)
    ignored[5:12, 8:20] = True
    shown = tint(picture, ignored)
    assert (shown[~ignored] == picture[~ignored]).all() and (shown[ignored] != picture[ignored]).any(-1).all()


def test_footage_that_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    footage = footage_of(tmp_path)
    with pytest.raises(InputError, match="holds no pictures"):
        write_overlay(replace(footage, shots=()), tmp_path / "o.mp4")
    footage.shots[1].image.write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read"):
        write_overlay(footage, tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()
