"""Lenses a calibration leaves out: bending there and back, and found on a table with a lattice of holes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import se3_exp
from gworld.reconstruct.motion_dots import lattice_places
from gworld.reconstruct.motion_film import Film
from gworld.reconstruct.motion_lens import bent, lensed, straightened, unbent
from gworld.reconstruct.motion_rig import RigOptions, plane_points, refine_rig
from gworld.scene.cameras import Cameras, look_at

SPACING = 0.05
LENSES = torch.tensor(
    [
        [-0.05, 0.04, 2.0, -1.5, -0.01, 0.001, -0.0005],
        [-0.04, 0.03, -1.0, 2.0, 0.0, 0.0, 0.001],
        [-0.06, 0.05, 0.0, 1.0, -0.02, -0.001, 0.0],
    ]
).double()
PLANE = torch.tensor([0.0, 0.0, 1.0, 0.0]).double()


@pytest.fixture(scope="module")
def table() -> tuple[list[np.ndarray], Cameras]:
    """Pictures of a table with holes, taken through lenses, and the cameras that took them."""
    eyes = torch.tensor([[0.5, -0.35, 0.55], [-0.45, -0.4, 0.6], [0.05, 0.55, 0.6]])
    K = torch.tensor([[160.0, 0.0, 160.0], [0.0, 160.0, 90.0], [0.0, 0.0, 1.0]]).expand(3, 3, 3).clone()
    cameras = Cameras(K, look_at(eyes, torch.zeros(3, 3)), 320, 180)
    return [_seen(K[c].double(), cameras.world_from_camera[c].double(), LENSES[c]) for c in range(3)], cameras


def _seen(K: Tensor, pose: Tensor, lens: Tensor, fine: int = 3) -> np.ndarray:
    rows, columns = (np.indices((180 * fine, 320 * fine)) + 0.5) / fine
    pixels = torch.from_numpy(np.stack([columns, rows], -1).reshape(-1, 2))
    points = plane_points(unbent(pixels, K, lens), K, pose, PLANE)[:, :2]
    off = (points / SPACING - (points / SPACING).round()).norm(dim=-1)
    stain = 0.3 * (23 * points[:, 0]).sin() * (17 * points[:, 1] + 9 * points[:, 0]).cos()
    grey = torch.where(off < 0.2, 0.1, 0.6 + stain).reshape(180, fine, 320, fine).mean((1, 3))
    return grey[..., None].repeat(1, 1, 3).float().numpy()


def test_a_bent_pixel_comes_back() -> None:
    pixels = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([320.0, 180.0])
    K = torch.tensor([[160.0, 0.0, 161.0], [0.0, 158.0, 92.0], [0.0, 0.0, 1.0]]).double()
    for lens in LENSES:
        assert torch.allclose(unbent(bent(pixels, K, lens), K, lens), pixels, atol=1e-6)
        assert (bent(pixels, K, lens) - pixels).norm(dim=-1).max() > 1.0


def test_cv2_bends_alike() -> None:
    import cv2

    K = torch.tensor([[160.0, 0.0, 161.0], [0.0, 158.0, 92.0], [0.0, 0.0, 1.0]]).double()
    points = np.random.default_rng(0).normal(size=(50, 3)) * [0.5, 0.3, 0.1] + [0, 0, 1]
    straight = points @ K.numpy().T
    shown, _ = cv2.projectPoints(
        points, np.zeros(3), np.zeros(3), K.numpy(), np.array([-0.05, 0.04, 2e-3, -3e-3, -0.02])
    )
    lens = torch.tensor([-0.05, 0.04, 0.0, 0.0, -0.02, 2e-3, -3e-3]).double()
    assert np.allclose(bent(torch.from_numpy(straight[:, :2] / straight[:, 2:]), K, lens), shown[:, 0], atol=1e-9)


def test_cameras_with_their_lenses_are_those_of_opencv(table: tuple[list[np.ndarray], Cameras]) -> None:
    import cv2

    cameras = lensed(table[1], LENSES)
    assert cameras.model == "opencv" and cameras.distortion is not None
    points = np.random.default_rng(1).normal(size=(30, 3)) * [0.5, 0.3, 0.1] + [0, 0, 1]
    for c in range(3):
        straight = torch.from_numpy(points) @ table[1].K[c].double().T
        K, bend = cameras.K[c].double().numpy(), cameras.distortion[c].double().numpy()
        shown, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, bend)
        ours = bent(straight[:, :2] / straight[:, 2:], table[1].K[c].double(), LENSES[c])
        assert np.allclose(ours, shown[:, 0], atol=1e-4)


def test_lenses_and_poses_are_found_on_the_holes_of_a_table(table: tuple[list[np.ndarray], Cameras]) -> None:
    pictures, cameras = table
    off = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.004] * 6)
    given = replace(cameras, K=cameras.K[:2], world_from_camera=cameras.world_from_camera[:2] @ se3_exp(off))
    fit = refine_rig(np.stack(pictures[:2]), given, RigOptions(patch=0.15, lens=True, dots=SPACING))
    assert fit.after < 0.3 < fit.before
    pixels = torch.cartesian_prod(torch.linspace(20, 300, 8), torch.linspace(20, 160, 5)).double()
    found, true = fit.cameras.world_from_camera.double(), cameras.world_from_camera.double()
    for one, two in ((0, 1), (1, 0)):  # the frame of the world is not bound: what one camera sees, seen by another
        gaps = []
        for poses, lenses in ((found, fit.lenses), (true, LENSES)):
            K = cameras.K.double()
            above = plane_points(unbent(pixels, K[one], lenses[one]), K[one], poses[one], PLANE - torch.eye(4)[3] * 0.1)
            local = (above - poses[two][:3, 3]) @ poses[two][:3, :3] @ K[two].T
            gaps.append(bent(local[:, :2] / local[:, 2:], K[two], lenses[two]))
        inside = ((gaps[1] > 0) & (gaps[1] < torch.tensor([320.0, 180.0]))).all(-1)
        assert (gaps[0] - gaps[1])[inside].norm(dim=-1).median() < 1.0


def test_straightened_films_show_what_a_pinhole_sees(table: tuple[list[np.ndarray], Cameras]) -> None:
    pictures, cameras = table
    films = [Film(np.zeros(1), (255 * picture[None]).astype(np.uint8)) for picture in pictures]
    for c, film in enumerate(straightened(films, cameras, LENSES)):
        plain = _seen(cameras.K[c].double(), cameras.world_from_camera[c].double(), torch.zeros(7).double())
        middle = (slice(20, 160), slice(30, 290))
        apart = np.abs(film.pictures[0] / 255 - plain)[middle].mean()
        assert apart < 0.4 * np.abs(films[c].pictures[0] / 255 - plain)[middle].mean()


def test_a_lattice_is_followed_around_gaps_and_strangers() -> None:
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(12), np.arange(9)), -1).reshape(-1, 2)
    turn = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    points = 0.025 * places @ turn + rng.normal(size=places.shape) * 0.0006
    kept = rng.random(len(points)) > 0.15
    strangers = rng.random((25, 2)) * 0.25
    rows, found = lattice_places(np.concatenate([points[kept], strangers]), 0.026, points.mean(0))
    own = rows < kept.sum()
    assert own.mean() > 0.93 and own.sum() > 0.9 * kept.sum()
    true = places[kept][rows[own]]
    step = np.linalg.lstsq(np.c_[true, np.ones(len(true))], found[own], rcond=None)[0]
    assert np.allclose(np.abs(step[:2]), np.round(np.abs(step[:2])), atol=0.02)


def test_a_plane_without_dots_is_refused(table: tuple[list[np.ndarray], Cameras]) -> None:
    pictures, cameras = table
    with pytest.raises(InputError, match="no lattice of dots 170 mm apart"):
        two = replace(cameras, K=cameras.K[:2], world_from_camera=cameras.world_from_camera[:2])
        refine_rig(np.stack(pictures[:2]), two, RigOptions(patch=0.15, dots=0.17))
