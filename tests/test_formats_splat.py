"""`.splat`: bytes come back as they were, others read and write the same values, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from gworld.errors import InputError, UsageError
from gworld.formats.ply import read_ply, write_ply
from gworld.formats.splat import ROW, bytes_from_logits, logits_from_bytes, read_splat, write_splat
from gworld.formats.table import SplatTable, empty_table
from gworld.scene.harmonics import rgb_from_sh
from tests.fuzz.targets import small_table
from tests.peers import read_csv, splat_transform


def angles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Degrees between rotations given by quaternions of any length."""
    left = left / np.linalg.norm(left.astype(float), axis=1, keepdims=True)
    right = right / np.linalg.norm(right.astype(float), axis=1, keepdims=True)
    sine = np.minimum(np.linalg.norm(left - right, axis=1), np.linalg.norm(left + right, axis=1)) / 2
    return np.degrees(4 * np.arcsin(np.clip(sine, 0, 1)))


def assert_close(table: SplatTable, found: SplatTable, color: float = 2 / 255) -> None:
    """The tolerances for lossy files; three components off by 0.75/128 turn by 1.17 degrees."""
    assert np.allclose(table.means, found.means, rtol=1e-4)
    assert np.allclose(table.log_scales, found.log_scales, atol=1e-5)
    assert np.abs(np.clip(rgb_from_sh(table.sh[:, 0]), 0, 1) - rgb_from_sh(found.sh[:, 0])).max() <= color
    opacity = [1 / (1 + np.exp(-part.opacity_logits)) for part in (table, found)]
    assert np.abs(opacity[0] - opacity[1]).max() <= color
    error = angles(table.quats_wxyz, found.quats_wxyz)
    assert np.median(error) < 0.6 and error.max() < 1.2


def test_opacity_bytes_round_trip() -> None:
    values = np.arange(256, dtype=np.uint8)
    logits = logits_from_bytes(values)
    assert logits.dtype == np.float32 and np.isfinite(logits).all() and (np.diff(logits) > 0).all()
    assert np.array_equal(bytes_from_logits(logits), values)
    assert bytes_from_logits(np.array([-1e4, 1e4], np.float32)).tolist() == [0, 255]


def test_rows_round_trip_to_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = np.zeros(5000, ROW)
    rows["means"] = rng.normal(size=(5000, 3))
    rows["scales"] = np.exp(rng.normal(-4, 2, (5000, 3)))
    rows["rgba"] = rng.integers(0, 256, (5000, 4))
    quats = rng.normal(size=(5000, 4))
    rows["rotation"] = np.clip(quats / np.linalg.norm(quats, axis=1, keepdims=True) * 128 + 128.5, 0, 255)
    (tmp_path / "a.splat").write_bytes(rows.tobytes())
    write_splat(read_splat(tmp_path / "a.splat"), tmp_path / "b.splat")
    back = np.frombuffer((tmp_path / "b.splat").read_bytes(), ROW)
    assert np.array_equal(back["means"], rows["means"]) and np.array_equal(back["rgba"], rows["rgba"])
    assert np.allclose(back["scales"], rows["scales"], rtol=1e-5)
    assert np.abs(back["rotation"].astype(int) - rows["rotation"]).max() <= 1, "normalising moves a byte by at most one"


def test_round_trip_is_precise(tmp_path: Path) -> None:
    table = small_table(3, count=5000)
    write_splat(table, tmp_path / "a.splat")
    back = read_splat(tmp_path / "a.splat")
    assert (tmp_path / "a.splat").stat().st_size == 32 * 5000
    assert (back.sh_degree, back.axes, back.metric) == (0, None, False)
    assert_close(table, back, 0.51 / 255)


def test_an_empty_scene_round_trips(tmp_path: Path) -> None:
    write_splat(empty_table(0), tmp_path / "a.splat")
    assert len(read_splat(tmp_path / "a.splat")) == 0


def test_zero_scales_and_rotations_are_read(tmp_path: Path) -> None:
    row = np.zeros(1, ROW)
    row["rotation"] = 128
    (tmp_path / "a.splat").write_bytes(row.tobytes())
    table = read_splat(tmp_path / "a.splat")
    assert table.quats_wxyz.tolist() == [[1, 0, 0, 0]] and (np.exp(table.log_scales) < 1e-16).all()


@pytest.mark.parametrize("count", [1, 31, 33])
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, count: int) -> None:
    (tmp_path / "a.splat").write_bytes(bytes(count))
    with pytest.raises(InputError, match=f"has {count} bytes; a multiple of 32"):
        read_splat(tmp_path / "a.splat")


@pytest.mark.parametrize(
    ("name", "value"), [("means", np.nan), ("means", np.inf), ("scales", np.nan), ("scales", -1.0)]
)
def test_values_that_cannot_be_rendered_are_refused(tmp_path: Path, name: str, value: float) -> None:
    rows = np.ones(3, ROW)
    rows[name][1, 2] = value
    (tmp_path / "a.splat").write_bytes(rows.tobytes())
    with pytest.raises(InputError, match="of Gaussian 1 "):
        read_splat(tmp_path / "a.splat")
    assert len(read_splat(tmp_path / "a.splat", check=False)) == 3


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot hold the 2 links"):
        write_splat(small_table(links=2), tmp_path / "a.splat")


def test_splat_transform_reads_what_is_written(tmp_path: Path) -> None:
    table = replace(small_table(0, count=1000), axes=None)
    write_splat(table, tmp_path / "a.splat")
    splat_transform(tmp_path / "a.splat", tmp_path / "a.ply")
    theirs = read_ply(tmp_path / "a.ply")
    assert_close(table, theirs)
    ours = read_splat(tmp_path / "a.splat")
    assert_close(ours, theirs, 1e-3)
    assert angles(ours.quats_wxyz, theirs.quats_wxyz).max() < 0.5


def test_gsplat_writes_what_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    exporter = pytest.importorskip("gsplat.exporter")
    table = small_table(1, count=1000)
    names = ("means", "log_scales", "quats_wxyz", "opacity_logits")
    columns = [torch.from_numpy(getattr(table, name)) for name in names]
    sh = torch.from_numpy(table.sh)
    exporter.export_splats(*columns, sh[:, :1], sh[:, 1:], format="splat", save_to=str(tmp_path / "a.splat"))
    found = read_splat(tmp_path / "a.splat")
    _, rows = cKDTree(table.means).query(found.means)
    assert_close(table.select(rows), found)


def test_a_real_file_agrees_with_splat_transform(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "gaussian_files" / "gs_orig.splat"
    table = read_splat(path)
    assert len(table) == 8957
    splat_transform(path, tmp_path / "a.csv")
    found = read_csv(tmp_path / "a.csv")
    quats = np.stack([found[f"rot_{i}"] for i in range(4)], axis=1)
    assert np.allclose(table.means, np.stack([found[axis] for axis in "xyz"], axis=1), rtol=1e-4, atol=1e-6)
    assert np.allclose(table.log_scales, np.stack([found[f"scale_{i}"] for i in range(3)], axis=1), atol=1e-4)
    assert np.allclose(table.sh[:, 0], np.stack([found[f"f_dc_{i}"] for i in range(3)], axis=1), atol=1e-4)
    assert angles(table.quats_wxyz, quats).max() < 0.5, "each puts another value between a byte's neighbours"
    inner = np.abs(found["opacity"]) < 6
    assert np.allclose(table.opacity_logits[inner], found["opacity"][inner], atol=1e-4)
    write_ply(table, tmp_path / "b.ply")
    assert np.array_equal(read_ply(tmp_path / "b.ply").means, table.means)
