"""GLB: validator, other people's files, animation evaluated apart from our reader, and files that lie."""

from __future__ import annotations

import base64
import json
import random
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp
from scipy.special import expit

from gworld.errors import GWorldError, InputError, UsageError
from gworld.formats.axes import FROM_RDF, matrix_from_quat, to_axes
from gworld.formats.gltf import read_gltf, read_gltf_animation, write_gltf
from gworld.formats.ply import read_ply, write_ply
from gworld.formats.table import Link, SplatTable
from gworld.scene.harmonics import rgb_from_sh, sh_basis_numpy
from tests.peers import splat_transform, validate_gltf

UPRIGHT = {  # glTF's Left/Up/Forward coordinates of a point, written out by hand
    "RDF": np.diag([-1.0, -1, 1]),
    "RUB": np.diag([-1.0, 1, -1]),
    "RFU": np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]]),
}


def make_table(count: int = 60, degree: int = 1, links: int = 1, axes: Any = "RFU", seed: int = 0) -> SplatTable:
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(count, 4))
    rest = [Link("world")]
    for index in range(1, links):
        turn = Rotation.from_rotvec(rng.normal(size=3)).as_quat()
        rest.append(Link(f"link {index}", (*rng.normal(size=3).tolist(), *turn[[3, 0, 1, 2]].tolist()), index - 2))
    return SplatTable(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        quats_wxyz=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        log_scales=rng.normal(-4, 1, (count, 3)).astype(np.float32),
        opacity_logits=rng.normal(0, 3, count).astype(np.float32),
        sh=rng.normal(0, 0.3, (count, (degree + 1) ** 2, 3)).astype(np.float32),
        links=np.sort(rng.integers(0, links, count)).astype(np.int32),
        axes=axes,
        metric=axes == "RFU",
        link_table=tuple(rest),
    )


def arm_motion(table: SplatTable, count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """A two-link arm: the first link slides and turns by more than half a turn, the second turns, others rest."""
    times = 3.5 + np.cumsum(np.linspace(0.05, 0.2, count))
    poses = np.tile(np.array([link.pose for link in table.link_table]), (count, 1, 1))
    swing = Rotation.from_rotvec(np.linspace(0, 5, count)[:, None] * [0, 0.6, 0.8])
    poses[:, 1, :3] += np.linspace(0, 1, count)[:, None] * [0.5, -1, 2]
    for link in (1, 2):
        rest = Rotation.from_quat(poses[0, link, [4, 5, 6, 3]])
        poses[:, link, 3:] = (swing * rest).as_quat(canonical=True)[:, [3, 0, 1, 2]]  # canonical: the sign jumps
    return times, poses


def covariances(table: SplatTable) -> np.ndarray:
    quats = table.quats_wxyz.astype(np.float64)
    axes = matrix_from_quat(quats / np.linalg.norm(quats, axis=1, keepdims=True)) * np.exp(table.log_scales)[:, None]
    return axes @ axes.swapaxes(1, 2)


def assert_same(found: SplatTable, expected: SplatTable, atol: float = 0.0) -> None:
    np.testing.assert_allclose(found.means, expected.means, rtol=0, atol=atol)
    np.testing.assert_allclose(found.sh, expected.sh, rtol=0, atol=atol)
    np.testing.assert_allclose(found.log_scales, expected.log_scales, rtol=0, atol=1e-6)
    alphas = [expit(table.opacity_logits.astype(np.float64)) for table in (found, expected)]
    np.testing.assert_allclose(alphas[0], alphas[1], rtol=0, atol=1e-7)
    largest = np.abs(covariances(expected)).max(axis=(1, 2), keepdims=True)
    np.testing.assert_array_less(np.abs(covariances(found) - covariances(expected)) / largest, 3e-6)


def split_glb(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    count = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + count]), data[28 + count :]


def join_glb(path: Path, root: Any, binary: bytes, text: bytes | None = None) -> Path:
    text = json.dumps(root).encode() if text is None else text
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary)) + struct.pack("<I4s", len(text), b"JSON")
    path.write_bytes(head + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary)
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[dict, bytes]:
    """A file as other tools write it: one node, no note of ours."""
    write_gltf(make_table(40, 1), tmp_path / "own.glb")
    root, binary = split_glb(tmp_path / "own.glb")
    root["nodes"] = [{"mesh": 0}]
    return root, binary


