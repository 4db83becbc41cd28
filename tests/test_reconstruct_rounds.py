"""Writing refined views back: where they are drawn from, that photos count more, and that they are learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gworld.bench.refine_scene import photo_cameras, random_stage, take_photos
from gworld.errors import InputError, UsageError
from gworld.reconstruct.pairs import PairOptions, cameras_at, fit_scene, look
from gworld.reconstruct.rounds import RoundOptions, between, write_back
from gworld.scene.clip import Clip
from gworld.scene.views import Views

TINY = PairOptions(longest=32, steps=60, gaussians=300, hold_out=0)
SMALL = RoundOptions(rounds=2, fits=1, views=5, photos=1)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    stage = random_stage(1, 32, 24, spacing=0.08)
    return take_photos(stage, photo_cameras(stage, 6), tmp_path_factory.mktemp("photos"))


def test_views_are_drawn_between_neighbouring_photos_and_further_off_in_later_rounds(views: Views) -> None:
    photos = cameras_at(views, 32)
    eyes = photos.world_from_camera[:, :3, 3]
    straight = between(views, TINY, replace(SMALL, aside=0.0, views=99), 1)
    for pose in straight.world_from_camera:
        two = (eyes - pose[:3, 3]).norm(dim=1).sort().values[:2]
        assert two.sum() < 1.01 * torch.cdist(eyes, eyes).max() and two[0] > 1e-3
        torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3), atol=1e-5, rtol=0)
    assert len(between(views, TINY, SMALL, 1)) == 5
    near, far = (between(views, TINY, replace(SMALL, views=99), number) for number in (1, 2))
    off = [(each.world_from_camera - straight.world_from_camera)[:, :3, 3].norm(dim=1).mean() for each in (near, far)]
    assert 0 < off[0] < off[1] < 0.5


def test_what_was_drawn_is_fitted_and_photos_stay_the_references(views: Views, tmp_path: Path) -> None:
    scene = fit_scene(views, TINY, tmp_path / "fit")
    asked: list[int] = []

    def redden(clip: Clip, photos: Clip) -> Tensor:
        asked.append(len(clip))
        assert photos.truth is not None and len(photos) == len(views)
        return clip.rgb * torch.tensor([1.0, 0.0, 0.0])

    found = list(write_back(scene, views, redden, tmp_path / "rounds", TINY, SMALL))
    assert len(found) == 2 and asked == [5, 5]
    assert len(list((tmp_path / "rounds").glob("round-*/views/*.png"))) == 10
    cameras = between(views, TINY, SMALL, 1)
    before, after = (look(each, cameras).rgb.mean((0, 1, 2)) for each in (scene, found[-1]))
    assert after[0] / after[1] > 1.04 * before[0] / before[1]
    photos, still = scene.references.truth, found[-1].references.truth
    assert photos is not None and still is not None and photos.shape == still.shape
    assert (photos - still).abs().mean() < 0.03  # but for the exposure that each fit finds in them


def test_what_cannot_be_written_back_is_told(views: Views, tmp_path: Path) -> None:
    scene = fit_scene(views, replace(TINY, steps=1), tmp_path / "fit")
    moving = replace(scene.gaussians, links=scene.gaussians.links + 1)
    with pytest.raises(InputError, match="one still scene"):
        next(write_back(replace(scene, gaussians=moving), views, lambda clip, photos: clip.rgb, tmp_path, TINY))
    with pytest.raises(UsageError, match="at least 1"):
        next(write_back(scene, views, lambda clip, photos: clip.rgb, tmp_path, TINY, replace(SMALL, fits=0)))
