"""The right reader by content, the right writer by name; anything else is one sentence."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gworld as gw
from gworld.errors import InputError, UsageError
from gworld.formats.axes import bake_links
from gworld.formats.describe import describe
from gworld.formats.registry import detect_format, format_for, read_table, write_table
from tests.tables import random_table

READABLE = [".ply", ".compressed.ply", ".spz", ".sog", ".splat", ".glb"]


@pytest.mark.parametrize("suffix", READABLE)
def test_content_decides_even_under_another_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    known = write_table(random_table(degree=0), path)
    assert detect_format(path) == known.name == format_for(path).name
    assert len(read_table(path)) == 300
    if suffix not in (".splat", ".sog"):  # these two have no signature of their own
        other = tmp_path / "renamed.dat"
        path.rename(other)
        assert detect_format(other) == known.name


@pytest.mark.parametrize("suffix", READABLE)
def test_multi_link_scenes_keep_their_shape_in_every_format(tmp_path: Path, suffix: str) -> None:
    table = random_table(degree=1, links=3)
    path = tmp_path / f"a{suffix}"
    write_table(table, path)
    back = read_table(path)
    assert len(back) == len(table)
    assert (len(back.link_table) == 3) == format_for(path).links


def test_gw_read_and_write_keep_links(tmp_path: Path) -> None:
    table = random_table(degree=1, links=3)
    write_table(table, tmp_path / "a.ply")
    world = gw.read(tmp_path / "a.ply")
    assert isinstance(world, gw.World)
    assert [link.name for link in world.links] == ["world", "arm/1", "arm/2"]
    gw.write(world, tmp_path / "b.glb")
    again = gw.read(tmp_path / "b.glb")
    torch.testing.assert_close(again.rest_poses(), world.rest_poses(), atol=1e-6, rtol=0)
    gw.write(world, tmp_path / "w")
    loaded = gw.World.load(tmp_path / "w")
    torch.testing.assert_close(loaded.gaussians.means, world.gaussians.means, atol=0, rtol=0)
    assert isinstance(gw.read(tmp_path / "w" / "world.json"), gw.World)


def test_plain_ply_stays_in_its_own_frame_bit_for_bit(tmp_path: Path) -> None:
    table = random_table()
    write_table(table, tmp_path / "a.ply")
    gaussians = gw.read(tmp_path / "a.ply")
    np.testing.assert_array_equal(gaussians.means.numpy(), table.means)
    gw.write(gaussians, tmp_path / "b.ply")
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    write_table(replace(table, axes="RUB"), tmp_path / "up.ply")
    np.testing.assert_allclose(gw.read(tmp_path / "up.ply").means.numpy()[:, 2], table.means[:, 1], atol=1e-6)


def test_existing_outputs_and_unknown_names_are_refused(tmp_path: Path) -> None:
    table = random_table(degree=0)
    write_table(table, tmp_path / "a.ply")
    with pytest.raises(UsageError, match="exists already"):
        write_table(table, tmp_path / "a.ply")
    write_table(table, tmp_path / "a.ply", overwrite=True)
    with pytest.raises(UsageError, match="names no format gworld writes"):
        write_table(table, tmp_path / "a.xyz")
    for name, data in {"a.txt": b"hello", "empty.dat": b"", "a.xyz": b"\0" * 64}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="of no known format"):
            read_table(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"holds no world\.json"):
        detect_format(tmp_path / "folder")


def test_checkpoints_are_refused_by_name_without_opening_them(tmp_path: Path) -> None:
    for name in ("step-000029999.ckpt", "ckpt_29999_rank0.pt"):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02cos\nsystem\n")
        with pytest.raises(InputError, match="PLY"):
            read_table(path)


def test_describe_agrees_with_numpy(tmp_path: Path) -> None:
    table = random_table(count=5000, links=2)
    write_table(table, tmp_path / "a.ply")
    facts = describe(tmp_path / "a.ply")
    assert facts["count"] == 5000 and facts["sh_degree"] == 3 and sum(facts["links"].values()) == 5000
    np.testing.assert_allclose(facts["bounds"]["low"], bake_links(table).means.min(axis=0), rtol=1e-4)
    opacity = 1 / (1 + np.exp(-table.opacity_logits))
    assert facts["opacity"]["p50"] == pytest.approx(np.median(opacity), rel=1e-3)
    assert facts["nearly_transparent"] == int((opacity < 1 / 255).sum())


def test_the_two_copies_of_one_scene_agree(real_data: Path) -> None:
    packed = read_table(real_data / "gaussian_files" / "biker.compressed.ply")
    spz = read_table(real_data / "gaussian_files" / "biker.spz")
    assert len(packed) == len(spz)
    np.testing.assert_allclose(
        np.percentile(packed.means, [5, 50, 95], axis=0), np.percentile(spz.means, [5, 50, 95], axis=0), atol=2e-3
    )


@pytest.mark.parametrize("name", ["point_cloud.ply", "biker.compressed.ply", "biker.spz", "gs_orig.splat"])
def test_real_files_read_and_survive_every_format(real_data: Path, tmp_path: Path, name: str) -> None:
    table = read_table(real_data / "gaussian_files" / name).select(slice(0, 3000))
    for suffix in READABLE:
        path = tmp_path / f"a{suffix}"
        write_table(table, path, overwrite=True)
        back = read_table(path)
        assert len(back) == len(table)
        extent = float(np.ptp(table.means, axis=0).max())
        ours, theirs = np.sort(table.means[:, 0]), np.sort(back.means[:, 0])
        np.testing.assert_allclose(theirs, ours, atol=2e-3 * extent)