# What comes back


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("axes", [None, "RDF", "RUB", "RFU"])
def test_round_trip_keeps_every_column_the_links_and_the_frame(tmp_path: Path, degree: int, axes: Any) -> None:
    table = make_table(60, degree, links=degree + 1, axes=axes)
    write_gltf(table, tmp_path / "scene.glb")
    found = read_gltf(tmp_path / "scene.glb")
    assert_same(found, table)
    np.testing.assert_array_equal(found.quats_wxyz, table.quats_wxyz)
    np.testing.assert_array_equal(found.links, table.links)
    assert (found.axes, found.metric, found.link_table) == (table.axes, table.metric, table.link_table)


def test_mixed_rows_are_grouped_by_link_in_their_order(tmp_path: Path) -> None:
    table = make_table(50, 1, links=4)
    shuffled = table.select(np.random.default_rng(1).permutation(50))
    write_gltf(shuffled, tmp_path / "scene.glb")
    assert_same(read_gltf(tmp_path / "scene.glb"), shuffled.select(np.argsort(shuffled.links, kind="stable")))


def test_empty_links_and_empty_tables_survive(tmp_path: Path) -> None:
    table = replace(make_table(30, 0, links=4), links=np.repeat([0, 2], 15).astype(np.int32))
    for rows in (slice(None), slice(0, 0)):
        write_gltf(table.select(rows), tmp_path / "scene.glb")
        found = read_gltf(tmp_path / "scene.glb")
        assert found.link_table == table.link_table
        assert len(found) == len(table.select(rows))


def test_extreme_values_stay_finite_and_near(tmp_path: Path) -> None:
    table = make_table(4, 0)
    table.opacity_logits[:] = (-1e4, -60, 60, 1e4)
    table.log_scales[:] = np.array([-40.0, -20, 10, 40])[:, None]
    write_gltf(replace(table, quats_wxyz=table.quats_wxyz * np.float32(37)), tmp_path / "scene.glb")
    assert_same(read_gltf(tmp_path / "scene.glb"), table)


def test_only_binary_names_are_written_and_torch_is_not_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.glb"):
        write_gltf(make_table(), tmp_path / "scene.gltf")
    code = "import sys, gworld.formats.gltf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# What others make of it


@pytest.mark.parametrize("degree", [0, 3])
def test_the_khronos_validator_finds_nothing_but_the_extension(tmp_path: Path, degree: int) -> None:
    """The validator knows no names with a colon, whoever writes them; under names it knows, all is well."""
    table = make_table(40, degree, links=4)
    times, poses = arm_motion(table)
    for name, motion in (("static", ()), ("moving", (times, poses))):
        file = tmp_path / f"{name}.glb"
        write_gltf(table, file, *motion)
        issues = validate_gltf(file)["issues"]
        codes = {message["code"] for message in issues["messages"]}
        assert codes <= {"UNSUPPORTED_EXTENSION", "MESH_PRIMITIVE_INVALID_ATTRIBUTE"}
        for message in issues["messages"]:
            assert message["code"] == "UNSUPPORTED_EXTENSION" or "KHR_gaussian_splatting:" in message["pointer"]
        root, binary = split_glb(file)
        plain = json.loads(json.dumps(root).replace("KHR_gaussian_splatting:", "_"))
        issues = validate_gltf(join_glb(tmp_path / "plain.glb", plain, binary))["issues"]
        assert (issues["numErrors"], issues["numWarnings"], issues["numHints"]) == (0, 0, 0)


