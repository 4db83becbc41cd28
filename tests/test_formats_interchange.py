"""Interchange: the same points land on the same pixels in every toolkit."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gworld.errors import InputError, MissingBackendError
from gworld.formats import interchange, interchange_cameras
from gworld.geometry import matrix_from_quat, se3_exp, transform_from_pose
from gworld.scene.cameras import Cameras, look_at, project_points
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import evaluate_sh

ROOT = Path(__file__).resolve().parent.parent


def make_cameras(count: int = 3, dtype: torch.dtype = torch.float64) -> Cameras:
    generator = torch.Generator().manual_seed(2)
    eyes = torch.randn(count, 3, generator=generator, dtype=dtype) * 0.5 + torch.tensor([0.0, -4.0, 1.0], dtype=dtype)
    K = torch.tensor([[520.0, 0, 310.25], [0, 500, 233.5], [0, 0, 1]], dtype=dtype).repeat(count, 1, 1)
    return Cameras(K, look_at(eyes, torch.zeros_like(eyes)), 640, 480)


def make_points(count: int = 40, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(3), dtype=dtype) * 2 - 1


def make_gaussians(count: int = 30, links: int = 1, dtype: torch.dtype = torch.float32) -> Gaussians:
    generator = torch.Generator().manual_seed(4)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return Gaussians(
        means=rand(count, 3) * 0.5,
        quats_wxyz=torch.nn.functional.normalize(rand(count, 4), dim=-1),
        log_scales=rand(count, 3) * 0.3 - 3,
        opacity_logits=rand(count),
        sh=rand(count, 16, 3) * 0.2,
        links=torch.arange(count, dtype=torch.int32) % links,
    )


def assert_same_cameras(ours: Cameras, theirs: Cameras, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours.K, theirs.K, atol=tolerance, rtol=0)
    torch.testing.assert_close(ours.world_from_camera, theirs.world_from_camera, atol=tolerance, rtol=0)
    assert (ours.width, ours.height, ours.model) == (theirs.width, theirs.height, theirs.model)


def test_gsplat_projects_to_the_same_pixels():
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    cameras, gaussians = make_cameras(dtype=torch.float32), make_gaussians()
    splats, views = interchange.to_gsplat(gaussians), interchange_cameras.cameras_to_gsplat(cameras)
    covariances, _ = _quat_scale_to_covar_preci(splats["quats"], splats["scales"], True, False)
    found = _fully_fused_projection(
        splats["means"], covariances, views["viewmats"], views["Ks"], views["width"], views["height"]
    )
    pixels, depth = project_points(cameras, gaussians.means)
    torch.testing.assert_close(found[1], pixels, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[2], depth, atol=1e-5, rtol=0)
    assert splats["sh_degree"] == 3
    torch.testing.assert_close(splats["opacities"], torch.sigmoid(gaussians.opacity_logits))


def test_gsplat_arguments_have_the_names_of_its_function():
    import inspect

    from gsplat import rasterization

    names = set(inspect.signature(rasterization).parameters)
    given = interchange.to_gsplat(make_gaussians()) | interchange_cameras.cameras_to_gsplat(make_cameras())
    assert set(given) <= names
    required = {
        name for name, value in inspect.signature(rasterization).parameters.items() if value.default is value.empty
    }
    assert required <= set(given)


def test_links_are_posed_in_the_world():
    """A posed Gaussian has the moved centre, the turned covariance, and looks from outside as it did in its link."""
    gaussians = make_gaussians(links=3, dtype=torch.float64)
    twists = torch.randn(3, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    poses = se3_exp(twists)
    world = interchange.gaussians_in_world(gaussians, poses)
    direction = torch.nn.functional.normalize(torch.tensor([0.3, -0.4, 0.8], dtype=torch.float64), dim=0)
    for row in range(len(gaussians)):
        pose = poses[gaussians.links[row]]
        turn = pose[:3, :3]
        torch.testing.assert_close(world.means[row], turn @ gaussians.means[row] + pose[:3, 3])
        scales = gaussians.log_scales[row].exp()
        before = matrix_from_quat(gaussians.quats_wxyz[row]) * scales
        after = matrix_from_quat(world.quats_wxyz[row]) * scales
        torch.testing.assert_close(turn @ before @ before.T @ turn.T, after @ after.T)
        seen = evaluate_sh(world.sh[row], direction)
        torch.testing.assert_close(seen, evaluate_sh(gaussians.sh[row], turn.T @ direction), atol=1e-10, rtol=0)
    assert not world.links.any()
    with pytest.raises(InputError, match="world_from_link"):
        interchange.to_gsplat(gaussians)
    with pytest.raises(InputError, match="2 poses"):
        interchange.points_of(gaussians, poses[:2])


def test_kornia_projects_to_the_same_pixels():
    cameras, points = make_cameras(), make_points()
    pinhole = interchange_cameras.cameras_to_kornia(cameras)
    pixels, _ = project_points(cameras, points)
    found = pinhole.project(points.expand(len(cameras), -1, -1))
    torch.testing.assert_close(found + 0.5, pixels, atol=1e-9, rtol=0)
    assert_same_cameras(interchange_cameras.cameras_from_kornia(pinhole), cameras)


def test_kornia_unprojects_pixels_at_their_centres():
    """kornia's own depth unprojection, over a whole grid: pixel (column, row) is the point seen at + 0.5."""
    from kornia.geometry.depth import depth_to_3d_v2

    cameras = make_cameras(1)
    pinhole = interchange_cameras.cameras_to_kornia(cameras)
    local = depth_to_3d_v2(torch.full((1, 480, 640), 2.0, dtype=torch.float64), pinhole.intrinsics[:, :3, :3])
    image = local[0, 17, 101] @ cameras.K[0].T
    torch.testing.assert_close(image[:2] / image[2], torch.tensor([101.5, 17.5], dtype=torch.float64))


