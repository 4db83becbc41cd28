"""3DGS PLY: bit-exact round trips, every layout others write, refusals that name the fact, bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworld.errors import InputError
from gworld.formats.ply import iter_ply, read_ply, read_ply_header, write_ply
from gworld.formats.ply_header import format_remarks, parse_remarks
from gworld.formats.table import Link, SplatTable, bad_rows, empty_table
from tests.fuzz.targets import small_table
from tests.peers import read_csv, splat_transform

COLUMNS = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh", "links")


def assert_same(left: SplatTable, right: SplatTable) -> None:
    for name in COLUMNS:
        one, two = getattr(left, name), getattr(right, name)
        assert one.dtype == two.dtype and one.shape == two.shape
        assert one.tobytes() == two.tobytes(), f"{name} changed"


def rows_of(table: SplatTable) -> dict[str, np.ndarray]:
    """Columns by their PLY names, in the usual order, written down independently of the writer."""
    columns = {name: table.means[:, i] for i, name in enumerate("xyz")}
    columns |= {name: np.zeros(len(table), np.float32) for name in ("nx", "ny", "nz")}
    columns |= {f"f_dc_{i}": table.sh[:, 0, i] for i in range(3)}
    terms = table.sh.shape[1] - 1
    columns |= {f"f_rest_{c * terms + k}": table.sh[:, 1 + k, c] for c in range(3) for k in range(terms)}
    columns["opacity"] = table.opacity_logits
    columns |= {f"scale_{i}": table.log_scales[:, i] for i in range(3)}
    columns |= {f"rot_{i}": table.quats_wxyz[:, i] for i in range(4)}
    return columns


def write_rows(
    path: Path,
    columns: dict[str, np.ndarray],
    encoding: str = "binary_little_endian",
    before: bytes = b"",
    lines: str = "",
) -> None:
    """A PLY of the given columns in their own types; `lines` go before the vertex element, `before` is its data."""
    types = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}
    order = ">" if encoding == "binary_big_endian" else "<"
    kind = np.dtype([(name, order + values.dtype.str[1:]) for name, values in columns.items()])
    rows = np.zeros(len(next(iter(columns.values()))), kind)
    for name, values in columns.items():
        rows[name] = values
    properties = "".join(f"property {types[v.dtype.str[1:]]} {name}\n" for name, v in columns.items())
    head = f"ply\nformat {encoding} 1.0\ncomment by another tool\n{lines}"
    head += f"element vertex {len(rows)}\n{properties}end_header\n"
    data = rows.tobytes()
    if encoding == "ascii":
        data = "".join(" ".join(repr(value.item()) for value in row) + "\n" for row in rows).encode()
    path.write_bytes(head.encode() + before + data)


@pytest.mark.parametrize("degree", range(4))
def test_round_trip_is_bit_exact(tmp_path: Path, degree: int) -> None:
    table = replace(small_table(degree, count=1000), axes=None, metric=False)
    table.quats_wxyz[0] = (3e-5, 0, 0, -7)  # not normalised
    write_ply(table, tmp_path / "a.ply")
    back = read_ply(tmp_path / "a.ply")
    assert_same(table, back)
    assert (back.axes, back.metric, back.link_table, back.sh_degree) == (None, False, (Link("world"),), degree)
    names = read_ply_header(tmp_path / "a.ply").dtype.names
    assert names == tuple(rows_of(table)), "the usual order, and nothing of ours"
    write_ply(back, tmp_path / "b.ply")
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_links_axes_and_metric_round_trip(tmp_path: Path) -> None:
    poses = ((0.1, 1 / 3, -2e-17, 0.5, 0.5, -0.5, 0.5), (1e9, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0))
    links = (Link("world"), Link("left arm/link_1 %20", poses[0]), Link("Größe\n", poses[1], parent=1))
    table = replace(small_table(3, links=3), link_table=links, axes="RFU", metric=True)
    write_ply(table, tmp_path / "a.ply")
    back = read_ply(tmp_path / "a.ply")
    assert_same(table, back)
    assert (back.axes, back.metric, back.link_table) == ("RFU", True, links)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=4), st.floats(-1e9, 1e9), st.booleans())
def test_remarks_round_trip(names: list[str], value: float, metric: bool) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    links = tuple(Link(name, (value, 0.0, -0.0, 1.0, 0.0, value, 0.0)) for name in names)
    table = replace(empty_table(0), link_table=links, axes="RUB", metric=metric)
    lines = [line.removeprefix("comment ") for line in format_remarks(table)]
    remarks = parse_remarks(tuple(lines))
    assert (remarks.axes, remarks.metric, remarks.link_table) == ("RUB", metric, links)


def test_remarks_that_are_damaged_are_left_out() -> None:
    good = "gworld link 0 world 0 0 0 1 0 0 0"
    damaged = ("gworld axes XYZ", "gworld", "gworld metric", "gworld link", "gworld link 1 a 0 0 0 0 0 0 0", "other")
    remarks = parse_remarks((good, *damaged, "gworld link 1 a 0 0 nan 1 0 0 0", "gworld link 3 c 0 0 0 1 0 0 0"))
    assert (remarks.axes, remarks.metric, remarks.link_table) == (None, False, (Link("world"),))


@pytest.mark.parametrize("encoding", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_any_order_type_and_encoding(tmp_path: Path, encoding: str, kind: str) -> None:
    table = replace(small_table(2, count=300), axes=None, metric=False)
    columns = {name: values.astype(kind) for name, values in rows_of(table).items() if not name.startswith("n")}
    names = list(np.random.default_rng(1).permutation(list(columns)))
    shuffled = {str(name): columns[name] for name in names}
    extra = {"segment": np.arange(300, dtype="i4"), **shuffled, "confidence": np.full(300, 7, "u1")}
    lines = "element camera 2\nproperty float f\nproperty uchar g\n"
    before = b"1.5 2\n3 4\n" if encoding == "ascii" else bytes(10)
    write_rows(tmp_path / "a.ply", extra, encoding, before, lines)
    assert_same(table, read_ply(tmp_path / "a.ply"))


def test_streaming_gives_the_same_rows(tmp_path: Path) -> None:
    table = small_table(1, links=2, count=1000)
    write_ply(table, tmp_path / "a.ply")
    parts = list(iter_ply(tmp_path / "a.ply", rows=300))
    assert [len(part) for part in parts] == [300, 300, 300, 100]
    for name in COLUMNS:
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(table, name))
    assert all(part.link_table == table.link_table and part.axes == "RFU" for part in parts)
    bad = table.select(slice(0, 700))
    bad.means[650] = np.nan
    (tmp_path / "b.ply").write_bytes(_with_nan(tmp_path / "a.ply", 650))
    blocks = iter_ply(tmp_path / "b.ply", rows=300)
    next(blocks), next(blocks)
    with pytest.raises(InputError, match=r"counting from row 600.*Gaussian 50 "):
        next(blocks)


def _with_nan(path: Path, row: int) -> bytes:
    header, data = read_ply_header(path), bytearray(path.read_bytes())
    place = header.offset + row * header.dtype.itemsize
    data[place : place + 4] = b"\x00\x00\xc0\x7f"
    return bytes(data)


def test_rows_that_cannot_be_rendered_can_be_kept(tmp_path: Path) -> None:
    write_ply(small_table(), tmp_path / "a.ply")
    (tmp_path / "b.ply").write_bytes(_with_nan(tmp_path / "a.ply", 3))
    with pytest.raises(InputError, match=r"b.ply.*means of Gaussian 3 "):
        read_ply(tmp_path / "b.ply")
    kept = read_ply(tmp_path / "b.ply", check=False)
    assert np.flatnonzero(bad_rows(kept)).tolist() == [3]


def test_an_empty_scene_round_trips(tmp_path: Path) -> None:
    write_ply(empty_table(0, 3), tmp_path / "a.ply")
    back = read_ply(tmp_path / "a.ply")
    assert len(back) == 0 and back.sh_degree == 3 and list(iter_ply(tmp_path / "a.ply")) == []


def test_colours_of_nerfstudio_become_harmonics(tmp_path: Path) -> None:
    columns = {name: values for name, values in rows_of(small_table(0, count=256)).items() if not name.startswith("f_")}
    columns |= {name: np.arange(256, dtype="u1") for name in ("red", "green", "blue")}
    write_rows(tmp_path / "a.ply", columns)
    table = read_ply(tmp_path / "a.ply")
    rgb = table.sh[:, 0] * 0.28209479177387814 + 0.5
    assert table.sh_degree == 0
    assert np.abs(rgb * 255 - np.arange(256)[:, None]).max() < 1e-3


def test_flat_gaussians_become_thin(tmp_path: Path) -> None:
    columns = rows_of(small_table(1))
    scales = np.stack([columns["scale_0"], columns["scale_1"]], axis=1)
    del columns["scale_2"]
    write_rows(tmp_path / "a.ply", columns)
    table = read_ply(tmp_path / "a.ply")
    assert np.array_equal(table.log_scales[:, :2], scales)
    assert np.allclose(np.exp(table.log_scales[:, 2]), 1e-6)


def test_memory_stays_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_ply(small_table(3, count=100_000), path)
    size = path.stat().st_size

    def peak(work: Callable[[], object]) -> int:
        tracemalloc.start()
        work()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(lambda: read_ply(path)) < 1.5 * size
    assert peak(lambda: sum(len(part) for part in iter_ply(path, 10_000))) < 0.35 * size
    table = read_ply(path)
    assert peak(lambda: write_ply(table, tmp_path / "b.ply")) < 0.5 * size


def test_every_cut_is_refused(tmp_path: Path) -> None:
    write_ply(small_table(0, count=4), tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    cut = tmp_path / "cut.ply"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.ply"):
            read_ply(cut)


USUAL = "".join(
    f"property float {name}\n"
    for name in (
        *"xyz",
        "f_dc_0",
        "f_dc_1",
        "f_dc_2",
        "opacity",
        "scale_0",
        "scale_1",
        "scale_2",
        *(f"rot_{i}" for i in range(4)),
    )
)


def _file(
    properties: str = USUAL, data: str = "", count: object = 0, encoding: str = "ascii", before: str = ""
) -> bytes:
    head = f"ply\nformat {encoding} 1.0\n{before}element vertex {count}\n{properties}end_header\n"
    return (head + data).encode()


BINARY = "binary_little_endian"
LINKS = "comment gworld link 0 a 0 0 0 1 0 0 0\ncomment gworld link 1 b 0 0 0 1 0 0 0\n"
POINTS = "".join(f"property float {name}\n" for name in "xyz") + "property uchar red\n"
GAP = "".join(f"property float f_rest_{i}\n" for i in (*range(8), 9))
REFUSED = {
    "not a PLY": (b"PK\x03\x04", "does not begin with `ply`"),
    "no end": (b"ply\nformat ascii 1.0\n" + b"comment x\n" * 200_000, "no `end_header`"),
    "no format": (_file().replace(b"format ascii 1.0\n", b""), "no known format"),
    "unknown format": (_file(encoding="binary_middle"), "'format binary_middle"),
    "huge": (_file(count=10**9, encoding=BINARY), "promises 1000000000"),
    "huge text": (_file(count=10**9), "promises 1000000000"),
    "negative": (_file(count=-1), "element vertex -1"),
    "endless": (_file(count="9" * 5000), "not understood"),
    "property first": (_file(before="property float x\n"), "'property float x'"),
    "repeats": (_file(USUAL + "property float x\n"), "`x` of element `vertex`"),
    "twice": (_file(USUAL + "element vertex 0\n"), "`vertex` repeats"),
    "no vertex": (b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "no element `vertex`"),
    "lists": (_file(USUAL + "property list uchar int a\n"), "list properties"),
    "lists before": (
        _file(before="element face 1\nproperty list uchar int v\n", encoding=BINARY),
        "`face` has list properties and precedes",
    ),
    "no rotation": (_file(USUAL.replace("rot_2", "rot_9")), "lacks the properties rot_2 of"),
    "integers": (_file(USUAL.replace("float opacity", "uchar opacity")), "as floats"),
    "harmonics": (_file(USUAL + "property float f_rest_0\n"), "1 `f_rest`"),
    "harmonics with a gap": (_file(USUAL + GAP), "9 `f_rest`"),
    "points": (_file(POINTS, "0 0 0 1\n", 1), "is a point cloud.*gworld reconstruct"),
    "compressed": (
        _file("property uint packed_position\n", before="element chunk 0\n", encoding=BINARY),
        "is a compressed PLY.*gworld convert",
    ),
    "words": (_file(data="0 " * 12 + "zero 1\n", count=1), "row 0 has 14 words"),
    "short row": (_file(data="1" * 40, count=1), "row 0 has 1 words"),
    "no rotation at all": (_file(data="0 " * 14, count=1), "zero length"),
    "overflow": (_file(data="1e39 " + "1 " * 13, count=1), "column means"),
    "links without names": (
        _file(USUAL + "property int link\n", "1 " * 15, 1),
        "belongs to link 1 but 1 links are named",
    ),
    "names without links": (_file(data="1 " * 14, count=1, before=LINKS), "names 2 links but its rows have no `link`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_files_are_refused_with_the_fact(tmp_path: Path, case: str) -> None:
    data, message = REFUSED[case]
    (tmp_path / "bad.ply").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_ply(tmp_path / "bad.ply")
    assert "bad.ply" in str(caught.value) and str(caught.value).endswith(".")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path, fact in ((tmp_path, "is a folder"), (tmp_path / "no.ply", "does not exist")):
        with pytest.raises(InputError, match=fact):
            read_ply(path)


def test_what_cannot_be_rendered_is_not_written(tmp_path: Path) -> None:
    table = small_table()
    table.opacity_logits[5] = np.inf
    with pytest.raises(InputError, match="opacity_logits of Gaussian 5"):
        write_ply(table, tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


def test_gsplat_writes_what_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    exporter = pytest.importorskip("gsplat.exporter")
    table = small_table(3)
    columns = [
        torch.from_numpy(getattr(table, name)) for name in ("means", "log_scales", "quats_wxyz", "opacity_logits")
    ]
    sh = torch.from_numpy(table.sh)
    exporter.export_splats(*columns, sh[:, :1], sh[:, 1:], format="ply", save_to=str(tmp_path / "a.ply"))
    assert_same(replace(table, axes=None, metric=False), read_ply(tmp_path / "a.ply"))


def test_splat_transform_reads_what_is_written(tmp_path: Path) -> None:
    table = small_table(3, links=2)
    write_ply(table, tmp_path / "a.ply")
    splat_transform(tmp_path / "a.ply", tmp_path / "a.csv")
    found = read_csv(tmp_path / "a.csv")
    for name, values in rows_of(table).items():
        if not name.startswith("n"):
            assert np.allclose(found[name], values, rtol=1e-6, atol=1e-7), name


def test_splat_transform_writes_what_is_read(tmp_path: Path) -> None:
    table = small_table(2)
    write_ply(table, tmp_path / "a.ply")
    splat_transform(tmp_path / "a.ply", tmp_path / "b.ply")
    assert_same(table, read_ply(tmp_path / "b.ply"))


def test_a_real_file_is_read(real_data: Path) -> None:
    path = real_data / "gaussian_files" / "point_cloud.ply"
    table = read_ply(path)
    raw = np.frombuffer(path.read_bytes()[read_ply_header(path).offset :], "<f4").reshape(5398, 61)
    assert (len(table), table.sh_degree, table.axes) == (5398, 3, None)
    assert np.array_equal(table.means, raw[:, :3]) and np.array_equal(table.quats_wxyz, raw[:, -4:])
    assert np.array_equal(table.sh[:, 1, :], raw[:, [9, 24, 39]])
