"""`gworld bench render`: agreement of the backends, time per frame and per training step, worlds, video."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.prototype import build_prototype
from gworld.bench.render_cost import cost_rows
from gworld.bench.render_moving import moving_rows
from gworld.bench.render_trained import trained
from gworld.bench.rows import Row, at_least, at_most, median_seconds, peak_growth
from gworld.bench.splats import Scene, garden, table
from gworld.bench.thresholds import agreement_rows
from gworld.bench.training import training_rows
from gworld.render.api import RenderOptions
from gworld.render.native import native_isas
from gworld.render.native_train import yuv420_planes
from gworld.render.paths import orbit, path_cameras
from gworld.render.select import backend_status, render
from gworld.render.video import write_video
from gworld.scene.cameras import resize_cameras
from gworld.scene.gaussians import select_gaussians

FULL = ("rgb", "alpha", "depth", "link_id", "flow")


def rows(given: BenchInput) -> Iterator[Row]:
    """Yield the rows; the garden needs `--data`, the peer rasteriser `--peer`."""
    usable = [name for name, ok, _ in backend_status() if ok]
    scene = table(0.03 if given.quick else 0.012)
    yield from _agreement(scene, usable)
    if "native-cpu" not in usable:
        return
    path = given.data / "gaussian_files" / "test_garden.npz" if given.data else None
    if path is not None and path.is_file():
        yield from _speed(garden(path, given.seed), given)
        yield from cost_rows(garden(path, given.seed), lambda view: _forward(view, ("rgb",)), given.quick)
        yield from training_rows(garden(path, given.seed), given)
        yield from _trained(path.with_name("biker.compressed.ply"), given)
    yield from _speed(table(0.02 if given.quick else 0.0043), replace(given, peer=None))
    yield from training_rows(scene, replace(given, peer=None))
    yield from _against_reference(scene, given)
    yield from _worlds(scene, given)
    yield from moving_rows(given)
    yield from _video(scene, given)
    yield from _soak(scene, given)


def _trained(path: Path, given: BenchInput) -> Iterator[Row]:
    """A trained capture, where its file stands beside the garden's."""
    if path.is_file():
        yield from _speed(trained(path), given)


def _agreement(scene: Scene, usable: list[str]) -> Iterator[Row]:
    """Largest colour difference of each backend from the reference on a crop of the table."""
    small = replace(scene, cameras=resize_cameras(scene.cameras, 96, 72))
    truth = _draw(small, ("rgb",), "reference")
    for name in usable:
        if name != "reference":
            yield from agreement_rows(name, _draw(small, ("rgb",), name), truth, small)


def _speed(scene: Scene, given: BenchInput) -> Iterator[Row]:
    """Forward and forward+backward at two sizes; beside the peer in turns where there is one."""
    count = f"{scene.name}, {len(scene.gaussians) / 1000:.0f}k"
    rounds = 1 if given.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        peer = build_prototype(given.peer, scene, Path(folder)) if given.peer else None
        for scale in (1, 2):
            size = (scene.cameras.width * scale, scene.cameras.height * scale)
            big = replace(scene, cameras=resize_cameras(scene.cameras, *size)[0])
            label = f"{count}, {size[0]}x{size[1]}"
            for isa, outputs, limit in (
                ("avx512", ("rgb",), 0.8),
                ("avx512", FULL, 0.85),
                ("avx2", ("rgb",), 0.9),
            ):
                if isa not in native_isas():
                    continue
                with _instruction_set(isa):
                    ours = _forward(big, outputs)
                    theirs = (lambda s=scale, i=isa: peer.forward_ms(s, _threads(), i)) if peer else None
                    yield from _pair(
                        f"{label}, {isa}, {'rgb' if outputs == ('rgb',) else 'all'} forward",
                        ours,
                        theirs,
                        rounds,
                        limit,
                    )
            theirs_both = (lambda s=scale: peer.forward_backward_ms(s, _threads())) if peer else None
            yield from _pair(f"{label}, forward and backward", _forward_backward(big), theirs_both, rounds, 1.1)


def _pair(
    name: str, ours: Callable[[], object], theirs: Callable[[], float] | None, rounds: int, limit: float
) -> Iterator[Row]:
    """Least time of a dozen calls, in turns with the peer's own least of a dozen; the median over the rounds."""
    mine, other = [], []
    for _ in range(rounds):
        if theirs is not None:
            other.append(theirs())
        ours()
        mine.append(1e3 * min(median_seconds(ours, 1, 0) for _ in range(12)))
    if theirs is not None:
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
        yield at_most(f"{name} / peer", ratio, "x", limit)
    yield Row(name, statistics.median(mine), "ms", baseline=statistics.median(other) if other else None)


def _against_reference(scene: Scene, given: BenchInput) -> Iterator[Row]:
    """How much faster than the readable torch renderer, on a part of the scene that it can draw in seconds."""
    rows_kept = torch.arange(0, len(scene.gaussians), 4)
    part = replace(scene, gaussians=select_gaussians(scene.gaussians, rows_kept))
    part = replace(part, cameras=resize_cameras(scene.cameras, 160, 120))
    slow = median_seconds(lambda: _draw(part, ("rgb",), "reference"), 1, 0)
    fast = median_seconds(_forward(part, ("rgb",)), 9)
    yield at_least("torch reference / native forward, table at 160x120", slow / fast, "x", 100.0)
    slow = median_seconds(_forward_backward(part, "reference"), 1, 0)
    fast = median_seconds(_forward_backward(part), 9)
    yield at_least("torch reference / native forward and backward", slow / fast, "x", 200.0)


