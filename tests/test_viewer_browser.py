"""The viewer in a real browser: Chromium without a window, its software WebGL, driven by Playwright.

`GWORLD_UPDATE_PICTURES=1` makes the screenshots of docs/view.md.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gworld as gw
from gworld.checkpoint import Checkpoint, save_checkpoint
from gworld.formats.axes import bake_links
from gworld.formats.convert import gaussians_from_table, table_from_gaussians
from gworld.formats.transforms import write_transforms
from gworld.geometry import transform_from_pose
from gworld.render.api import RenderOptions
from gworld.render.paths import orbit, path_cameras
from gworld.render.select import render
from gworld.render.video import as_uint8, write_video
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.episode import Episode, Video
from gworld.scene.rollout import Rollout
from gworld.scene.views import View, Views
from gworld.scene.world import World
from gworld.simulate.engine import Engine
from gworld.viewer.app import Subject, Viewer, ViewOptions
from gworld.viewer.driver import Driver
from gworld.viewer.export import export_page
from gworld.viewer.live import NAMES, LiveViewer
from gworld.viewer.pixels import Refine
from tests.acting import acting_world
from tests.browsing import (
    FLAGS,
    SIZE,
    moved,
    open_folder,
    open_page,
    pale,
    press,
    red,
    save,
    seen,
    settled,
    spots,
    type_into,
    until,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rollout(world: World) -> Rollout:
    """The cart goes on, and less and less sure is where."""
    found = gw.simulate(world, {"cart": torch.tensor([[0.45, 0.0, 0.0]]).expand(30, 3)}, step=1 / 30)
    std = torch.zeros(found.link_poses.shape[:2])
    std[:, found.link_names.index("cart")] = torch.linspace(0, 0.037, len(found))
    std[:, found.link_names.index("ball")] = torch.linspace(0, 0.016, len(found))
    return replace(found, link_std=std)


@pytest.fixture(scope="module")
def viewer(world: World, rollout: Rollout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    film = filmed(world, rollout, tmp_path_factory.mktemp("film"))
    subject = Subject(
        world, "arms & <cart>", {"push": lambda: rollout}, Driver(Engine(world)), None, {"push": lambda: film},
        lambda: greener(world),
    )  # fmt: skip
    made = Viewer(subject, ViewOptions(port=0, keep=tmp_path_factory.mktemp("kept")))
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    made.close()
    thread.join(timeout=5)


def filmed(world: World, rollout: Rollout, folder: Path) -> Episode:
    """The recording as an episode with a film of its own."""
    pose = look_at(torch.tensor([[0.0, -1.5, 0.8]]), torch.zeros(1, 3))
    camera = Cameras(intrinsics(320, 180, 0.9)[None], pose, 320, 180)
    white, places = RenderOptions(background=(1.0, 1.0, 1.0)), transform_from_pose(rollout.link_poses)
    drawn = [render(world.gaussians, place, camera, outputs=("rgb",), options=white).rgb for place in places]
    write_video([rgb[0, 0] for rgb in drawn if rgb is not None], folder / "film.mp4", 30.0)
    videos = (Video("front", folder / "film.mp4", rollout.times),)
    names, poses = rollout.link_names, rollout.link_poses
    return Episode(rollout.times, link_poses=poses, link_names=names, videos=videos, cameras=camera)


def greener(world: World) -> Refine:
    """A refiner that is unsure of nothing but the floor of the picture, and makes that green."""

    def refine(poses: torch.Tensor, camera: Cameras, drawing: RenderOptions) -> tuple[torch.Tensor, torch.Tensor]:
        rgb = render(world.gaussians, poses, camera, outputs=("rgb",), options=drawing).rgb
        assert rgb is not None
        picture = rgb[0, 0].clone()
        picture[-camera.height // 8 :] = torch.tensor([0.0, 1.0, 0.0])
        return picture, rgb[0, 0]

    return refine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Addresses that pages asked for."""
    return []


@pytest.fixture(scope="module")
def page(browser: Any, viewer: Viewer, asked: list[str]) -> Iterator[Any]:
    found = open_page(browser, viewer.gate.address, asked)
    found.get_by_role("tab", name="Drive").wait_for()
    until(lambda: all(len(rows) > 20 for rows in spots(found).values()))
    yield found
    found.close()


