"""Views: batches of cameras, held-out splits, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gworld.errors import InputError
from gworld.scene.views import View, Views, cameras_of, split_views


def make_views(count: int = 20) -> Views:
    K = torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    # Stored in an order that is not that of their names, as reconstructions are.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return Views(tuple(View(f"{index:03}.jpg", 640, 480, K, pose, camera_id=1) for index in order))


def test_every_eighth_by_name_is_held_out():
    views = make_views()
    fitting, held_out = split_views(views)
    assert [view.name for view in held_out.views] == ["000.jpg", "008.jpg", "016.jpg"]
    assert len(fitting) + len(held_out) == len(views)
    assert not {view.name for view in fitting.views} & {view.name for view in held_out.views}
    with pytest.raises(InputError, match="2 or more"):
        split_views(views, every=1)


def test_cameras_of_equal_views():
    cameras = cameras_of(make_views(3))
    assert cameras.K.dtype == torch.float32
    assert cameras_of(make_views(3), torch.float64).K.dtype == torch.float64
    assert len(cameras) == 3
    assert cameras.distortion is None
    bent = Views(tuple(replace(v, model="opencv", distortion=(0.1, 0.2)) for v in make_views(2).views))
    assert cameras_of(bent).distortion.tolist() == [pytest.approx([0.1, 0.2] + [0] * 6)] * 2


def test_views_that_make_no_batch_are_refused():
    views = make_views(2)
    with pytest.raises(InputError, match="0 different"):
        cameras_of(Views(()))
    with pytest.raises(InputError, match="2 different"):
        cameras_of(replace(views, views=(views.views[0], replace(views.views[1], width=10))))
    with pytest.raises(InputError, match="FOV"):
        cameras_of(Views(tuple(replace(v, model="other", source_model="FOV") for v in views.views)))


def test_colors_come_one_per_point_or_not_at_all():
    with pytest.raises(InputError, match="one for each of 3"):
        Views((), torch.zeros(3, 3), torch.zeros(2, 3, dtype=torch.uint8))
    assert len(Views((), torch.zeros(3, 3)).colors) == 0
