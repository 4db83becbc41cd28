"""Floaters: a clean world scores 0; injected ones raise the score and are found; dropping them mends the pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gworld.data.shapes import box, grain, plain
from gworld.data.toys import tabletop_world
from gworld.errors import InputError
from gworld.reconstruct.contribution import single_cameras
from gworld.reconstruct.floaters import FloaterOptions, drop_floaters, find_floaters
from gworld.render.metrics import psnr
from gworld.render.paths import orbit, path_cameras
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, join_gaussians, select_gaussians
from tests.scenes import random_gaussians

CENTER = torch.tensor([0.0, 0.1, 0.8])


@pytest.fixture(scope="module")
def clean() -> Gaussians:
    """A table in a corner of a room, as one static body."""
    world = tabletop_world(0.025)
    pose = world.rest_poses()[world.gaussians.links.long()]
    means = (pose[:, :3, :3] @ world.gaussians.means[..., None])[..., 0] + pose[:, :3, 3]
    still = replace(world.gaussians, means=means, links=torch.zeros_like(world.gaussians.links))
    back = box((3.2, 0.02, 1.5), 0.05, grain((0.8, 0.8, 0.8), 0.02, 0.6), (0, -2.6, 0.75))
    return join_gaussians([still, back])


@pytest.fixture(scope="module")
def cameras() -> Cameras:
    rings = [orbit(CENTER, 1.45, height, 10) for height in (0.35, 0.9)]
    return path_cameras(torch.cat(rings), 240, 180, 0.9)


def injected(clean: Gaussians, logit: float, seed: int = 0) -> Gaussians:
    """Blobs in the air over and around the table, a hand's breadth or more from every surface."""
    rng = torch.Generator().manual_seed(seed)
    blobs = random_gaussians(seed, 110, degree=1, size=0.02)
    means = torch.rand(110, 3, generator=rng) * torch.tensor([1.8, 1.4, 0.6]) + torch.tensor([-0.9, -0.7, 0.85])
    free = torch.cdist(means, clean.means).amin(1) > 0.12
    logits = torch.full((110,), logit)
    return select_gaussians(replace(blobs, means=means, opacity_logits=logits), free)


@pytest.mark.parametrize("logit", [-1.5, 0.0, 3.0], ids=["faint", "half", "opaque"])
def test_injected_floaters_are_found(clean, cameras, logit):
    """Precision at least 0.97 and recall at least 0.9 of those that any view sees, at every opacity."""
    single = single_cameras(cameras)
    before = find_floaters(clean, single)
    assert before.score < 1e-4 and before.rows.sum() <= 3
    blobs = injected(clean, logit)
    assert len(blobs) > 80
    dirty = join_gaussians([clean, blobs])
    found = find_floaters(dirty, single)
    truth = torch.zeros(len(dirty), dtype=torch.bool)
    truth[len(clean) :] = True
    hit = (found.rows & truth).sum()
    precision, recall = float(hit / found.rows.sum()), float(hit / (truth & ~found.unseen).sum())
    assert precision >= 0.97 and recall >= 0.9, (precision, recall)
    share = float(found.light[truth].sum() / found.light.sum())
    assert abs(found.score - share) < 0.15 * share and found.score > 20 * max(before.score, 1e-4)


def test_the_score_grows_with_what_hangs_in_the_air(clean, cameras):
    single = single_cameras(cameras)[::2]
    blobs = injected(clean, 1.0, seed=4)
    scores = []
    for count in (0, 20, 50, len(blobs)):
        part = select_gaussians(blobs, torch.arange(count))
        scores.append(find_floaters(join_gaussians([clean, part]), single).score)
    assert scores == sorted(scores) and scores[0] < 1e-4 and scores[1] > 1e-3


def test_dropping_floaters_mends_new_views(clean, cameras):
    dirty = join_gaussians([clean, injected(clean, 3.0)])
    kept, rows = drop_floaters(dirty, find_floaters(dirty, single_cameras(cameras)))
    assert len(kept) == int(rows.sum())
    fresh = path_cameras(orbit(CENTER, 1.4, 0.6, 3), 240, 180, 0.9)
    truth, spoilt, mended = (render(g, None, fresh, outputs=("rgb",)).rgb for g in (clean, dirty, kept))
    assert float(psnr(mended, truth).mean()) > float(psnr(spoilt, truth).mean()) + 8


def test_a_blob_at_a_camera_that_nobody_else_sees(clean, cameras):
    eye, forward = cameras.world_from_camera[0, :3, 3], cameras.world_from_camera[0, :3, 2]
    blob = random_gaussians(2, 1, size=0.004)
    blob = replace(blob, means=(eye + 0.12 * forward)[None], opacity_logits=torch.tensor([3.0]))
    blob = replace(blob, sh=torch.zeros(1, 1, 3))
    found = find_floaters(join_gaussians([clean, blob]), single_cameras(cameras)[:2], FloaterOptions(island=0.0))
    assert found.rows.nonzero()[:, 0].tolist() == [len(clean)] and found.marks["close"] == 1


def test_hidden_gaussians_are_unseen_and_no_floaters(cameras):
    shells = [box((edge,) * 3, 0.03, plain(0.5, 0.5, 0.5), CENTER.tolist()) for edge in (1.0, 0.96, 0.92)]
    block = join_gaussians(shells)
    inside = replace(random_gaussians(3, 50, size=0.01), sh=torch.zeros(50, 1, 3))
    inside = replace(inside, means=inside.means * 0.1 + CENTER)
    both = join_gaussians([block, inside])
    found = find_floaters(both, single_cameras(cameras))
    assert found.unseen[len(block) :].all() and not found.rows.any()
    kept, _ = drop_floaters(both, found, unseen=True)
    assert len(kept) <= len(block)
    assert len(drop_floaters(both, found)[0]) == len(both)


def test_nothing_and_no_cameras():
    nothing = select_gaussians(random_gaussians(0, 3), torch.zeros(3, dtype=torch.bool))
    assert find_floaters(nothing, []).score == 0.0
    few = find_floaters(random_gaussians(0, 4), [])
    assert few.score == 0.0 and few.unseen.all()


def test_links_need_poses(clean, cameras):
    moved = replace(clean, links=torch.ones_like(clean.links))
    with pytest.raises(InputError, match="a pose for each link"):
        find_floaters(moved, single_cameras(cameras), world_from_link=torch.eye(4)[None])


def test_a_wall_of_faint_layers_is_no_floater_and_what_hangs_before_it_is(clean, cameras):
    """A fit makes surfaces it cannot place of several translucent layers, a tenth of their distance thick."""
    rng = torch.Generator().manual_seed(5)
    rows = clean.means[:, 1] < -2.5
    wall = select_gaussians(clean, rows)
    layers = []
    for _ in range(8):
        shift = torch.tensor([0.0, 0.35, 0.0]) * torch.rand(len(wall), 1, generator=rng)
        faint = torch.full((len(wall),), -1.0)
        layers.append(replace(wall, means=wall.means + shift, opacity_logits=faint))
    thick = join_gaussians([select_gaussians(clean, ~rows), *layers])
    single = single_cameras(cameras)
    assert find_floaters(thick, single).score < 0.005
    blobs = injected(clean, 0.0, seed=3)
    found = find_floaters(join_gaussians([thick, blobs]), single)
    truth = torch.zeros(len(found.rows), dtype=torch.bool)
    truth[len(thick) :] = True
    assert float((found.rows & truth).sum() / (truth & ~found.unseen).sum()) > 0.85
    assert float(found.light[found.rows & ~truth].sum() / found.light.sum()) < 0.005