def _worlds(scene: Scene, given: BenchInput) -> Iterator[Row]:
    """64 worlds x 2 cameras over one set of Gaussians: views per second and memory beyond the pictures."""
    worlds = 8 if given.quick else 64
    poses = scene.poses.expand(worlds, -1, -1, -1).clone()
    poses[:, 1:, 0, 3] += torch.linspace(-0.05, 0.05, worlds)[:, None]
    cameras = resize_cameras(table(0.05).cameras, 128, 96)
    two = replace(
        cameras,
        K=cameras.K.expand(2, 3, 3).clone(),
        world_from_camera=cameras.world_from_camera.expand(2, 4, 4).clone(),
        names=(),
    )
    batch = replace(scene, poses=poses, cameras=two)
    seconds = median_seconds(_forward(batch, ("rgb",)), 3)
    label = f"{worlds} worlds x 2 cameras of {len(scene.gaussians) / 1000:.0f}k Gaussians at 128x96"
    yield Row(label, worlds * 2 / seconds, "views/s")
    pictures = worlds * 2 * 128 * 96 * 3 * 4
    copies = worlds * len(scene.gaussians) * 4 * (11 + 3 * scene.gaussians.sh.shape[1])
    growth = peak_growth(_forward(batch, ("rgb",)))
    yield at_most(
        f"{label}: memory beyond the pictures / copies per world", max(0.0, growth - pictures) / copies, "x", 0.1
    )


def _video(scene: Scene, given: BenchInput) -> Iterator[Row]:
    """What writing H.264 of an orbit at 640x480 costs beside rendering it; YUV straight from the pictures."""
    frames = 8 if given.quick else 90
    center = scene.gaussians.means.new_tensor([0.0, 0.1, 0.8])
    cameras = path_cameras(orbit(center, 1.7, 0.9, 300)[:frames], 640, 480, 0.75)
    views = [replace(scene, cameras=cameras[index]) for index in range(frames)]
    start = time.perf_counter()
    pictures = [_draw(view, ("rgb",), "native-cpu")[0, 0] for view in views]
    seconds = (time.perf_counter() - start) / frames
    for preset in ("veryfast", "ultrafast"):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write_video((yuv420_planes(picture) for picture in pictures), Path(folder) / "v.mp4", 30, preset=preset)
            encode = (time.perf_counter() - start) / frames
        yield Row(f"video encoding, 640x480, {preset}", 1e3 * encode, "ms per frame", baseline=1e3 * seconds)
        yield at_most(f"video encoding / rendering, {preset}", encode / seconds, "x", 0.3)


def _soak(scene: Scene, given: BenchInput) -> Iterator[Row]:
    """Many small renders and backward passes: memory must not creep."""
    calls = 1_000 if given.quick else 100_000
    part = replace(scene, gaussians=select_gaussians(scene.gaussians, torch.arange(0, len(scene.gaussians), 600)))
    part = replace(part, cameras=resize_cameras(scene.cameras, 16, 12))
    forward, both = _forward(part, FULL), _forward_backward(part)
    for _ in range(200):
        forward()
        both()

    def soak() -> None:
        for call in range(calls):
            both() if call % 10 == 0 else forward()

    growth = peak_growth(soak)
    yield at_most(f"memory growth over {calls:,} render calls", growth / 1e6, "MB", 4.0)


def _draw(scene: Scene, outputs: tuple[str, ...], backend: str) -> torch.Tensor:
    with torch.no_grad():
        picture = render(scene.gaussians, scene.poses, scene.cameras, outputs=outputs, backend=backend).rgb
    assert picture is not None
    return picture


def _forward(scene: Scene, outputs: tuple[str, ...]) -> Callable[[], object]:
    previous = (scene.poses, scene.cameras) if "flow" in outputs else None

    def call() -> object:
        with torch.no_grad():
            return render(
                scene.gaussians, scene.poses, scene.cameras, outputs=outputs, previous=previous, backend="native-cpu"
            )

    return call


def _forward_backward(scene: Scene, backend: str = "native-cpu") -> Callable[[], object]:
    names = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh")
    leaves = {name: getattr(scene.gaussians, name).clone().requires_grad_() for name in names}
    gaussians = replace(scene.gaussians, **leaves)

    def call() -> object:
        picture = render(
            gaussians, scene.poses, scene.cameras, outputs=("rgb",), backend=backend, options=RenderOptions()
        ).rgb
        assert picture is not None
        return torch.autograd.grad(picture.square().mean(), list(leaves.values()))

    return call


@contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    before = os.environ.get("GWORLD_ISA")
    os.environ["GWORLD_ISA"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["GWORLD_ISA"]
        else:
            os.environ["GWORLD_ISA"] = before


def _threads() -> int:
    return len(os.sched_getaffinity(0))
