"""Motion tracking: steps and states, the smoother against a known path, cameras on a plane, and a film with truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gworld.bench.track_scene import film_scene
from gworld.data.shapes import box, cylinder, plain
from gworld.errors import InputError, UsageError
from gworld.geometry import invert_transform, se3_exp, transform_from_pose
from gworld.reconstruct.motion import Film, TrackOptions, track_motion
from gworld.reconstruct.motion_bodies import Bodies, between, bodies_of, moved, names_of, poses_of
from gworld.reconstruct.motion_draw import draw, scene_plates
from gworld.reconstruct.motion_film import Level, Plates, first_plates, in_light, levels_of, shot_at
from gworld.reconstruct.motion_fit import Prior
from gworld.reconstruct.motion_follow import _rivals, follow, given_joints
from gworld.reconstruct.motion_rig import RigOptions, refine_rig
from gworld.reconstruct.motion_smooth import smooth_states
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.links import Link
from gworld.scene.world import Entity, World


def one_box() -> World:
    cube = box((0.1, 0.08, 0.06), 0.02, lambda points: np.full_like(points, 0.7))
    links = (Link("world"), Link("cube", (0.1, 0.2, 0.03, 1.0, 0.0, 0.0, 0.0), 0))
    entities = (Entity("scene", "static", (0,)), Entity("cube", "object", (1,)))
    return World(replace(cube, links=torch.ones_like(cube.links)), links, entities)


def test_step_between_two_states_leads_from_one_to_the_other() -> None:
    bodies = bodies_of(one_box(), {}, TrackOptions())
    steps = 0.3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    after = moved(bodies, bodies.start, steps)
    torch.testing.assert_close(between(bodies, bodies.start.expand(5, -1), after), steps, atol=1e-9, rtol=0)


def test_planar_object_stays_on_its_plane() -> None:
    options = TrackOptions(objects="planar", rig=RigOptions(plane=(0.0, 0.6, 0.8, 0.0)))
    bodies = bodies_of(one_box(), {}, options)
    assert names_of(bodies) == ("cube/u", "cube/v", "cube/turn")
    after = moved(bodies, bodies.start, torch.tensor([0.1, -0.2, 0.7], dtype=torch.float64))
    normal = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    here, there = poses_of(bodies, bodies.start)[1], poses_of(bodies, after)[1]
    middle = bodies.things[0].middle
    heights = [normal @ (pose[:3, :3] @ middle + pose[:3, 3]) for pose in (here, there)]
    torch.testing.assert_close(heights[0], heights[1])
    torch.testing.assert_close((there @ invert_transform(here))[:3, :3] @ normal, normal)


def test_smoother_follows_a_path_through_noise_and_says_how_sure_it_is() -> None:
    bodies = bodies_of(one_box(), {}, TrackOptions())
    times = np.arange(120) / 50
    way = torch.zeros(120, 6, dtype=torch.float64)
    way[:, 0], way[:, 5] = 0.2 * torch.from_numpy(np.sin(3 * times)), torch.from_numpy(2.0 * times)
    truth = moved(bodies, bodies.start, way)
    noise = 0.004 * torch.randn(120, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrices = torch.eye(6, dtype=torch.float64).expand(120, 6, 6) / 0.004**2
    fitted = np.ones(120, bool)
    fitted[50:60] = False
    found = smooth_states(bodies, times, moved(bodies, truth, noise), matrices, fitted, 1.0)
    off = between(bodies, truth, found.states)
    assert float(off.square().mean().sqrt()) < 0.0022  # half the noise and less
    sigma = found.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert 0.6 < float((off / sigma).square().mean().sqrt()) < 1.6
    assert float(sigma[55, 0]) > 1.2 * float(sigma[25, 0])  # less is known where nothing was seen


def test_plate_in_shadow_is_no_body_and_another_colour_is() -> None:
    plate = torch.full((1, 4, 4, 3), 0.5)
    behind, other = in_light(0.7 * plate, plate)
    torch.testing.assert_close(behind, 0.7 * plate)
    assert float(other.max()) < 1e-3
    assert float(in_light(torch.tensor([0.9, 0.3, 0.1]).expand(1, 4, 4, 3), plate)[1].min()) > 0.9


def test_cameras_agree_on_a_plane_after_refinement() -> None:
    rng = np.random.default_rng(0)
    texture = rng.random((500, 500)).astype(np.float32)
    import cv2

    texture = cv2.GaussianBlur(texture, (0, 0), 2.5)
    texture = (texture - texture.mean()) / texture.std() * 0.2 + 0.5
    eyes = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.9, 0.8], [-0.6, -0.4, 0.9]])
    truth = look_at(eyes, torch.zeros(3, 3))
    K = intrinsics(240, 180, 0.9).expand(3, 3, 3).clone()
    pictures = []
    for pose in truth.double().numpy():
        x, y = np.meshgrid(np.arange(240) + 0.5, np.arange(180) + 0.5)
        k = K[0].double().numpy()
        rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], -1) @ pose[:3, :3].T
        point = pose[:3, 3] - rays * (pose[2, 3] / rays[..., 2])[..., None]
        where = ((point[..., :2] + 1.0) * 250).astype(np.float32)
        pictures.append(cv2.remap(texture, where[..., 0], where[..., 1], cv2.INTER_LINEAR)[..., None].repeat(3, -1))
    twist = torch.tensor(
        [[0.008, -0.006, 0.004, 0.006, -0.004, 0.01], [0.0] * 6, [-0.006, 0.01, 0.0, -0.01, 0.004, 0.006]]
    )
    given = Cameras(K, truth @ se3_exp(twist), 240, 180)
    fit = refine_rig(np.stack(pictures), given, RigOptions(patch=0.2))
    assert fit.before > 1.5
    assert fit.after < 0.3
    relative = [invert_transform(poses[:1]) @ poses[1:] for poses in (fit.cameras.world_from_camera, truth)]
    given_relative = invert_transform(given.world_from_camera[:1]) @ given.world_from_camera[1:]
    off, before = ((poses - relative[1])[:, :3, 3].norm(dim=-1).max() for poses in (relative[0], given_relative))
    assert float(off) < 0.5 * float(before)


def test_film_with_truth_is_tracked(tmp_path) -> None:  # type: ignore[no-untyped-def]  # pytest's own
    scene = film_scene(tmp_path, 3, width=240, height=180)
    plates = scene_plates(scene.world, scene.cameras)
    plates = replace(plates, known=np.ones_like(plates.known))
    options = TrackOptions(search=0.0, reach=0.0, finest=1, steps=3, paint=False)
    found = track_motion(
        scene.world, scene.films[:2], _two(scene.cameras), scene.times, options, robots=scene.robots,
        plates=replace(plates, pictures=plates.pictures[:2], known=plates.known[:2], shield=plates.shield[:2]),
    )  # fmt: skip
    off = transform_from_pose(found.link_poses.double())[..., :3, 3] - scene.poses[..., :3, 3]
    assert float(off[:, 1].norm(dim=-1).max()) < 0.012
    assert float((found.joints["arm"].double() - scene.joints["arm"]).abs().max()) < 0.03
    assert found.pose_sigma.shape == (3, len(scene.world.links), 2)
    assert bool(torch.isfinite(found.pose_sigma).all())
    assert float(found.pose_sigma[:, 0].max()) == 0.0  # the world stands still


def test_posture_keeps_joints_near_their_start(tmp_path) -> None:  # type: ignore[no-untyped-def]  # pytest's own
    scene = film_scene(tmp_path, 4, width=160, height=120)
    plates = scene_plates(scene.world, scene.cameras)
    plates = replace(plates, known=np.ones_like(plates.known))
    strayed = []
    for posture in (0.0, 1.0, 1e-5):
        options = TrackOptions(search=0.0, reach=0.0, steps=3, paint=False, posture=posture)
        found = track_motion(
            scene.world, scene.films, scene.cameras, scene.times, options, robots=scene.robots, plates=plates
        )
        strayed.append(float((found.joints["arm"][-1] - found.joints["arm"][0]).abs().max()))
    assert strayed[1] == pytest.approx(strayed[0], rel=0.1)
    assert strayed[2] < 0.5 * strayed[0]


def _two(cameras: Cameras) -> Cameras:
    return replace(cameras, K=cameras.K[:2], world_from_camera=cameras.world_from_camera[:2], names=cameras.names[:2])


def filmed(bodies: Bodies, truth: torch.Tensor) -> tuple[dict[int, Level], list[Film], np.ndarray]:
    """States drawn by two cameras over grey plates, 1/20 s apart: their levels, films and times."""
    cameras = Cameras(
        intrinsics(96, 72, 0.9).expand(2, 3, 3).clone(),
        look_at(torch.tensor([[0.8, 0.1, 0.6], [0.0, 0.9, 0.6]]), torch.tensor([[0.15, 0.1, 0.0]]).expand(2, 3)),
        96, 72,
    )  # fmt: skip
    levels = levels_of(cameras, Plates(np.full((2, 72, 96, 3), 0.2, np.float32), np.ones((2, 72, 96), bool)), (1, 2, 8))
    films, times = [], np.arange(len(truth)) / 20
    for camera in range(2):
        drawn = draw(bodies, truth, levels[1], camera)
        pictures = drawn.rgb + (1 - drawn.alpha[..., None]) * levels[1].plates[camera]
        films.append(Film(times, (pictures * 255).round().to(torch.uint8).numpy()))
    return levels, films, times


def test_guide_brings_back_what_hurried_away() -> None:
    """A box jumps farther than it is long: its own velocity does not lead there, a coarse pass's state does."""
    options = TrackOptions(finest=1, jump=1e9)
    bodies = bodies_of(one_box(), {}, options)
    jump = torch.tensor([0.15, -0.2, 0.0, 0.0, 0.0, 0.4], dtype=torch.float64)
    truth = torch.stack([bodies.start, bodies.start, moved(bodies, bodies.start, jump)])
    levels, films, times = filmed(bodies, truth)
    given = given_joints(bodies, times, {}, options)
    near = moved(bodies, truth, torch.tensor([0.008, 0.0, 0.0, 0.0, 0.0, 0.05], dtype=torch.float64))
    alone = follow(bodies, levels, films, times, bodies.start, given, options)
    guided = follow(bodies, levels, films, times, bodies.start, given, options, guide=near)
    assert float(between(bodies, truth, alone.states)[2, :3].norm()) > 0.05
    assert float(between(bodies, truth, guided.states)[:, :3].norm(dim=-1).max()) < 0.003


