"""Windows: all that fit, each as likely, none across an end, and the same from the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gworld.data.sampler import all_windows, cut_window, draw_windows, sample_windows
from gworld.data.store import EpisodeWriter, open_episodes
from gworld.errors import InputError, UsageError
from tests.episodes import small_episode, small_video


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_windows_fit() -> None:
    assert all_windows([3, 1, 4], 3).tolist() == [[0, 0], [2, 0], [2, 1]]
    assert all_windows([10], 4, stride=3).tolist() == [[0, 0], [0, 3], [0, 6]]
    assert len(all_windows([2], 3)) == 0
    with pytest.raises(UsageError):
        all_windows([3], 0)


def test_each_window_is_as_likely() -> None:
    steps = [3, 1, 4, 9]
    wanted = {tuple(row) for row in all_windows(steps, 3).tolist()}
    drawn = [tuple(row) for row in draw_windows(steps, 3, 10_000, generator()).tolist()]
    assert set(drawn) == wanted
    expected = len(drawn) / len(wanted)
    counts = torch.tensor([drawn.count(window) for window in sorted(wanted)])
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 30  # 9 degrees of freedom: beyond 28 once in a thousand
    with pytest.raises(InputError, match="none of 4 episodes has 10 steps"):
        draw_windows(steps, 10, 1, generator())


def test_a_window_keeps_its_rows_and_frames(tmp_path: Path) -> None:
    episode = small_episode(small_video(tmp_path / "a.mp4"))
    from dataclasses import replace

    from gworld.data.clips import probe_clip
    from gworld.data.source import whole_video

    episode = replace(episode, videos=(whole_video(probe_clip(tmp_path / "a.mp4"), "front"),))
    window = cut_window(episode, 6, 8)
    assert torch.equal(window.times, episode.times[6:14])
    assert torch.equal(window.actions["right"], episode.actions["right"][6:14])
    assert window.link_poses is not None and len(window.link_poses) == 8
    # 20 steps and 10 frames a second: steps 6 .. 13 show frames 3 .. 6
    assert (window.videos[0].first, len(window.videos[0].times)) == (3, 4)
    with pytest.raises(InputError, match="24 steps; 20 to 27"):
        cut_window(episode, 20, 8)


def test_sampling_repeats_and_filters(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        for seed, steps in enumerate((24, 5, 40)):
            writer.add(small_episode(None, steps=steps, seed=seed))
    episodes = open_episodes(tmp_path)

    def take(seed: int, cached: int) -> list[tuple[int, float]]:
        stream = sample_windows(episodes, 8, generator(seed), cached=cached)
        return [(len(window := next(stream)), float(window.times[0])) for _ in range(30)]

    assert take(1, 64) == take(1, 1) != take(2, 64)
    only = sample_windows(episodes, 30, generator(), keep=lambda entry: entry.steps >= 30)
    assert {len(next(only)) for _ in range(5)} == {30}
