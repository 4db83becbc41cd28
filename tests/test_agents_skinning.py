"""Gaussian skins against closed forms and against MuJoCo's own pictures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from gworld.agents.kinematics import forward_kinematics, rest_values
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions, skin_robot, skin_surfaces
from gworld.agents.surfaces import shape_surfaces
from gworld.agents.tree import Shape, Surface
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.cameras import Cameras, look_at
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import rgb_from_sh

os.environ.setdefault("MUJOCO_GL", "egl")  # read once, when MuJoCo is first imported
FLAT = SkinOptions(per_square_metre=20_000.0, headlight=0.0)
SHARP = RenderOptions(antialiased=True)


def skin(kind: Any, size: tuple[float, ...], options: SkinOptions = FLAT) -> Gaussians:
    return skin_surfaces(shape_surfaces(Shape(0, kind, size, np.eye(4), (0.2, 0.4, 0.6, 1.0))), kind, options)


def camera(eye: tuple[float, float, float], focal: float, width: int = 200, height: int = 160) -> Cameras:
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return Cameras(K[None], look_at(torch.tensor(eye, dtype=torch.float32), torch.zeros(3))[None], width, height)


def test_a_sphere_is_covered_evenly_and_its_discs_lie_flat() -> None:
    radius = 0.1
    gaussians = skin("sphere", (radius,), replace(FLAT, inset=0.0))
    area, spacing = 4 * np.pi * radius**2, FLAT.per_square_metre**-0.5
    assert len(gaussians) == round(area * FLAT.per_square_metre) or abs(len(gaussians) / area / 20_000 - 1) < 0.01
    means = gaussians.means.numpy()
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), radius, atol=radius * 0.005)
    normals = matrix_from_quat(gaussians.quats_wxyz)[..., 2].numpy()
    assert float(np.abs((normals * means / radius).sum(axis=1)).min()) > 0.995
    nearest = cKDTree(means).query(means, k=2)[0][:, 1] / spacing
    assert np.percentile(nearest, 5) > 0.3  # white noise has 0.13 there
    torch.testing.assert_close(gaussians.log_scales[:, 2].exp(), torch.full((len(means),), 0.06 * spacing))


def test_the_same_seed_gives_the_same_skin() -> None:
    first, again, other = (skin("box", (0.1, 0.2, 0.1), replace(FLAT, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first.means, again.means) and not torch.equal(first.means[:10], other.means[:10])


@pytest.mark.parametrize("kind", ["sphere", "box"])
def test_the_surface_is_closed_and_its_outline_fits(kind: str) -> None:
    gaussians = skin(kind, (0.06,) if kind == "sphere" else (0.1, 0.1, 0.1))
    for focal in (500.0, 1000.0):
        alpha = render(gaussians, None, camera((0, -1, 0), focal), outputs=("alpha",), options=SHARP).alpha
        assert alpha is not None
        covered = alpha[0, 0] >= 0.5
        count = float(covered.sum())
        if kind == "sphere":
            blur = np.sqrt(count / np.pi) - focal * 0.06 / np.sqrt(1 - 0.06**2)
        else:
            blur = (np.sqrt(count) - focal * 0.1 / 0.95) / 2
        assert abs(blur) < 0.8  # pixels
        inner = binary_erosion(covered.numpy(), iterations=3)
        assert np.percentile(alpha[0, 0].numpy()[inner], 2) > 0.9 and float(alpha[0, 0].numpy()[inner].min()) > 0.7


def test_colours_come_through_and_a_headlight_dims_what_is_seen_askance() -> None:
    flat = skin("sphere", (0.05,))
    torch.testing.assert_close(rgb_from_sh(flat.sh[:, 0]), torch.tensor([0.2, 0.4, 0.6]).expand(len(flat), 3))
    lit = skin("sphere", (0.06,), replace(FLAT, headlight=0.5))
    picture = render(lit, None, camera((0, -1, 0), 1000.0), options=SHARP)
    assert picture.rgb is not None and picture.alpha is not None
    middle, rim = picture.rgb[0, 0, 80, 100], picture.rgb[0, 0, 80, 100 + 50]
    torch.testing.assert_close(middle, torch.tensor([0.2, 0.4, 0.6]), atol=0.02, rtol=0)
    slant = np.sqrt(1 - (50 / 60) ** 2)
    torch.testing.assert_close(rim, torch.tensor([0.2, 0.4, 0.6]) * float(0.5 + 0.5 * slant), atol=0.04, rtol=0)


def test_a_texture_is_laid_by_its_coordinates() -> None:
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:, :32], texture[:32, 32:] = (255, 0, 0), (0, 255, 0)  # left red, top right green
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]])
    uv = vertices[:, :2][np.array([[0, 1, 2], [0, 2, 3]])]
    card = Surface(vertices, np.array([[0, 1, 2], [0, 2, 3]]), uv=uv, texture=texture)
    gaussians = skin_surfaces([card], "card", replace(FLAT, per_square_metre=2000.0))
    color, (x, y, _) = rgb_from_sh(gaussians.sh[:, 0]), gaussians.means.unbind(-1)
    clear = ((x - 0.5).abs() > 0.05) & ((y - 0.5).abs() > 0.05)
    expected = torch.stack([(x < 0.5), (x > 0.5) & (y > 0.5), torch.zeros_like(x, dtype=torch.bool)], -1).float()
    torch.testing.assert_close(color[clear], expected[clear], atol=1e-5, rtol=0)


def test_both_sides_of_a_thin_wall_keep_their_place() -> None:
    gaussians = skin("box", (0.2, 0.2, 0.002))
    top = gaussians.means[matrix_from_quat(gaussians.quats_wxyz)[:, 2, 2].abs() > 0.9]
    torch.testing.assert_close(top[:, 2].abs(), torch.full((len(top),), 0.001), atol=1e-5, rtol=0)


def test_what_is_out_of_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Lower `per_square_metre`"):
        skin("box", (100.0, 100.0, 100.0))
    with pytest.raises(InputError, match="opacity"):
        skin("box", (0.1, 0.1, 0.1), replace(FLAT, opacity=1.0))
    with pytest.raises(InputError, match="no area"):
        skin_surfaces([Surface(np.zeros((3, 3)), np.array([[0, 1, 2]]))], "point", FLAT)
    (tmp_path / "bare.urdf").write_text('<robot name="r"><link name="a"/></robot>')
    with pytest.raises(InputError, match="no shapes"):
        skin_robot(read_robot(tmp_path / "bare.urdf", "bare"))


CRANE = """<mujoco><visual><global offwidth="480" offheight="360"/><quality shadowsize="0" offsamples="0"/></visual>
<worldbody><geom type="cylinder" size="0.12 0.04" pos="0 0 0.04"/>
  <body pos="0 0 0.08"><joint axis="0 0 1"/><geom type="box" size="0.06 0.05 0.15" pos="0 0 0.15"/>
    <body pos="0 0 0.3"><joint axis="0 1 0"/><geom type="capsule" size="0.05 0.15" pos="0 0 0.15" rgba="0.8 0.5 0.1 1"/>
      <body pos="0 0 0.3"><joint axis="0 1 0"/><geom type="ellipsoid" size="0.05 0.08 0.12" pos="0 0 0.1"/>
        <geom type="sphere" size="0.06" pos="0 0 0.25"/></body></body></body></worldbody></mujoco>"""


def test_silhouettes_equal_mujocos(tmp_path: Path) -> None:
    mujoco = pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    (tmp_path / "crane.xml").write_text(CRANE)
    robot = read_robot(tmp_path / "crane.xml", "crane")
    model = mujoco.MjModel.from_xml_path(str(tmp_path / "crane.xml"))
    data = mujoco.MjData(model)
    values = torch.tensor([0.4, 0.7, 0.6], dtype=torch.float64)
    data.qpos[:] = values.numpy()
    mujoco.mj_forward(model, data)
    try:
        renderer = mujoco.Renderer(model, 360, 480)
    except (RuntimeError, OSError, AttributeError, ImportError, mujoco.FatalError) as error:
        pytest.skip(f"MuJoCo cannot draw here ({error}); EGL is needed")
    view = mujoco.MjvCamera()
    view.lookat, view.distance, view.azimuth, view.elevation = [0.15, 0.05, 0.4], 1.35, 120.0, -20.0
    model.vis.global_.fovy = 40.0
    gaussians = skin_robot(robot, SkinOptions(per_square_metre=100_000.0))
    poses = forward_kinematics(robot, values).float()
    with renderer:
        renderer.enable_segmentation_rendering()
        renderer.update_scene(data, view)
        geoms = renderer.render()[..., 0]
    truth = np.where(geoms >= 0, model.geom_bodyid[np.maximum(geoms, 0)], -1)
    angles = np.radians([view.azimuth, view.elevation])
    forward = np.array(
        [np.cos(angles[1]) * np.cos(angles[0]), np.cos(angles[1]) * np.sin(angles[0]), np.sin(angles[1])]
    )
    target = torch.tensor([0.15, 0.05, 0.4])
    pose = look_at(target - 1.35 * torch.tensor(forward).float(), target)
    focal = 180 / np.tan(np.radians(20.0))
    K = torch.tensor([[focal, 0, 240], [0, focal, 180], [0, 0, 1]]).float()
    cameras = Cameras(K[None], pose[None], 480, 360)
    picture = render(gaussians, poses, cameras, outputs=("alpha", "link_id"), options=SHARP)
    assert picture.alpha is not None and picture.link_id is not None
    ours = picture.alpha[0, 0].numpy() >= 0.5
    assert (ours & (truth >= 0)).sum() / (ours | (truth >= 0)).sum() >= 0.97
    both = ours & (truth >= 0)
    assert (picture.link_id[0, 0].numpy() == truth)[both].mean() > 0.97
    assert torch.equal(rest_values(robot), torch.zeros(3))
