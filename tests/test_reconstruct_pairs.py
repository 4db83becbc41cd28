"""Pairs out of a scene's own photos: every way, nothing of what is held out, no photo its own reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gworld.bench.refine_scene import film_cameras, photo_cameras, random_stage, take_photos, true_film
from gworld.data.pairset import Pair, iterate_pairs
from gworld.errors import InputError, UsageError
from gworld.reconstruct.pairs import (
    PairOptions,
    fit_scene,
    make_pairs,
    match_exposures,
    rollout_pair,
    scene_pairs,
)
from gworld.scene.views import Views
from tests.test_refine_network import film

TINY = PairOptions(longest=32, steps=6, gaussians=300, keep=(3,), early=(0.5,), hold_out=5)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    stage = random_stage(1, 32, 24, spacing=0.08)
    return take_photos(stage, photo_cameras(stage, 10), tmp_path_factory.mktemp("photos"))


def places(pair: Pair) -> tuple[set[tuple[float, ...]], set[tuple[float, ...]]]:
    assert pair.references is not None
    found = []
    for clip in (pair.clip, pair.references):
        found.append({tuple(round(float(x), 4) for x in pose[:3, 3]) for pose in clip.world_from_camera})
    return found[0], found[1]


def test_every_way_makes_pairs_and_nothing_leaks(views: Views, tmp_path: Path) -> None:
    said: list[str] = []
    made = make_pairs(views, tmp_path / "set", TINY, say=said.append)
    pairs = list(iterate_pairs(made))
    assert {pair.way for pair in pairs} == {"sparse", "underfit", "cross", "cycle"} and len(said) == 4
    aside = {tuple(round(float(x), 4) for x in view.world_from_camera[:3, 3]) for view in views.views[::5]}
    for pair in pairs:
        seen, told = places(pair)
        assert not seen & told, "a photo is among its own references"
        assert not told & aside
        assert seen == aside if pair.split == "held_out" else not seen & aside
        assert pair.clip.truth is not None and pair.references is not None and pair.references.truth is not None
        assert float(pair.clip.confidence.min()) >= 0 and float(pair.clip.confidence.max()) <= 1
    assert sum(pair.split == "held_out" for pair in pairs) == 1


def test_a_simulated_film_stands_beside_the_true_one(views: Views, tmp_path: Path) -> None:
    stage = random_stage(1, 32, 24, spacing=0.08)
    scene = fit_scene(views, TINY, tmp_path / "fit")
    cameras = film_cameras(3, 32, 24)
    pair = rollout_pair(scene, cameras, torch.eye(4).expand(3, 1, 4, 4), true_film(stage, cameras), split="held_out")
    assert pair.way == "rollout" and len(pair.clip) == 3 and pair.clip.flow[1].abs().max() > 0


def test_photos_are_brought_to_one_exposure_and_a_shared_error_is_left() -> None:
    clip = film(4)
    assert clip.truth is not None
    light = torch.tensor([0.7, 0.9, 1.15, 1.3])[:, None, None, None] * torch.tensor([1.1, 1.0, 0.9])
    light = light / light.log().mean(dim=0).exp()
    blurred = torch.nn.functional.avg_pool2d(clip.truth.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    photos = (0.2 + 0.5 * clip.truth) * light
    photos[:, :5, :9] = 1.0  # a highlight that no render shows
    seen = replace(clip, truth=photos, rgb=0.9 * (0.2 + 0.5 * blurred), alpha=torch.ones_like(clip.alpha))
    matched = match_exposures(seen).truth
    assert matched is not None
    off = (matched - (0.2 + 0.5 * clip.truth))[:, 8:-2, 12:-2].abs().mean((1, 2, 3))
    before = (photos - (0.2 + 0.5 * clip.truth))[:, 8:-2, 12:-2].abs().mean((1, 2, 3))
    assert off.max() < 0.03 < 0.06 < before.max()
    same = replace(seen, truth=0.2 + 0.5 * clip.truth)
    torch.testing.assert_close(match_exposures(same).truth, same.truth, atol=0.02, rtol=0)


def test_what_no_pairs_can_be_made_of_is_told(views: Views) -> None:
    few = Views(views.views[:6], views.points, views.colors)
    with pytest.raises(InputError, match="at least 6"):
        list(scene_pairs(few, TINY))
    with pytest.raises(UsageError, match="rollout"):
        list(scene_pairs(views, PairOptions(ways=("rollout",))))