def screen_by_the_document(arguments: dict, points: torch.Tensor) -> torch.Tensor:
    """Screen pixels by the formulas of PyTorch3D's documentation (docs/notes/cameras.md, and pixel edges of
    `get_ndc_to_screen_transform`): rows times R plus T; x_ndc = f_ndc X / Z + p_ndc; screen x right, y down."""
    height, width = arguments["image_size"][0].tolist()
    side = min(width, height)
    view = points @ arguments["R"] + arguments["T"][:, None]
    focal = arguments["focal_length"] * 2 / side
    size = points.new_tensor([width, height])
    center = -(arguments["principal_point"] - size / 2) * 2 / side
    ndc = focal[:, None] * view[..., :2] / view[..., 2:] + center[:, None]
    return size / 2 - ndc * side / 2


def test_pytorch3d_arguments_project_to_the_same_pixels():
    cameras, points = make_cameras(), make_points()
    arguments = interchange_cameras.pytorch3d_arguments(cameras)
    pixels, _ = project_points(cameras, points)
    torch.testing.assert_close(screen_by_the_document(arguments, points), pixels, atol=1e-9, rtol=0)
    # Its view axes: a point to the upper left of the image has x > 0, y > 0, z > 0.
    view = points @ arguments["R"] + arguments["T"][:, None]
    assert bool(((pixels[..., 0] < cameras.K[:, None, 0, 2]) == (view[..., 0] > 0)).all())
    assert bool(((pixels[..., 1] < cameras.K[:, None, 1, 2]) == (view[..., 1] > 0)).all())
    torch.testing.assert_close(torch.linalg.det(arguments["R"]), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("in_ndc", [False, True])
def test_pytorch3d_cameras_come_back(in_ndc):
    """From the documented fields; NDC by the documented equations between the two spaces."""
    cameras = make_cameras()
    fields = interchange_cameras.pytorch3d_arguments(cameras)
    if in_ndc:
        fields["focal_length"] = fields["focal_length"] * 2 / 480
        fields["principal_point"] = -(fields["principal_point"] - torch.tensor([320.0, 240.0])) * 2 / 480
    record = SimpleNamespace(**{**fields, "in_ndc": lambda: in_ndc})
    assert_same_cameras(interchange_cameras.cameras_from_pytorch3d(record), cameras)


def test_pytorch3d_itself():
    pytest.importorskip("pytorch3d", reason="pytorch3d is on no registry; build it from its repository to run this")
    cameras, points = make_cameras(dtype=torch.float32), make_points(dtype=torch.float32)
    theirs = interchange_cameras.cameras_to_pytorch3d(cameras)
    pixels, _ = project_points(cameras, points)
    found = theirs.transform_points_screen(points.expand(len(cameras), -1, -1))[..., :2]
    torch.testing.assert_close(found, pixels, atol=1e-2, rtol=0)
    assert_same_cameras(interchange_cameras.cameras_from_pytorch3d(theirs), cameras, 1e-4)
    gaussians = make_gaussians()
    clouds = interchange.gaussians_to_pytorch3d(gaussians)
    again = interchange.gaussians_from_pytorch3d(clouds)
    torch.testing.assert_close(again.means, gaussians.means)


NERFSTUDIO = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
from gworld.formats import interchange_cameras
from gworld.scene.cameras import Cameras, look_at, project_points
eyes = torch.tensor([[0.2, -4.0, 1.0], [1.0, -3.0, -0.5]])
K = torch.tensor([[520.0, 0, 310.25], [0, 500, 233.5], [0, 0, 1]]).repeat(2, 1, 1)
cameras = Cameras(K, look_at(eyes, torch.zeros_like(eyes)), 640, 480)
theirs = interchange_cameras.cameras_to_nerfstudio(cameras)
coords = torch.tensor([[60.5, 80.5], [120.5, 160.5], [300.5, 500.5]])
error = 0.0
for index in range(2):
    rays = theirs.generate_rays(camera_indices=torch.full((3, 1), index), coords=coords)
    pixels, _ = project_points(cameras, rays.origins + 3 * rays.directions)
    error = max(error, (pixels[index] - coords.flip(-1)).abs().max().item())
again = interchange_cameras.cameras_from_nerfstudio(theirs)
same = torch.equal(again.K, K) and torch.allclose(again.world_from_camera, cameras.world_from_camera, atol=1e-7)
kept = []
for model, last in (("opencv", 0.03), ("fisheye", 0.0)):
    terms = torch.tensor([[0.1, -0.2, 0.01, 0.02, last, 0, 0, 0]] * 2)
    bent = Cameras(K, cameras.world_from_camera, 640, 480, model, terms)
    back = interchange_cameras.cameras_from_nerfstudio(interchange_cameras.cameras_to_nerfstudio(bent))
    kept.append(back.model == model and torch.equal(back.distortion, bent.distortion))
print("RESULT" + json.dumps({"error": error, "same": same, "kept": kept, "model": again.model}))
"""


@pytest.mark.slow
def test_nerfstudio_cameras_send_the_same_rays():
    python = os.environ.get("GWORLD_NERFSTUDIO_PYTHON") or (
        sys.executable if importlib.util.find_spec("nerfstudio") else None
    )
    if python is None:
        pytest.skip("nerfstudio is not installed; set GWORLD_NERFSTUDIO_PYTHON to a Python that has nerfstudio 1.1.5")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-c", NERFSTUDIO], capture_output=True, text=True, timeout=280, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.split("RESULT")[1])
    assert result["error"] < 1e-2
    assert result["same"]
    assert result["kept"] == [True, True]
    assert result["model"] == "pinhole"


def open3d_or_skip():
    try:
        import open3d
    except (ImportError, OSError) as error:
        pytest.skip(f"open3d cannot be imported ({error}); pip install 'gworld[mesh]'")
    return open3d


def test_open3d_sees_the_same_points():
    """Open3D's own unprojection of a depth image: pixel (column, row) is the point we see at + 0.5."""
    open3d = open3d_or_skip()
    cameras = make_cameras(1)
    (parameters,) = interchange_cameras.cameras_to_open3d(cameras)
    depth = np.zeros((480, 640), np.float32)
    rows, columns = np.array([5, 100, 400]), np.array([7, 320, 600])
    depth[rows, columns] = [1.0, 2.0, 3.0]
    cloud = open3d.geometry.PointCloud.create_from_depth_image(
        open3d.geometry.Image(depth), parameters.intrinsic, parameters.extrinsic, depth_scale=1.0, depth_trunc=100.0
    )
    pixels, found = project_points(cameras, torch.from_numpy(np.asarray(cloud.points)))
    order = np.argsort(found[0].numpy())
    np.testing.assert_allclose(pixels[0].numpy()[order], np.stack([columns, rows], 1) + 0.5, atol=1e-3)
    assert_same_cameras(interchange_cameras.cameras_from_open3d([parameters]), cameras, 1e-12)


def test_open3d_clouds_and_normals():
    open3d_or_skip()
    points = torch.nn.functional.normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    colors = points / 2 + 0.5
    normals = interchange.estimate_normals(points)
    agreement = (normals * points).sum(-1)
    assert agreement.abs().min() > 0.9
    assert abs(float(agreement.sign().mean())) == 1.0
    toward = interchange.estimate_normals(points, viewpoint=torch.zeros(3))
    assert float((toward * points).sum(-1).max()) < 0
    cloud = interchange.points_to_open3d(points, colors, normals)
    found = interchange.points_from_open3d(cloud)
    for ours, theirs in zip((points, colors, normals), found, strict=True):
        torch.testing.assert_close(ours.double(), theirs)
    surface = interchange.gaussians_from_points(points, colors, normals)
    axis = matrix_from_quat(surface.quats_wxyz)[..., 2]
    torch.testing.assert_close(axis, normals, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("pytorch3d", lambda: interchange_cameras.cameras_to_pytorch3d(make_cameras())),
        ("pytorch3d", lambda: interchange.gaussians_to_pytorch3d(make_gaussians())),
        ("nerfstudio", lambda: interchange_cameras.cameras_to_nerfstudio(make_cameras())),
        ("open3d", lambda: interchange.estimate_normals(make_points())),
        ("open3d", lambda: interchange_cameras.cameras_to_open3d(make_cameras())),
        ("kornia", lambda: interchange_cameras.cameras_to_kornia(make_cameras())),
    ],
)
def test_a_missing_peer_is_one_sentence_with_a_command(monkeypatch, module, call):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingBackendError, match=rf"{module} cannot be imported .* Run `pip install"):
        call()


