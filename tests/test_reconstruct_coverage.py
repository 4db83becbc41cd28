"""Coverage: seen, extrapolated and invented pixels against closed forms, occluders, bodies that moved; damage."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from gworld.data.shapes import box, plain
from gworld.data.toys import tabletop_world
from gworld.errors import InputError
from gworld.formats.world import load_world, save_world
from gworld.geometry import transform_from
from gworld.reconstruct import contribution
from gworld.reconstruct.contribution import glimpses, light_shares, single_cameras, view_masks
from gworld.reconstruct.coverage import (
    EXTRAPOLATED,
    INVENTED,
    MAX_VIEWS,
    SEEN,
    Coverage,
    count_views,
    coverage_map,
    coverage_shares,
    load_coverage,
    measure_coverage,
    save_coverage,
    select_coverage,
)
from gworld.render.api import RenderOptions
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians, join_gaussians, select_gaussians
from gworld.scene.views import View, Views
from gworld.scene.world import World
from tests.scenes import random_gaussians

GREY = plain(0.6, 0.6, 0.6)
WALL = 1.5  # metres wide and high, in the plane y = 0
PANEL = (0.0, -1.0, 0.3)  # its centre x, plane y, half of its edge; between the wall and a camera in front


def eyes_at(degrees: list[float], distance: float = 2.0) -> torch.Tensor:
    """Camera positions around the z axis; 0 is in front of the wall, on its -y side."""
    angle = torch.tensor([math.radians(value) for value in degrees])
    return torch.stack([distance * angle.sin(), -distance * angle.cos(), torch.zeros_like(angle)], 1)


def cameras_at(degrees: list[float], width: int = 160, height: int = 120, fov: float = 0.9) -> Cameras:
    eyes = eyes_at(degrees)
    K = intrinsics(width, height, fov).expand(len(eyes), 3, 3)
    return Cameras(K, look_at(eyes, torch.zeros_like(eyes)), width, height)


def wall(spacing: float = 0.03) -> Gaussians:
    return box((WALL, 0.01, WALL), spacing, GREY, (0, 0.005, 0))


def wall_points(camera: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pixel's ray meets the plane of the wall, and whether that is on the wall."""
    u, v = torch.meshgrid(torch.arange(camera.width) + 0.5, torch.arange(camera.height) + 0.5, indexing="xy")
    rays = torch.stack([u, v, torch.ones_like(u)], -1) @ camera.K[0].inverse().T @ camera.world_from_camera[0, :3, :3].T
    eye = camera.world_from_camera[0, :3, 3]
    points = eye + rays * (-eye[1] / rays[..., 1:2])
    return points, (points[..., [0, 2]].abs() < WALL / 2).all(-1)


def sees(camera: Cameras, points: torch.Tensor, panel: bool) -> torch.Tensor:
    """Whether points of the wall are in a camera's picture and not behind the panel: plain ray geometry."""
    local = (points - camera.world_from_camera[0, :3, 3]) @ camera.world_from_camera[0, :3, :3]
    pixel = local @ camera.K[0].T
    pixel = pixel[..., :2] / pixel[..., 2:]
    inside = (
        (local[..., 2] > 0) & (pixel >= 0).all(-1) & (pixel < pixel.new_tensor([camera.width, camera.height])).all(-1)
    )
    if panel:
        eye = camera.world_from_camera[0, :3, 3]
        x, y, half = PANEL
        crossing = eye + (points - eye) * ((y - eye[1]) / (points[..., 1:2] - eye[1]))
        inside &= ~((crossing[..., 0] - x).abs().lt(half) & crossing[..., 2].abs().lt(half))
    return inside


def expected_map(training: Cameras, query: Cameras, panel: bool) -> tuple[np.ndarray, np.ndarray]:
    """The classes of a query's pixels by geometry, and the pixels on the wall that the panel does not hide."""
    points, on_wall = wall_points(query)
    towards = torch.nn.functional.normalize(query.world_from_camera[0, :3, 3] - points, dim=-1)
    count = torch.zeros(points.shape[:2])
    for camera in single_cameras(training):
        back = torch.nn.functional.normalize(camera.world_from_camera[0, :3, 3] - points, dim=-1)
        count += ((back * towards).sum(-1) >= math.cos(math.radians(15))) & sees(camera, points, panel)
    return count.clamp(0, 2).int().numpy(), (on_wall & sees(query, points, panel)).numpy()


def agreement(found: np.ndarray, expected: np.ndarray, valid: np.ndarray, border: int = 3) -> float:
    """Share of equal pixels, away from where the expected class changes."""
    safe = np.zeros_like(valid)
    for value in np.unique(expected):
        safe |= binary_erosion((expected == value) & valid, iterations=border)
    assert safe.sum() > 500
    return float((found == expected)[safe].mean())


