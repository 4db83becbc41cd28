"""The refine bench: its measures against closed forms, and a quick run of all its rows."""

from __future__ import annotations

from dataclasses import replace

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.refine import rows
from gworld.bench.refine_measures import (
    bilateral,
    disagreement,
    edge_shift,
    flicker,
    quality,
    quality_in_light,
    total_variation,
)
from tests.test_refine_network import film


def test_measures_are_zero_for_the_truth_and_grow_with_errors() -> None:
    clip = film(3)
    assert clip.truth is not None
    assert quality(clip.truth, clip.truth) == (99.0, 1.0)
    noisy = clip.rgb + 0.1 * torch.randn(clip.rgb.shape, generator=torch.Generator().manual_seed(0))
    assert flicker(clip.rgb, clip) < 0.02 < flicker(noisy, clip)
    assert disagreement(clip.rgb, clip) < 0.02 < disagreement(noisy, clip)
    step = clip.rgb.clone()
    step[:, :, 16:] = 1.0
    depth = clip.depth.clone()
    depth[:, :, 16:] *= 2
    edged = replace(clip, rgb=step, depth=depth)
    assert edge_shift(step, edged) == 0
    assert edge_shift(torch.roll(step, 1, 2), edged) == 1.0


def test_a_views_own_exposure_does_not_count_in_its_own_light() -> None:
    truth = 0.1 + 0.8 * torch.rand(2, 24, 48, 3, generator=torch.Generator().manual_seed(0))
    dark = 0.6 * truth + 0.05
    assert quality(dark, truth)[0] < 18 and quality_in_light(dark, truth)[0] > 40
    wrong = dark.flip(2)
    assert quality_in_light(wrong, truth)[0] < 18


def test_filters_smooth_noise_and_keep_flat_pictures() -> None:
    flat = torch.full((1, 20, 24, 3), 0.4)
    noisy = (flat + 0.03 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for smooth in (bilateral, total_variation):
        torch.testing.assert_close(smooth(flat), flat, atol=1e-4, rtol=0)
        assert smooth(noisy).std() < 0.6 * noisy.std()


def test_a_quick_run_has_every_row() -> None:
    found = list(rows(BenchInput(quick=True)))
    names = [row.name for row in found]
    for part in (
        "raw render", "total variation", "cross-scene", "own scene", "plain network", "flicker", "recall",
        "off the path", "edges of depth", "memory", "without references", "2 fits, median", "written back and",
    ):  # fmt: skip
        assert any(part in name for name in names), part
    recall = next(row for row in found if row.name.startswith("recall"))
    assert recall.value > 30
    assert all(row.value == row.value for row in found)
