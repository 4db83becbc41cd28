"""Edits of tables: what must stay stays, what must go goes, and decimation keeps mass and moments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gworld.errors import UsageError
from gworld.formats import edit
from gworld.formats.merge import covariances, merge_pairs, morton_order
from gworld.formats.table import SplatTable
from tests.tables import random_table


def test_crops_keep_what_is_inside_and_other_links_whole() -> None:
    table = random_table(count=2000, links=3)
    cropped = edit.crop_box(table, (-1, -1, -1), (1, 1, 1))
    world = cropped.means[cropped.links == 0]
    assert len(world) and (np.abs(world) <= 1).all()
    assert (cropped.links > 0).sum() == (table.links > 0).sum()
    ball = edit.crop_sphere(table, (0.5, 0, 0), 1.5)
    assert (np.linalg.norm(ball.means[ball.links == 0] - [0.5, 0, 0], axis=1) <= 1.5 + 1e-5).all()
    with pytest.raises(UsageError, match="is empty"):
        edit.crop_box(table, (1, 1, 1), (0, 2, 2))
    with pytest.raises(UsageError, match="radius above 0"):
        edit.crop_sphere(table, (0, 0, 0), 0.0)


def test_floaters_go_and_the_surface_stays() -> None:
    table = random_table(count=4000)
    means = table.means.copy()
    means[:, 2] = 0.01 * means[:, 2]  # a sheet
    means[:10] += [0, 0, 30]  # lonely
    logits, scales = table.opacity_logits.copy(), table.log_scales.copy()
    logits[10:20] = -9.0  # invisible
    scales[20:30] = 5.0  # larger than the scene
    kept = edit.drop_floaters(replace(table, means=means, opacity_logits=logits, log_scales=scales))
    expected = set(map(tuple, means[30:]))
    found = set(map(tuple, kept.means))
    assert not found & set(map(tuple, means[:30]))
    assert len(expected - found) < 0.03 * len(expected)


def mass_of(table: SplatTable) -> np.ndarray:
    """Opacity times mean cross-section: what each Gaussian adds to a picture."""
    return edit.opacities(table) * np.exp(table.log_scales.sum(axis=1) * 2 / 3)


@pytest.mark.parametrize("count", [1, 100, 999, 5000])
def test_decimation_reaches_its_count_and_keeps_the_whole(count: int) -> None:
    table = random_table(count=4000)
    small = edit.decimate(table, count)
    visible = int((edit.opacities(table) >= 1 / 255).sum())
    assert len(small) == (min(count, visible) if count < 4000 else 4000)
    assert small.sh.shape[1:] == (16, 3) and np.isfinite(small.log_scales).all()
    if count == 999:
        before, after = mass_of(table), mass_of(small)
        assert after.sum() == pytest.approx(before.sum(), rel=0.1)
        np.testing.assert_allclose(after @ small.means / after.sum(), before @ table.means / before.sum(), atol=0.05)


def test_a_merged_pair_has_the_moments_of_both() -> None:
    table = random_table(count=2, seed=3)
    merged = merge_pairs(table, 1)
    weight = mass_of(table) / mass_of(table).sum()
    mean = weight @ table.means
    spread = [np.outer(d, d) for d in table.means - mean]
    covariance = sum(w * (c + s) for w, c, s in zip(weight, covariances(table), spread, strict=True))
    np.testing.assert_allclose(merged.means[0], mean, rtol=1e-5)
    np.testing.assert_allclose(covariances(merged)[0], covariance, rtol=1e-4)
    np.testing.assert_allclose(merged.sh[0], np.tensordot(weight, table.sh, 1), rtol=1e-4, atol=1e-6)


def test_links_are_never_merged_across() -> None:
    table = random_table(count=1000, links=4)
    small = edit.decimate(table, 40)
    assert len(small) == 40
    assert set(small.links) == {0, 1, 2, 3}


def test_morton_order_keeps_neighbours_together() -> None:
    means = np.random.default_rng(0).uniform(size=(4000, 3)).astype(np.float32)
    order = morton_order(means, np.zeros(4000, np.int32))
    assert sorted(order) == list(range(4000))
    steps = np.linalg.norm(np.diff(means[order], axis=0), axis=1)
    assert np.median(steps) < 0.1 * np.median(np.linalg.norm(np.diff(means, axis=0), axis=1)) * 2


def test_sh_degree_is_cut_and_padded() -> None:
    table = random_table()
    low = edit.with_sh_degree(table, 1)
    assert low.sh_degree == 1
    np.testing.assert_array_equal(low.sh, table.sh[:, :4])
    high = edit.with_sh_degree(low, 3)
    np.testing.assert_array_equal(high.sh[:, 4:], 0)
    with pytest.raises(UsageError, match="SH degree 4"):
        edit.with_sh_degree(table, 4)