def test_the_world_is_seen(page: Any) -> None:
    found = spots(page)
    assert (
        len(found["left"]) > 200 and len(found["right"]) > 200 and len(found["cart"]) > 100 and len(found["ball"]) > 50
    )
    assert found["left"].mean(0)[0] < found["right"].mean(0)[0]  # left stands at -x and is seen from -y


def test_names_are_shown_as_they_are(page: Any) -> None:
    assert page.get_by_text("arms & <cart>").count() >= 1


def test_play_moves_what_moved(page: Any, viewer: Viewer) -> None:
    page.get_by_role("tab", name="Motion").click()
    before = spots(page)
    page.get_by_role("button", name="Play").click()
    after = until(lambda: (now := spots(page)) and moved(before, now)["cart"] > 15 and now)
    assert max(value for name, value in moved(before, after).items() if name != "cart") < 4
    page.get_by_role("button", name="Pause").click()
    until(lambda: viewer.player is not None and not viewer.player.playing)
    if os.environ.get("GWORLD_UPDATE_PICTURES"):
        save(page, "view-motion.jpg")
    page.get_by_role("button", name="back").click()


def test_the_true_film_stands_beside_the_motion(page: Any, viewer: Viewer) -> None:
    page.get_by_role("tab", name="Motion").click()
    viewer.do(lambda: viewer.seek(20))
    assert viewer.motion is not None and viewer.motion.film is not None
    film = viewer.motion.film
    viewer.do(lambda: setattr(film.choice, "value", "front"))
    viewer.do(film.change)
    page.get_by_text("The film above, the world below.").wait_for()
    truth, drawn = np.split(until(lambda: film.picture).image.astype(float), 2)
    assert np.abs(truth - drawn).mean() < 3  # the same instant, but for compression
    if os.environ.get("GWORLD_UPDATE_PICTURES"):
        page.locator("img").last.evaluate("film => film.scrollIntoView()")
        save(page, "view-film.jpg")
    viewer.do(lambda: setattr(film.choice, "value", "none"))
    viewer.do(film.change)
    until(lambda: film.picture is None)


def test_what_is_least_sure_is_seen_red(page: Any, viewer: Viewer) -> None:
    page.get_by_role("tab", name="Scene").click()
    viewer.do(lambda: viewer.seek(30))
    viewer.do(lambda: setattr(viewer.scene.colour, "value", "uncertainty"))
    viewer.do(viewer.scene._paint)
    page.get_by_text("37 mm").first.wait_for(timeout=20_000)
    until(lambda: red(page) > 100 and len(spots(page)["cart"]) < 20)
    if os.environ.get("GWORLD_UPDATE_PICTURES"):
        save(page, "view-scene.jpg")
    viewer.do(lambda: setattr(viewer.scene.colour, "value", "rgb"))
    viewer.do(viewer.scene._paint)
    until(lambda: red(page) < 20 and len(spots(page)["cart"]) > 100)


def test_a_slider_moves_its_link_and_no_other(page: Any, viewer: Viewer) -> None:
    page.get_by_role("tab", name="Drive").click()
    page.get_by_label("Run").first.check()
    until(lambda: viewer.live)
    page.get_by_role("button", name="Reset").click()
    before, poses = settled(page), viewer.stage.poses.copy()
    type_into(page, "elbow/position [rad]", "1.2")
    after = until(lambda: (now := spots(page)) and moved(before, now)["left"] > 6 and now)
    assert max(value for name, value in moved(before, after).items() if name != "left") < 4
    changed = np.flatnonzero(np.abs(viewer.stage.poses - poses).max(axis=1) > 1e-4)
    assert [viewer.world.links[link].name for link in changed] == ["left/fore"]
    if os.environ.get("GWORLD_UPDATE_PICTURES"):
        save(page, "view-drive.jpg")


def test_keys_that_are_held_drive_the_vehicle(page: Any, viewer: Viewer) -> None:
    page.get_by_role("tab", name="Drive").click()
    before, poses = settled(page), viewer.stage.poses.copy()
    page.mouse.click(300, 560)
    page.keyboard.down("i")
    page.keyboard.down("j")
    until(lambda: driver_of(viewer).told["cart"].tolist() == [0.5, 0.0, 2.0])
    until(lambda: moved(before, spots(page))["cart"] > 10)
    page.keyboard.up("i")
    page.keyboard.up("j")
    until(lambda: driver_of(viewer).told["cart"].tolist() == [0.0, 0.0, 0.0])
    changed = np.flatnonzero(np.abs(viewer.stage.poses - poses).max(axis=1) > 1e-3)
    assert [viewer.world.links[link].name for link in changed] == ["cart"]


