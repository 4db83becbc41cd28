"""GLB files of others: trees of nodes, embedded buffers, quantised columns, linear colours, and files that lie."""

from __future__ import annotations

import base64
import json
import random
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gworld.errors import GWorldError, InputError
from gworld.formats.gltf import read_gltf, read_gltf_animation, write_gltf
from gworld.formats.table import Link, SplatTable
from gworld.scene.harmonics import sh_basis_numpy
from tests.glbs import UPRIGHT, arm_motion, assert_same, covariances, join_glb, make_table, split_glb


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[dict, bytes]:
    """A file as other tools write it: one node, no note of ours."""
    write_gltf(make_table(40, 1), tmp_path / "own.glb")
    root, binary = split_glb(tmp_path / "own.glb")
    root["nodes"] = [{"mesh": 0}]
    return root, binary


def test_node_trees_are_applied(tmp_path: Path, foreign: tuple[dict, bytes]) -> None:
    root, binary = foreign
    plain = read_gltf(join_glb(tmp_path / "plain.glb", root, binary))
    turn, lean = Rotation.from_rotvec([0.3, -1.1, 0.4]), Rotation.from_rotvec([1, 0, 0.2])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 0.5 * lean.as_matrix(), (0.1, 0.2, 0.3)
    root["nodes"] = [
        {"children": [1, 2], "translation": [1, 2, 3], "rotation": turn.as_quat().tolist(), "scale": [2, 2, 2]},
        {"mesh": 0, "matrix": matrix.T.ravel().tolist()},
        {"mesh": 0},
    ]
    found = read_gltf(join_glb(tmp_path / "tree.glb", root, binary))
    assert (len(found), found.axes, found.link_table) == (80, "RFU", (Link("world"),))
    here = plain.means @ UPRIGHT["RFU"].T  # back to glTF's axes
    first = (here @ matrix[:3, :3].T + matrix[:3, 3]) * 2 @ turn.as_matrix().T + (1, 2, 3)
    second = here * 2 @ turn.as_matrix().T + (1, 2, 3)
    np.testing.assert_allclose(found.means, np.concatenate([first, second]) @ UPRIGHT["RFU"], atol=1e-5)
    for rows, spin, scale in ((slice(0, 40), turn * lean, 1.0), (slice(40, 80), turn, 2.0)):
        rotation = UPRIGHT["RFU"].T @ spin.as_matrix() @ UPRIGHT["RFU"]
        np.testing.assert_allclose(
            covariances(found.select(rows)), scale**2 * rotation @ covariances(plain) @ rotation.T, atol=1e-6
        )
        looks = np.random.default_rng(0).normal(size=(9, 3))
        looks /= np.linalg.norm(looks, axis=1, keepdims=True)
        turned = sh_basis_numpy(looks @ rotation.T, 1) @ found.sh[rows]
        np.testing.assert_allclose(turned, sh_basis_numpy(looks, 1) @ plain.sh, atol=1e-5)


def test_our_file_rearranged_by_others_is_read_as_it_looks(tmp_path: Path) -> None:
    table = make_table(40, 1, links=3)
    write_gltf(table, tmp_path / "scene.glb")
    root, binary = split_glb(tmp_path / "scene.glb")
    root["nodes"][0]["translation"] = [0, 5, 0]
    found = read_gltf(join_glb(tmp_path / "moved.glb", root, binary))
    assert len(found.link_table) == 1
    poses = np.array([link.pose for link in table.link_table])[table.links]
    world = Rotation.from_quat(poses[:, [4, 5, 6, 3]]).apply(table.means) + poses[:, :3] + (0, 0, 5)
    np.testing.assert_allclose(found.means, world, atol=1e-5)


def test_gltf_text_with_embedded_and_neighbouring_buffers(tmp_path: Path, foreign: tuple[dict, bytes]) -> None:
    root, binary = foreign
    expected = read_gltf(join_glb(tmp_path / "scene.glb", root, binary))
    (tmp_path / "a b.bin").write_bytes(binary)
    data = "data:application/octet-stream;base64," + base64.b64encode(binary).decode()
    for uri in (data, "a%20b.bin"):
        root["buffers"][0]["uri"] = uri
        (tmp_path / "scene.gltf").write_text(json.dumps(root))
        assert_same(read_gltf(tmp_path / "scene.gltf"), expected)
    for uri in (
        "../a.bin",
        "/etc/passwd",
        "http://host/a.bin",
        "file:///etc/passwd",
        "data:,x",
        "none.bin",
        "\ud800",
        "",
    ):
        root["buffers"][0]["uri"] = uri
        (tmp_path / "scene.gltf").write_text(json.dumps(root))
        with pytest.raises(InputError):
            read_gltf(tmp_path / "scene.gltf")


