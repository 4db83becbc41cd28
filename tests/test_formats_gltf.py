"""GLB: what comes back, other people's validator, and animation evaluated apart from our reader."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp
from scipy.special import expit

from gworld.errors import InputError, UsageError
from gworld.formats.axes import FROM_RDF, to_axes
from gworld.formats.gltf import read_gltf, read_gltf_animation, write_gltf
from gworld.formats.ply import read_ply, write_ply
from gworld.scene.harmonics import rgb_from_sh
from tests.glbs import UPRIGHT, arm_motion, assert_same, join_glb, make_table, split_glb
from tests.peers import splat_transform, validate_gltf

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
