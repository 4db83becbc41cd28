"""Fits start where points or depth say the scene is; pictures come in as they are on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.errors import InputError
from gworld.reconstruct.initial import (
    gaussians_at,
    in_the_open,
    initial_gaussians,
    measure_extent,
    neighbour_distance,
)
from gworld.reconstruct.pictures import Album, fit_size, read_album
from gworld.scene.cameras import intrinsics, look_at, project_points
from gworld.scene.views import View, Views

CPU = torch.device("cpu")


@pytest.fixture
def views(tmp_path: Path) -> Views:
    generator = np.random.default_rng(0)
    shots = []
    for index in range(6):
        pixels = generator.integers(0, 255, (60, 80, 3), np.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels).save(path)
        angle = torch.tensor(index * 1.0)
        eye = torch.stack([3 * angle.cos(), 3 * angle.sin(), torch.tensor(0.5)])
        shots.append(View(path.name, 80, 60, intrinsics(80, 60, 0.8), look_at(eye, torch.zeros(3)), image=path))
    return Views(tuple(shots))


def some_points(count: int = 400) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1)) * 0.3


def test_pictures_halve_and_keep_their_rays(views: Views) -> None:
    album = read_album(views, 80, 3, CPU)
    assert [level[0].rgb.shape[:2] for level in album.levels] == [(60, 80), (30, 40), (30, 40)]
    fine, coarse = album.levels[0][2], album.levels[1][2]
    assert torch.equal(fine.rgb, torch.from_numpy(np.array(Image.open(views.views[2].image or ""))))
    place = torch.tensor([[0.1, 0.2, 0.3]])
    assert torch.allclose(project_points(fine.camera, place)[0] / 2, project_points(coarse.camera, place)[0], atol=1e-4)
    quad = fine.rgb[:2, :2].float().mean((0, 1))
    assert torch.allclose(coarse.rgb[0, 0].float(), quad, atol=0.51)
    small = read_album(views, 40, 1, CPU).levels[0][2]
    assert small.rgb.shape == (30, 40, 3)
    assert torch.allclose(project_points(small.camera, place)[0] * 2, project_points(fine.camera, place)[0], atol=1e-4)
    assert fit_size(1296, 864, 648) == (648, 432) and fit_size(10, 5, 100) == (10, 5)


def test_masks_alpha_and_depth(views: Views, tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :41] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    depth = np.full((60, 80), 2000, np.uint16)
    Image.fromarray(depth).save(tmp_path / "depth.png")
    first = replace(views.views[0], mask=tmp_path / "mask.png", depth=tmp_path / "depth.png")
    rgba = np.dstack([np.full((60, 80, 3), 9, np.uint8), mask])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    second = replace(views.views[1], image=tmp_path / "alpha.png")
    album = read_album(Views((first, second), depth_scale=0.001), 40, 2, CPU)
    for picture in album.levels[0]:
        assert picture.mask is not None and bool(picture.mask[:, :20].all()) and not bool(picture.mask[:, 20:].any())
    found = album.levels[1][0]
    assert found.depth is not None and found.depth.shape == found.rgb.shape[:2] and float(found.depth[0, 0]) == 2.0


@pytest.mark.parametrize("kind", ["missing", "damaged", "shape", "lens", "none"])
def test_pictures_that_cannot_be_used(views: Views, tmp_path: Path, kind: str) -> None:
    view, path = views.views[0], tmp_path / "odd.png"
    if kind == "damaged":
        path.write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    if kind == "shape":
        Image.new("RGB", (80, 80)).save(path)
    changed = {
        "missing": replace(view, image=path),
        "damaged": replace(view, image=path),
        "shape": replace(view, image=path),
        "lens": replace(view, model="opencv", distortion=(0.1, 0, 0, 0)),
        "none": replace(view, image=None),
    }[kind]
    with pytest.raises(InputError):
        read_album(Views((changed,)), 80, 1, CPU)


def test_extent_is_in_the_scene_units(views: Views) -> None:
    album, points = read_album(views, 80, 3, CPU), some_points()
    extent = measure_extent(album, points)
    slope = 0.5 * 80 / float(album.levels[0][0].camera.K[0, 0, 0])
    assert extent.width == pytest.approx(3.04 * slope, rel=0.1) and 1.5 < extent.near < 3 < extent.far < 4.5
    blind = measure_extent(album, points[:0])
    assert blind.width == pytest.approx(extent.width, rel=0.1) and float(blind.centre.norm()) < 1.5
    large = Views(tuple(replace(v, world_from_camera=_scaled(v.world_from_camera, 7.0)) for v in views.views))
    assert measure_extent(read_album(large, 80, 3, CPU), 7 * points).width == pytest.approx(7 * extent.width, rel=1e-3)


def _scaled(pose: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.cat([torch.cat([pose[:3, :3], factor * pose[:3, 3:]], 1), pose[3:]])


def test_outliers_are_dropped_and_the_count_is_kept(views: Views) -> None:
    points = torch.cat([some_points(3000), torch.tensor([[50.0, 50, 50], [float("nan"), 0, 0]])])
    colours = torch.rand(len(points), 3, generator=torch.Generator().manual_seed(0))
    album = read_album(views, 80, 3, CPU)
    start = initial_gaussians(album, points, colours, 2000, 0)
    assert len(start) == 2000 and bool(start.means.isfinite().all())
    assert not bool(((start.means - points[3000]).norm(dim=1) < 1e-3).any())
    again = initial_gaussians(album, points, colours, 2000, 0)
    assert torch.equal(start.means, again.means)
    assert len(initial_gaussians(album, points[:0], colours[:0], 500, 0)) == 250


def test_measured_depth_places_gaussians_on_surfaces(views: Views, tmp_path: Path) -> None:
    shots = []
    for index, view in enumerate(views.views):
        path = tmp_path / f"depth{index}.png"
        Image.fromarray(np.full((60, 80), 2500, np.uint16)).save(path)
        shots.append(replace(view, depth=path))
    album = read_album(Views(tuple(shots), depth_scale=0.001), 80, 3, CPU)
    start = initial_gaussians(album, torch.zeros(0, 3), torch.zeros(0, 3), 1000, 0)
    cameras = [picture.camera for picture in album.levels[0]]
    depths = torch.stack([project_points(camera, start.means)[1][0] for camera in cameras])
    on_surface = ((depths - 2.5).abs() < 1e-3).any(0)
    assert float(on_surface.float().mean()) > 0.9


def test_spacing_and_open_space(views: Views) -> None:
    grid = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    assert torch.allclose(neighbour_distance(grid), torch.ones(64))
    assert torch.equal(neighbour_distance(grid[:1]), torch.ones(1)) and not len(neighbour_distance(grid[:0]))
    assert float(gaussians_at(grid, grid / 4, 100.0).log_scales.exp().mean()) == pytest.approx(1.0)
    album = read_album(views, 80, 3, CPU)
    extent = measure_extent(album, some_points())
    for behind in (False, True):
        places, colours = in_the_open(album, extent, 301, torch.Generator().manual_seed(0), behind)
        assert places.shape == colours.shape and 250 < len(places) <= 301
        assert float(colours.min()) >= 0 and float(colours.max()) <= 1
    assert isinstance(album, Album) and len(album) == 6