def test_distorted_cameras_are_refused_where_pinholes_are_needed():
    pinhole = make_cameras()
    cameras = Cameras(pinhole.K, pinhole.world_from_camera, 640, 480, "opencv", torch.zeros(3, 8))
    for convert in (
        interchange_cameras.cameras_to_gsplat,
        interchange_cameras.cameras_to_kornia,
        interchange_cameras.pytorch3d_arguments,
    ):
        with pytest.raises(InputError, match="Undistort"):
            convert(cameras)


def test_gaussians_can_be_looked_at_in_trimesh():
    gaussians = make_gaussians()
    cloud = interchange.gaussians_to_trimesh(gaussians)
    points, colors = interchange.points_of(gaussians)
    np.testing.assert_allclose(cloud.vertices, points.numpy(), atol=1e-6)
    np.testing.assert_allclose(cloud.colors[:, :3], (colors * 255).numpy(), atol=0.6)
    pose = transform_from_pose(torch.tensor([[1.0, 2.0, 3.0, 1.0, 0.0, 0.0, 0.0]]))
    moved = interchange.gaussians_to_trimesh(gaussians, pose)
    np.testing.assert_allclose(moved.vertices - cloud.vertices, np.tile([1.0, 2.0, 3.0], (30, 1)), atol=1e-5)
