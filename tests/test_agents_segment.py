"""What of a scene belongs together: by a model that stands in it, by what moves as one; the holes that are left."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from gworld.agents.binding import bind_object, bind_robot, cut_object
from gworld.agents.kinematics import forward_kinematics
from gworld.agents.segment import find_holes
from gworld.agents.segment_model import links_near_robot, rows_near_mesh, take_links
from gworld.agents.segment_motion import cluster_motion, read_tracks, rows_by_motion
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions, skin_robot
from gworld.agents.tree import Skeleton
from gworld.data.shapes import box, plain
from gworld.errors import InputError
from gworld.geometry import quat_from_matrix, quat_multiply, se3_exp
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.world import World

FINE = SkinOptions(per_square_metre=20_000.0)
ARM = """<?xml version="1.0"?>
<robot name="arm">
  <link name="foot"><visual><geometry><cylinder radius="0.08" length="0.1"/></geometry></visual></link>
  <link name="upper"><visual><origin xyz="0 0 0.2"/><geometry><box size="0.06 0.06 0.3"/></geometry></visual></link>
  <link name="fore"><visual><origin xyz="0 0 0.18"/><geometry><box size="0.05 0.05 0.25"/></geometry></visual></link>
  <joint name="shoulder" type="revolute"><parent link="foot"/><child link="upper"/><axis xyz="0 1 0"/>
    <limit lower="-1.5" upper="1.5" velocity="2" effort="10"/></joint>
  <joint name="elbow" type="revolute"><parent link="upper"/><child link="fore"/><origin xyz="0 0 0.4"/>
    <axis xyz="0 1 0"/><limit lower="-2" upper="2" velocity="4" effort="10"/></joint>
</robot>
"""
POSTURE = torch.tensor([0.5, 0.9], dtype=torch.float64)
BASE = se3_exp(torch.tensor([0.3, -0.1, 0.06, 0, 0, 0.7], dtype=torch.float64))


@pytest.fixture
def arm(tmp_path: Path) -> Skeleton:
    (tmp_path / "arm.urdf").write_text(ARM)
    return read_robot(tmp_path / "arm.urdf", "arm")


def table() -> Gaussians:
    return box((1.2, 1.2, 0.02), 0.02, plain(0.7, 0.7, 0.6), (0.2, 0, -0.012))


def posed(part: Gaussians, poses: Tensor) -> Gaussians:
    """A body's Gaussians as a static scene would hold them: in the world, of link 0, plainly coloured."""
    pose = poses[part.links.long()]
    return replace(
        part,
        means=((pose[:, :3, :3] @ part.means[..., None].double())[..., 0] + pose[:, :3, 3]).float(),
        quats_wxyz=quat_multiply(quat_from_matrix(pose[:, :3, :3]), part.quats_wxyz.double()).float(),
        sh=part.sh[:, :1],
        links=torch.zeros_like(part.links),
    )


def eyes(width: int = 96, height: int = 72) -> Cameras:
    places = torch.tensor([[1.2, -0.8, 0.9], [-0.5, 1.2, 0.8]])
    K = intrinsics(width, height, 0.8).expand(2, 3, 3).clone()
    return Cameras(K, look_at(places, torch.tensor([0.3, 0.0, 0.2]).expand_as(places)), width, height)


def drawn(world: World) -> Tensor:
    rgb = render(world.gaussians, world.rest_poses(), eyes()).rgb
    assert rgb is not None
    return rgb[0]


def scene(arm: Skeleton) -> tuple[World, Tensor, Tensor]:
    """A table with a robot that was reconstructed as part of it, a little off, and the truth: links, or -1."""
    body = skin_robot(arm, SkinOptions(per_square_metre=9_000.0, seed=5))
    noise = 0.001 * torch.randn(len(body), 3, generator=torch.Generator().manual_seed(0))
    seen = posed(body, forward_kinematics(arm, POSTURE, BASE))
    whole = join_gaussians([table(), replace(seen, means=seen.means + noise)])
    truth = torch.cat([torch.full((len(table()),), -1), body.links.long()])
    return World(whole, metric=True), truth, body.links.long()