def test_splat_transform_turns_a_ply_upright_as_we_do(tmp_path: Path) -> None:
    table = make_table(80, 3, axes=None)
    write_ply(table, tmp_path / "scene.ply")
    splat_transform(tmp_path / "scene.ply", tmp_path / "theirs.glb")
    theirs = read_gltf(tmp_path / "theirs.glb")
    assert (theirs.axes, theirs.metric) == ("RFU", False)
    assert_same(theirs, to_axes(table, "RFU"), atol=1e-6)
    np.testing.assert_array_equal(theirs.means, to_axes(table, "RFU").means)
    # The same object, under our root node, stands where theirs stands in a viewer.
    for axes in FROM_RDF:
        write_gltf(to_axes(table, axes), tmp_path / "own.glb")
        root, binary = split_glb(tmp_path / "own.glb")
        del root["nodes"][0]["extras"]
        assert_same(read_gltf(join_glb(tmp_path / "stripped.glb", root, binary)), theirs, atol=2e-6)


def test_a_real_scene_agrees_with_splat_transform(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "gaussian_files" / "point_cloud.ply"
    if not source.is_file():
        pytest.skip(f"no real splat file at {source}")
    splat_transform(source, tmp_path / "theirs.glb")
    table = read_ply(source)
    write_gltf(table, tmp_path / "ours.glb")
    assert_same(read_gltf(tmp_path / "theirs.glb"), to_axes(table, "RFU"), atol=1e-6)
    assert_same(read_gltf(tmp_path / "ours.glb"), table)
    issues = validate_gltf(tmp_path / "ours.glb")["issues"]
    assert {message["code"] for message in issues["messages"]} <= {
        "UNSUPPORTED_EXTENSION",
        "MESH_PRIMITIVE_INVALID_ATTRIBUTE",
    }


@pytest.mark.parametrize("axes", ["RDF", "RUB", "RFU"])
def test_nodes_place_the_gaussians_upright(tmp_path: Path, axes: Any) -> None:
    """The node transforms alone, composed here, give the scene in glTF's axes."""
    table = make_table(30, 0, links=3, axes=axes)
    write_gltf(table, tmp_path / "scene.glb")
    nodes = split_glb(tmp_path / "scene.glb")[0]["nodes"]
    np.testing.assert_allclose(Rotation.from_quat(nodes[0]["rotation"]).as_matrix(), UPRIGHT[axes], atol=1e-12)
    for link, node in zip(table.link_table, nodes[1:], strict=True):
        np.testing.assert_allclose(node["translation"], link.pose[:3])
        np.testing.assert_allclose(np.roll(node["rotation"], 1), link.pose[3:], atol=1e-12)


def test_plain_viewers_get_linear_colours_and_bounds(tmp_path: Path) -> None:
    table = make_table(50, 1)
    write_gltf(table, tmp_path / "scene.glb")
    root, binary = split_glb(tmp_path / "scene.glb")
    attributes = root["meshes"][0]["primitives"][0]["attributes"]
    color, position = (root["accessors"][attributes[name]] for name in ("COLOR_0", "POSITION"))
    start = root["bufferViews"][color["bufferView"]]["byteOffset"]
    shown = np.frombuffer(binary, np.uint8, 200, start).reshape(50, 4) / 255
    display = np.where(shown[:, :3] <= 0.0031308, 12.92 * shown[:, :3], 1.055 * shown[:, :3] ** (1 / 2.4) - 0.055)
    bright = shown[:, :3] > 0.02  # bytes of linear light are coarse in the dark
    wanted = np.clip(rgb_from_sh(table.sh[:, 0]), 0, 1)
    np.testing.assert_allclose(display[bright], wanted[bright], atol=0.03)
    np.testing.assert_allclose(shown[:, 3], expit(table.opacity_logits), atol=0.003)
    assert (position["min"], position["max"]) == (table.means.min(0).tolist(), table.means.max(0).tolist())


# Motion


def test_animated_arm_moves_as_told(tmp_path: Path) -> None:
    """Tracks are evaluated here with scipy, at the keys and between them."""
    table = make_table(40, 1, links=4)
    times, poses = arm_motion(table)
    write_gltf(table, tmp_path / "arm.glb", times, poses)
    root, binary = split_glb(tmp_path / "arm.glb")

    def values(index: int, width: int) -> np.ndarray:
        accessor = root["accessors"][index]
        start = root["bufferViews"][accessor["bufferView"]]["byteOffset"] + accessor["byteOffset"]
        return np.frombuffer(binary, "<f4", accessor["count"] * width, start).reshape(-1, width).astype(np.float64)

    animation = root["animations"][0]
    targets = {(c["target"]["node"] - 1, c["target"]["path"]): c["sampler"] for c in animation["channels"]}
    assert set(targets) == {(1, "translation"), (1, "rotation"), (2, "rotation")}
    for (link, path), sampler in targets.items():
        keys = values(animation["samplers"][sampler]["input"], 1)[:, 0]
        track = values(animation["samplers"][sampler]["output"], 3 if path == "translation" else 4)
        np.testing.assert_allclose(keys, times - times[0], atol=1e-6)
        if path == "translation":
            np.testing.assert_allclose(track, poses[:, link, :3], atol=1e-6)
            continue
        assert ((track[1:] * track[:-1]).sum(1) > 0).all()
        expected = Rotation.from_quat(poses[:, link, [4, 5, 6, 3]])
        assert (expected.inv() * Rotation.from_quat(track)).magnitude().max() < 1e-6
        between = (keys[1:] + keys[:-1]) / 2
        halfway = Slerp(times - times[0], expected)(between)
        mean = Rotation.from_quat((track[1:] + track[:-1]) / 2)  # halfway, the chord has the arc's direction
        assert (halfway.inv() * mean).magnitude().max() < 1e-5


def test_animation_round_trip(tmp_path: Path) -> None:
    table = make_table(20, 0, links=4)
    times, poses = arm_motion(table)
    write_gltf(table, tmp_path / "arm.glb", times, poses)
    found = read_gltf_animation(tmp_path / "arm.glb")
    assert found is not None
    np.testing.assert_allclose(found[0], times, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1][..., :3], poses[..., :3], rtol=0, atol=1e-6)
    dots = np.abs((found[1][..., 3:] * poses[..., 3:]).sum(-1))
    np.testing.assert_allclose(dots, 1, atol=1e-6)
    again = tmp_path / "again.glb"
    write_gltf(table, again, *found)
    np.testing.assert_allclose(read_gltf_animation(again)[1], found[1], atol=1e-6)


