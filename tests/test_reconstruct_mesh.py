"""Meshes against known geometry: distance from a ball and a box, colours, clusters, files in other people's readers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from gworld.data.shapes import box, plain, sphere
from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.formats import interchange_cameras
from gworld.geometry import transform_from
from gworld.reconstruct.contribution import single_cameras
from gworld.reconstruct.mesh import Mesh, MeshOptions, extract_mesh, write_mesh
from gworld.render.paths import orbit, path_cameras
from gworld.scene.gaussians import join_gaussians
from tests.scenes import random_gaussians

VOXEL = 0.02


@pytest.fixture(scope="module")
def fused():
    """Open3D, where it can be imported."""
    try:
        return interchange_cameras.peer_module("open3d")
    except MissingBackendError as error:
        pytest.skip(str(error))


def around(radius: float = 1.6, rings: tuple[float, ...] = (-0.9, 0.0, 0.9), count: int = 10):
    poses = torch.cat([orbit(torch.zeros(3), radius, height, count) for height in rings])
    return single_cameras(path_cameras(poses, 240, 180, 0.8))


def test_a_ball_is_where_it_should_be(fused):
    ball = sphere(0.5, 0.01, plain(0.9, 0.2, 0.1))
    mesh = extract_mesh(ball, around(rings=(-1.2, 0.0, 1.2)), MeshOptions(voxel=VOXEL))
    error = np.linalg.norm(mesh.vertices, axis=1) - 0.5
    # Blended depth leans to the camera by a part of the Gaussians' size, hence the third of a voxel.
    assert np.abs(error).mean() < 0.35 * VOXEL and np.abs(error).max() < VOXEL
    # A closed surface but for what no camera sees: its area is the ball's, its triangles look outwards.
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert abs(body.area / (np.pi * 4 * 0.25) - 1) < 0.1
    assert ((body.face_normals * body.triangles_center).sum(1) > 0).mean() > 0.99
    assert body.body_count == 1
    red, green, blue = mesh.colors.mean(axis=0)
    assert red > 3 * green > 0 and green > blue


def test_a_box_without_its_floaters(fused):
    size = (0.8, 0.5, 0.4)
    scene = box(size, 0.01, plain(0.3, 0.5, 0.7))
    clump = random_gaussians(1, 30, size=0.02)
    clump = replace(clump, means=clump.means * 0.04 + torch.tensor([0.0, 0.0, 0.55]), sh=torch.zeros(30, 1, 3))
    clump = replace(clump, opacity_logits=torch.full((30,), 4.0))
    mesh = extract_mesh(join_gaussians([scene, clump]), around(), MeshOptions(voxel=VOXEL, smallest=0.2))
    whole = extract_mesh(join_gaussians([scene, clump]), around(), MeshOptions(voxel=VOXEL, smallest=0.0))
    assert whole.vertices[:, 2].max() > 0.4 > 0.25 > mesh.vertices[:, 2].max()
    outside = np.abs(mesh.vertices) - np.array(size) / 2
    distance = np.where((outside > 0).any(1), np.linalg.norm(outside.clip(0), axis=1), -outside.max(1))
    assert np.abs(distance).mean() < 0.35 * VOXEL and np.quantile(np.abs(distance), 0.99) < 1.1 * VOXEL
    assert len(mesh.faces) and mesh.faces.max() == len(mesh.vertices) - 1 and len(mesh.colors) == len(mesh.vertices)


def test_the_voxel_fits_the_scene_by_itself(fused):
    ball = sphere(50.0, 2.0, plain(0.5, 0.5, 0.5))  # a capture in centimetres, say
    poses = orbit(torch.zeros(3), 160.0, 0.0, 8)
    mesh = extract_mesh(ball, single_cameras(path_cameras(poses, 240, 180, 0.8)))
    assert 1000 < len(mesh.faces) < 200_000
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 50).mean() < 0.5


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_files_open_elsewhere(tmp_path, suffix):
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]], np.uint8)
    write_mesh(Mesh(vertices, faces, colors), tmp_path / f"mesh{suffix}")
    back = trimesh.load(tmp_path / f"mesh{suffix}", force="mesh", process=False)
    turned = vertices[:, [0, 2, 1]] * [1, 1, -1] if suffix == ".glb" else vertices
    order = [int(np.abs(back.vertices - point).sum(1).argmin()) for point in turned]
    np.testing.assert_allclose(back.vertices[order], turned, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(back.visual.vertex_colors)[order, :3], colors)
    assert abs(back.volume - 1.0) < 1e-6


def test_what_cannot_be_meshed_is_said(fused, tmp_path):
    ball = sphere(0.5, 0.05, plain(0.5, 0.5, 0.5))
    aside = transform_from(torch.eye(3), torch.full((3,), 100.0))
    away = [replace(camera, world_from_camera=aside @ camera.world_from_camera) for camera in around(count=2)]
    with pytest.raises(InputError, match="sees an opaque surface"):
        extract_mesh(ball, away)
    with pytest.raises(UsageError, match="numbers above 0"):
        extract_mesh(ball, away, MeshOptions(voxel=-1.0))
    with pytest.raises(UsageError, match="names no mesh format"):
        write_mesh(Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]), np.zeros((3, 3), np.uint8)), "x.stl")


def test_without_open3d_the_way_out_is_named(monkeypatch):
    def missing(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(interchange_cameras.importlib, "import_module", missing)
    with pytest.raises(MissingBackendError, match="open3d cannot be imported"):
        extract_mesh(sphere(0.5, 0.2, plain(0.5, 0.5, 0.5)), around(count=1))