def test_the_other_branch_is_shown_as_a_ghost(page: Any, viewer: Viewer) -> None:
    page.get_by_role("tab", name="Drive").click()
    viewer.do(lambda: viewer.run_live(True))
    press(page, "Reset")
    until(lambda: driver_of(viewer).time < 1.0)
    open_folder(page, "Record and branch")
    press(page, "remember")
    until(lambda: "remembered" in viewer.message)
    type_into(page, "elbow/position [rad]", "1.4")
    type_into(page, "x/velocity [m/s]", "0.4")
    time.sleep(1.0)
    press(page, "return")
    until(lambda: viewer.ghost is not None)
    until(lambda: viewer.gap is not None and viewer.gap.distance > 0.1)
    until(lambda: pale(page) > 150)
    if os.environ.get("GWORLD_UPDATE_PICTURES"):
        page.mouse.wheel(0, 0)
        save(page, "view-branches.jpg")
    viewer.do(lambda: viewer.compare("nothing"))
    until(lambda: pale(page) < 20)


def driver_of(viewer: Viewer) -> Driver:
    assert viewer.driver is not None
    return viewer.driver


def test_two_pages_drive_two_agents(page: Any, viewer: Viewer, browser: Any, asked: list[str]) -> None:
    page.get_by_role("tab", name="Drive").click()
    other = open_page(browser, viewer.gate.address, asked, {"width": 940, "height": 520})
    other.get_by_role("tab", name="Drive").click()
    other.get_by_text("yaw/position [rad]").first.wait_for()
    viewer.do(lambda: viewer.run_live(True))
    before = settled(page)
    type_into(other, "y/velocity [m/s]", "-0.4")
    type_into(page, "elbow/position [rad]", "-1.2")
    until(lambda: (gone := moved(before, spots(page)))["cart"] > 15 and gone["left"] > 3)
    other.close()
    page.get_by_role("button", name="Reset").click()
    time.sleep(0.5)


def test_true_pixels_are_what_our_renderer_draws(page: Any, viewer: Viewer) -> None:
    page.get_by_role("tab", name="Picture").click()
    before = spots(page)
    page.get_by_label("True pixels").check()
    until(lambda: viewer.pixels.on and viewer.pixels.note)
    time.sleep(1.5)
    assert not any(node.visible for node in viewer.stage._splats.values())
    after = spots(page)
    assert all(len(after[name]) > 50 for name in after) and max(moved(before, after).values()) < 12
    if os.environ.get("GWORLD_UPDATE_PICTURES"):
        save(page, "view-pixels.jpg")
    page.get_by_label("Refined").check()
    page.get_by_text("of the pixels refined").wait_for()
    until(lambda: floor_of(page)[1] > floor_of(page)[0] + 100)
    page.get_by_label("Refined").uncheck()
    until(lambda: abs(floor_of(page)[1] - floor_of(page)[0]) < 60)
    with page.expect_download() as kept:
        page.get_by_role("button", name="Save this picture").click()
        page.get_by_text("gworld.png").first.click()
    with Image.open(kept.value.path()) as picture:
        assert picture.size == (SIZE["width"], SIZE["height"])
    page.get_by_label("True pixels").uncheck()
    until(lambda: not viewer.pixels.on)


def floor_of(page: Any) -> list[float]:
    """The mean colour of a strip at the foot of the picture."""
    return seen(page)[-30:-10, 100:600].reshape(-1, 3).mean(0).tolist()


