"""Small episodes and videos made from nothing, for the tests of `gworld.data`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gworld.data.clips import probe_clip, write_clip
from gworld.data.source import whole_video
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.episode import Episode


def moving_square(count: int, size: int = 32, phase: float = 0.0) -> list[np.ndarray]:
    """A bright square that wanders over a dark picture."""
    frames = []
    for index in range(count):
        frame = np.full((size, size, 3), 30, np.uint8)
        x = round((0.5 + 0.4 * np.sin(0.4 * index + phase)) * (size - 8))
        frame[8:16, x : x + 8] = (240, 200, 40)
        frames.append(frame)
    return frames


def small_video(path: Path, count: int = 12, fps: float = 10.0, size: int = 32) -> Path:
    """An H.264 file of `moving_square`."""
    write_clip(moving_square(count, size), np.arange(count) / fps, path)
    return path


def small_episode(video: Path | None = None, steps: int = 24, fps: float = 20.0, seed: int = 0) -> Episode:
    """Two agents, one of them with a gap in its actions, two links, and one calibrated video where it is given."""
    rng = torch.Generator().manual_seed(seed)
    times = torch.arange(steps, dtype=torch.float64) / fps
    actions = torch.randn(steps, 3, generator=rng)
    actions[5:7, 1] = float("nan")
    poses = torch.randn(steps, 2, 7, generator=rng)
    poses[3:4, 1] = float("nan")
    camera = Cameras(intrinsics(32, 32, 0.8)[None], look_at(torch.tensor([[1.0, 0, 1]]), torch.zeros(1, 3)), 32, 32)
    return Episode(
        times,
        actions={"left": actions, "right": torch.randn(steps, 2, generator=rng)},
        joints={"left": torch.randn(steps, 3, generator=rng)},
        link_poses=poses,
        link_names=("base", "tip"),
        videos=() if video is None else (whole_video(probe_clip(video), "front"),),
        cameras=None if video is None else camera,
        behaviour="expert",
        success=True,
        source="generated",
        licence="CC0",
        task="wander",
        signals={"contact/force": torch.rand(steps, 1, generator=rng)},
        names={"actions/left": ("yaw", "shoulder", "elbow")},
    )


def assert_same(one: Episode, two: Episode) -> None:
    """Every field is equal (NaN where NaN), but for where the videos lie."""
    assert torch.equal(one.times, two.times)
    for kind in ("actions", "joints", "signals"):
        first, second = getattr(one, kind), getattr(two, kind)
        assert set(first) == set(second)
        for name in first:
            assert torch.allclose(first[name], second[name], rtol=0, atol=0, equal_nan=True)
    assert (one.link_poses is None) == (two.link_poses is None)
    if one.link_poses is not None and two.link_poses is not None:
        assert torch.allclose(one.link_poses, two.link_poses, rtol=0, atol=0, equal_nan=True)
    for name in ("link_names", "behaviour", "success", "source", "licence", "task", "names"):
        assert getattr(one, name) == getattr(two, name), name
    assert [(v.name, len(v.times)) for v in one.videos] == [(v.name, len(v.times)) for v in two.videos]
    for a, b in zip(one.videos, two.videos, strict=True):
        assert torch.equal(a.times, b.times)
    if one.cameras is not None and two.cameras is not None:
        assert torch.allclose(one.cameras.K, two.cameras.K)
        assert torch.allclose(one.cameras.world_from_camera, two.cameras.world_from_camera)
