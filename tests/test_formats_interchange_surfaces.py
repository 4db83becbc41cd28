"""Points and meshes as Gaussians: as wide as promised, as opaque as promised, coloured by their pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from gworld.errors import InputError
from gworld.formats import interchange
from gworld.geometry import matrix_from_quat


def test_points_become_gaussians_as_wide_as_their_neighbours_are_far():
    grid = torch.stack(torch.meshgrid(*[torch.arange(5.0)] * 3, indexing="ij"), dim=-1).reshape(-1, 3) * 0.1
    gaussians = interchange.gaussians_from_points(grid, torch.full_like(grid, 0.25))
    torch.testing.assert_close(gaussians.log_scales.exp(), torch.full_like(grid, 0.1))
    torch.testing.assert_close(torch.sigmoid(gaussians.opacity_logits), torch.full((125,), 0.1))
    torch.testing.assert_close(interchange.points_of(gaussians)[1], torch.full_like(grid, 0.25))
    for count in (0, 1, 2):
        few = interchange.gaussians_from_points(grid[:count], grid[:count])
        assert torch.isfinite(few.log_scales).all()
    same = interchange.gaussians_from_points(torch.zeros(9, 3), torch.zeros(9, 3))
    assert torch.isfinite(same.log_scales).all()


def test_normals_become_axes():
    generator = torch.Generator().manual_seed(1)
    special = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0], [0, -1, 0], [1e-5, 0, -1]])
    normals = torch.cat([torch.randn(200, 3, generator=generator) * 3, special])
    axis = matrix_from_quat(interchange.quat_from_normal(normals))[..., 2]
    torch.testing.assert_close(axis, torch.nn.functional.normalize(normals, dim=-1), atol=2e-5, rtol=0)


def test_a_mesh_becomes_flat_gaussians_on_its_surface():
    box = trimesh.creation.box((1.0, 2.0, 0.5))
    box.visual.face_colors = np.arange(12)[:, None] * np.array([[20, 10, 5, 0]]) + [0, 0, 0, 255]
    gaussians = interchange.gaussians_from_mesh(box, 400.0, seed=1)
    assert len(gaussians) == round(box.area * 400)
    _, distance, face = trimesh.proximity.closest_point_naive(box, gaussians.means[:50].numpy())
    assert distance.max() < 1e-6
    half = torch.tensor([0.5, 1.0, 0.25])
    on_face = ((gaussians.means.abs() - half).abs() < 1e-6).float()
    axis = matrix_from_quat(gaussians.quats_wxyz)[..., 2].abs()
    torch.testing.assert_close((axis * on_face).sum(-1), torch.ones(len(gaussians)), atol=1e-5, rtol=0)
    scales = gaussians.log_scales.exp()
    torch.testing.assert_close(scales[:, 2], scales[:, 0] * interchange.FLATNESS)
    found = interchange.points_of(gaussians)[1][:50] * 255
    torch.testing.assert_close(found, torch.from_numpy(box.visual.face_colors[face][:, :3]).float(), atol=0.01, rtol=0)
    again = interchange.gaussians_from_mesh(box, 400.0, seed=1)
    assert torch.equal(again.means, gaussians.means)
    assert not torch.equal(interchange.gaussians_from_mesh(box, 400.0, seed=2).means, gaussians.means)


def test_surfaces_let_through_what_is_promised():
    """Mean transmittance of a large plane, summed Gaussian by Gaussian, against the closed form."""
    plane = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    generator = torch.Generator().manual_seed(0)
    eyes = torch.rand(2000, 2, generator=generator) * 0.6 + 0.2
    means = []
    for seed in range(5):
        gaussians = interchange.gaussians_from_mesh(plane, 2000.0, seed=seed)
        squared = torch.cdist(eyes, gaussians.means[:, :2]) ** 2
        width = gaussians.log_scales[0, 0].exp()
        alpha = torch.sigmoid(gaussians.opacity_logits) * torch.exp(-0.5 * squared / width**2)
        means.append(torch.log1p(-alpha).sum(-1).exp().mean())
    assert torch.stack(means).mean().item() == pytest.approx(interchange.LEAK, rel=0.25)


def test_vertex_colours_are_interpolated():
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    mesh.visual.vertex_colors = [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]]
    gaussians = interchange.gaussians_from_mesh(mesh, 1000.0)
    x, y, _ = gaussians.means.unbind(-1)
    torch.testing.assert_close(
        interchange.points_of(gaussians)[1], torch.stack([1 - x - y, x, y], -1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("physical", [False, True])
def test_textures_are_read(physical):
    """A picture that is red on its left half and green on its right, over a unit square."""
    picture = Image.new("RGB", (64, 64), (255, 0, 0))
    picture.paste((0, 255, 0), (32, 0, 64, 64))
    visual = trimesh.visual
    material = (
        visual.material.PBRMaterial(baseColorTexture=picture)
        if physical
        else visual.material.SimpleMaterial(image=picture)
    )
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]], process=False)
    mesh.visual = visual.TextureVisuals(uv=mesh.vertices[:, :2], material=material)
    gaussians = interchange.gaussians_from_mesh(mesh, 500.0)
    colors, x = interchange.points_of(gaussians)[1], gaussians.means[:, 0]
    torch.testing.assert_close(
        colors[x < 0.45], torch.tensor([1.0, 0, 0]).expand(int((x < 0.45).sum()), 3), atol=0.02, rtol=0
    )
    torch.testing.assert_close(
        colors[x > 0.55], torch.tensor([0, 1.0, 0]).expand(int((x > 0.55).sum()), 3), atol=0.02, rtol=0
    )


def test_a_material_without_a_picture_gives_its_colour():
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[51, 102, 204, 255])
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.zeros((3, 2)), material=material)
    colors = interchange.points_of(interchange.gaussians_from_mesh(mesh, 100.0))[1]
    torch.testing.assert_close(colors, (torch.tensor([51.0, 102, 204]) / 255).expand_as(colors), atol=1e-5, rtol=0)


def test_meshes_that_are_none_are_refused():
    with pytest.raises(InputError, match="to_mesh"):
        interchange.gaussians_from_mesh(trimesh.Scene(), 10.0)
    flat = trimesh.Trimesh([[0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(InputError, match="above 0"):
        interchange.gaussians_from_mesh(flat, 10.0)
    for density in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="above 0"):
            interchange.gaussians_from_mesh(trimesh.creation.box(), density)
