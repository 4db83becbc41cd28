"""SPZ: agreement with the format's own library and with splat-transform, both directions; refusals of bad files."""

from __future__ import annotations

import gzip
import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gworld.errors import InputError, UsageError
from gworld.formats.axes import matrix_from_quat, to_axes
from gworld.formats.compressed_ply import read_compressed_ply
from gworld.formats.ply import write_ply
from gworld.formats.spz import SpzHeader, read_spz, read_spz_header, write_spz
from gworld.formats.table import Link, SplatTable
from tests.peers import MODULES, read_csv, splat_transform

C0 = 0.28209479177387814

# The format's own library, as splat-transform ships it: positions, rotations (xyzw) and the rest as it decodes them.
_OFFICIAL = """
import fs from "fs";
const library = await (await import(process.argv[2])).default({print: () => {}, printErr: () => {}});
const bytes = new Uint8Array(fs.readFileSync(process.argv[3]));
const cloud = library.loadSpzFromBuffer(bytes, {to: library.CoordinateSystem[process.argv[4]]});
const fields = {count: cloud.numPoints, antialiased: cloud.antialiased};
for (const name of ["positions", "scales", "rotations", "alphas", "colors", "sh"])
    fields[name] = Array.from(cloud[name]);
fs.writeFileSync(process.argv[5], JSON.stringify(fields));
"""


def make_scene(degree: int, count: int = 300, seed: int = 0, extent: float = 5.0) -> SplatTable:
    """Clusters with scales over four decades, opacities from nothing to solid, and colours that vary with direction."""
    rng = np.random.default_rng(seed)
    terms = (degree + 1) ** 2
    spread = np.array([1.0] + [0.25] * (terms - 1))[None, :, None]
    return SplatTable(
        means=(rng.normal(size=(8, 3))[rng.integers(0, 8, count)] * extent).astype(np.float32)
        + rng.normal(size=(count, 3)).astype(np.float32) * np.float32(extent / 10),
        quats_wxyz=rng.normal(size=(count, 4)).astype(np.float32),
        log_scales=rng.uniform(-9.5, 1, (count, 3)).astype(np.float32),
        opacity_logits=rng.uniform(-6, 6, count).astype(np.float32),
        sh=(rng.uniform(-1, 1, (count, terms, 3)) * spread).astype(np.float32),
        links=np.zeros(count, np.int32),
        axes="RDF",
    )


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -30, 30)))


