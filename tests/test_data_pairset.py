"""Pair sets: written and read alike, shared photos stored once, damage told in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gworld.data.pairset import Pair, iterate_pairs, open_pairs, pack_clip, read_pair, unpack_clip, write_pairs
from gworld.errors import InputError
from tests.test_scene_clip import plane_clip


def pair(seed: int = 0) -> Pair:
    clip = plane_clip(torch.tensor([[0.0, 0.0, 2.0], [0.2, 0.1, 2.0]]))
    random = torch.Generator().manual_seed(seed)
    colours = torch.rand(2, *clip.rgb.shape, generator=random)
    clip = replace(clip, rgb=colours[0], truth=colours[1], flow=torch.randn(clip.flow.shape, generator=random))
    return Pair(clip, clip, "sparse", "room")


def test_a_pair_set_reads_back_what_was_written(tmp_path: Path) -> None:
    first = pair()
    second = replace(first, way="underfit", split="held_out")
    found = write_pairs(iter([first, second]), tmp_path / "set")
    assert len(found) == 2
    assert len(list((tmp_path / "set").glob("photos-*"))) == 1  # shared by both
    back = read_pair(open_pairs(tmp_path / "set"), 1)
    assert (back.way, back.split, back.scene) == ("underfit", "held_out", "room")
    assert back.clip.truth is not None and back.references is not None and first.clip.truth is not None
    assert (back.clip.truth - first.clip.truth).abs().max() <= 0.5 / 255 + 1e-6
    assert (back.clip.depth / first.clip.depth - 1).abs().max() < 1e-3
    assert torch.equal(back.clip.K, first.clip.K)
    assert [p.way for p in iterate_pairs(found, "train")] == ["sparse"]
    assert len(list(iterate_pairs(found))) == 2


def test_pairs_without_truth_and_empty_sets_are_refused(tmp_path: Path) -> None:
    bare = replace(pair(), clip=replace(pair().clip, truth=None))
    with pytest.raises(InputError, match="no true pictures"):
        write_pairs([bare], tmp_path / "a")
    with pytest.raises(InputError, match="no pair"):
        write_pairs([], tmp_path / "b")
    assert not (tmp_path / "a").exists()


def test_damage_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    found = write_pairs([pair()], folder)
    file = folder / "clip-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match="hash"):
        read_pair(found, 0)
    (folder / "pairs.json").write_text('{"format": "gworld pairs 1", "pairs": [{"file": "../x"}], "files": {}}')
    with pytest.raises(InputError, match="no pair"):
        open_pairs(folder)


def test_stored_tensors_are_checked(tmp_path: Path) -> None:
    tensors = pack_clip(pair().clip)
    save_file(tensors, tmp_path / "t.safetensors")
    assert unpack_clip(load_file(tmp_path / "t.safetensors"), "t").truth is not None
    for name, value in (
        ("depth", torch.full_like(tensors["depth"], torch.nan)),
        ("rgb", tensors["rgb"].float()),
        ("link_id", tensors["link_id"] + 5),
        ("K", tensors["K"][:1]),
    ):
        with pytest.raises(InputError, match="damaged"):
            unpack_clip({**tensors, name: value}, "t")
    with pytest.raises(InputError, match="lacks"):
        unpack_clip({name: value for name, value in tensors.items() if name != "alpha"}, "t")
