"""What a training step costs beside its forward pass: loss with gradient, Adam, and the step as a whole."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.prototype import build_prototype
from gworld.bench.rows import Row, at_most, median_seconds, paired_seconds
from gworld.bench.splats import Scene
from gworld.render.native_train import adam_step, l1_ssim_loss, new_adam_state
from gworld.render.select import render

NAMES = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh")


def training_rows(scene: Scene, given: BenchInput) -> Iterator[Row]:
    """Loss and Adam beside the forward pass in turns; the whole step beside the peer's forward and backward."""
    repeats = 3 if given.quick else 15
    every_camera, scene = scene, replace(scene, cameras=scene.cameras[0])
    label = f"{scene.name}, {len(scene.gaussians) / 1000:.0f}k, {scene.cameras.width}x{scene.cameras.height}"
    leaves = {name: getattr(scene.gaussians, name).clone().requires_grad_() for name in NAMES}
    with torch.no_grad():
        truth = _picture(scene, {})
    picture = (truth * 0.98).requires_grad_()
    start = l1_ssim_loss(_picture(scene, leaves), truth * 0.9)
    gradients = dict(zip(NAMES, torch.autograd.grad(start, list(leaves.values())), strict=True))
    plain = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    state, rates = new_adam_state(plain), dict.fromkeys(NAMES, 1e-5)

    def forward() -> None:
        with torch.no_grad():
            _picture(scene, {})

    def loss() -> None:
        torch.autograd.grad(l1_ssim_loss(picture, truth), picture)

    def adam() -> None:
        adam_step(plain, gradients, state, rates, rows="touched")

    for name, part in (("fused L1+SSIM with gradient", loss), ("fused sparse Adam, SH 3", adam)):
        seconds, beside, ratio = paired_seconds(part, forward, repeats, 2)
        yield at_most(f"{label}, {name} / forward", ratio, "x", 0.3)
        yield Row(f"{label}, {name}", 1e3 * seconds, "ms", baseline=1e3 * beside)
    yield from _whole_step(label, _step(scene, leaves, truth), every_camera, given)


def _step(scene: Scene, leaves: dict[str, torch.Tensor], truth: torch.Tensor) -> Callable[[], object]:
    state, rates = new_adam_state(leaves), dict.fromkeys(NAMES, 1e-5)
    target = (truth * 0.9).contiguous()

    def step() -> None:
        value = l1_ssim_loss(_picture(scene, leaves), target)
        found = torch.autograd.grad(value, list(leaves.values()))
        with torch.no_grad():
            adam_step(leaves, dict(zip(NAMES, found, strict=True)), state, rates, rows="touched")

    return step


def _whole_step(label: str, step: Callable[[], object], scene: Scene, given: BenchInput) -> Iterator[Row]:
    mine, other = [], []
    with tempfile.TemporaryDirectory() as folder:
        peer = build_prototype(given.peer, scene, Path(folder)) if given.peer else None
        for _ in range(1 if given.quick else 5):
            if peer is not None:
                other.append(peer.forward_backward_ms(1, len(os.sched_getaffinity(0))))
            step()
            mine.append(1e3 * min(median_seconds(step, 1, 0) for _ in range(12)))
    if other:
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
        yield at_most(f"{label}, whole training step / peer's forward and backward", ratio, "x", 1.5)
    baseline = statistics.median(other) if other else None
    yield Row(f"{label}, whole training step", statistics.median(mine), "ms", baseline=baseline)


def _picture(scene: Scene, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    gaussians = replace(scene.gaussians, **leaves) if leaves else scene.gaussians
    picture = render(gaussians, scene.poses, scene.cameras, outputs=("rgb",), backend="native-cpu").rgb
    assert picture is not None
    return picture
