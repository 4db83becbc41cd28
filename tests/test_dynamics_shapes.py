"""Solids from Gaussians against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from gworld.agents.binding import bind_object
from gworld.agents.skinning import SkinOptions
from gworld.data.shapes import box, cylinder, plain, sphere
from gworld.data.toys import tabletop_world
from gworld.dynamics.shapes import planes_from_gaussians, solid_from_gaussians
from gworld.errors import InputError
from gworld.files import need_asset
from gworld.geometry import matrix_from_quat
from gworld.scene.gaussians import join_gaussians, select_gaussians
from gworld.scene.world import World

GREY = plain(0.5, 0.5, 0.5)


def test_a_ball_is_exact() -> None:
    solid = solid_from_gaussians(sphere(0.3, 0.05, GREY, (0.1, -0.2, 0.4)))
    assert solid.radius == pytest.approx(0.3, rel=1e-4)
    np.testing.assert_allclose(solid.center, [0.1, -0.2, 0.4], atol=1e-5)
    assert solid.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=1e-3)


def test_a_box_has_its_volume_inertia_and_sharp_faces() -> None:
    size = np.array([0.2, 0.1, 0.06])
    solid = solid_from_gaussians(box(tuple(size), 0.006, GREY, (0.3, 0.0, 0.0)))
    assert solid.volume == pytest.approx(size.prod(), rel=0.03)
    np.testing.assert_allclose(solid.center, [0.3, 0, 0], atol=1e-4)
    truth = np.diag([size[1] ** 2 + size[2] ** 2, size[0] ** 2 + size[2] ** 2, size[0] ** 2 + size[1] ** 2]) / 12
    np.testing.assert_allclose(solid.inertia, truth, rtol=0.05, atol=1e-6)
    assert solid.bound == pytest.approx(np.linalg.norm(size) / 2, rel=0.01)
    off = (solid.points.abs() - torch.from_numpy(size / 2)).amax(dim=1)
    assert off.abs().max() < 1e-4
    corners = (solid.points.abs() - torch.from_numpy(size / 2)).abs().amax(dim=1) < 1e-4
    assert int(corners.sum()) == 8


def test_a_cylinder_is_no_ball_and_has_its_volume() -> None:
    solid = solid_from_gaussians(cylinder(0.05, 0.04, 0.003, GREY))
    assert solid.radius == 0.0
    assert solid.volume == pytest.approx(np.pi * 0.05**2 * 0.04, rel=0.04)


def test_gaussians_a_little_inside_and_past_each_other_at_rims_make_the_same_solid() -> None:
    """As fits find them: a disc's side and caps end within the surface, and past each other where they meet."""
    inset, radius, half = 0.0018, 0.065, 0.02
    full = cylinder(radius, 2 * half, 0.005, GREY)
    thin = full.log_scales.argmin(dim=1)
    normals = matrix_from_quat(full.quats_wxyz)[torch.arange(len(thin)), :, thin]
    side = normals[:, 2].abs() < 0.5
    at = full.means.clone()
    at[side, :2] *= (radius - inset) / radius
    at[~side, 2] *= (half - inset) / half
    solid = solid_from_gaussians(replace(full, means=at))
    assert solid.field is not None and solid.low is not None
    ticks = np.stack(np.meshgrid(*(np.arange(solid.field.shape[0]),) * 3, indexing="ij"), -1) * solid.cell.numpy()
    ticks = ticks + (solid.low + solid.center).numpy()
    far, field = np.linalg.norm(ticks[..., :2], axis=-1) - radius + inset, solid.field.numpy()
    beside = (np.abs(ticks[..., 2]) < half - 3 * inset) & (far > -0.002) & (far < 0.01)
    assert np.abs(field - far)[beside].max() < 3e-4
    points = (solid.points + solid.center).numpy()
    assert (np.linalg.norm(points[:, :2], axis=1) - radius + inset).max() < 1.5e-3
    assert (np.abs(points[:, 2]) - half + inset).max() < 1.5e-3


@pytest.mark.parametrize("shrunk", [1.0, 0.6], ids=["skinned", "fitted"])
@pytest.mark.parametrize("density", [30_000.0, 60_000.0])
def test_a_scattered_skin_has_a_full_inside_and_upright_sides(density: float, shrunk: float) -> None:
    """Skins are scattered, with holes wider than their spacing, and fits shrink their Gaussians: a flat T must be full
    all the same, and its sides must not lean near its rims."""
    nothing = World(select_gaussians(sphere(0.1, 0.05, GREY), torch.arange(0)), metric=True)
    skin = SkinOptions(per_square_metre=density)
    gaussians = bind_object(
        nothing, need_asset("recording") / "tee2.obj", "tee", torch.eye(4).double(), skin=skin
    ).gaussians
    thin = replace(gaussians, log_scales=gaussians.log_scales + float(np.log(shrunk)))
    solid = solid_from_gaussians(thin)
    assert solid.field is not None and solid.low is not None and solid.cell is not None
    inset = skin.inset / np.sqrt(density)
    bar, stem = (0.2 - 2 * inset) * (0.05 - 2 * inset), (0.05 - 2 * inset) * 0.13  # of y 0.0105 to 0.0605, and below
    assert solid.volume == pytest.approx((bar + stem) * (0.04 - 2 * inset), rel=0.02)
    middle = (bar * 0.0355 + stem * (-0.0545 + inset)) / (bar + stem)
    np.testing.assert_allclose(solid.center, [0.0, middle, 0.0], atol=5e-4)
    cell, low = solid.cell.numpy(), (solid.low + solid.center).numpy()
    deep = np.array([[x, 0.035, z] for x in (-0.08, 0.0, 0.08) for z in (-0.01, 0.0, 0.01)])
    assert (map_coordinates(solid.field.numpy(), ((deep - low) / cell).T, order=1) < -0.005).all()
    slope = np.stack(np.gradient(solid.field.numpy(), *cell), axis=-1)
    rim = np.array([[0.102, y, side * 0.0145] for y in np.linspace(0.02, 0.05, 7) for side in (-1, 1)])
    lean = np.stack([map_coordinates(slope[..., k], ((rim - low) / cell).T, order=1) for k in range(3)], axis=-1)
    assert np.median(np.abs(lean[:, 2]) / np.linalg.norm(lean, axis=1)) < 0.1


def test_gaussians_within_a_solid_make_no_surface_there() -> None:
    """Parts that overlap: a rod that reaches into a ball keeps its Gaussians inside it."""
    ball, rod = sphere(0.03, 0.004, GREY, (0.0, 0.0, 0.05)), cylinder(0.03, 0.1, 0.004, GREY)
    solid = solid_from_gaussians(join_gaussians([rod, ball]))
    assert solid.field is not None and solid.low is not None
    at = np.rint((np.array([0.0, 0.0, 0.045]) - (solid.low + solid.center).numpy()) / solid.cell.numpy()).astype(int)
    assert float(solid.field[tuple(at)]) < -0.02


def test_the_table_top_carries_what_stands_on_it() -> None:
    world = tabletop_world(0.03)
    still = select_gaussians(world.gaussians, world.gaussians.links == 0)
    planes = planes_from_gaussians(still, world.rest_poses()[-3:, :3, 3])
    up = planes[planes[:, 2] > 0.99]
    assert len(up) == 1
    assert float(up[0, 3]) == pytest.approx(0.72, abs=1e-3)


def test_too_few_gaussians_are_refused() -> None:
    part = join_gaussians([sphere(0.1, 0.05, GREY)])
    with pytest.raises(InputError, match="at least 4"):
        solid_from_gaussians(select_gaussians(part, torch.arange(3)))
