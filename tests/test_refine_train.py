"""Training the refiner: it learns what photos tell, goes on bit for bit, and augments consistently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gworld.checkpoint import Checkpoint, latest_checkpoint
from gworld.data.pairset import Pair
from gworld.errors import InputError
from gworld.refine.inputs import warp
from gworld.refine.network import Refiner, RefinerConfig
from gworld.refine.saved import load_refiner, photo_tensors
from gworld.refine.stretches import cut_batch, make_reel
from gworld.refine.train import TrainConfig, train
from tests.test_refine_network import film

SMALL = RefinerConfig(width=8)
SHORT = TrainConfig(steps=6, batch=2, crop=16, every=3)


def dim(frames: int = 4) -> Pair:
    """Renders that are too dark by a fifth, with photos that tell so."""
    clip = film(frames)
    clip = replace(clip, truth=clip.rgb, rgb=0.8 * clip.rgb)
    return Pair(clip, clip, "sparse", "plane")


def test_it_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pair = dim()
    along = Checkpoint(0, photo_tensors(pair.references), {"gaussians": "abc"})
    whole = train(Refiner(SMALL), [pair], [pair], SHORT, tmp_path / "whole", along=along)

    def stop(step: int, score: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # before the second checkpoint is written
        train(Refiner(SMALL), [pair], [pair], SHORT, tmp_path / "cut", stop)
    again = train(Refiner(SMALL), [pair], [pair], SHORT, tmp_path / "cut")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert whole.scores == again.scores
    found = load_refiner(latest_checkpoint(tmp_path / "whole"))
    assert found.photos is not None and found.gaussians == "abc"

    long = train(Refiner(SMALL), [pair], [pair], replace(SHORT, steps=40, every=40, rate=6e-3))
    assert long.scores[-1][1] > long.raw + 1.0


def test_stretches_are_cut_mirrored_and_coloured_as_a_whole() -> None:
    reel = make_reel(dim())
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        first, second = cut_batch([reel], 2, 2, 16, 0.0, generator)
        assert first.truth is not None and second.truth is not None
        assert first.kept.max() == 0 and first.rgb.shape == (2, 3, 16, 16)
        # The truth before, warped, is the truth now, whatever was done to both.
        there = warp(first.truth, second.place)
        sure = (second.kept > 0.9).expand_as(there)
        inner = torch.zeros_like(sure)
        inner[..., 2:-2, 2:-2] = True
        if bool((sure & inner).any()):
            assert (there - second.truth)[sure & inner].abs().mean() < 0.03
        # Photos offer what the render lacks.
        offered = second.rgb + second.photos[:, 0, 3:6]
        shown = (second.photos[:, 0, 6:] > 0.9).expand_as(offered)
        assert (offered - second.truth)[shown].abs().mean() < 0.02


def test_what_cannot_be_learned_from_is_told() -> None:
    with pytest.raises(InputError, match="cannot be cut"):
        train(Refiner(SMALL), [], [], SHORT)
    with pytest.raises(InputError, match="cannot be cut"):
        train(Refiner(SMALL), [dim()], [], replace(SHORT, crop=64))
    bare = dim()
    with pytest.raises(InputError, match="no true pictures"):
        make_reel(replace(bare, clip=replace(bare.clip, truth=None)))
