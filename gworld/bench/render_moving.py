"""Frames over a cached background beside full ones: a part of a scene moves, one world or many; rows for `render`."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_least, median_seconds
from gworld.bench.splats import Scene, table
from gworld.errors import GWorldError
from gworld.geometry import se3_exp
from gworld.render.api import OutputName
from gworld.render.native import render_native_cpu
from gworld.render.native_cache import BackgroundCache
from gworld.scene.cameras import resize_cameras

FULL: tuple[OutputName, ...] = ("rgb", "alpha", "depth", "link_id", "flow")
STEPS = 7
"""Frames of the loop that the moving part goes through."""


def moving_rows(given: BenchInput) -> Iterator[Row]:
    """Yield how much faster a cached background makes a frame, and views per second of many worlds over one."""
    scene = table(0.03 if given.quick else 0.0042)
    scene = replace(scene, cameras=resize_cameras(scene.cameras, 648, 420))
    for percent, goal in ((1, 25.0), (5, 8.0), (10, 4.0)):
        part = _split(scene, len(scene.gaussians) * percent // 100)
        label = f"table, {len(scene.gaussians) / 1000:.0f}k, 648x420, {percent} % moving"
        for outputs in (("rgb",), FULL) if percent == 1 else (("rgb",),):
            name = "rgb" if outputs == ("rgb",) else "all"
            full, cached, ratio = _compare(part, outputs, 1, 1 if given.quick else 5)
            if not given.quick:
                yield at_least(f"{label}: full / cached background, {name}", ratio, "x", goal)
            yield Row(f"{label}, cached background, {name}", 1e3 * cached, "ms", baseline=1e3 * full)
    scene = table(0.03 if given.quick else 0.0085)
    part = _split(replace(scene, cameras=resize_cameras(scene.cameras, 128, 96)), 600 if given.quick else 6000)
    worlds = 8 if given.quick else 64
    full, cached, _ = _compare(part, ("rgb",), worlds, 1 if given.quick else 3)
    label = f"{worlds} worlds of {len(scene.gaussians) / 1000:.0f}k Gaussians at 128x96, cached background"
    rate, baseline = worlds / cached, worlds / full
    yield (
        Row(label, rate, "views/s", baseline=baseline)
        if given.quick
        else at_least(label, rate, "views/s", 3000.0, baseline)
    )


def _split(scene: Scene, count: int) -> Scene:
    """The scene at rest on link 0 but for the `count` Gaussians nearest to the middle of the table, on link 1."""
    gaussians = scene.gaussians
    poses = scene.poses[0, gaussians.links.long()]
    means = (poses[:, :3, :3] @ gaussians.means[..., None])[..., 0] + poses[:, :3, 3]
    links = torch.zeros_like(gaussians.links)
    links[(means - torch.tensor([0.02, -0.05, 0.75])).norm(dim=1).argsort()[:count]] = 1
    return replace(scene, gaussians=replace(gaussians, means=means, links=links))


def _compare(scene: Scene, outputs: tuple[OutputName, ...], worlds: int, rounds: int) -> tuple[float, float, float]:
    """Seconds of a full call, of a cached one, and the median of their ratios; checks that both draw the same bits.

    In turns, but a dozen cached frames in a row, as they come in use: a full one empties the processor's caches.
    """
    frames = [torch.stack([_pose(step + world) for world in range(worlds)]) for step in range(STEPS)]

    def player(cache: BackgroundCache | None) -> Callable[[], torch.Tensor]:
        steps = itertools.cycle(range(STEPS))

        def call() -> torch.Tensor:
            step = next(steps)
            previous = (frames[step - 1], scene.cameras) if "flow" in outputs else None
            with torch.no_grad():
                found = render_native_cpu(
                    scene.gaussians, frames[step], scene.cameras, outputs, previous, cache=cache
                ).rgb
            assert found is not None
            return found

        return call

    full, cached = player(None), player(BackgroundCache())
    if not torch.equal(full(), cached()):
        raise GWorldError("the cached background changed a picture; that must not be. Report it with this scene.")
    pairs = [(median_seconds(full, 3), median_seconds(cached, 12, 2)) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def _pose(step: int) -> torch.Tensor:
    """Link 0 at rest, link 1 a little further on its way."""
    twist = torch.tensor([0.0, 0.0, 0.02 * (step % 5), 0.01 * (step % 7), 0.005 * (step % 3), 0.0])
    return torch.stack([torch.eye(4), se3_exp(twist)])