def test_quantised_rotations_and_opacities_are_decoded(tmp_path: Path, foreign: tuple[dict, bytes]) -> None:
    root, binary = foreign
    expected = read_gltf(join_glb(tmp_path / "scene.glb", root, binary))
    attributes = root["meshes"][0]["primitives"][0]["attributes"]
    for name, kind, component, dtype in (("ROTATION", "VEC4", 5122, "<i2"), ("OPACITY", "SCALAR", 5123, "<u2")):
        index = attributes[f"KHR_gaussian_splatting:{name}"]
        view = root["bufferViews"][root["accessors"][index]["bufferView"]]
        values = np.frombuffer(binary, "<f4", view["byteLength"] // 4, view["byteOffset"])
        packed = np.rint(values * np.iinfo(dtype).max).astype(dtype).tobytes()
        root["bufferViews"].append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(packed)})
        root["accessors"][index] = {"bufferView": len(root["bufferViews"]) - 1, "componentType": component,
                                    "normalized": True, "count": 40, "type": kind}  # fmt: skip
        binary += packed
    root["buffers"][0]["byteLength"] = len(binary)
    found = read_gltf(join_glb(tmp_path / "small.glb", root, binary))
    np.testing.assert_allclose(
        covariances(found), covariances(expected), rtol=0, atol=1e-4 * covariances(expected).max()
    )
    np.testing.assert_allclose(found.opacity_logits, expected.opacity_logits, atol=0.05)


@pytest.mark.parametrize("degree", [0, 2])
def test_linear_colours_become_srgb(tmp_path: Path, degree: int) -> None:
    table = make_table(30, degree)
    table.sh[:, 1:] *= 0.2
    table.sh[:, 0] = np.clip(table.sh[:, 0], -0.6, 1.2)
    write_gltf(table, tmp_path / "scene.glb")
    root, binary = split_glb(tmp_path / "scene.glb")
    shading = root["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"]
    shading["colorSpace"] = "lin_rec709_display"
    found = read_gltf(join_glb(tmp_path / "linear.glb", root, binary))
    looks = np.random.default_rng(0).normal(size=(20, 3))
    basis = sh_basis_numpy(looks / np.linalg.norm(looks, axis=1, keepdims=True), degree)
    light, display = np.maximum(basis @ table.sh + 0.5, 0), basis @ found.sh + 0.5
    wanted = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(display, wanted, atol=1e-5 if degree == 0 else 0.03)


# Files that lie


def change(root: dict, *path: Any, value: Any) -> None:
    for key in path[:-1]:
        root = root[key]
    root[path[-1]] = value


