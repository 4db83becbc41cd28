"""transforms.json beside others: nerfstudio reads ours as we mean it, and COLMAP's way there and back is exact."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from gworld.formats.transforms import read_transforms, write_transforms
from gworld.geometry import invert_transform, transform_points
from gworld.scene.cameras import project_points
from gworld.scene.views import View, cameras_of
from tests.peers.nerfstudio import nerfstudio_python
from tests.posed import DISTORTION, make_views

PROBE = """
import json, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
try:
    import open3d
    points = True
except ImportError:
    points = False
config = NerfstudioDataParserConfig(data=Path(sys.argv[1]), orientation_method="none", center_method="none",
    auto_scale_poses=False, eval_mode="all", downscale_factor=1, load_3D_points=points)
parsed = config.setup().get_dataparser_outputs("train")
cameras = parsed.cameras
coords = torch.tensor([[60.5, 80.5], [120.5, 160.5], [200.5, 300.5], [30.5, 250.5]])  # (y, x)
rays = [cameras.generate_rays(camera_indices=torch.full((4, 1), i), coords=coords) for i in range(len(cameras))]
cloud = parsed.metadata.get("points3D_xyz")
print("RESULT" + json.dumps({
    "names": [p.name for p in parsed.image_filenames], "masks": [p.name for p in parsed.mask_filenames or []],
    "c2w": cameras.camera_to_worlds.tolist(), "fx": cameras.fx[:, 0].tolist(), "fy": cameras.fy[:, 0].tolist(),
    "cx": cameras.cx[:, 0].tolist(), "cy": cameras.cy[:, 0].tolist(), "w": cameras.width[:, 0].tolist(),
    "distortion": cameras.distortion_params.tolist(), "scale": parsed.dataparser_scale,
    "transform": parsed.dataparser_transform.tolist(), "coords": coords.tolist(),
    "origins": [r.origins.tolist() for r in rays], "directions": [r.directions.tolist() for r in rays],
    "points": None if cloud is None else cloud.tolist(),
    "colors": None if cloud is None else parsed.metadata["points3D_rgb"].tolist()}))
"""


def pixels_of(view: View, world: torch.Tensor) -> np.ndarray:
    """Pixels of world points by OpenCV's documented projection formulas."""
    x, y, z = transform_points(invert_transform(view.world_from_camera), world).numpy().T
    if view.model == "equirectangular":
        u, v = np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))
    elif view.model == "fisheye":
        radius = np.hypot(x, y)
        theta = np.arctan2(radius, z)
        bent = theta * (1 + sum(k * theta ** (2 * i) for i, k in enumerate(view.distortion, 1)))
        u, v = x / radius * bent, y / radius * bent
    else:
        a, b = x / z, y / z
        k1, k2, p1, p2, k3, *_ = view.distortion or (0.0,) * 8
        r2 = a * a + b * b
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        u = a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a * a)
        v = b * radial + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b
    return (view.K.numpy() @ np.stack([u, v, np.ones_like(u)]))[:2].T


@pytest.mark.slow
@pytest.mark.parametrize("model", list(DISTORTION))
def test_nerfstudio_reads_what_we_write(tmp_path, model):
    """Poses, intrinsics, points, and the world rays of given pixels: nerfstudio's own parser and camera agree."""
    python = nerfstudio_python()
    views = make_views(tmp_path, model)
    write_transforms(views, tmp_path / "transforms.json")
    done = subprocess.run(
        [python, "-c", PROBE, str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.split("RESULT")[1])
    assert theirs["names"] == [view.name for view in views.views]
    assert theirs["scale"] == 1.0
    np.testing.assert_array_equal(theirs["transform"], np.eye(4)[:3])
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    coords = np.array(theirs["coords"])[:, ::-1]
    for index, view in enumerate(views.views):
        np.testing.assert_allclose(theirs["c2w"][index], (view.world_from_camera.numpy() @ flip)[:3], atol=1e-6)
        origin, direction = np.array(theirs["origins"][index]), np.array(theirs["directions"][index])
        found = pixels_of(view, torch.from_numpy(origin + 2.0 * direction))
        np.testing.assert_allclose(found, coords, atol=1e-3)
    if theirs["points"] is not None:
        np.testing.assert_allclose(theirs["points"], views.points.numpy(), atol=1e-6)
        np.testing.assert_allclose(theirs["colors"], views.colors.numpy(), atol=1)


def test_colmap_and_transforms_agree_on_the_skull(real_data, tmp_path):
    from gworld.formats.colmap import read_colmap, write_colmap

    views = read_colmap(real_data / "skull_ccby")
    bare = replace(views, views=tuple(replace(view, image=None) for view in views.views))
    write_transforms(bare, tmp_path / "transforms.json")
    through = read_transforms(tmp_path)
    write_colmap(through, tmp_path / "sparse")
    again = read_colmap(tmp_path / "sparse")
    assert [view.name for view in again.views] == [view.name for view in views.views]
    pixels, depth = project_points(cameras_of(views, torch.float64), views.points[::50])
    found, _ = project_points(cameras_of(again, torch.float64), again.points[::50])
    assert (pixels - found)[depth > 0].abs().max() < 1e-8