def test_points_are_picked_and_a_box_is_cut(page: Any, viewer: Viewer) -> None:
    page.get_by_role("tab", name="Edit").click()
    open_folder(page, "Points: scale and up")
    page.get_by_label("Click to pick").check()
    names = [link.name for link in viewer.world.links]
    until(lambda: viewer.edit.picking.value)
    time.sleep(1.0)
    for body in ("ball", "cart"):
        page.mouse.click(*spots(page)[body].mean(0).tolist())
        until(lambda body=body: len(viewer.edit.points) == 1 + (body == "cart"))
        place = viewer.stage.poses[names.index(body), :3]
        assert np.linalg.norm(viewer.edit.points[-1] - place) < 0.12, body
    viewer.do(lambda: setattr(viewer.edit.high, "value", (0.2, 0.3, 1.0)))
    viewer.do(lambda: setattr(viewer.edit.shown, "value", True))
    viewer.do(viewer.edit.draw_box)
    until(lambda: "in the box" in viewer.edit.said.content)
    if os.environ.get("GWORLD_UPDATE_PICTURES"):
        save(page, "view-edit.jpg")
    count = len(viewer.world.gaussians)
    press(page, "Keep what is inside")
    until(lambda: len(viewer.world.gaussians) < count)
    until(lambda: page.get_by_role("button", name="Undo").is_enabled())
    press(page, "Undo")
    until(lambda: len(viewer.world.gaussians) == count)


def test_a_fit_is_watched(world: World, browser: Any, asked: list[str], tmp_path: Path) -> None:
    """A run that another process makes: what it saved is seen, a view stands beside its picture, pause is asked for."""
    cameras = path_cameras(orbit(torch.tensor([0.0, 0.0, 0.1]), 1.3, 0.8, 6), 160, 120, 0.8)
    poses = world.rest_poses()
    views = []
    (tmp_path / "poses").mkdir()
    for index in range(len(cameras)):
        rgb = render(world.gaussians, poses, cameras[index], outputs=("rgb",)).rgb
        assert rgb is not None
        file = tmp_path / "poses" / f"{index}.png"
        Image.fromarray(as_uint8(rgb[0, 0])).save(file)
        views.append(View(file.name, 160, 120, cameras.K[index], cameras.world_from_camera[index], image=file))
    write_transforms(Views(tuple(views), metric=True), tmp_path / "poses" / "transforms.json")
    still = gaussians_from_table(bake_links(replace(table_from_gaussians(world.gaussians), link_table=world.links)))
    columns = {f"gaussians.{name}": getattr(still, name) for name in NAMES}
    save_checkpoint(tmp_path, Checkpoint(500, columns))
    rows = [f"{step},0.1,{20 + step / 100}" for step in range(100, 600, 100)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,loss,psnr", *rows, ""]))
    (tmp_path / "live.json").write_text('{"stage": "fit 500/1000, 40/s, 12 s left, held out 25.0 dB", "share": 0.5}')
    viewer = LiveViewer(tmp_path, ViewOptions(port=0))
    thread = threading.Thread(target=viewer.run, daemon=True)
    thread.start()
    page = open_page(browser, viewer.gate.address, asked, {"width": 1100, "height": 800})
    try:
        page.get_by_text("held out 25.0 dB").wait_for()
        until(lambda: all(len(rows) > 20 for rows in spots(page).values()))
        viewer.do(lambda: setattr(viewer.choice, "value", viewer.choice.options[2]))
        viewer.do(viewer.compare)
        page.get_by_text("four times their difference").wait_for()
        assert float(viewer.told.content.split(";")[1].split()[0]) > 35
        if os.environ.get("GWORLD_UPDATE_PICTURES"):
            save(page, "view-live.jpg")
        press(page, "Pause")
        until(lambda: (tmp_path / "wish.json").exists() and '"pause"' in (tmp_path / "wish.json").read_text())
        page.get_by_role("button", name="Go on").wait_for()
    finally:
        page.close()
        viewer.close()
        thread.join(timeout=5)


def test_an_exported_page_plays_from_disk(
    world: World, rollout: Rollout, browser: Any, asked: list[str], tmp_path: Path
) -> None:
    export_page(world, tmp_path / "page.html", rollout)
    page = open_page(browser, (tmp_path / "page.html").as_uri(), asked)
    before = until(lambda: (now := spots(page)) and all(len(rows) > 20 for rows in now.values()) and now)
    until(lambda: moved(before, spots(page))["cart"] > 10)
    page.close()


def test_nobody_else_was_contacted(viewer: Viewer, asked: list[str]) -> None:
    ours = ("http://localhost:", "blob:http://localhost:", "file://", "blob:null", "data:")
    assert asked and not [address for address in asked if not address.startswith(ours)]
