"""Compressed PLY: precision of the packing, agreement with splat-transform and gsplat in both directions, refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from gworld.errors import InputError, UsageError
from gworld.formats.compressed_ply import CHUNK, morton_order, read_compressed_ply, write_compressed_ply
from gworld.formats.ply import read_ply, write_ply
from gworld.formats.table import SplatTable, empty_table
from gworld.scene.harmonics import rgb_from_sh
from tests.fuzz.targets import small_table
from tests.peers import splat_transform


def angles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Degrees between rotations given by quaternions of any length."""
    left = left / np.linalg.norm(left.astype(float), axis=1, keepdims=True)
    right = right / np.linalg.norm(right.astype(float), axis=1, keepdims=True)
    sine = np.minimum(np.linalg.norm(left - right, axis=1), np.linalg.norm(left + right, axis=1)) / 2
    return np.degrees(4 * np.arcsin(np.clip(sine, 0, 1)))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.astype(float)))


def assert_close(table: SplatTable, found: SplatTable) -> None:
    """The tolerances for lossy files: position 1e-4 of the scene, rotation 0.5 degrees, colour and opacity 2/255."""
    extent = np.ptp(table.means, axis=0).max()
    assert np.abs(table.means - found.means).max() <= 1e-4 * extent
    assert angles(table.quats_wxyz, found.quats_wxyz).max() <= 0.5
    assert np.abs(rgb_from_sh(table.sh[:, 0]) - rgb_from_sh(found.sh[:, 0])).max() <= 2 / 255
    assert np.abs(sigmoid(table.opacity_logits) - sigmoid(found.opacity_logits)).max() <= 2 / 255
    assert np.abs(table.log_scales - found.log_scales).max() <= 0.02
    assert np.abs(table.sh[:, 1:] - found.sh[:, 1:]).max(initial=0) <= 8 / 256


def dense_table(degree: int, count: int = 20_000) -> SplatTable:
    """Enough rows that chunks are small beside the scene, colours within the range a picture has."""
    table = replace(small_table(degree, count=count), axes=None, metric=False)
    table.sh[:, 0] = np.clip(table.sh[:, 0], -1.7, 1.7)
    table.means[:] = np.clip(table.means, -2, 2)
    return table


@pytest.mark.parametrize("degree", range(4))
def test_round_trip_is_precise(tmp_path: Path, degree: int) -> None:
    table = dense_table(degree)
    write_compressed_ply(table, tmp_path / "a.compressed.ply")
    back = read_compressed_ply(tmp_path / "a.compressed.ply")
    assert back.sh_degree == degree and (back.axes, back.metric) == (None, False)
    order = morton_order(table.means)
    error = np.abs(table.means[order] - back.means) / np.ptp(table.means)
    assert np.median(error) < 1e-4 and error.max() < 1e-3, "20,000 rows make large chunks; a million make small ones"
    relaxed = replace(table.select(order), means=back.means)
    assert_close(relaxed, back)


def test_axes_and_metric_are_kept(tmp_path: Path) -> None:
    write_compressed_ply(replace(small_table(), axes="RFU", metric=True), tmp_path / "a.compressed.ply")
    back = read_compressed_ply(tmp_path / "a.compressed.ply")
    assert (back.axes, back.metric) == ("RFU", True)


@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_any_number_of_rows(tmp_path: Path, count: int) -> None:
    table = small_table(1, count=count)
    write_compressed_ply(table, tmp_path / "a.compressed.ply")
    back = read_compressed_ply(tmp_path / "a.compressed.ply")
    assert len(back) == count
    assert np.allclose(np.sort(back.means[:, 0]), np.sort(table.means[:, 0]), atol=0.01)