def test_a_turn_that_pictures_do_not_show_is_stated_as_unknown() -> None:
    """A can looks alike all around, a box does not; both stand where they are within millimetres."""
    grey, sigmas = plain(0.7, 0.7, 0.7), []
    cans = [cylinder(0.04, 0.06, spacing, grey) for spacing in (0.006, 0.0025)]
    cubes = [box((0.08, 0.08, 0.06), spacing, grey) for spacing in (0.006, 0.0025)]
    for shapes in (cans, cubes):  # the film shows finer Gaussians than are tracked, so that no grain tells the turn
        options = TrackOptions(objects="planar", finest=1)
        worlds = [replace(one_box(), gaussians=replace(g, links=torch.ones_like(g.links))) for g in shapes]
        bodies, fine = (bodies_of(world, {}, options) for world in worlds)
        levels, films, times = filmed(fine, fine.start.expand(3, -1))
        given = given_joints(bodies, times, {}, options)
        found = follow(bodies, levels, films, times, bodies.start, given, options)
        sigmas.append(torch.linalg.inv(found.matrices[-1] + 1e-9 * torch.eye(3)).diagonal().sqrt())
    assert max(float(sigma[:2].max()) for sigma in sigmas) < 0.005
    assert float(sigmas[0][2]) > 0.4 > 0.1 > float(sigmas[1][2])


