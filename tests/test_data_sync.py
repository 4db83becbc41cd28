"""Clocks: planted offsets and rates are found, unrelated signals are not believed, gaps stay unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.data.annotated import open_annotated
from gworld.data.clips import write_clip
from gworld.data.source import robot_episode
from gworld.data.sync import (
    Sync,
    apply_sync,
    between,
    estimate_sync,
    held,
    image_change,
    motion_speed,
    sync_episode,
)
from gworld.errors import InputError


def smooth_speed(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A speed at 50 Hz that rises and falls over about a second."""
    times = np.arange(0, seconds, 0.02)
    noise = np.random.default_rng(seed).normal(size=len(times) + 200)
    return times, np.abs(np.convolve(noise, np.hanning(60), "same")[: len(times)])


def seen_change(log: np.ndarray, speed: np.ndarray, pairs: np.ndarray, offset: float, rate: float) -> np.ndarray:
    """What a camera would see of that speed, with noise of half its spread."""
    rng = np.random.default_rng(1)
    clean = 5 * np.interp(offset + rate * pairs.mean(axis=1), log, speed) + 1
    return np.maximum(clean + rng.normal(size=len(clean)) * 2.5 * speed.std(), 0)


@pytest.mark.parametrize(
    ("offset", "rate", "fps", "seconds"),
    [(0.37, 1.0, 30, 30), (-0.8, 1.0, 5, 30), (0.0, 1.0, 10, 60), (0.12, 1.004, 30, 120), (0.05, 1.0003, 15, 300)],
)
def test_planted_clocks_are_found(offset: float, rate: float, fps: int, seconds: int) -> None:
    log, speed = smooth_speed(seconds + 8, 0)
    log = log - 4
    times = np.arange(seconds * fps) / fps
    pairs = np.stack([times[:-1], times[1:]], axis=1)
    found = estimate_sync(pairs, seen_change(log, speed, pairs, offset, rate), log, speed)
    assert found.sure and found.peak > 0.7
    ends = np.array([times[0], times[-1]])
    error = np.abs(found.offset + found.rate * ends - (offset + rate * ends))
    assert error.max() < 0.6 / fps, f"{error * fps} frames off at the ends"


def test_unrelated_signals_are_not_believed() -> None:
    believed = 0
    for seed in range(20):
        log, speed = smooth_speed(40, seed)
        other_log, other = smooth_speed(40, 1000 + seed)
        times = np.arange(300) / 10
        pairs = np.stack([times[:-1], times[1:]], axis=1)
        believed += estimate_sync(pairs, seen_change(other_log, other, pairs, 2, 1), log, speed).sure
    assert believed <= 1


def test_a_log_that_stands_still_gives_no_clock() -> None:
    times = np.arange(100) / 10
    pairs = np.stack([times[:-1], times[1:]], axis=1)
    found = estimate_sync(pairs, np.random.default_rng(0).random(99), times, np.zeros(100))
    assert not found.sure and (found.offset, found.rate) == (0.0, 1.0)


def test_gaps_in_the_log_do_not_count() -> None:
    log, speed = smooth_speed(40, 0)
    times = np.arange(600) / 20 + 4
    pairs = np.stack([times[:-1], times[1:]], axis=1)
    change = seen_change(log, speed, pairs, 0.4, 1.0)
    speed = speed.copy()
    speed[500:700] = np.nan
    found = estimate_sync(pairs, change, log, speed)
    assert found.sure and abs(found.offset - 0.4) < 0.03


def test_trembling_columns_do_not_count() -> None:
    times = np.arange(200) / 20
    rng = np.random.default_rng(0)
    still = rng.normal(0, 1e-3, (200, 4))
    moving = np.cumsum(np.sin(times)[:, None] * 0.05, axis=0)
    middle, speed = motion_speed(times, np.concatenate([still, moving], axis=1))
    assert np.allclose(middle, times[:-1] + 0.025)
    assert np.corrcoef(speed, np.abs(np.sin(times[1:])))[0, 1] > 0.99


def test_an_episode_with_a_late_camera_is_put_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    log = np.arange(0, 12, 0.05)
    position = np.cumsum(np.convolve(rng.normal(size=len(log)), np.hanning(12), "same")) * 0.5
    shown = np.arange(0, 11, 0.1)
    frames = []
    for time in shown:
        frame = np.full((32, 64, 3), 40, np.uint8)
        x = int(28 + 4 * np.interp(time + 0.55, log, position)) % 56
        frame[8:24, x : x + 8] = 230
        frames.append(frame)
    write_clip(frames, shown, tmp_path / "a.mp4")
    episode = robot_episode(log, joints=[position], videos={"front": tmp_path / "a.mp4"})
    found = sync_episode(episode)
    assert found is not None and found.sure and abs(found.offset - 0.55) < 0.05, str(found)
    moved = apply_sync(episode, found).videos[0].times
    assert abs(float(moved[0]) - 0.55) < 0.05
    unmoved = apply_sync(episode, Sync(0.03, 1.0, 0.9, 0.9, 9.0, True)).videos[0].times
    assert torch.equal(unmoved, episode.videos[0].times)  # less than half a frame
    with pytest.raises(InputError, match="no video 'back'"):
        sync_episode(episode, camera="back")
    pairs, change = image_change(tmp_path / "a.mp4", 0, shown)
    assert len(pairs) == len(change) == len(shown) - 1


def test_commands_hold_and_states_go_straight() -> None:
    times = np.array([0.0, 1.0, 2.0, 5.0])
    values = np.array([[0.0], [10.0], [20.0], [50.0]])
    clock = np.array([-0.5, 0.0, 0.5, 1.0, 2.4, 3.6, 5.0, 5.2, 9.0])
    nan = np.nan
    assert np.array_equal(held(times, values, clock, 1.5)[:, 0], [nan, 0, 0, 10, 20, nan, 50, 50, nan], equal_nan=True)
    straight = between(times, values, clock, 1.5)[:, 0]
    assert np.array_equal(straight, [0, 0, 5, 10, nan, nan, 50, 50, nan], equal_nan=True)


def test_droid_wrist_cameras_are_in_step(real_data: Path) -> None:
    source = open_annotated(real_data / "droid")
    offsets = []
    for index in range(len(source)):
        episode = source.read(index, real_data)
        found = sync_episode(episode, camera="wrist")
        assert found is not None
        offsets.append(found.offset)
    frames = np.round(np.array(offsets) * 5)
    assert (frames == 0).all(), f"the peaks lie at {offsets} s; frames are 0.2 s apart"