def angles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Degrees between rotations given as quaternions of any length and sign."""
    one, two = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (left.astype(np.float64), right))
    return np.degrees(
        2 * np.arcsin(np.clip(np.minimum(*(np.linalg.norm(one + s * two, axis=1) for s in (1, -1))) / 2, 0, 1))
    )


def covariances(table: SplatTable) -> np.ndarray:
    turns = matrix_from_quat(table.quats_wxyz / np.linalg.norm(table.quats_wxyz, axis=1, keepdims=True))
    spread = turns * np.exp(table.log_scales)[:, None]
    return spread @ spread.transpose(0, 2, 1)


def columns_of(csv: dict[str, np.ndarray], degree: int) -> SplatTable:
    """A table of the columns that splat-transform writes."""
    rest = (degree + 1) ** 2 - 1
    sh = np.stack([csv[f"f_dc_{c}"] for c in range(3)], axis=1)[:, None]
    if rest:
        higher = np.stack([csv[f"f_rest_{i}"] for i in range(3 * rest)], axis=1)
        sh = np.concatenate([sh, higher.reshape(-1, 3, rest).transpose(0, 2, 1)], axis=1)
    return SplatTable(
        means=np.stack([csv[k] for k in "xyz"], axis=1),
        quats_wxyz=np.stack([csv[f"rot_{i}"] for i in range(4)], axis=1),
        log_scales=np.stack([csv[f"scale_{i}"] for i in range(3)], axis=1),
        opacity_logits=csv["opacity"],
        sh=sh,
        links=np.zeros(len(sh), np.int32),
    )


def assert_close(found: SplatTable, wanted: SplatTable, degrees: float = 0.5, rest: float = 1e-5) -> None:
    """Positions to 1e-4 of the extent, rotations to half a degree, colours and opacities to 2/255."""
    extent = np.ptp(wanted.means, axis=0).max()
    np.testing.assert_allclose(found.means, wanted.means, atol=1e-4 * extent)
    assert angles(found.quats_wxyz, wanted.quats_wxyz).max() < degrees
    np.testing.assert_allclose(found.log_scales, np.maximum(wanted.log_scales, -10), atol=1 / 30)  # SPZ holds no less
    np.testing.assert_allclose(sigmoid(found.opacity_logits), sigmoid(wanted.opacity_logits), atol=2 / 255)
    np.testing.assert_allclose(found.sh[:, 0] * C0, wanted.sh[:, 0] * C0, atol=2 / 255)
    np.testing.assert_allclose(found.sh[:, 1:], wanted.sh[:, 1:], atol=rest)


def read_officially(path: Path, axes: str, folder: Path) -> dict:
    package = MODULES / "@playcanvas" / "splat-transform" / "dist"
    splat_transform("--version")  # skips where node or the package is missing
    name = re.search(r"import\('\./(spz-[\w-]+\.js)'\)", (package / "index.mjs").read_text(encoding="utf-8"))
    assert name, "splat-transform no longer ships the library"
    script, answer = folder / "official.mjs", folder / "official.json"
    script.write_text(_OFFICIAL)
    subprocess.run(
        ["node", script, package / name[1], path, axes, answer], check=True, timeout=120, capture_output=True
    )
    return json.loads(answer.read_text())


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip(tmp_path, version, degree):
    scene = make_scene(degree)
    write_spz(scene, tmp_path / "a.spz", version=version)
    back = read_spz(tmp_path / "a.spz")
    assert back.axes == "RDF"
    # Version 2 leaves out w, which is then the root of a difference: bytes of 1/127.5 give degrees where it is small.
    assert_close(back, scene, degrees=8 if version == 2 else 0.3, rest=1 / 16 + 1e-6)
    write_spz(back, tmp_path / "b.spz", version=version)
    again = read_spz(tmp_path / "b.spz")  # what was quantised once stays as it is
    assert np.array_equal(back.sh, again.sh) and np.array_equal(back.log_scales, again.log_scales)
    np.testing.assert_allclose(again.means, back.means, atol=2e-4)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_the_official_library_reads_ours(tmp_path, version):
    scene = make_scene(3)
    write_spz(scene, tmp_path / "a.spz", version=version, antialiased=True)
    ours, theirs = read_spz(tmp_path / "a.spz"), read_officially(tmp_path / "a.spz", "RDF", tmp_path)
    assert theirs["count"] == len(scene) and theirs["antialiased"] is True
    assert read_spz_header(tmp_path / "a.spz").antialiased
    np.testing.assert_allclose(np.reshape(theirs["positions"], (-1, 3)), ours.means, atol=1e-6)
    np.testing.assert_allclose(np.reshape(theirs["rotations"], (-1, 4))[:, [3, 0, 1, 2]], ours.quats_wxyz, atol=1e-6)
    np.testing.assert_allclose(np.reshape(theirs["scales"], (-1, 3)), ours.log_scales, atol=1e-6)
    np.testing.assert_allclose(np.reshape(theirs["colors"], (-1, 3)), ours.sh[:, 0], atol=1e-6)
    np.testing.assert_allclose(np.reshape(theirs["sh"], (-1, 15, 3)), ours.sh[:, 1:], atol=1e-6)
    alphas = np.array(theirs["alphas"], float)  # JSON has null for an infinite logit
    np.testing.assert_allclose(alphas, np.where(np.isnan(alphas), alphas, ours.opacity_logits), atol=1e-5)


@pytest.mark.parametrize("axes", ["RDF", "RFU"])
def test_other_axes_are_stated(tmp_path, axes):
    scene = make_scene(2)
    write_spz(scene, tmp_path / "a.spz", version=4, axes=axes)
    assert read_spz_header(tmp_path / "a.spz").axes == axes
    back = read_spz(tmp_path / "a.spz")
    theirs = read_officially(tmp_path / "a.spz", "RDF", tmp_path)
    np.testing.assert_allclose(back.means, scene.means, atol=2e-4)
    np.testing.assert_allclose(np.reshape(theirs["positions"], (-1, 3)), back.means, atol=1e-5)
    quats = np.reshape(theirs["rotations"], (-1, 4))[:, [3, 0, 1, 2]]
    same = replace(back, quats_wxyz=quats, log_scales=np.reshape(theirs["scales"], (-1, 3)))
    np.testing.assert_allclose(covariances(same), covariances(back), atol=1e-5)
    np.testing.assert_allclose(np.reshape(theirs["sh"], (-1, 8, 3)), back.sh[:, 1:], atol=1e-5)


@pytest.mark.parametrize("version", [3, 4])
def test_splat_transform_reads_ours(tmp_path, version):
    scene = make_scene(3)
    write_spz(scene, tmp_path / "a.spz", version=version)
    splat_transform(tmp_path / "a.spz", tmp_path / "a.csv")
    raw = replace(
        columns_of(read_csv(tmp_path / "a.csv"), 3), axes="RUB"
    )  # it converts nothing: these are SPZ's own axes
    assert_close(to_axes(read_spz(tmp_path / "a.spz"), "RUB"), raw)


@pytest.mark.parametrize("options", [("--spz-version", "3"), ()])
def test_ours_reads_splat_transforms(tmp_path, options):
    scene = make_scene(3)
    write_ply(scene, tmp_path / "a.ply")
    splat_transform(*options, tmp_path / "a.ply", tmp_path / "a.spz")
    assert_close(read_spz(tmp_path / "a.spz", axes="RDF"), scene, rest=0.067)  # it rounds twice


def test_two_copies_of_one_scene_agree(real_data):
    spz = real_data / "gaussian_files" / "biker.spz"
    assert read_spz_header(spz) == SpzHeader(4, 152746, 0, 12, False, "RUB")
    # As read they agree row by row: the SPZ file holds Right/Up/Back, the compressed PLY Right/Down/Forward.
    assert_close(read_spz(spz), read_compressed_ply(real_data / "gaussian_files" / "biker.compressed.ply"))


def test_versions_1_and_unknown(tmp_path):
    halves = np.array([[0.5, -2, 3], [1, 0, -1]], "<f2").tobytes()
    streams = halves + bytes([0, 255]) + bytes([128] * 6) + bytes([160] * 6) + bytes([255, 128, 128] * 2)
    head = struct.pack("<4sIIBBBB", b"NGSP", 1, 2, 0, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(head + streams))
    table = read_spz(tmp_path / "a.spz")
    np.testing.assert_array_equal(table.means, [[0.5, 2, -3], [1, 0, 1]])
    np.testing.assert_allclose(np.abs(table.opacity_logits), np.log(1e6), atol=1e-3)
    np.testing.assert_allclose(table.log_scales, 0, atol=1e-6)
    assert np.abs(table.quats_wxyz[:, 1]).min() > 0.99
    (tmp_path / "b.spz").write_bytes(gzip.compress(head[:4] + struct.pack("<I", 5) + head[8:] + streams))
    with pytest.raises(InputError, match="version 5"):
        read_spz(tmp_path / "b.spz")
    with pytest.raises(UsageError, match="version 1"):
        write_spz(make_scene(0), tmp_path / "c.spz", version=1)


def test_degree_4_is_cut_to_3(tmp_path):
    rng = np.random.default_rng(0)
    sh = rng.integers(0, 256, (5, 24, 3), dtype=np.uint8)
    streams = bytes(5 * 9) + bytes(5) + bytes(15) + bytes(15) + bytes(20) + sh.tobytes()
    (tmp_path / "a.spz").write_bytes(gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, 5, 4, 12, 0, 0) + streams))
    table = to_axes(read_spz(tmp_path / "a.spz"), "RUB")
    np.testing.assert_allclose(table.sh[:, 1:], (sh[:, :15] - 128.0) / 128, atol=1e-6)


@pytest.mark.parametrize("extent", [1e-4, 0.3, 20.0, 3000.0, 1e6])
def test_positions_of_any_extent(tmp_path, extent):
    scene = make_scene(0, extent=extent)
    write_spz(scene, tmp_path / "a.spz")
    np.testing.assert_allclose(read_spz(tmp_path / "a.spz").means, scene.means, atol=2e-5 * np.ptp(scene.means))


def test_what_cannot_be_written(tmp_path):
    far = replace(make_scene(0), means=np.full((300, 3), 9e6, np.float32))
    with pytest.raises(InputError, match="8388607"):
        write_spz(far, tmp_path / "a.spz")
    nan = replace(make_scene(0), opacity_logits=np.full(300, np.nan, np.float32))
    with pytest.raises(InputError, match="opacity_logits"):
        write_spz(nan, tmp_path / "a.spz")
    assert not list(tmp_path.iterdir())


def test_links_are_baked(tmp_path):
    scene = make_scene(1, 50)
    arm = Link("arm", (1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0))  # half a turn about z
    linked = replace(scene, links=np.ones(50, np.int32), link_table=(Link("world"), arm))
    write_spz(linked, tmp_path / "a.spz")
    back = read_spz(tmp_path / "a.spz")
    np.testing.assert_allclose(back.means, scene.means * [-1, -1, 1] + [1, 2, 3], atol=2e-4)
    half_turn = np.diag([-1.0, -1, 1])
    np.testing.assert_allclose(covariances(back), half_turn @ covariances(scene) @ half_turn, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_empty_scene(tmp_path, version):
    write_spz(make_scene(2).select(slice(0, 0)), tmp_path / "a.spz", version=version)
    assert len(read_spz(tmp_path / "a.spz")) == 0


def damaged(tmp_path: Path, version: int) -> list[tuple[str, bytes]]:
    write_spz(make_scene(1, 64), tmp_path / "good.spz", version=version)
    data = (tmp_path / "good.spz").read_bytes()
    if version == 4:
        huge = struct.pack("<I", 2**31)
        return [
            ("cut", data[:-5]),
            ("count", data[:8] + huge + data[12:]),
            ("degree", data[:12] + b"\x09" + data[13:]),
            ("streams", data[:15] + b"\x02" + data[16:]),
            ("table offset", data[:16] + huge + data[20:]),
            ("table inside header", data[:16] + bytes(4) + data[20:]),
            ("plain size", data[:40] + struct.pack("<Q", 2**40) + data[48:]),
            ("packed size", data[:32] + struct.pack("<Q", 2**63) + data[40:]),
            ("frame", data[:140] + bytes(40) + data[180:]),
            ("not zstd", data[:128] + b"\0" * (len(data) - 128)),
            ("mirrored axes", data[:14] + b"\x02" + data[15:16] + struct.pack("<I", 44) + data[20:32]
             + struct.pack("<III", 0xADBE0003, 4, 7) + data[32:]),
        ]  # fmt: skip
    plain = gzip.decompress(data)
    return [
        ("cut stream", data[:-30]),
        ("cut checksum", data[:-2]),
        ("checksum", data[:-8] + bytes(4) + data[-4:]),
        ("not gzip", b"\x1f\x8b" + bytes(50)),
        ("count", gzip.compress(plain[:8] + struct.pack("<I", 2**32 - 1) + plain[12:])),
        ("one too many", gzip.compress(plain[:8] + struct.pack("<I", 65) + plain[12:])),
        ("one too few", gzip.compress(plain[:8] + struct.pack("<I", 63) + plain[12:])),
        ("bits", gzip.compress(plain[:13] + b"\xff" + plain[14:])),
        ("magic", gzip.compress(b"GNSP" + plain[4:])),
        ("version 4 in gzip", gzip.compress(plain[:4] + struct.pack("<I", 4) + plain[8:])),
        ("bomb", gzip.compress(plain[:8] + struct.pack("<I", 10**7) + plain[12:] + bytes(1 << 25))),
        ("bomb behind", gzip.compress(plain + bytes(1 << 25))),
        ("plain", plain),
    ]


@pytest.mark.parametrize("version", [2, 3, 4])
def test_damaged_files_are_refused(tmp_path, version):
    for name, data in damaged(tmp_path, version):
        file = tmp_path / "bad.spz"
        file.write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_spz(file)
        assert "bad.spz" in str(caught.value), name


def test_trailing_extensions_of_old_files(tmp_path):
    write_spz(make_scene(1, 64), tmp_path / "a.spz")
    plain = gzip.decompress((tmp_path / "a.spz").read_bytes())
    record = struct.pack("<II", 0x12340001, 3) + b"abc" + struct.pack("<III", 0xADBE0003, 4, 6)
    (tmp_path / "b.spz").write_bytes(gzip.compress(plain[:14] + b"\x02" + plain[15:] + record))
    one, two = read_spz(tmp_path / "a.spz"), read_spz(tmp_path / "b.spz")
    np.testing.assert_array_equal(two.means, one.means * [1, -1, -1])
