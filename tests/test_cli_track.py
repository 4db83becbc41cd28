"""`gworld track` from the command line: a world, two videos and their calibration, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.bench.track_scene import film_scene
from gworld.capture.calibration import write_calibration
from gworld.cli.main import main
from gworld.data.clips import write_clip
from gworld.data.store import open_episodes, read_episode
from gworld.formats.registry import write
from gworld.formats.world import load_world, save_world
from gworld.scene.gaussians import select_gaussians
from gworld.scene.views import View, Views


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("track")
    scene = film_scene(folder, 3, width=160, height=120)
    world = scene.world
    static_and_tee = world.gaussians.links <= 1

    small = replace(
        world,
        gaussians=select_gaussians(world.gaussians, static_and_tee),
        links=world.links[:2],
        entities=world.entities[:2],
    )
    save_world(small, folder / "world")
    views = []
    for row, film in enumerate(scene.films[:2]):
        name = scene.cameras.names[row]
        write_clip(list(film.pictures), film.times, folder / f"{name}.mp4")
        pose = scene.cameras.world_from_camera[row].double()
        views.append(View(name, 160, 120, scene.cameras.K[row].double(), pose, camera_id=row))
    write_calibration(Views(tuple(views), metric=True), folder / "calibration.json")
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    return ["track", str(folder / "world"), "--cameras", str(folder / "calibration.json"), *more]


def test_tracks_videos_into_an_episode_with_overlays(filmed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = [str(filmed / "front.mp4"), str(filmed / "right.mp4")]
    fast = ["--plates", "scene", "--track.search", "0", "--track.reach", "0", "--track.finest", "1"]
    fast += ["--track.no-paint", "--track.steps", "2", "--json"]
    assert main(arguments(filmed, "--video", *videos, "--out", str(filmed / "episodes"), *fast)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["steps"] == 3
    assert set(facts["sigma"]) == {"tee"}
    episode = read_episode(open_episodes(filmed / "episodes"), 0)
    assert episode.link_poses is not None
    assert episode.link_names == ("world", "tee")
    assert bool(torch.isfinite(episode.link_poses).all())
    assert episode.signals["tracking/pose_sigma"].shape == (3, 4)
    assert all(Path(path).stat().st_size > 500 for path in facts["overlays"])
    assert np.isclose(float(episode.link_poses[0, 0, 3]), 1.0)


def test_standing_cameras_become_a_world_to_bind_into_and_track_in(
    filmed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, world, out = ("front", "right"), filmed / "static", filmed / "tracked"
    for name in names:  # the videos' own clocks run at another rate
        (filmed / f"{name}.json").write_text(json.dumps({"timestamps": [0.0, 0.1, 0.2]}))
    footage = ["--video", *(str(filmed / f"{name}.mp4") for name in names)]
    footage += ["--times", *(str(filmed / f"{name}.json") for name in names)]
    calibration = str(filmed / "calibration.json")
    small = ["--scene.pitch", "4", "--scene.steps", "2"]
    made = ["backdrop", *footage, "--cameras", calibration, *small, "--out", str(world), "--json"]
    assert main(made) == 0
    assert json.loads(capsys.readouterr().out)["cameras"] == list(names)
    assert main(made) == 2  # it stands already
    static = load_world(world)
    assert static.metric and static.cameras is not None and static.cameras.names == names
    ball = filmed / "ball.ply"
    tee = load_world(filmed / "world")
    part = select_gaussians(tee.gaussians, tee.gaussians.links == 1)
    write(replace(part, links=torch.zeros_like(part.links)), ball)
    base = [str(value) for value in tee.links[1].pose]
    assert main(["bind", str(world), "--object", str(ball), "--name", "tee", "--base", *base, "--overwrite"]) == 0
    fast = ["--track.search", "0", "--track.reach", "0", "--track.steps", "1", "--no-overlay", *small]
    fast += ["--step", "0.05", "--end", "0.16", "--colours", "tee=0.8,0.2,0.1", "--world-out", str(out)]
    capsys.readouterr()
    assert main(["track", str(world), *footage, *fast, "--out", str(filmed / "more"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    episode = read_episode(open_episodes(filmed / "more"), 0)
    assert torch.allclose(episode.times, torch.tensor([0.0, 0.05, 0.1, 0.15]).double())
    left = load_world(out)
    assert [link.name for link in left.links] == list(episode.link_names) == ["world", "tee"]
    assert left.gaussians.sh.shape[1] == 4 and bool((left.gaussians.links == 0).any())
    assert episode.link_poses is not None
    assert torch.allclose(torch.tensor(left.links[1].pose), episode.link_poses[0, 1], atol=1e-5)


def test_refuses_what_is_unclear(filmed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(filmed / "none")]
    assert main(arguments(filmed, *out)) == 2
    assert "one of --episodes and --video" in capsys.readouterr().err
    other = filmed / "other.mp4"
    other.write_bytes((filmed / "front.mp4").read_bytes())
    assert main(arguments(filmed, "--video", str(other), *out)) == 3
    assert "no camera called other" in capsys.readouterr().err
    beside = filmed / "beside.txt"
    beside.write_text("0\n0.1\n")
    assert main(arguments(filmed, "--video", str(filmed / "front.mp4"), "--times", str(beside), *out)) == 3
    assert "gives 2 times" in capsys.readouterr().err
    assert main(arguments(filmed, "--video", str(filmed / "front.mp4"), "--colours", "tee=red", *out)) == 2
    assert "NAME=R,G,B" in capsys.readouterr().err
    assert main(["track", str(filmed / "world"), "--video", str(filmed / "front.mp4"), *out]) == 2
    assert "holds no cameras" in capsys.readouterr().err
    everything = ["--video", str(filmed / "front.mp4"), "--hold-out", "front"]
    assert main(arguments(filmed, *everything, *out)) == 2
    assert not (filmed / "none").exists()