def test_sharp_bodies_are_drawn_no_wider() -> None:
    """A picture of twice the size, averaged, covers less than one of the given size; sharp ones come nearer."""
    bodies = bodies_of(one_box(), {}, TrackOptions())
    pose = look_at(torch.tensor([[0.8, 0.1, 0.6]]), torch.tensor([[0.15, 0.1, 0.0]]))
    covered = []
    for size, sharp in ((1, False), (1, True), (8, False)):
        camera = Cameras(intrinsics(48 * size, 36 * size, 0.9)[None], pose, 48 * size, 36 * size)
        blank = Plates(np.zeros((1, 36 * size, 48 * size, 3), np.float32), np.ones((1, 36 * size, 48 * size), bool))
        level = levels_of(camera, blank, (1,), sharp=sharp)[1]
        covered.append(float(draw(bodies, bodies.start[None], level, 0).alpha.sum()) / size**2)
    assert abs(covered[1] - covered[2]) < 0.5 * abs(covered[0] - covered[2])


def test_wrong_requests_are_one_sentence() -> None:
    world = one_box()
    cameras = Cameras(intrinsics(16, 12, 0.9)[None], look_at(torch.ones(1, 3), torch.zeros(1, 3)), 16, 12)
    film = Film(np.array([0.0, 1.0]), np.zeros((2, 12, 16, 3), np.uint8))
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with pytest.raises(InputError, match="2 films were given for 1 cameras"):
        track_motion(world, [film, film], cameras, times)
    with pytest.raises(InputError, match="do not increase"):
        track_motion(world, [film], cameras, times.flip(0))
    with pytest.raises(UsageError, match="there is no ghost"):
        track_motion(world, [film], cameras, times, TrackOptions(fixed=("ghost",)))
    with pytest.raises(UsageError, match="no object to be tracked"):
        track_motion(world, [film], cameras, times, TrackOptions(fixed=("cube",)))
    with pytest.raises(InputError, match="static Gaussians"):
        scene_plates(world, cameras)


