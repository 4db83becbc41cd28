"""The real arm: its model against what it told of its hand, and what is left out where there are no recordings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.droid import error_rows, franka, hand_recordings, reach, read_hands, rows


def test_the_arm_reaches_as_far_as_its_maker_says() -> None:
    place = reach(franka(), torch.zeros(7))
    assert torch.allclose(place, torch.tensor([0.088, 0.0, 0.333 + 0.316 + 0.384 - 0.107]), atol=1e-6)
    turned = reach(franka(), torch.tensor([math.pi / 2, 0, 0, 0, 0, 0, 0]))
    assert torch.allclose(turned, torch.tensor([0.0, 0.088, 0.926]), atol=1e-5)


def test_without_recordings_one_row_says_so(tmp_path: Path) -> None:
    for data in (None, tmp_path):
        found = list(rows(BenchInput(data=data)))
        assert len(found) == 1 and "missing" in found[0].note and found[0].ok is None


def test_rows_compare_with_the_best_simple_way() -> None:
    errors = {name: torch.full((4, 3), size) for name, size in (("network", 0.01), ("copy", 0.03), ("other", 0.02))}
    found = list(error_rows(errors, torch.full((4, 3), 0.1)))
    assert found[0].value == pytest.approx(10.0) and found[0].baseline == pytest.approx(20.0) and found[0].ok


def test_the_arm_model_is_the_real_arm(real_data: Path) -> None:
    folder = real_data / "droid"
    if not folder.is_dir():
        pytest.skip("the recordings of DROID are not there")
    hands = read_hands(folder)
    assert len(hands) == 7
    for hand in hands:
        assert (reach(franka(), hand.joints) - hand.places).norm(dim=-1).max() < 1e-5
    data = hand_recordings(franka(), hands[:1])
    assert torch.allclose(data.poses[0, :, -1, :3], hands[0].places[:60], atol=1e-5)
    assert data.scene.dt == pytest.approx(1 / 15)
