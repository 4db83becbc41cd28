"""What the native renderer spends per Gaussian and per pair of pixel and Gaussian, beside its arithmetic's floor."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from gworld.bench.rows import Row, median_seconds
from gworld.bench.splats import Scene
from gworld.render.api import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, RenderOptions
from gworld.render.projection import camera_from_links, half_extents, project_visible
from gworld.scene.cameras import resize_cameras

PAIR_OPERATIONS = 22
"""Exponent 5, power of two 8, alpha, transmittance and stop 6, colours 3: each as dear as a fused multiply-add."""
GAUSSIAN_OPERATIONS = 310
"""Shape 60, projection 90, ellipse and extent 40, harmonics of degree 3 with their directions 120."""
FMA_LOOP = """
#include <chrono>
#include <cstdio>
typedef float lanes __attribute__((vector_size(64)));
int main(int count, char **) {
  const lanes by = lanes{} + 0.5f * count, plus = lanes{} + 1.0f * count;
  lanes sum[12] = {};
  double best = 0;
  for (int round = 0; round < 20; round++) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 1000000; i++)
#pragma GCC unroll 12
      for (int k = 0; k < 12; k++) sum[k] = sum[k] * by + plus;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double rate = 12e6 * 16 / seconds;
    if (rate > best) best = rate;
  }
  for (int k = 1; k < 12; k++) sum[0] += sum[k];
  std::printf("%g %g\\n", best, double(sum[0][0]));
}
"""
TINY = 16
"""Pixels in a row of the picture that is all projection."""


def cost_rows(scene: Scene, forward: Callable[[Scene], Callable[[], object]], quick: bool) -> Iterator[Row]:
    """Nanoseconds of wall time per Gaussian and per contributing pair, the floor as baseline.

    The floor is counted work at the measured rate of multiply-adds. Time per Gaussian is that of a picture
    with hardly a pixel, time per pair what a whole picture takes beyond it: lists and sorting are within both.
    """
    repeats = 3 if quick else 30
    rate = _fma_per_second()
    label = f"{scene.name}, {len(scene.gaussians) / 1000:.0f}k"
    scene = replace(scene, cameras=scene.cameras[0])
    width, height = scene.cameras.width, scene.cameras.height
    tiny = replace(scene, cameras=resize_cameras(scene.cameras, TINY, max(1, TINY * height // width)))
    small, whole = (_least(forward(view), repeats) for view in (tiny, scene))
    pairs = contributing_pairs(scene)
    floor = None if rate is None else 1e9 / rate
    if rate is not None:
        yield Row(f"{label}, multiply-adds per second of all cores", rate / 1e9, "G/s")
    yield Row(f"{label}, {width}x{height}, contributing pairs", pairs / 1e6, "M")
    yield Row(
        f"{label}, per Gaussian (baseline: floor)",
        1e9 * small / len(scene.gaussians),
        "ns",
        baseline=floor and GAUSSIAN_OPERATIONS * floor,
    )
    yield Row(
        f"{label}, {width}x{height}, per pair (baseline: floor)",
        1e9 * (whole - small) / pairs,
        "ns",
        baseline=floor and PAIR_OPERATIONS * floor,
    )


def contributing_pairs(scene: Scene) -> float:
    """About how many pairs of pixel and Gaussian are blended, from every 40th row and every third column."""
    view = scene.cameras
    poses = camera_from_links(scene.poses, view.world_from_camera)
    kept, splats = project_visible(scene.gaussians, poses[0, 0], view, 0, RenderOptions())
    opacities = scene.gaussians.opacity_logits[kept].sigmoid()
    reach = half_extents(splats)[:, 1]
    columns = torch.arange(0, view.width, 3) + 0.5
    total, rows = 0, range(0, view.height, 40)
    for row in rows:
        some = ((splats.centres[:, 1] - row - 0.5).abs() <= reach).nonzero()[:, 0]
        xx, xy, _ = splats.covariances[some].unbind(-1)
        dx, dy = columns[:, None] - splats.centres[some, 0], row + 0.5 - splats.centres[some, 1]
        distance_sq = dx**2 / xx + (dy - xy / xx * dx) ** 2 * (xx / splats.determinants[some])
        alpha = (opacities[some] * torch.exp(-0.5 * distance_sq)).clamp_max(MAX_ALPHA)
        drawn = alpha >= MIN_ALPHA
        left = torch.cumprod(1 - torch.where(drawn, alpha, 0.0), dim=1)
        total += int((drawn & (left > MIN_TRANSMITTANCE)).sum())
    return total * (view.height / len(rows)) * (view.width / len(columns))


def _least(call: Callable[[], object], repeats: int) -> float:
    call()
    return min(median_seconds(call, 1, 0) for _ in range(repeats))


def _fma_per_second() -> float | None:
    """Multiply-adds per second of all cores, from a compiled loop on one; None without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "fma.cpp", Path(folder) / "fma"
        source.write_text(FMA_LOOP, encoding="ascii")
        flags = ["-O3", "-std=c++17", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=fast"]
        try:
            subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True, capture_output=True)
            done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError):
            return None
    return float(done.stdout.split()[0]) * len(os.sched_getaffinity(0))
