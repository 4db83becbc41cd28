"""Pixels at a threshold are told from pixels that are simply wrong."""

from __future__ import annotations

import math

import pytest
import torch

from gworld.bench.splats import Scene
from gworld.bench.thresholds import agreement_rows, near_pairs
from gworld.render.select import render
from tests.scenes import ONE_OVER_255, front_camera, one_gaussian

POSES = torch.eye(4)[None, None]


def scene_of(logit: float) -> Scene:
    """One Gaussian whose centre lies on a pixel's centre."""
    return Scene("one", one_gaussian((0.5 / 16, 0.5 / 16, 2.0), 0.1, logit), POSES, front_camera())


def test_only_the_pixel_at_the_limit_counts() -> None:
    pairs = near_pairs(scene_of(ONE_OVER_255), 0)
    assert pairs.shape == (32, 32)
    assert pairs[16, 16] == 1 and pairs.sum() == 1
    assert near_pairs(scene_of(-9.0), 0).sum() == 0


def test_a_thousandth_beside_the_limit_is_clear() -> None:
    logit = math.log(0.005 / 0.995)  # falls below 1/255 between two pixels
    scene = scene_of(logit)
    alpha = render(scene.gaussians, POSES, scene.cameras, outputs=("alpha",), backend="reference").alpha
    assert alpha is not None and int((alpha > 0).sum()) > 1
    expected = 0
    for row in range(32):
        for column in range(32):
            distance_sq = ((column - 16) ** 2 + (row - 16) ** 2) / ((0.1 * 16) ** 2 + 0.3)
            expected += abs(0.005 * math.exp(-0.5 * distance_sq) - 1 / 255) <= 1e-5
    assert int(near_pairs(scene, 0).sum()) == expected


@pytest.mark.parametrize(("shift", "ok"), [(0.0, True), (5e-4, False)])
def test_a_wrong_clear_pixel_is_a_miss(shift: float, ok: bool) -> None:
    scene = scene_of(ONE_OVER_255)
    truth = torch.zeros(1, 1, 32, 32, 3)
    found = truth.clone()
    found[0, 0, 3, 4] += shift
    found[0, 0, 16, 16] += 0.003
    first, second = agreement_rows("mine", found, truth, scene)
    assert first.ok is ok and second.ok is True and "1 of 1024 pixels" in second.note
    found[0, 0, 16, 16] += 0.003
    assert list(agreement_rows("mine", found, truth, scene))[1].ok is False