@pytest.mark.parametrize(
    ("angle", "middle"), [(5.0, SEEN), (-8.0, EXTRAPOLATED), (50.0, EXTRAPOLATED), (32.0, INVENTED), (-40.0, INVENTED)]
)
def test_a_wall_seen_from_three_sides(angle, middle):
    training = cameras_at([0.0, 10.0, 60.0])
    gaussians = wall()
    coverage = measure_coverage(gaussians, single_cameras(training))
    query = cameras_at([angle])
    found = coverage_map(coverage, gaussians, query)[0].numpy()
    expected, valid = expected_map(training, query, panel=False)
    assert found[60, 80] == expected[60, 80] == middle
    assert agreement(found, expected, valid) > 0.99
    assert (found[binary_erosion(~valid, iterations=4, border_value=1)] == INVENTED).all()


def test_what_stands_before_a_wall_hides_it():
    training = cameras_at([0.0, 6.0, 28.0])
    x, y, half = PANEL
    panel = box((2 * half, 0.01, 2 * half), 0.03, GREY, (x, y + 0.005, 0))
    gaussians = join_gaussians([wall(), panel])
    coverage = measure_coverage(gaussians, single_cameras(training))
    query = cameras_at([17.0])
    found = coverage_map(coverage, gaussians, query)[0].numpy()
    expected, valid = expected_map(training, query, panel=True)
    assert {EXTRAPOLATED, SEEN} <= set(np.unique(expected[valid]).tolist())
    assert agreement(found, expected, valid) > 0.98
    bare, _ = expected_map(training, query, panel=False)
    assert ((bare != expected) & valid).sum() > 300  # the panel's shadow is there, and it was judged


def test_masked_pixels_see_nothing():
    gaussians = wall()
    training = single_cameras(cameras_at([0.0, 4.0]))
    left = torch.zeros(60, 80, dtype=torch.bool)  # of another size than the pictures
    left[:, :40] = True
    coverage = measure_coverage(gaussians, training, masks=lambda index: left)
    found = coverage_map(coverage, gaussians, cameras_at([2.0]))[0]
    assert (found[30:90, 45:72] == SEEN).all() and (found[30:90, 90:115] == INVENTED).all()
    shares = coverage_shares(found)
    assert abs(sum(shares.values()) - 1) < 1e-9 and shares["extrapolated"] < 0.05


def test_a_body_that_turned_was_seen_from_behind():
    plate = box((0.8, 0.1, 0.8), 0.03, GREY)
    plate = replace(plate, links=torch.ones_like(plate.links))
    turned = transform_from(torch.diag(torch.tensor([-1.0, -1.0, 1.0])), torch.zeros(3))
    still = torch.eye(4)
    poses = torch.stack([torch.stack([still, still]), torch.stack([still, turned])])
    front = single_cameras(cameras_at([0.0, 2.0]))
    coverage = measure_coverage(plate, front, world_from_link=poses)
    rest = torch.stack([still, still])
    for angle in (0.0, 180.0):
        found = coverage_map(coverage, plate, cameras_at([angle]), world_from_link=rest)[0]
        assert found[60, 80] == EXTRAPOLATED
    side = coverage_map(coverage, plate, cameras_at([90.0]), world_from_link=rest)[0]
    assert side[60, 80] == INVENTED
    with_static = measure_coverage(plate, front, world_from_link=rest)
    assert coverage_map(with_static, plate, cameras_at([180.0]), world_from_link=rest)[0, 60, 80] == INVENTED
    assert coverage_map(with_static, plate, cameras_at([0.0]), world_from_link=rest)[0, 60, 80] == SEEN


def test_counts_are_those_of_plain_arithmetic():
    rng = torch.Generator().manual_seed(3)
    gaussians = random_gaussians(5, 300)
    gaussians = replace(gaussians, means=gaussians.means + 50.0)  # far from the origin: no digits may be lost
    origins = torch.randn(21, 3, generator=rng) * 2 + 50.0
    seen = torch.rand(300, 21, generator=rng) < 0.6
    packed = torch.from_numpy(np.packbits(seen.numpy(), axis=1, bitorder="little"))
    coverage = Coverage(packed, origins[:, None])
    eye = torch.tensor([51.0, 48.5, 50.2])
    for degrees in (15.0, 60.0, 120.0):
        found = count_views(coverage, gaussians, eye, degrees=degrees)
        for row in range(0, 300, 7):
            a = (eye - gaussians.means[row]).double()
            b = (origins - gaussians.means[row]).double()
            angle = torch.rad2deg(torch.acos((b @ a) / (b.norm(dim=1) * a.norm())))
            if (angle - degrees).abs().min() > 1e-3:
                assert found[row] == ((angle <= degrees) & seen[row]).sum()