def test_first_plate_holds_no_ghost_of_a_body_that_rests_and_is_duller_in_its_model() -> None:
    """A vivid block rests in one place for most of the time; its model is paler than it looks."""
    table = np.full((20, 48, 64, 3), (96, 80, 72), np.uint8)
    table[:14, 8:14, 8:16] = (250, 90, 50)
    table[14:, 8:14, 40:48] = (250, 90, 50)
    plates = first_plates([Film(np.arange(20.0), table)], np.array([[0.9, 0.47, 0.25]]))
    assert np.abs(plates.pictures[0] * 255 - (96, 80, 72)).max() < 1 and plates.known.all()


def test_what_always_has_a_bodys_colour_is_unknown() -> None:
    shown = np.full((20, 24, 32, 3), (96, 80, 72), np.uint8)
    shown[:, :4, :4] = (240, 220, 205)
    plates = first_plates([Film(np.arange(20.0), shown)], np.array([[0.92, 0.85, 0.8]]))
    assert not plates.known[0, :4, :4].any() and plates.known[0, 10:, 10:].all()


def test_the_better_of_two_guesses_is_taken_whichever_comes_first() -> None:
    options = TrackOptions(objects="planar", finest=1)
    bodies = bodies_of(one_box(), {}, options)
    levels, films, _ = filmed(bodies, bodies.start[None])
    shots = {shrink: shot_at(films, 0.0, level) for shrink, level in levels.items()}
    near, far = moved(bodies, bodies.start, torch.tensor([[0.004, 0.0, 0.0], [0.3, 0.1, 0.0]]).double())
    loose = Prior(bodies.start, torch.full((3,), 1e-3).double())
    for starts in ([near, far], [far, near]):
        solved, prior, _ = _rivals(bodies, levels, shots, loose, starts, options, (1,))
        assert float(between(bodies, bodies.start, solved.state)[:2].norm()) < 0.002
        assert torch.equal(prior.state, near)
    agreed = _rivals(bodies, levels, shots, loose, [near, bodies.start], options, (1,))
    assert agreed[2] is None and torch.equal(agreed[1].state, near)  # one guess: fitted once
