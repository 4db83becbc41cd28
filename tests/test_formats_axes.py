"""Axis changes, similarity transforms and baked links: the scene itself must not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gworld.errors import InputError
from gworld.formats.axes import (
    FROM_RDF,
    axes_rotation,
    bake_links,
    matrix_from_quat,
    multiply_quats,
    quat_from_matrix,
    rotate_sh_rows,
    rotate_table,
    to_axes,
)
from gworld.formats.table import Link, SplatTable
from gworld.scene.harmonics import rotate_sh_numpy, sh_basis_numpy

AXES = ("RDF", "RUB", "RFU")


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    quat = rng.normal(size=4)
    return matrix_from_quat(quat / np.linalg.norm(quat))


def make_table(count: int = 60, degree: int = 3, links: int = 1, seed: int = 0) -> SplatTable:
    rng = np.random.default_rng(seed)
    poses = [rng.normal(size=7) for _ in range(links - 1)]
    named = [
        Link(f"l{i}", tuple(np.concatenate([p[:3], p[3:] / np.linalg.norm(p[3:])]).tolist()))
        for i, p in enumerate(poses)
    ]
    return SplatTable(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        quats_wxyz=rng.normal(size=(count, 4)).astype(np.float32),
        log_scales=rng.uniform(-5, 0, (count, 3)).astype(np.float32),
        opacity_logits=rng.normal(size=count).astype(np.float32),
        sh=rng.normal(size=(count, (degree + 1) ** 2, 3)).astype(np.float32),
        links=rng.integers(0, links, count).astype(np.int32),
        link_table=(Link("world"), *named),
    )


def world_of(table: SplatTable, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, covariances and colours along world directions, straight from the definitions, in float64."""
    poses = np.array([link.pose for link in table.link_table])[table.links]
    facing = matrix_from_quat(poses[:, 3:])
    means = np.einsum("nij,nj->ni", facing, table.means.astype(np.float64)) + poses[:, :3]
    quats = table.quats_wxyz.astype(np.float64)
    turns = facing @ matrix_from_quat(quats / np.linalg.norm(quats, axis=1, keepdims=True))
    spread = turns * np.exp(table.log_scales.astype(np.float64))[:, None]
    local = np.einsum("nji,dj->ndi", facing, directions)
    colours = np.einsum("ndk,nkc->ndc", sh_basis_numpy(local, table.sh_degree), table.sh)
    return means, spread @ np.swapaxes(spread, 1, 2), colours


def assert_moved(before: SplatTable, after: SplatTable, turn: np.ndarray, shift: np.ndarray, scale: float) -> None:
    rng = np.random.default_rng(9)
    directions = rng.normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    means, covariances, colours = world_of(before, directions)
    moved = world_of(after, directions @ turn.T)
    np.testing.assert_allclose(moved[0], scale * means @ turn.T + shift, atol=2e-5)
    np.testing.assert_allclose(moved[1], scale**2 * turn @ covariances @ turn.T, atol=2e-5)
    np.testing.assert_allclose(moved[2], colours, atol=2e-5)


@pytest.mark.parametrize("links", [1, 4])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("target", AXES)
def test_to_axes_keeps_shape_and_colour(target, degree, links):
    table = make_table(degree=degree, links=links)
    after = to_axes(table, target)
    assert after.axes == target
    assert after.link_table[0] == Link("world")
    assert_moved(table, after, FROM_RDF[target], np.zeros(3), 1.0)


@pytest.mark.parametrize("links", [1, 3])
def test_flips_there_and_back_are_exact(links):
    table = replace(make_table(links=links), axes="RDF")
    there = to_axes(table, "RUB")
    np.testing.assert_array_equal(there.means[there.links == 0], (table.means * [1, -1, -1])[table.links == 0])
    back = to_axes(there, "RDF")
    for name in ("means", "quats_wxyz", "log_scales", "sh"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    turned = there.links == 0
    flipped = table.quats_wxyz * [1, 1, -1, -1]  # what nianticlabs/spz and SuperSplat write for the same Gaussian
    np.testing.assert_array_equal(there.quats_wxyz[turned], flipped[turned].astype(np.float32))


@pytest.mark.parametrize("source", AXES)
@pytest.mark.parametrize("target", AXES)
def test_there_and_back(source, target):
    table = replace(make_table(links=2), axes=source)
    back = to_axes(to_axes(table, target), source)
    assert_moved(table, back, np.eye(3), np.zeros(3), 1.0)
    np.testing.assert_array_equal(back.means[back.links == 0], table.means[table.links == 0])
    np.testing.assert_allclose(back.sh, table.sh, atol=3e-6)


def test_axes_mean_what_they_say():
    down, forward = np.array([0, 1, 0]), np.array([0, 0, 1])
    np.testing.assert_array_equal(axes_rotation(None, "RUB") @ down, [0, -1, 0])
    np.testing.assert_array_equal(axes_rotation("RDF", "RFU") @ down, [0, 0, -1])
    np.testing.assert_array_equal(axes_rotation("RDF", "RFU") @ forward, [0, 1, 0])
    np.testing.assert_array_equal(axes_rotation("RUB", "RFU") @ [0, 1, 0], [0, 0, 1])


@pytest.mark.parametrize("links", [1, 4])
def test_similarity(links):
    rng = np.random.default_rng(3)
    table, turn, shift = make_table(links=links), random_rotation(rng), rng.normal(size=3)
    assert_moved(table, rotate_table(table, turn, shift, 2.5), turn, shift, 2.5)


def test_similarity_refuses_what_is_none():
    table = make_table(4)
    for rotation in (np.diag([1.0, 1, -1]), np.eye(3) * 2, np.eye(2), np.full((3, 3), np.nan)):
        with pytest.raises(InputError, match="proper rotation"):
            rotate_table(table, rotation)
    for scale in (0.0, -1.0, np.inf):
        with pytest.raises(InputError, match="scale above 0"):
            rotate_table(table, np.eye(3), scale=scale)


def test_bake_links():
    table = make_table(links=5)
    baked = bake_links(table)
    assert baked.link_table == (Link("world"),)
    assert not baked.links.any()
    assert_moved(table, baked, np.eye(3), np.zeros(3), 1.0)


def test_quaternions_of_matrices():
    rng = np.random.default_rng(5)
    turns = [random_rotation(rng) for _ in range(50)] + list(FROM_RDF.values())
    turns += [np.diag([-1.0, -1, 1]), np.diag([-1.0, 1, -1])]
    for turn in turns:
        np.testing.assert_allclose(matrix_from_quat(quat_from_matrix(turn)), turn, atol=1e-12)
    left, right = rng.normal(size=(2, 7, 4))
    left, right = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (left, right))
    product = matrix_from_quat(multiply_quats(left, right))
    np.testing.assert_allclose(product, matrix_from_quat(left) @ matrix_from_quat(right), atol=1e-12)


def test_rotated_rows_agree_with_harmonics():
    rng = np.random.default_rng(6)
    sh = rng.normal(size=(9, 16, 3))
    for turn in (random_rotation(rng), FROM_RDF["RUB"], FROM_RDF["RFU"]):
        np.testing.assert_allclose(rotate_sh_rows(sh, turn), rotate_sh_numpy(sh, turn), atol=1e-9)


def test_empty_table():
    assert len(bake_links(to_axes(make_table(0, links=2), "RFU"))) == 0