def test_light_that_arrives_is_what_the_renderer_blends():
    gaussians = join_gaussians([wall(), box((0.6, 0.01, 0.6), 0.03, GREY, (0, -1.0, 0))])
    (look,) = glimpses(gaussians, single_cameras(cameras_at([0.0])))
    assert abs(float(look.weights.sum()) - float(look.alpha.sum())) < 1e-3 * float(look.alpha.sum())
    alone = random_gaussians(1, 1, size=0.08)
    alone = replace(alone, means=torch.zeros(1, 3), opacity_logits=torch.zeros(1))
    (look,) = glimpses(alone, single_cameras(cameras_at([0.0])))
    # alpha below 1/255 is not drawn: one Gaussian of opacity 1/2 loses 2/255 of its light.
    assert abs(float(light_shares(alone, look, RenderOptions())[0]) - (1 - 2 / 255)) < 2e-3


def test_views_bring_cameras_of_any_size_and_their_masks(tmp_path):
    from PIL import Image

    cameras = cameras_at([0.0])
    Image.fromarray(np.full((120, 160), 255, np.uint8)).save(tmp_path / "m.png")
    view = View("a", 160, 120, cameras.K[0], cameras.world_from_camera[0], mask=tmp_path / "m.png")
    other = replace(view, name="b", width=320, height=240, K=view.K * torch.tensor([[2.0], [2.0], [1.0]]), mask=None)
    views = Views((view, other))
    coverage = measure_coverage(wall(), single_cameras(views), masks=view_masks(views))
    assert (count_views(coverage, wall(), eyes_at([0.0])[0]) == 2).sum() > 500
    with pytest.raises(InputError, match=r"m\.png` has 160 x 120 pixels; its view has 320 x 240"):
        measure_coverage(wall(), single_cameras(views), masks=view_masks(Views((view, replace(other, mask=view.mask)))))
    (tmp_path / "m.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as a mask"):
        measure_coverage(wall(), single_cameras(views), masks=view_masks(views))


def test_too_many_views_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr("gworld.reconstruct.coverage.MAX_VIEWS", 3)
    assert MAX_VIEWS > 300
    training = single_cameras(cameras_at([0.0, 1.0, 2.0, 3.0, 4.0]))
    coverage = measure_coverage(wall(0.1), training)
    torch.testing.assert_close(coverage.origins[:, 0], eyes_at([0.0, 2.0, 4.0]))
    assert contribution.LONGEST >= 160


@pytest.fixture
def saved(tmp_path):
    world = World(wall(0.1))
    save_world(world, tmp_path / "w")
    coverage = measure_coverage(world.gaussians, single_cameras(cameras_at([0.0, 10.0])))
    save_coverage(coverage, tmp_path / "w")
    return tmp_path / "w", coverage


def test_coverage_travels_with_its_world(saved, tmp_path):
    folder, coverage = saved
    back = load_coverage(folder)
    assert torch.equal(back.views, coverage.views) and torch.equal(back.origins, coverage.origins)
    world = load_world(folder)
    save_world(world, tmp_path / "copy")
    assert torch.equal(load_coverage(tmp_path / "copy").views, coverage.views)
    fewer = replace(world, gaussians=select_gaussians(world.gaussians, torch.arange(10)))
    save_world(fewer, tmp_path / "fewer")
    assert load_coverage(tmp_path / "fewer") is None
    save_coverage(select_coverage(coverage, torch.arange(10)), tmp_path / "fewer")
    assert len(load_coverage(tmp_path / "fewer")) == 10
    save_world(tabletop_world(0.05), tmp_path / "toy")
    assert load_coverage(tmp_path / "toy") is None


def test_coverage_of_other_gaussians_is_refused(saved, tmp_path):
    folder, coverage = saved
    save_world(World(wall(0.2)), tmp_path / "other")
    (tmp_path / "other" / "coverage.safetensors").write_bytes((folder / "coverage.safetensors").read_bytes())
    with pytest.raises(InputError, match="belongs to another"):
        load_coverage(tmp_path / "other")
    with pytest.raises(InputError, match="Measure it again"):
        count_views(coverage, wall(0.2), torch.zeros(3))
    with pytest.raises(InputError, match="does not exist"):
        save_coverage(coverage, tmp_path / "nothing")


def test_damaged_coverage_is_one_sentence(saved):
    folder, _ = saved
    file = folder / "coverage.safetensors"
    good = file.read_bytes()
    (size,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + size])
    rng = np.random.default_rng(0)
    cases = [good[:cut] for cut in (0, 4, 8, 50, len(good) // 2, len(good) - 1)]
    for _ in range(150):
        data = bytearray(good)
        for place in rng.integers(0, 8 + size, 3):
            data[place] = rng.integers(256)
        cases.append(bytes(data))
    for dtype in ("F4", "F64", "BOOL", "F8_E4M3", "F8_E8M0", "I16"):
        text = json.dumps({**header, "views": {**header["views"], "dtype": dtype}}).encode()
        cases.append(struct.pack("<Q", len(text)) + text + good[8 + size :])
    refused = 0
    for data in cases:
        file.write_bytes(data)
        try:
            load_coverage(folder)
        except InputError as error:
            refused += 1
            assert "coverage.safetensors" in str(error)
    assert refused > 0.9 * len(cases)