def test_epoch_times_and_single_instants_work(tmp_path: Path) -> None:
    table = make_table(20, 0, links=3)
    times, poses = arm_motion(table)
    write_gltf(table, tmp_path / "arm.glb", times + 1.7e9, poses)
    np.testing.assert_allclose(read_gltf_animation(tmp_path / "arm.glb")[0], times + 1.7e9, rtol=0, atol=1e-6)
    write_gltf(table, tmp_path / "one.glb", times[:1], poses[4:5])
    np.testing.assert_allclose(read_gltf_animation(tmp_path / "one.glb")[1][0, 1, :3], poses[4, 1, :3], atol=1e-6)


def test_links_at_rest_make_no_animation(tmp_path: Path) -> None:
    table = make_table(20, 0, links=3)
    rest = np.tile(np.array([link.pose for link in table.link_table], np.float32), (5, 1, 1))
    rest[..., 3:] *= -1  # the same rotation
    write_gltf(table, tmp_path / "rest.glb", np.arange(5), rest)
    assert "animations" not in split_glb(tmp_path / "rest.glb")[0]
    assert read_gltf_animation(tmp_path / "rest.glb") is None


@pytest.mark.parametrize("fault", ["order", "nan", "links", "half", "zero", "close"])
def test_motion_that_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    table = make_table(20, 0, links=3)
    times, poses = arm_motion(table)
    if fault == "order":
        times[3] = times[2]
    elif fault == "nan":
        poses[2, 1, 0] = np.nan
    elif fault == "links":
        poses = poses[:, :2]
    elif fault == "zero":
        poses[2, 1, 3:] = 0
    elif fault == "close":
        times = 1e6 * np.array([0, *(1 + 1e-9 * np.arange(8))])
    with pytest.raises(InputError):
        write_gltf(table, tmp_path / "arm.glb", times, None if fault == "half" else poses)
    assert not list(tmp_path.iterdir())


# Files of others


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