def test_a_robots_gaussians_are_found_by_its_model_and_become_its_own(arm: Skeleton) -> None:
    world, truth, _ = scene(arm)
    owner = links_near_robot(world, arm, POSTURE[None], BASE, within=0.008)
    assert float((owner >= 0)[truth >= 0].float().mean()) > 0.98
    assert float((owner >= 0)[truth < 0].float().mean()) < 0.02  # the table under its foot
    assert float((owner == truth)[truth >= 0].float().mean()) > 0.95  # neighbours share the rims of joints
    bound = bind_robot(world, arm, "arm", BASE, POSTURE, skin=FINE)
    mine = take_links(bound, "arm", owner)
    assert len(mine.gaussians) == len(world.gaussians)  # no skin is left: every link took some
    assert float((drawn(mine) - drawn(world)).abs().mean()) < 2e-3
    poses = mine.rest_poses().double()
    turned = forward_kinematics(arm, torch.tensor([0.5, -0.9], dtype=torch.float64), BASE)
    fore = mine.gaussians.means[mine.gaussians.links == mine.entities[1].links[2]].double()
    there = (fore @ turned[2, :3, :3].T + turned[2, :3, 3]).mean(0)
    wanted = turned[2] @ torch.tensor([0, 0, 0.18, 1.0], dtype=torch.float64)
    assert float((there - wanted[:3]).norm()) < 0.01
    assert not torch.allclose(poses[3], turned[2].to(poses))
    with pytest.raises(InputError, match="no Gaussian of the scene lies on"):
        take_links(bound, "arm", torch.full_like(owner, -1))


def test_several_postures_count(arm: Skeleton) -> None:
    world, truth, _ = scene(arm)
    other = torch.tensor([-0.8, -0.5], dtype=torch.float64)
    wrong = links_near_robot(world, arm, other[None], BASE, within=0.008)
    both = links_near_robot(world, arm, torch.stack([other, POSTURE]), BASE, within=0.008)
    assert float((wrong >= 0)[truth == 2].float().mean()) < 0.1
    assert float((both >= 0)[truth >= 0].float().mean()) > 0.98
    with pytest.raises(InputError, match="a distance of 0"):
        links_near_robot(world, arm, other[None], BASE, within=0.0)


def test_an_object_is_found_by_its_mesh(tmp_path: Path) -> None:
    trimesh.creation.box(extents=(100, 100, 100)).export(tmp_path / "cube.stl")
    pose = se3_exp(torch.tensor([0.1, 0.2, 0.07, 0, 0, 0.5], dtype=torch.float64))
    cube = posed(box((0.1, 0.1, 0.1), 0.01, plain(0.9, 0.2, 0.2)), pose[None])
    inside = replace(
        cube, means=(cube.means - pose[:3, 3].float()) * 0.8 + pose[:3, 3].float()
    )  # a reconstruction's fill
    world = World(join_gaussians([table(), cube, inside]), metric=True)
    rows = rows_near_mesh(world, tmp_path / "cube.stl", pose, scale=1e-3, within=0.006)
    assert float(rows[len(table()) :].float().mean()) > 0.99 and int(rows[: len(table())].sum()) == 0
    taken = take_links(
        bind_object(world, tmp_path / "cube.stl", "cube", pose, scale=1e-3, skin=FINE), "cube", rows.long() - 1
    )
    assert len(taken.gaussians) == len(world.gaussians) and float((drawn(taken) - drawn(world)).abs().mean()) < 1e-3


def bodies(frames: int = 40) -> tuple[Tensor, Tensor]:
    """A standing scene and three bodies, two of them on one hinge, as noisy tracks with gaps, and their labels."""
    generator = torch.Generator().manual_seed(4)
    places = {0: (900, (0.0, 0.0, 0.0), 0.5), 1: (260, (0.3, 0.0, 0.2), 0.05), 2: (160, (0.5, 0.0, 0.2), 0.04),
              3: (90, (-0.4, 0.2, 0.3), 0.03)}  # fmt: skip
    clouds = {k: torch.randn(n, 3, generator=generator).double() * s + torch.tensor(c).double()
              for k, (n, c, s) in places.items()}  # fmt: skip
    tracks = []
    for frame in range(frames):
        share = frame / (frames - 1)
        first = se3_exp(torch.tensor([0, 0, 0, 0, 0, 0.8 * share], dtype=torch.float64))
        hinge = torch.eye(4, dtype=torch.float64)
        hinge[:3, 3] = torch.tensor([0.4, 0.0, 0.2])
        bend = (
            hinge @ se3_exp(torch.tensor([0, 0, 0, 0, -1.1 * share, 0], dtype=torch.float64)) @ torch.linalg.inv(hinge)
        )
        poses = [torch.eye(4).double(), first, first @ bend,
                 se3_exp(torch.tensor([0.1, -0.1, 0.0, 0, 0, 0], dtype=torch.float64) * share)]  # fmt: skip
        tracks.append(torch.cat([clouds[k] @ poses[k][:3, :3].T + poses[k][:3, 3] for k in range(4)]))
    whole = torch.stack(tracks)
    whole = whole + 0.0015 * torch.randn(whole.shape, generator=generator)
    whole[torch.rand(whole.shape[:2], generator=generator) < 0.15] = torch.nan
    labels = torch.cat([torch.full((len(clouds[k]),), k) for k in range(4)])
    return whole, labels