SPLATS = ("meshes", 0, "primitives", 0, "extensions", "KHR_gaussian_splatting")
FAULTS = {
    "holds no KHR": lambda root: change(root, "nodes", value=[{}]),
    "unevenly": lambda root: change(root, "nodes", 0, "scale", value=[1, 2, 1]),
    "or mirrors": lambda root: change(root, "nodes", 0, "scale", value=[-1, 1, 1]),
    "in a circle": lambda root: change(root, "nodes", value=[{"children": [1]}, {"children": [0], "mesh": 0}]),
    "hangs in the tree twice": lambda root: change(root, "nodes", value=[{"children": [1, 1]}, {"mesh": 0}]),
    "zero length": lambda root: change(root, "nodes", 0, "rotation", value=[0, 0, 0, 0]),
    "finite numbers": lambda root: change(root, "nodes", 0, "translation", value=[1e300, 0, 0]),
    "kernel": lambda root: change(root, *SPLATS, "kernel", value="box"),
    "colorSpace": lambda root: change(root, *SPLATS, "colorSpace", value="acescg"),
    "stored sparse": lambda root: change(root, "accessors", 0, "sparse", value={"count": 1}),
    "stored compressed": lambda root: root["accessors"][0].pop("bufferView"),
    "is compressed": lambda root: change(root, "bufferViews", 0, "extensions", value={"EXT_meshopt_compression": {}}),
    "KHR_draco": lambda root: change(root, "extensionsRequired", value=["KHR_draco_mesh_compression"]),
    "packed by 'KHR_spz'": lambda root: (
        change(root, *SPLATS, "extensions", value={"KHR_spz": {}}),
        change(root, "meshes", 0, "primitives", 0, "attributes", value={"POSITION": 0}),
    ),
    "promises": lambda root: change(root, "accessors", 0, "count", value=10**9),
    "entries for": lambda root: change(root, "accessors", 1, "count", value=20),
    "stride": lambda root: change(root, "bufferViews", 0, "byteStride", value=4),
    "more than 512": lambda root: change(root, "meshes", 0, "primitives", value=root["meshes"][0]["primitives"] * 600),
    "at most 16384": lambda root: change(root, "nodes", value=[{}] * 20000),
    "version '1.0'": lambda root: change(root, "asset", "version", value="1.0"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_sentence(tmp_path: Path, foreign: tuple[dict, bytes], fault: str) -> None:
    root, binary = foreign
    FAULTS[fault](root)
    with pytest.raises(InputError, match=re.escape(fault)) as caught:
        read_gltf(join_glb(tmp_path / "bad.glb", root, binary))
    assert "bad.glb" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_small_files_that_unfold_without_end_are_refused(tmp_path: Path, foreign: tuple[dict, bytes]) -> None:
    root, binary = foreign
    count = 200_000
    shared = len(root["bufferViews"])
    root["bufferViews"].append({"buffer": 0, "byteOffset": len(binary), "byteLength": 16 * count})
    for accessor in root["accessors"]:
        accessor.update(bufferView=shared, byteOffset=0, count=count)
        accessor.pop("normalized", None)
    root["buffers"][0]["byteLength"] = len(binary) + 16 * count
    root["nodes"] = [{"children": list(range(1, 65))}, *({"mesh": 0} for _ in range(64))]
    with pytest.raises(InputError, match="unfold"):
        read_gltf(join_glb(tmp_path / "bomb.glb", root, binary + bytes(16 * count)))
    for text in (b'{"a":' + b"[" * 1_000_000 + b"}", b'{"a":[' + b"{}," * 1_500_000 + b"{}]}"):
        with pytest.raises(InputError):
            read_gltf(join_glb(tmp_path / "bomb.glb", None, binary, text))


def _mutants(root: dict, binary: bytes, path: Path) -> Any:
    """Truncations, changed numbers and types in the JSON, damaged floats and random bytes."""
    rng = random.Random(7)
    whole = join_glb(path, root, binary).read_bytes()
    for size in range(0, 513, 5):
        yield whole[:size]
    odd = [
        "-1",
        "0",
        "3",
        "1e400",
        "4294967296",
        "9" * 400,
        "true",
        "null",
        '"x"',
        "[]",
        "{}",
        "NaN",
        "0.5",
        '"\\ud800"',
    ]
    text = json.dumps(root)
    spots = [match.span() for match in re.finditer(r"(?<=[:\[ ])(-?\d+(\.\d+)?(e-?\d+)?|\"[^\"]*\"(?!:))", text)]
    for _ in range(160):
        start, end = rng.choice(spots)
        yield join_glb(path, None, binary, (text[:start] + rng.choice(odd) + text[end:]).encode()).read_bytes()
    for _ in range(80):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data)
    for value in (np.nan, np.inf, -1e38, 1e38, 1e-45):
        for _ in range(8):
            data = bytearray(binary)
            struct.pack_into("<f", data, rng.randrange(len(binary) // 4) * 4, value)
            yield join_glb(path, root, bytes(data)).read_bytes()


def test_mutants_are_read_or_refused_with_one_sentence(tmp_path: Path, foreign: tuple[dict, bytes]) -> None:
    table = make_table(20, 1, links=3)
    write_gltf(table, tmp_path / "own.glb", *arm_motion(table))
    refused = 0
    for root, binary in (foreign, split_glb(tmp_path / "own.glb")):
        for data in _mutants(root, binary, tmp_path / "mutant.glb"):
            (tmp_path / "mutant.glb").write_bytes(data)
            for read in (read_gltf, read_gltf_animation):
                try:
                    found = read(tmp_path / "mutant.glb")
                except GWorldError as error:
                    str(error).encode()
                    refused += 1
                else:
                    if isinstance(found, SplatTable):
                        assert all(np.isfinite(column).all() for column in (found.means, found.sh, found.log_scales))
    assert refused > 200
