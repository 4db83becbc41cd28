"""Plane sweep finds surfaces where they are, and says nothing where it cannot know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gworld.bench.fit_scene import tabletop_views
from gworld.data.toys import tabletop_world
from gworld.geometry import transform_from_pose
from gworld.reconstruct.initial import initial_gaussians, measure_extent
from gworld.reconstruct.pictures import Album, read_album
from gworld.reconstruct.sweep import sweep_points
from gworld.scene.views import Views

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    made = tabletop_views(tmp_path_factory.mktemp("table"), 8, 160, 120)
    return replace(made, points=made.points[:0], colors=made.colors[:0])


@pytest.fixture(scope="module")
def album(views: Views) -> Album:
    return read_album(views, 160, 3, CPU)


def true_points() -> torch.Tensor:
    world = tabletop_world()
    links = transform_from_pose(torch.tensor([link.pose for link in world.links]))
    pose = links[world.gaussians.links.long()]
    return (pose[:, :3, :3] @ world.gaussians.means[..., None])[..., 0] + pose[:, :3, 3]


def test_swept_points_lie_on_the_table(album: Album) -> None:
    from scipy.spatial import cKDTree

    points, colours = sweep_points(album, 0.8, 4.0)
    assert len(points) > 2000 and points.shape == colours.shape
    distance = torch.from_numpy(cKDTree(true_points().numpy()).query(points.numpy())[0])
    assert float(distance.median()) < 0.03  # the truth itself is sampled every 12 mm
    assert float(torch.quantile(distance, 0.8)) < 0.12


def test_a_scene_without_points_starts_from_them(album: Album) -> None:
    start = initial_gaussians(album, torch.zeros(0, 3), torch.zeros(0, 3), 2000, 0)
    extent = measure_extent(album, torch.zeros(0, 3))
    assert 1000 < len(start) <= 2000 and bool(start.means.isfinite().all()) and 0.5 < extent.width < 2


def test_blank_pictures_give_no_points(views: Views, tmp_path: Path) -> None:
    shots = []
    for view in views.views:
        Image.new("RGB", (160, 120), (90, 90, 90)).save(tmp_path / view.name)
        shots.append(replace(view, image=tmp_path / view.name))
    points, colours = sweep_points(read_album(Views(tuple(shots)), 160, 2, CPU), 0.8, 4.0)
    assert not len(points) and not len(colours)