def test_bodies_are_told_apart_by_their_motion_alone() -> None:
    tracks, labels = bodies()
    found = cluster_motion(tracks)
    assert int(found.labels.max()) == 3 and 0.001 < found.noise < 0.002
    assert float((found.labels == labels).float().mean()) > 0.99
    assert int((found.labels[labels == 0] != 0).sum()) == 0
    turn = found.world_from_first[-1, 1] @ torch.linalg.inv(found.world_from_first[0, 1])
    angle = torch.acos(((turn[0, 0] + turn[1, 1] + turn[2, 2]) - 1) / 2)
    assert abs(float(angle) - 0.8) < 0.02
    torch.testing.assert_close(found.world_from_first[:, 0], torch.eye(4).double().expand(len(tracks), 4, 4))


def test_one_body_stays_one_and_nothing_moving_is_nothing() -> None:
    tracks, labels = bodies()
    assert int(cluster_motion(tracks[:, labels != 2]).labels.max()) == 2
    still = cluster_motion(tracks[:, labels == 0])
    assert set(still.labels.tolist()) == {0}
    few = cluster_motion(tracks[:, (labels == 0) | ((labels == 3) & (torch.arange(len(labels)) % 10 == 0))])
    assert int(few.labels.max()) == 0  # nine points are no body
    with pytest.raises(InputError, match="two frames or more"):
        cluster_motion(tracks[:1])
    with pytest.raises(InputError, match="seen in two frames"):
        cluster_motion(torch.full((5, 20, 3), torch.nan))


def test_gaussians_follow_the_points_near_them() -> None:
    tracks, _ = bodies()
    found = cluster_motion(tracks)
    thing = box((0.06, 0.06, 0.06), 0.012, plain(0.9, 0.2, 0.2), (-0.4, 0.2, 0.3))
    world = World(join_gaussians([table(), thing]), metric=True)
    truth = torch.arange(len(world.gaussians)) >= len(table())
    owner = rows_by_motion(world, tracks[0], found.labels, within=0.05)
    assert float((owner == 3)[truth].float().mean()) > 0.95 and int((owner == 3)[~truth].sum()) == 0
    tracked = rows_by_motion(world, torch.zeros(len(world.gaussians), 3), truth.long())
    assert torch.equal(tracked == 1, truth)  # one track per Gaussian: its own label


def test_tracks_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    tracks = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", points=tracks)
    np.save(tmp_path / "a.npy", tracks)
    for name in ("a.npz", "a.npy"):
        torch.testing.assert_close(read_tracks(tmp_path / name), torch.from_numpy(tracks).double())
    bad = {"shape.npy": tracks[0], "whole.npy": tracks.astype(int), "infinite.npy": np.full((2, 2, 3), np.inf)}
    for name, value in bad.items():
        np.save(tmp_path / name, value)
    np.savez(tmp_path / "other.npz", tracks=tracks)
    np.save(tmp_path / "object.npy", np.array([[[{}] * 3]]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    buffer = io.BytesIO()
    np.save(buffer, tracks)
    (tmp_path / "cut.npy").write_bytes(buffer.getvalue()[:-20])
    for name in (*bad, "other.npz", "object.npy", "text.npy", "cut.npy"):
        with pytest.raises(InputError) as caught:
            read_tracks(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_holes_are_reported_with_place_and_size() -> None:
    wall = box((0.02, 0.4, 0.4), 0.01, plain(0.9, 0.2, 0.2), (0.0, 0.0, 0.6))  # nothing stands behind it
    world = World(join_gaussians([table(), wall]), metric=True)
    rows = torch.arange(len(world.gaussians)) >= len(table())
    eye = torch.tensor([[2.0, 0.0, 0.6]])
    camera = Cameras(intrinsics(160, 120, 0.6)[None], look_at(eye, torch.tensor([[0.0, 0.0, 0.6]])), 160, 120)
    holes = find_holes(world, rows, camera)
    assert len(holes) == 1 and holes[0].camera == 0
    assert holes[0].area == pytest.approx(0.16, rel=0.2)
    np.testing.assert_allclose(holes[0].place, (0.01, 0.0, 0.6), atol=0.02)
    np.testing.assert_allclose(holes[0].middle, (80, 60), atol=1.5)
    on_table = torch.arange(len(world.gaussians)) < 0
    assert find_holes(world, on_table, camera) == ()
    assert cut_object(world, "wall", rows).entities[-1].name == "wall"
