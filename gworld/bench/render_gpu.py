"""The renderer on a CUDA device: agreement, and time and memory beside gsplat's own kernels, in one run.

The peer is `gsplat.rasterization` called as its documentation does, with links at rest: it is not charged for what our
`gsplat` backend prepares in torch. Times are medians between CUDA events; both sides take turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_least, at_most
from gworld.bench.splats import Scene, garden, table
from gworld.bench.thresholds import agreement_rows
from gworld.errors import MissingBackendError
from gworld.geometry import invert_transform
from gworld.render.native_cuda import native_cuda_status, render_native_cuda
from gworld.render.reference import render_reference
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.gaussians import Gaussians, gaussians_to

FULL = ("rgb", "alpha", "depth", "link_id", "flow")
NAMES = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh")


def rows(given: BenchInput) -> Iterator[Row]:
    """Yield the rows; the garden needs `--data`. Raises `MissingBackendError` without a CUDA device."""
    reason = native_cuda_status()
    if reason is not None:
        raise MissingBackendError(reason)
    yield from _agreement(table(0.03))
    path = given.data / "gaussian_files" / "test_garden.npz" if given.data else None
    scenes = [garden(path, given.seed)] if path is not None and path.is_file() else []
    scenes.append(table(0.02 if given.quick else 0.00415))
    for scene in scenes:
        yield from _single_view(scene, given)
        yield from _training_step(scene, given)
    yield from _worlds(table(0.02 if given.quick else 0.0065), given)


def _agreement(scene: Scene) -> Iterator[Row]:
    """Largest colour difference from the reference, on the CPU, on a small picture of the table."""
    small = replace(scene, cameras=resize_cameras(scene.cameras, 96, 72))
    truth = render_reference(small.gaussians, small.poses, small.cameras, ("rgb",)).rgb
    on_gpu = _to_gpu(small)
    found = render_native_cuda(on_gpu.gaussians, on_gpu.poses, on_gpu.cameras, ("rgb",)).rgb
    assert truth is not None and found is not None
    yield from agreement_rows("native-cuda", found, truth, small)
    theirs = _peer(on_gpu)()
    yield Row("gsplat, largest difference from reference", float((theirs[0].cpu() - truth[0]).abs().max()), "")


def _single_view(scene: Scene, given: BenchInput) -> Iterator[Row]:
    for scale in (1, 2):
        size = (scene.cameras.width * scale, scene.cameras.height * scale)
        view = _to_gpu(replace(scene, cameras=resize_cameras(scene.cameras, *size)[0]))
        label = f"{scene.name}, {len(scene.gaussians) / 1000:.0f}k, {size[0]}x{size[1]}"
        mine, peer = _in_turns(_forward(view, ("rgb",)), _peer(view), given)
        yield at_least(f"{label}: gsplat / rgb forward", peer / mine, "x", 1.5)
        yield Row(f"{label}: rgb forward", mine, "ms", baseline=peer)
        yield Row(f"{label}: all outputs forward", _in_turns(_forward(view, FULL), None, given)[0], "ms")


def _training_step(scene: Scene, given: BenchInput) -> Iterator[Row]:
    view = _to_gpu(replace(scene, cameras=scene.cameras[0]))
    leaves = {name: getattr(view.gaussians, name).requires_grad_() for name in NAMES}

    def step(draw: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(draw().square().mean(), list(leaves.values()))

    def ours() -> torch.Tensor:
        picture = render_native_cuda(view.gaussians, view.poses, view.cameras, ("rgb",)).rgb
        assert picture is not None
        return picture

    mine, peer = _in_turns(step(ours), step(_peer(view)), given)
    label = f"{scene.name}, {len(scene.gaussians) / 1000:.0f}k, forward and backward"
    yield at_least(f"{label}: gsplat / ours", peer / mine, "x", 1.3)
    yield Row(label, mine, "ms", baseline=peer)


def _worlds(scene: Scene, given: BenchInput) -> Iterator[Row]:
    """Many worlds x 2 cameras over one set of Gaussians; gsplat with as many worlds as a copy each leaves room for."""
    worlds, peer_worlds = (8, 2) if given.quick else (256, 8)
    scene = _to_gpu(scene)
    cameras = scene.cameras
    pair = Cameras(cameras.K.expand(2, 3, 3), cameras.world_from_camera.expand(2, 4, 4), cameras.width, cameras.height)
    poses = scene.poses.expand(worlds, -1, -1, -1).clone()
    poses[:, 1:, 0, 3] += torch.linspace(-0.05, 0.05, worlds, device=poses.device)[:, None]
    label = f"{worlds} worlds x 2 cameras of {len(scene.gaussians) / 1000:.0f}k, {cameras.width}x{cameras.height}"
    batch = replace(scene, poses=poses, cameras=pair)
    ours = _forward(batch, ("rgb",))
    peer = _peer(replace(batch, poses=poses[:peer_worlds]))
    mine, other = _in_turns(ours, peer, given)
    rate, peer_rate = 2e3 * worlds / mine, 2e3 * peer_worlds / other
    yield at_least(label, rate, "views/s", 15000.0, peer_rate)
    yield at_least(f"{label}: rate / gsplat's with {peer_worlds} worlds", rate / peer_rate, "x", 8.0)
    picture = 2 * 12 * cameras.width * cameras.height
    memory = _peak_bytes(ours) / worlds - picture
    peer_memory = _peak_bytes(peer) / peer_worlds - picture
    yield at_most(f"{label}: memory per world beyond pictures / gsplat's", memory / peer_memory, "x", 0.1)


def _forward(scene: Scene, outputs: tuple[Any, ...]) -> Callable[[], object]:
    previous = (scene.poses, scene.cameras) if "flow" in outputs else None

    def call() -> object:
        with torch.no_grad():
            return render_native_cuda(scene.gaussians, scene.poses, scene.cameras, outputs, previous)

    return call


def _peer(scene: Scene) -> Callable[[], torch.Tensor]:
    """`gsplat.rasterization` of as many worlds as the scene has poses, each with its copy of the Gaussians."""
    import gsplat

    worlds, gaussians, cameras = len(scene.poses), scene.gaussians, scene.cameras
    lead = (worlds,) if worlds > 1 else ()
    view = invert_transform(cameras.world_from_camera).expand(*lead, -1, -1, -1).contiguous()
    intrinsics = cameras.K.expand(*lead, -1, -1, -1).contiguous()
    degree = {1: 0, 4: 1, 9: 2, 16: 3}[gaussians.sh.shape[1]]

    def call() -> torch.Tensor:
        columns = [gaussians.means, gaussians.quats_wxyz, gaussians.log_scales.exp()]
        columns += [torch.sigmoid(gaussians.opacity_logits), gaussians.sh]
        copies = [column.expand(*lead, *column.shape).contiguous() for column in columns]
        picture: torch.Tensor = gsplat.rasterization(
            *copies, view, intrinsics, cameras.width, cameras.height, sh_degree=degree, packed=False
        )[0]
        return picture

    return call


def _in_turns(
    ours: Callable[[], object], theirs: Callable[[], object] | None, given: BenchInput
) -> tuple[float, float]:
    """Median milliseconds of two calls between CUDA events, taken in turns after warming up; NaN without a peer."""
    for _ in range(3):
        ours()
        if theirs is not None:
            theirs()
    mine, other = [], [float("nan")] if theirs is None else []
    for _ in range(3 if given.quick else 25):
        mine.append(_milliseconds(ours))
        if theirs is not None:
            other.append(_milliseconds(theirs))
    return statistics.median(mine), statistics.median(other)


def _milliseconds(function: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _peak_bytes(function: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - base)


def _to_gpu(scene: Scene) -> Scene:
    gaussians: Gaussians = gaussians_to(scene.gaussians, device="cuda")
    cameras = scene.cameras
    moved = replace(cameras, K=cameras.K.cuda(), world_from_camera=cameras.world_from_camera.cuda())
    return replace(scene, gaussians=gaussians, poses=scene.poses.cuda(), cameras=moved)
