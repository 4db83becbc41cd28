"""SOG: agreement with splat-transform in both directions, both versions, palettes and codebooks, refusals."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gworld.errors import InputError
from gworld.formats import sog_pack
from gworld.formats.ply import read_ply, write_ply
from gworld.formats.sog import palette_size, read_sog, write_sog
from gworld.formats.sog_palette import fit_codebook, fit_palette
from gworld.formats.table import Link, SplatTable
from tests.peers import splat_transform

C0 = 0.28209479177387814


def make_scene(degree: int, count: int = 400, seed: int = 0) -> SplatTable:
    """Clusters with scales over four decades, opacities from nothing to solid, and colours that vary with direction."""
    rng = np.random.default_rng(seed)
    terms = (degree + 1) ** 2
    groups = rng.integers(0, 12, count)
    spread = np.array([1.0] + [0.15] * (terms - 1))[None, :, None]
    sh = rng.uniform(-1.5, 1.5, (12, terms, 3))[groups] + rng.normal(0, 0.1, (count, terms, 3))
    return SplatTable(
        means=(rng.normal(0, 5, (12, 3))[groups] + rng.normal(0, 0.5, (count, 3))).astype(np.float32),
        quats_wxyz=rng.normal(size=(count, 4)).astype(np.float32),
        log_scales=rng.uniform(-9.5, 1, (count, 3)).astype(np.float32),
        opacity_logits=rng.uniform(-6, 6, count).astype(np.float32),
        sh=(sh * spread).astype(np.float32),
        links=np.zeros(count, np.int32),
        axes="RDF",
    )


def ordered(table: SplatTable) -> SplatTable:
    return table.select(sog_pack.morton_order(table.means))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -30, 30)))


def angles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    one, two = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (left.astype(np.float64), right))
    chords = [np.linalg.norm(one + sign * two, axis=1) for sign in (1, -1)]
    return np.degrees(4 * np.arcsin(np.clip(np.minimum(*chords) / 2, 0, 1)))


def assert_close(found: SplatTable, wanted: SplatTable, degrees: float, scale: float, rest: float) -> None:
    """Positions to 1e-4 of the extent, colours and opacities to 2/255."""
    np.testing.assert_allclose(found.means, wanted.means, atol=1e-4 * np.ptp(wanted.means, axis=0).max())
    assert angles(found.quats_wxyz, wanted.quats_wxyz).max() < degrees
    np.testing.assert_allclose(found.log_scales, wanted.log_scales, atol=scale)
    np.testing.assert_allclose(sigmoid(found.opacity_logits), sigmoid(wanted.opacity_logits), atol=2 / 255)
    np.testing.assert_allclose(found.sh[:, 0] * C0, wanted.sh[:, 0] * C0, atol=2 / 255)
    np.testing.assert_allclose(found.sh[:, 1:], wanted.sh[:, 1:], atol=rest)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip(tmp_path, degree):
    scene = make_scene(degree)
    write_sog(scene, tmp_path / "a.sog")
    back = read_sog(tmp_path / "a.sog")
    assert back.axes == "RDF" and back.sh_degree == degree
    assert_close(back, ordered(scene), degrees=1.0, scale=0.04, rest=0.01)  # 8 bits hold a rotation to one degree
    write_sog(scene, tmp_path / "folder" / "meta.json")
    assert sorted(f.name for f in (tmp_path / "folder").iterdir())[0] == "means_l.webp"
    for path in (tmp_path / "folder", tmp_path / "folder" / "meta.json"):
        again = read_sog(path)
        assert all(np.array_equal(getattr(again, n), getattr(back, n)) for n in ("means", "quats_wxyz", "sh"))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_splat_transform_reads_ours(tmp_path, degree):
    write_sog(make_scene(degree, 1500), tmp_path / "a.sog")
    splat_transform(tmp_path / "a.sog", tmp_path / "a.ply")
    assert_close(read_sog(tmp_path / "a.sog"), read_ply(tmp_path / "a.ply"), degrees=0.1, scale=1e-6, rest=1e-6)


@pytest.mark.parametrize(("degree", "name"), [(0, "a.sog"), (1, "meta.json"), (2, "a.sog"), (3, "a.sog")])
def test_ours_reads_splat_transforms(tmp_path, degree, name):
    write_ply(make_scene(degree, 1100), tmp_path / "a.ply")
    splat_transform(tmp_path / "a.ply", tmp_path / name)
    splat_transform(tmp_path / name, tmp_path / "b.ply")
    assert_close(read_sog(tmp_path / name), read_ply(tmp_path / "b.ply"), degrees=0.1, scale=1e-6, rest=1e-6)


def test_real_scene(real_data, tmp_path):
    from gworld.formats.spz import read_spz

    scene = read_spz(real_data / "gaussian_files" / "biker.spz")
    write_sog(scene, tmp_path / "a.sog")
    assert_close(read_sog(tmp_path / "a.sog"), ordered(scene), degrees=1.0, scale=0.05, rest=0)


def write_version_1(folder: Path, degree: int, seed: int = 0) -> SplatTable:
    """A folder in the old layout, made from codes, and the table that these codes stand for."""
    rng = np.random.default_rng(seed)
    count, terms = 100, {1: 3, 2: 8, 3: 15}[degree]
    codes = {name: rng.integers(0, 256, (100, 4), dtype=np.uint8) for name in ("l", "u", "q", "s", "c", "n")}
    codes["q"][:, 3] = rng.integers(252, 256, count)
    codes["n"][:, 1] = 0
    palette = rng.integers(0, 256, (4, 64 * terms, 3), dtype=np.uint8)
    names = {"l": "means_l", "u": "means_u", "q": "quats", "s": "scales", "c": "sh0", "n": "shN_labels"}
    for key, name in names.items():
        Image.fromarray(codes[key].reshape(10, 10, 4)).save(folder / f"{name}.webp", lossless=True, exact=True)
    Image.fromarray(palette).save(folder / "shN_centroids.webp", lossless=True)
    means = ["means_l.webp", "means_u.webp"]
    meta = {
        "means": {"shape": [count, 3], "mins": [-1, -2, 0], "maxs": [1, 2, 1], "files": means},
        "scales": {"shape": [count, 3], "mins": [-9, -8, -7], "maxs": [0, 1, 2], "files": ["scales.webp"]},
        "quats": {"shape": [count, 4], "encoding": "quaternion_packed", "files": ["quats.webp"]},
        "sh0": {"shape": [count, 1, 4], "mins": [-1, -2, -3, -5], "maxs": [1, 2, 3, 7], "files": ["sh0.webp"]},
        "shN": {"mins": -0.5, "maxs": 0.25, "files": ["shN_centroids.webp", "shN_labels.webp"]},
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    place = (codes["l"] + 256.0 * codes["u"])[:, :3] / 65535 * [2, 4, 1] + [-1, -2, 0]
    unit = codes["c"] / 255.0
    rest = palette.reshape(-1, terms, 3)[codes["n"][:, 0]] / 255 * 0.75 - 0.5
    three = (codes["q"][:, :3] / 255 * 2 - 1) / np.sqrt(2)
    quats = [
        np.insert(t, int(k) - 252, np.sqrt(max(0, 1 - t @ t))) for t, k in zip(three, codes["q"][:, 3], strict=True)
    ]
    return SplatTable(
        means=np.sign(place) * np.expm1(np.abs(place)),
        quats_wxyz=np.array(quats),
        log_scales=codes["s"][:, :3] / 255 * 9.0 + [-9, -8, -7],
        opacity_logits=unit[:, 3] * 12 - 5,
        sh=np.concatenate([(unit[:, :3] * [2, 4, 6] - [1, 2, 3])[:, None], rest], axis=1),
        links=np.zeros(count, np.int32),
    )


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_version_1(tmp_path, degree):
    wanted = write_version_1(tmp_path, degree)
    found = read_sog(tmp_path)
    for name in ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-5, err_msg=name)
    splat_transform(tmp_path / "meta.json", tmp_path / "a.ply")
    theirs = read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(found.means, theirs.means, atol=1e-5)
    np.testing.assert_allclose(found.sh, theirs.sh, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_few_gaussians(tmp_path, count):
    scene = make_scene(1, count)
    write_sog(scene, tmp_path / "a.sog")
    back = read_sog(tmp_path / "a.sog")
    assert len(back) == count
    if count:
        np.testing.assert_allclose(back.means, ordered(scene).means, atol=1e-3)
        np.testing.assert_array_equal(back.log_scales, ordered(scene).log_scales)  # up to 256 values are kept exactly


def test_transparent_gaussians_keep_their_colour(tmp_path):
    scene = replace(make_scene(0), opacity_logits=np.full(400, -20, np.float32))
    write_sog(scene, tmp_path / "a.sog")
    np.testing.assert_allclose(read_sog(tmp_path / "a.sog").sh * C0, ordered(scene).sh * C0, atol=2 / 255)


def test_links_are_baked_and_files_repeat(tmp_path):
    scene = make_scene(0)
    linked = replace(
        scene,
        links=np.ones(400, np.int32),
        link_table=(Link("world"), Link("arm", (1.0, 2.0, 3.0, 1.0, 0.0, 0.0, 0.0))),
    )
    write_sog(linked, tmp_path / "a.sog")
    moved = read_sog(tmp_path / "a.sog").means - ordered(scene).means
    np.testing.assert_allclose(moved, np.broadcast_to([1, 2, 3], moved.shape), atol=2e-3)
    write_sog(linked, tmp_path / "b.sog")
    assert (tmp_path / "a.sog").read_bytes() == (tmp_path / "b.sog").read_bytes()


def test_codebook():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.1, 20000), rng.uniform(-4, 4, 50)]).astype(np.float32).reshape(-1, 2)
    book, codes = fit_codebook(values)
    assert book.dtype == np.float32 and book.shape == (256,) and (np.diff(book) >= 0).all()
    assert codes.shape == values.shape and codes.dtype == np.uint8
    errors = np.abs(book[codes] - values)
    even = np.ptp(values) / 255 / 2
    assert errors.max() < 1.5 * even and np.sqrt((errors**2).mean()) < 0.9 * even / np.sqrt(3)
    nearest = np.abs(book - values[:500].reshape(-1, 1)).min(axis=1)
    np.testing.assert_allclose(errors[:500].ravel(), nearest, atol=1e-3)


def test_palette_is_as_good_as_plain_k_means():
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng(0)
    points = (rng.normal(size=(40, 9))[rng.integers(0, 40, 6000)] + rng.normal(0, 0.3, (6000, 9))).astype(np.float32)
    palette, labels = fit_palette(points, 512)
    assert len(palette) <= 512 and labels.max() < len(palette)
    ours = ((points - palette[labels]) ** 2).sum(1).mean()
    centres, nearest = kmeans2(points, 512, iter=10, minit="points", seed=1, missing="warn")
    assert ours < 1.1 * ((points - centres[nearest]) ** 2).sum(1).mean()
    same, identity = fit_palette(points[:100], 512)
    np.testing.assert_array_equal(same[identity], points[:100])
    constant, labels = fit_palette(np.ones((3000, 9), np.float32), 512)
    np.testing.assert_array_equal(constant[labels], 1)
    assert [palette_size(n) for n in (5, 4096, 5000, 70000, 10**6)] == [5, 4096, 4096, 65536, 65536]


Edit = Callable[[dict], object]


def edited(path: Path, edit: Edit | None = None, **members: bytes | None) -> Path:
    """A copy of an archive with its `meta.json` edited and members replaced, added or (None) left out."""
    with zipfile.ZipFile(path) as archive:
        parts: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(parts["meta.json"] or b"")
    if edit:
        edit(meta)
    parts |= {"meta.json": json.dumps(meta).encode(), **members}
    bad = path.with_name("bad.sog")
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            if content is not None:
                archive.writestr(name, content)
    return bad


def webp(width: int, height: int, color: tuple[int, ...] = (3, 2, 1), **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", (width, height), color).save(
        stream, "WEBP", **{"lossless": True, **options}
    )
    return stream.getvalue()


EDITS: dict[str, Edit] = {
    "no count": lambda m: m.pop("count"),
    "count": lambda m: m.update(count=10**9),
    "count is text": lambda m: m.update(count="400"),
    "count is true": lambda m: m.update(count=True),
    "negative": lambda m: m.update(count=-1),
    "more than pixels": lambda m: m.update(count=401),
    "version": lambda m: m.update(version=3),
    "version is a list": lambda m: m.update(version=[2]),
    "outside": lambda m: m["means"].update(files=["../means_l.webp", "means_u.webp"]),
    "absolute": lambda m: m["means"].update(files=["/etc/passwd", "means_u.webp"]),
    "other member": lambda m: m["quats"].update(files=["meta.json"]),
    "missing": lambda m: m["quats"].update(files=["nothing.webp"]),
    "one name": lambda m: m["means"].update(files=["means_l.webp"]),
    "not a name": lambda m: m["scales"].update(files=[7]),
    "ranges": lambda m: m["means"].update(mins=[0, 0]),
    "huge range": lambda m: m["means"].update(maxs=[900, 900, 900]),
    "text in range": lambda m: m["means"].update(maxs=["1", 2, 3]),
    "huge integer": lambda m: m["means"].update(maxs=[10**400, 2, 3]),
    "null in codebook": lambda m: m["scales"].update(codebook=[None] * 256),
    "short codebook": lambda m: m["scales"].update(codebook=[0.5]),
    "long codebook": lambda m: m["scales"].update(codebook=[0.5] * 257),
    "bands": lambda m: m["shN"].update(bands=2),
    "no bands": lambda m: m["shN"].update(bands=0),
    "palette count": lambda m: m["shN"].update(count=1),
    "not an object": lambda m: m.update(means=[]),
}


@pytest.mark.parametrize("name", EDITS)
def test_bad_meta_is_refused(tmp_path, name):
    write_sog(make_scene(1), tmp_path / "a.sog")
    with pytest.raises(InputError) as caught:
        read_sog(edited(tmp_path / "a.sog", EDITS[name]))
    assert "bad.sog" in str(caught.value) or "leads outside" in str(caught.value)


def test_bad_members_are_refused(tmp_path):
    write_sog(make_scene(1), tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        good = archive.read("means_l.webp")
    giant = bytearray(good)
    giant[21:25] = struct.pack("<I", 0x0FFFFFFF)  # 16384 x 16384 pixels, still in a few bytes
    cases = {
        "missing": None,
        "empty": b"",
        "not an image": b"x" * 200,
        "cut": good[: len(good) // 2],
        "giant": bytes(giant),
        "too small": webp(4, 4),
        "far too large": webp(1000, 1000),
        "lossy": webp(24, 20, lossless=False),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "bomb": bytes(1 << 24),
    }
    for name, content in cases.items():
        bad = edited(tmp_path / "a.sog", **{"means_l.webp": content})
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match=r"bad\.sog"):
                read_sog(bad)
            assert tracemalloc.get_traced_memory()[1] < 40 << 20, name
        finally:
            tracemalloc.stop()
    for name, content in (("quats.webp", webp(20, 20, (9, 9, 9, 251))), ("shN_labels.webp", webp(20, 20))):
        with pytest.raises(InputError, match=r"the tag 251|entry 515"):
            read_sog(edited(tmp_path / "a.sog", **{name: content}))


def test_damaged_archives_are_refused(tmp_path):
    write_sog(make_scene(0, 50), tmp_path / "a.sog")
    data = (tmp_path / "a.sog").read_bytes()
    bad = tmp_path / "bad.sog"
    for content in (
        data[:-30],
        data[:100],
        data[:40] + bytes(500) + data[540:],
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"",
        b"{}",
    ):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.sog"):
            read_sog(bad)
    (tmp_path / "secret.webp").write_bytes(webp(20, 20))
    (tmp_path / "folder").mkdir()
    write_sog(make_scene(0, 50), tmp_path / "folder" / "meta.json")
    meta = json.loads((tmp_path / "folder" / "meta.json").read_text())
    meta["quats"]["files"] = ["../secret.webp"]
    (tmp_path / "folder" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="leads outside"):
        read_sog(tmp_path / "folder")
