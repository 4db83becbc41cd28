"""What the viewer does, without a browser: driving, recordings, the loop, branches, visitors, keys, the export."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gworld as gw
from gworld.data.store import open_episodes, read_episode
from gworld.errors import InputError, UsageError
from gworld.formats.registry import read_table
from gworld.geometry import invert_transform, pose_from_transform, transform_from_pose
from gworld.render.select import render
from gworld.render.video import read_video, write_video
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.episode import Episode, Video
from gworld.scene.rollout import Rollout
from gworld.scene.world import ActionSpec, World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.files import read_rollout
from gworld.simulate.tasks import Task
from gworld.viewer.app import Subject, Viewer, ViewOptions
from gworld.viewer.driver import Driver, write_driven
from gworld.viewer.drives import Drives
from gworld.viewer.export import export_page
from gworld.viewer.keep import keep_as
from gworld.viewer.keys import steer, wheel_of
from tests.acting import acting_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def driver(world: World) -> Driver:
    return Driver(Engine(world, options=EngineOptions(1 / 30)))


def test_a_slider_moves_its_own_agent(driver: Driver, world: World) -> None:
    before = driver.poses
    driver.tell("left", 0, 99.0)
    assert driver.told["left"][0] == driver.engine.specs["left"].high[0]
    driver.tell("left", 1, float("nan"))
    driver.tell("left", 77, 1.0)
    for _ in range(5):
        driver.step()
    moved = np.flatnonzero(np.abs(driver.poses - before).max(axis=1) > 1e-5).tolist()
    left = next(entity for entity in world.agents if entity.name == "left")
    assert moved and set(moved) <= set(left.links)


def test_agents_are_driven_each_in_its_way(driver: Driver) -> None:
    driver.choose("right", "random")
    driver.tell("cart", 0, 0.3)
    for _ in range(10):
        driver.step()
    assert "replay" not in driver.choices("left")
    with pytest.raises(InputError, match="driven by"):
        driver.choose("left", "replay")
    place = driver.engine.motion.world_from_link[0, 1, 0, 3]
    assert float(place) == pytest.approx(0.1, abs=1e-3)
    driver.choose("right", "sliders")
    assert driver.told["right"].tolist() == [0.0, 0.0]  # holding a velocity is standing still


def test_a_recording_repeats_the_drive_bit_by_bit(driver: Driver, world: World, tmp_path: Path) -> None:
    driver.tell("left", 0, 0.5)
    driver.step()
    driver.start_recording()
    rng = np.random.default_rng(0)
    driver.choose("right", "random")
    for _ in range(12):
        driver.tell("left", 1, float(rng.uniform(-1, 1)))
        driver.tell("cart", 0, float(rng.uniform(-0.5, 0.5)))
        driver.step()
    rollout = driver.stop_recording()
    assert rollout is not None and len(rollout) == 13 and not driver.recording
    acts, motion = write_driven(rollout, driver.engine, tmp_path / "kept")
    again = gw.simulate(world, acts, step=1 / 30)
    assert np.array_equal(again.link_poses.numpy(), rollout.link_poses.numpy())
    assert np.array_equal(read_rollout(motion).link_poses.numpy(), rollout.link_poses.numpy())
    assert write_driven(rollout, driver.engine, tmp_path / "kept")[1].name == "drive-002.parquet"
    assert driver.stop_recording() is None


def test_a_state_is_come_back_to(driver: Driver) -> None:
    assert not driver.back()
    driver.tell("cart", 1, 0.4)
    driver.step()
    driver.save()
    there, path = driver.poses, []
    for _ in range(2):
        driver.tell("cart", 1, -0.4)
        driver.step()
        path.append(driver.poses)
        assert driver.back() and np.array_equal(driver.poses, there)
    assert np.array_equal(path[0], path[1])


def test_the_hand_is_dragged_by_inverse_kinematics(driver: Driver, world: World) -> None:
    link = driver.hand_link("left")
    assert link is not None and world.links[link].name == "left/fore"
    assert driver.hand_link("cart") is None and driver.hand_link("right") is None  # no joint targets
    poses = driver.poses
    driver.tell("left", 0, 0.6)
    driver.tell("left", 1, -0.8)
    for _ in range(60):
        driver.step()
    goal = driver.poses[link]
    driver.reset()
    assert np.allclose(driver.poses, poses, atol=1e-6)
    assert driver.reach("left", goal) < 1e-3
    for _ in range(60):
        driver.step()
    np.testing.assert_allclose(driver.poses[link], goal, atol=2e-3)


@pytest.fixture
def viewer(world: World, driver: Driver, tmp_path: Path) -> Iterator[Viewer]:
    made = Viewer(Subject(world, "t", {"r": lambda: still(world)}, driver), ViewOptions(port=0, keep=tmp_path / "kept"))
    yield made
    made.close()


def drives(viewer: Viewer) -> Drives:
    assert viewer.drives is not None
    return viewer.drives


def still(world: World, count: int = 4) -> Rollout:
    poses = pose_from_transform(world.rest_poses()).expand(count, -1, -1).clone()
    poses[:, 2, 0] += torch.linspace(0, 0.5, count)
    return Rollout(torch.arange(count, dtype=torch.float64) / 10, poses, tuple(link.name for link in world.links))


def sent_by(viewer: Viewer) -> list[Any]:
    """Messages to everybody, from now on."""
    found: list[Any] = []
    real = viewer.server._websock_server.queue_message
    viewer.server._websock_server.queue_message = lambda message: (found.append(message), real(message))[1]  # type: ignore[method-assign]  # the test listens in
    return found


def test_moving_sends_poses_of_what_moved_and_no_splats(viewer: Viewer) -> None:
    viewer.run(0.05)
    sent = sent_by(viewer)
    viewer.seek(3)
    kinds = {type(message).__name__ for message in sent}
    names = {message.name for message in sent if hasattr(message, "name")}
    assert kinds <= {"SetPositionMessage", "SetOrientationMessage", "GuiUpdateMessage"} and names == {"/ball/ball"}
    before = len(sent)
    viewer.seek(3)
    assert not [m for m in sent[before:] if hasattr(m, "name")]
    viewer.stage.paint("agent")
    assert any(type(message).__name__ == "GaussianSplatsMessage" for message in sent)


def test_cameras_on_links_move_with_them(viewer: Viewer, world: World) -> None:
    assert world.cameras is not None
    hand = world.cameras.links[3]
    poses = pose_from_transform(world.rest_poses()).numpy()
    poses[hand, :3] += (0.1, 0.2, 0.3)
    before = viewer.stage.camera_pose(3)
    viewer.stage.show(poses)
    np.testing.assert_allclose(viewer.stage.camera_pose(3)[:3] - before[:3], (0.1, 0.2, 0.3), atol=1e-6)
    link = transform_from_pose(torch.from_numpy(poses[hand]))
    seen = invert_transform(link) @ transform_from_pose(torch.from_numpy(viewer.stage.camera_pose(3)))
    np.testing.assert_allclose(seen.numpy(), world.cameras.world_from_camera[3].numpy(), atol=1e-5)


def test_the_loop_plays_and_records(viewer: Viewer, tmp_path: Path) -> None:
    viewer.do(viewer.play)
    viewer.run(0.15)
    assert viewer.player is not None and viewer.player.playing and viewer.player.time > 0
    assert viewer.stage.poses[2, 0] > 1e-3
    viewer.do(lambda: drives(viewer).record())
    viewer.run(0.2)
    assert viewer.driver is not None and viewer.driver.recording and viewer.live and not viewer.player.playing
    viewer.do(lambda: drives(viewer).record())
    viewer.run(0.1)
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["drive-001-actions.parquet", "drive-001.parquet", "episodes"] and "drive-001" in viewer.recordings
    assert "kept" in viewer.message
    viewer.do(lambda: viewer.open_recording("drive-001"))
    viewer.do(lambda: drives(viewer).branch(True))
    viewer.do(lambda: drives(viewer).choose("left", "nonsense"))
    viewer.run(0.05)
    assert len(viewer.player.rollout) > 3 and "cannot be driven by" in viewer.message


def test_what_is_being_recorded_when_it_ends_is_kept(viewer: Viewer, tmp_path: Path) -> None:
    viewer.do(lambda: drives(viewer).record())
    viewer.run(0.2)
    viewer.close()
    assert len(read_rollout(tmp_path / "kept" / "drive-001.parquet")) > 2


def test_two_branches_from_one_state_are_compared(viewer: Viewer, world: World) -> None:
    """One branch goes left, one right from the same state; both replay bit by bit from rest, and one is the ghost."""
    hand, drive = drives(viewer), drives(viewer).driver

    def go(speed: float, steps: int) -> None:
        drive.tell("cart", 0, speed)
        for _ in range(steps):
            drive.step()

    go(0.3, 5)
    hand.branch(False)
    there = drive.poses
    go(0.5, 10)
    first = drive.driven()
    assert first is not None and drive.left
    hand.branch(True)
    assert np.array_equal(drive.poses, there) and "branch 1" in viewer.recordings and not drive.left
    assert viewer.ghost is not None and viewer.gap is not None and viewer.gap.distance < 1e-6
    go(-0.5, 10)
    viewer.show(drive.poses, drive.time)
    assert viewer.gap.body == "cart" and viewer.gap.distance == pytest.approx(2 * 0.5 * 10 / 30, abs=2e-3)
    second = drive.driven()
    assert second is not None and len(second) == len(first) == 16
    assert np.array_equal(second.link_poses[:6].numpy(), first.link_poses[:6].numpy())
    for branch in (first, second):
        again = gw.simulate(world, {name: value[:-1] for name, value in branch.actions.items()}, step=1 / 30)
        assert np.array_equal(again.link_poses.numpy(), branch.link_poses.numpy())
    viewer.compare("branch 1", "side by side")
    assert viewer.ghost.mode == "side by side"
    viewer.compare("nothing")
    assert viewer.ghost is None and viewer.gap is None


def test_an_agent_obeys_the_visitor_who_took_it(viewer: Viewer) -> None:
    hand = drives(viewer)
    hand.take("left", 7)
    hand.tell("left", 0, 0.5, 3)
    assert hand.driver.told["left"][0] == 0.0 and "visitor 7 has taken left" in viewer.message
    hand.tell("left", 0, 0.5, 7)
    hand.tell("right", 0, 0.25, 3)
    assert hand.driver.told["left"][0] == 0.5 and hand.driver.told["right"][0] == 0.25
    hand.choose("left", "random", 3)
    hand.take("left", 3)
    assert hand.driver.modes["left"] == "sliders" and hand.owners == {"left": 7}
    hand.leave(7)
    hand.take("left", 3)
    hand.take("left", 3)
    assert hand.owners == {}


def test_keys_drive_what_slides_and_steers(viewer: Viewer) -> None:
    hand = drives(viewer)
    assert list(hand.wheels) == ["cart"]
    hand.keys(1, "IJ")
    assert hand.driver.told["cart"].tolist() == [0.5, 0.0, 2.0] and viewer.live
    hand.keys(1, "JK")
    assert hand.driver.told["cart"].tolist() == [-0.5, 0.0, 2.0]
    hand.leave(1)
    assert hand.driver.told["cart"].tolist() == [0.0, 0.0, 0.0]
    hand.take("cart", 2)
    hand.keys(1, "I")
    assert hand.driver.told["cart"].tolist() == [0.0, 0.0, 0.0]
    car = ActionSpec(("vehicle/steer", "vehicle/accelerate"), ("rad", "m/s^2"), (-0.6, -3), (0.6, 2))
    assert steer(car, wheel_of(car), "KL") == {0: -0.6, 1: -3.0} and steer(car, wheel_of(car), "") == {0: 0.0, 1: 0.0}
    slide = ActionSpec(("x/velocity", "y/velocity"), ("m/s",) * 2, (-1, -1), (1, 1))
    assert steer(slide, wheel_of(slide), "J") == {0: 0.0, 1: 1.0} == steer(slide, wheel_of(slide), "U")
    assert wheel_of(hand.driver.engine.specs["left"]) == {}


def test_experts_and_adversaries_drive_where_they_can(world: World) -> None:
    driver = Driver(Engine(world), task=Task("reach", ("left",), target=(-0.2, 0.2, 0.4)))
    assert driver.choices("left")[-2:] == ("expert", "adversarial") and "expert" not in driver.choices("right")
    driver.choose("left", "expert")
    for _ in range(3):
        driver.step()
    assert driver.behaviours() == {"left": "expert", "right": "human", "cart": "human"}


def test_a_drive_is_kept_as_an_episode_with_its_film(viewer: Viewer, tmp_path: Path) -> None:
    hand = drives(viewer)
    hand.driver.tell("cart", 1, 0.4)
    for _ in range(5):
        hand.driver.step()
    hand.keep(hand.driver.driven(), eye())
    for thread in viewer.keeping:
        thread.join()
    viewer.run(0.05)
    kept = tmp_path / "kept"
    assert len(list(read_video(kept / "drive-001.mp4"))) == 6 and "episode 0" in viewer.message
    episode = read_episode(open_episodes(kept / "episodes"), 0)
    assert len(episode) == 6 and episode.behaviour == "human" and episode.videos[0].name == "view"
    assert episode.cameras is not None and episode.names["actions/cart"][1] == "y/velocity"
    for kind in ("GLB", "page", "MP4"):
        assert viewer.player is not None
        keep_as(viewer, viewer.player.rollout, kind, eye())
        viewer.keeping[-1].join()
    assert read_table(kept / "motion-001.glb").link_table == viewer.world.links
    assert (kept / "page-001.html").stat().st_size > 10_000 and (kept / "film-001.mp4").is_file()


def test_the_film_is_shown_beside_the_motion_it_is_of(world: World, tmp_path: Path) -> None:
    motion = still(world, 8)
    places = [transform_from_pose(pose) for pose in motion.link_poses]
    drawn = [render(world.gaussians, pose, eye(), outputs=("rgb",)).rgb for pose in places]
    write_video([rgb[0, 0] for rgb in drawn if rgb is not None], tmp_path / "film.mp4", 10.0)
    film = Video("front", tmp_path / "film.mp4", motion.times)
    episode = Episode(
        motion.times, link_poses=motion.link_poses, link_names=motion.link_names, videos=(film,), cameras=eye()
    )
    subject = Subject(
        replace(world, background=(0.0, 0.0, 0.0)), "t", {"e": lambda: motion}, None, None, {"e": lambda: episode}
    )
    viewer = Viewer(subject, ViewOptions(port=0))
    try:
        viewer.run(0.05)
        assert viewer.motion is not None
        panel = viewer.motion.film
        assert panel is not None and panel.choice.options == ("none", "front")
        viewer.server.get_clients = lambda: {0: None}  # type: ignore[method-assign, assignment, dict-item]  # somebody looks
        panel.choice.value = "front"
        panel.change()
        likeness = []
        for frame in (7, 0):
            viewer.seek(frame)
            end = time.monotonic() + 10
            while panel.said.content != "The film above, the world below." and time.monotonic() < end:
                panel.refresh()
                time.sleep(0.02)
            panel.refresh()
            truth, shown = np.split(panel.picture.image.astype(float), 2)
            likeness.append(np.square(truth - shown).mean())
        assert truth.shape == (120, 160, 3) and max(likeness) < 30 and truth.max() > 150
        panel.choice.value = "none"
        panel.change()
        assert panel.picture is None
    finally:
        viewer.close()


def eye() -> Cameras:
    pose = look_at(torch.tensor([[0.0, -1.5, 0.8]]), torch.zeros(1, 3))
    return Cameras(intrinsics(160, 120, 0.9)[None], pose, 160, 120)


def test_many_wishes_from_other_threads_are_done_in_order(viewer: Viewer) -> None:
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: [viewer.do(lambda n=n: done.put(n)) for n in range(500)])
    thread.start()
    end = time.monotonic() + 5
    while done.qsize() < 500 and time.monotonic() < end:
        viewer.run(0.02)
    thread.join()
    assert [done.get() for _ in range(500)] == list(range(500))


def test_a_page_is_written_once(world: World, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    assert export_page(world, page, still(world), fps=10) == 4
    text = page.read_text()
    assert "__VISER_EMBED_DATA__" in text and page.stat().st_size < 3_000_000
    with pytest.raises(UsageError, match="exists"):
        export_page(world, page)
    with pytest.raises(UsageError, match="html"):
        export_page(world, tmp_path / "a.mp4")
    with pytest.raises(UsageError, match="fit into a page"):
        export_page(world, tmp_path / "b.html", replace(still(world), times=torch.arange(4).double() * 1e4))


def test_nothing_is_closed_under_a_turn_of_the_loop(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    turning, stop = threading.Event(), viewer.server.stop

    def turn(now: float) -> None:
        turning.set()
        time.sleep(0.3)
        done.append("turned")

    def stopped() -> None:
        done.append("stopped")
        stop()

    monkeypatch.setattr(viewer, "tick", turn)
    monkeypatch.setattr(viewer.server, "stop", stopped)
    thread = threading.Thread(target=viewer.run)
    thread.start()
    assert turning.wait(5)
    viewer.close()
    thread.join(5)
    assert not thread.is_alive() and done == ["turned", "stopped"]
