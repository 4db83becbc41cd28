"""`gworld reconstruct` as a user runs it: posed pictures, a video, resume, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.capture.known import known_views
from gworld.cli.main import main
from gworld.data.room_files import write_room_video
from gworld.data.rooms import RoomOptions, film_room
from gworld.data.toys import tabletop_world
from gworld.files import need_asset
from gworld.formats.transforms import read_transforms, write_transforms
from gworld.formats.world import load_world
from gworld.reconstruct.coverage import load_coverage
from gworld.render.paths import orbit, path_cameras
from gworld.render.select import render
from gworld.render.video import as_uint8, read_video
from gworld.scene.views import View, Views

STEPS = ["--fit.steps", "60", "--fit.gaussians", "3000", "--fit.save-every", "0.1"]


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of the generated table with their exact poses, in metres."""
    folder = tmp_path_factory.mktemp("posed")
    world = tabletop_world(0.03)
    cameras = path_cameras(orbit(torch.tensor([0.0, 0.1, 0.8]), 1.7, 0.9, 16), 96, 72, 0.75)
    drawn = render(world.gaussians, world.rest_poses(), cameras, outputs=("rgb",)).rgb
    assert drawn is not None
    views = []
    for index, picture in enumerate(drawn[0]):
        file = folder / "images" / f"{index:03d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(as_uint8(picture)).save(file)
        views.append(View(file.name, 96, 72, cameras.K[index], cameras.world_from_camera[index], image=file))
    points = world.gaussians.means[::20].double()
    write_transforms(Views(tuple(views), points, metric=True), folder / "transforms.json")
    return folder


def test_posed_pictures_become_a_world(posed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["reconstruct", "--data", str(posed), "--out", str(out), *STEPS, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["metric"] is True and facts["registered"] == 16 and len(facts["lines"]) == 3
    world = load_world(out / "world")
    assert len(world.gaussians) == facts["gaussians"] > 500 and world.metric
    # Metric poses keep their frame: the cameras are where they were put.
    truth = {view.name: view.world_from_camera for view in read_transforms(posed / "transforms.json").views}
    assert world.cameras is not None
    for name, pose in zip(world.cameras.names, world.cameras.world_from_camera, strict=True):
        assert float((pose[:3, 3] - truth[name][:3, 3]).norm()) < 0.05
    assert load_coverage(out / "world") is not None
    assert len(list(read_video(out / "orbit.mp4"))) == 144
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "held out" in page.lower() and "<script src" not in page
    assert main(["info", str(out)]) == 0


def test_a_stopped_run_goes_on_to_the_same_world(posed: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        assert main(["reconstruct", "--data", str(posed), "--out", str(out), *STEPS]) == 0
    steps = sorted((parts / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    assert len(steps) > 1
    shutil.rmtree(steps[-1])
    shutil.rmtree(parts / "world")
    assert main(["reconstruct", "--resume", "--out", str(parts)]) == 0
    assert (parts / "world" / "gaussians.ply").read_bytes() == (whole / "world" / "gaussians.ply").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "fact"),
    [
        ([], 2, "give footage"),
        (["--video", "a.mp4", "--data", "b"], 2, "one of the two"),
        (["--resume"], 2, "no run to resume"),
        (["--video", "missing.mp4"], 3, "missing.mp4"),
        (["--data", "missing"], 3, "missing"),
        (["--video", "a.mp4", "b.mp4", "--hand-log", "c.csv"], 2, "one video"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, fact: str
) -> None:
    assert main(["reconstruct", "--out", str(tmp_path / "run"), *arguments]) == code
    message = capsys.readouterr().err
    assert fact in message and "Traceback" not in message


def test_a_mended_command_takes_the_place_of_one_that_made_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mistyped.mp4", "wrong-again.mp4"):
        assert main(["reconstruct", "--video", str(tmp_path / name), "--out", str(tmp_path / "run")]) == 3
        assert f"{name}` does not exist" in capsys.readouterr().err
    (tmp_path / "run" / "stages.json").write_text("{}")
    assert main(["reconstruct", "--video", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "run")]) == 2


def test_nobodys_folder_is_replaced(posed: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["reconstruct", "--data", str(posed), "--out", str(tmp_path), "--overwrite"]) == 2
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_still_camera_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room = film_room(RoomOptions(frames=12, width=160, height=120, path="still", noise=2.0))
    write_room_video(room, tmp_path / "still.mp4")
    assert main(["reconstruct", "--video", str(tmp_path / "still.mp4"), "--out", str(tmp_path / "run")]) == 3
    assert "still" in capsys.readouterr().err


def test_a_fixed_camera_is_placed_into_a_scan(tmp_path: Path) -> None:
    scan = film_room(RoomOptions(frames=14, seed=1))
    height, width = scan.pictures.shape[1:3]
    views = []
    for index, picture in enumerate(scan.pictures):
        file = tmp_path / "scan" / f"{index:03d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(file)
        pose = torch.from_numpy(scan.world_from_camera[index])
        views.append(View(file.name, width, height, torch.from_numpy(scan.K), pose, image=file))
    write_transforms(Views(tuple(views), metric=True), tmp_path / "scan" / "transforms.json")
    still = film_room(RoomOptions(frames=4, seed=1, path="still", noise=2.0))
    write_room_video(still, tmp_path / "door.mp4")
    out = tmp_path / "run"
    arguments = ["reconstruct", "--data", str(tmp_path / "scan"), "--fixed", str(tmp_path / "door.mp4")]
    assert main([*arguments, "--out", str(out), *STEPS]) == 0
    (found,) = known_views(out / "fixed.json").views
    error = found.world_from_camera.double().numpy() - still.world_from_camera[0]
    assert np.linalg.norm(error[:3, 3]) < 0.02 and np.abs(error[:3, :3]).max() < 0.02


@pytest.mark.slow
def test_the_clip_becomes_a_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--capture.count", "30", "--fit.steps", "400", "--fit.gaussians", "8000"]
    assert main(["reconstruct", "--video", str(need_asset("tabletop.mp4")), "--out", str(out), *options, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["registered"] >= 0.95 * facts["pictures"]
    assert facts["psnr"] > facts["baseline_psnr"] + 2
    world = load_world(out / "world")
    assert world.cameras is not None and not world.metric
    # Held as a hand holds it: the camera's down axis points down in the upright world.
    down = world.cameras.world_from_camera[:, :3, 1].mean(0)
    assert float(torch.nn.functional.normalize(down, dim=0)[2]) < -0.7
    assert np.isfinite(facts["floaters"])
