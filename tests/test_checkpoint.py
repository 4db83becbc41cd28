"""Checkpoints: complete or absent, verified, and enough to go on bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld import checkpoint as c
from gworld.errors import InputError


def sample(step: int) -> c.Checkpoint:
    return c.Checkpoint(step, {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)}, {"loss": 0.5, "note": "é"})


def test_round_trip_and_retention(tmp_path: Path) -> None:
    for step in (1, 5, 20, 100):
        c.save_checkpoint(tmp_path, sample(step), keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-100", "step-20"]
    latest = c.latest_checkpoint(tmp_path)
    assert latest is not None and latest.name == "step-100"
    loaded = c.load_checkpoint(latest)
    assert loaded.step == 100 and loaded.values == {"loss": 0.5, "note": "é"}
    torch.testing.assert_close(loaded.tensors, sample(100).tensors)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "not json"])
def test_damage_is_found_and_the_previous_one_used(tmp_path: Path, damage: str) -> None:
    c.save_checkpoint(tmp_path, sample(1))
    newest = c.save_checkpoint(tmp_path, sample(2))
    part = newest / "tensors.safetensors"
    data = part.read_bytes()
    if damage == "flip":
        part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncate":
        part.write_bytes(data[:-5])
    elif damage == "remove":
        part.unlink()
    else:
        (newest / "manifest.json").write_text("{}" if damage == "manifest" else "{")
    with pytest.raises(InputError):
        c.load_checkpoint(newest)
    assert c.latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-1"


def test_generators_and_optimiser_go_on_bit_for_bit(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Parameter, torch.optim.Adam, dict]:
        weight = torch.nn.Parameter(torch.ones(5))
        generators = {
            "torch": torch.Generator().manual_seed(3),
            "numpy": np.random.default_rng(4),
            "py": random.Random(5),
        }
        return weight, torch.optim.Adam([weight], lr=0.1), generators

    def step(weight: torch.nn.Parameter, optimiser: torch.optim.Adam, g: dict) -> None:
        noise = torch.randn(5, generator=g["torch"]) + float(g["numpy"].normal()) + g["py"].random()
        weight.grad = weight.detach() * noise
        optimiser.step()

    weight, optimiser, generators = make()
    for _ in range(3):
        step(weight, optimiser, generators)
    tensors, skeleton = c.flatten_state(optimiser.state_dict(), "adam")
    saved = c.Checkpoint(3, {"weight": weight.data, **tensors}, {"adam": skeleton}, c.capture_generators(generators))
    folder = c.save_checkpoint(tmp_path, saved)
    for _ in range(4):
        step(weight, optimiser, generators)
    again, optimiser2, generators2 = make()
    loaded = c.load_checkpoint(folder)
    again.data.copy_(loaded.tensors["weight"])
    optimiser2.load_state_dict(c.unflatten_state(loaded.tensors, loaded.values["adam"]))
    c.restore_generators(loaded.generators, generators2)
    for _ in range(4):
        step(again, optimiser2, generators2)
    assert torch.equal(weight, again)
    with pytest.raises(InputError, match="no state for the random generator `other`"):
        c.restore_generators(loaded.generators, {"other": torch.Generator()})


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert c.latest_checkpoint(tmp_path) is None


def test_going_back_drops_the_abandoned_future_and_keeps_what_was_written(tmp_path: Path) -> None:
    for step in (200, 300, 400):
        c.save_checkpoint(tmp_path, sample(step))
    written = c.save_checkpoint(tmp_path, sample(250), keep=2)
    assert written.is_dir() and c.latest_checkpoint(tmp_path) == written
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-200", "step-250"]


def test_names_that_read_alike_stay_apart() -> None:
    state = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    tensors, skeleton = c.flatten_state(state)
    assert c.unflatten_state(tensors, skeleton) == state