def test_extreme_values_stay_finite(tmp_path: Path) -> None:
    table = empty_table(4)
    table.means[:] = [[9e8, 0, 0], [-9e8, 0, 0], [0, 0, 0], [0, 1e-30, 0]]
    table.quats_wxyz[:] = [[1e-17, 0, 0, 0], [0, -1e9, 0, 0], [0, 0, 3, 3], [1, -1, 1, -1]]
    table.log_scales[:] = [[-40, 0, 40], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    table.opacity_logits[:] = [-1e4, 1e4, 0, 1]
    table.sh[:] = [[[9e5, 0, 0]], [[-9e5, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]]
    write_compressed_ply(table, tmp_path / "a.compressed.ply")
    back = read_compressed_ply(tmp_path / "a.compressed.ply")
    order = morton_order(table.means)
    assert angles(table.quats_wxyz[order], back.quats_wxyz).max() < 0.25
    assert np.abs(back.log_scales).max() <= 20
    assert np.allclose(back.means[:, 0], table.means[order, 0], rtol=1e-3, atol=1e6)


def test_morton_order_keeps_neighbours_together() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (8192, 3)).astype(np.float32)
    order = morton_order(points)
    assert np.array_equal(np.sort(order), np.arange(8192))
    spans = [np.ptp(points[order[start : start + 64]], axis=0).prod() for start in range(0, 8192, 64)]
    assert np.median(spans) < 3 * 8 * 64 / 8192, "a run of rows fills little more than its share of the volume"
    corners = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], np.float32)
    assert morton_order(corners).tolist() == list(range(8)), "x turns fastest"
    assert morton_order(np.ones((3, 3), np.float32)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("degree", [0, 3])
def test_splat_transform_reads_what_is_written(tmp_path: Path, degree: int) -> None:
    table = dense_table(degree)
    write_compressed_ply(table, tmp_path / "a.compressed.ply")
    splat_transform(tmp_path / "a.compressed.ply", tmp_path / "a.ply")
    ours, theirs = read_compressed_ply(tmp_path / "a.compressed.ply"), read_ply(tmp_path / "a.ply", check=False)
    same = np.isfinite(theirs.opacity_logits)  # bytes 0 and 255 are infinite there
    assert same.mean() > 0.95
    assert_close(ours.select(same), theirs.select(same))
    assert np.allclose(ours.means, theirs.means, atol=1e-5) and np.allclose(ours.sh, theirs.sh, atol=1e-4)


@pytest.mark.parametrize("degree", [0, 3])
def test_splat_transform_writes_what_is_read(tmp_path: Path, degree: int) -> None:
    table = dense_table(degree)
    table.opacity_logits[:] = np.clip(table.opacity_logits, -4, 4)
    write_ply(table, tmp_path / "a.ply")
    splat_transform(tmp_path / "a.ply", tmp_path / "b.compressed.ply")
    found = read_compressed_ply(tmp_path / "b.compressed.ply")
    distance, rows = cKDTree(np.hstack([table.means, table.log_scales])).query(
        np.hstack([found.means, found.log_scales])
    )
    assert len(np.unique(rows)) > 0.99 * len(table) and np.median(distance) < 0.01
    unique = np.bincount(rows, minlength=len(table))[rows] == 1
    matched = replace(table.select(rows), means=found.means)
    assert_close(matched.select(unique), found.select(unique))
    assert np.abs(table.means[rows] - found.means).max() < 0.1
    splat_transform(tmp_path / "b.compressed.ply", tmp_path / "c.ply")
    assert_close(read_ply(tmp_path / "c.ply"), found)


def test_gsplat_writes_what_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    exporter = pytest.importorskip("gsplat.exporter")
    table = dense_table(2, 2048)
    names = ("means", "log_scales", "quats_wxyz", "opacity_logits")
    columns = [torch.from_numpy(getattr(table, name).copy()) for name in names]
    sh = torch.from_numpy(table.sh.transpose(0, 1, 2).copy())
    exporter.export_splats(
        *columns, sh[:, :1], sh[:, 1:], format="ply_compressed", save_to=str(tmp_path / "a.compressed.ply")
    )
    found = read_compressed_ply(tmp_path / "a.compressed.ply")
    visible = table.select(sigmoid(table.opacity_logits) > 1 / 255)  # that exporter leaves the others out
    assert len(found) == len(visible) and found.sh_degree == 2
    _, rows = cKDTree(np.hstack([visible.means, visible.log_scales])).query(np.hstack([found.means, found.log_scales]))
    unique = np.bincount(rows, minlength=len(visible))[rows] == 1
    matched = replace(visible.select(rows), means=found.means)
    assert unique.mean() > 0.95
    assert_close(matched.select(unique), found.select(unique))


def test_files_without_colour_bounds_hold_plain_colours(tmp_path: Path) -> None:
    """Older files: colours are fractions of 0..1, not of the chunk's range."""
    bounds = [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
    bounds += [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
    packed = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        "element chunk 1",
        *(f"property float {name}" for name in bounds),
    ]
    lines += ["element vertex 1", *(f"property uint {name}" for name in packed), "end_header", ""]
    chunk = np.array([0, 0, 0, 2, 4, 8, -1, -2, -3, 1, 2, 3], "<f4")
    row = np.array([2047 << 21 | 0 << 11 | 2047, 3 << 30 | 511 << 20 | 511 << 10 | 511, 0, 0xFF8000FF], "<u4")
    (tmp_path / "a.ply").write_bytes("\n".join(lines).encode() + chunk.tobytes() + row.tobytes())
    table = read_compressed_ply(tmp_path / "a.ply")
    assert table.means.tolist() == [[2, 0, 8]] and table.log_scales.tolist() == [[-1, -2, -3]]
    assert np.allclose(rgb_from_sh(table.sh[0, 0]), [1, 128 / 255, 0], atol=1e-6)
    assert np.allclose(table.quats_wxyz, [[0, 0, 0, 1]], atol=2e-3)
    assert 5 < table.opacity_logits[0] < 15


def test_a_real_file_agrees_with_splat_transform(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "gaussian_files" / "biker.compressed.ply"
    ours = read_compressed_ply(path)
    assert (len(ours), ours.sh_degree, ours.axes) == (152_746, 0, None)
    splat_transform(path, tmp_path / "a.ply")
    theirs = read_ply(tmp_path / "a.ply", check=False)
    same = np.isfinite(theirs.opacity_logits)
    assert_close(theirs.select(same), ours.select(same))
    assert (np.abs(ours.opacity_logits[~same]) > 6).all()


REFUSED = {
    "counts": (rb"element vertex \d+", b"element vertex 100000", "promises 100000"),
    "chunks": (rb"element chunk 2", b"element chunk 1", "promises 2 chunks of 256"),
    "harmonics": (rb"element sh \d+", b"element sh 299", "299 rows of 9 coefficients; 300 rows"),
    "coefficients": (rb"property uchar f_rest_8\n", b"", "300 rows of 8 coefficients"),
    "bounds": (rb"float max_y", b"float may_y", "`chunk` lacks max_y"),
    "packed": (rb"uint packed_scale", b"float packed_scale", "`vertex` lacks packed_scale"),
    "colours": (rb"float max_g", b"float may_g", "`chunk` lacks max_g"),
    "ascii": (rb"binary_little_endian", b"ascii", "promises|is not a compressed PLY"),
    "no chunks": (rb"element chunk", b"element chuck", "is not a compressed PLY"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_headers_are_refused_with_the_fact(tmp_path: Path, case: str) -> None:
    pattern, text, message = REFUSED[case]
    write_compressed_ply(small_table(1, count=300), tmp_path / "a.ply")
    (tmp_path / "bad.ply").write_bytes(re.sub(pattern, text, (tmp_path / "a.ply").read_bytes(), count=1))
    with pytest.raises(InputError, match=message):
        read_compressed_ply(tmp_path / "bad.ply")


def test_bounds_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    write_compressed_ply(small_table(0, count=300), tmp_path / "a.ply")
    data = bytearray((tmp_path / "a.ply").read_bytes())
    place = data.index(b"end_header\n") + len(b"end_header\n")
    data[place : place + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "bad.ply").write_bytes(data)
    with pytest.raises(InputError, match="column means of Gaussian 0"):
        read_compressed_ply(tmp_path / "bad.ply")


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot hold the 3 links"):
        write_compressed_ply(small_table(links=3), tmp_path / "a.compressed.ply")
