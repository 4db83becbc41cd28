"""`gworld simulate` as it is called: files written, lines said, exit codes, and what A/B and truth comparisons show."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gworld.cli.main import main
from gworld.cli.simulate_draw import seeing
from gworld.data.store import open_episodes, read_episode
from gworld.formats.gltf import read_gltf
from gworld.reconstruct.coverage import measure_coverage, save_coverage
from gworld.render.video import read_video
from gworld.scene.world import World
from gworld.simulate.files import read_rollout
from gworld.simulate.observe import pick_cameras
from tests.acting import acting_world

STEPS = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"), 48, 32)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of actions and one finished run with everything written."""
    place = tmp_path_factory.mktemp("runs")
    t = np.arange(STEPS) / 20
    head = "time,left/yaw/position [deg],right/yaw/velocity,cart/y/velocity\n"
    rows = np.stack([t, 200 * t, 0 * t + 1, 0 * t + 0.4], axis=1)
    (place / "a.csv").write_text(head + "\n".join(",".join(map(str, row)) for row in rows))
    (place / "b.csv").write_text("time,cart/x/velocity\n" + "\n".join(f"{v},-0.4" for v in t))
    options = ["--outputs", "rgb", "depth", "link_id", "flow", "scene_flow", "visibility", "--rate", "20"]
    written = ["--labels", f"{place}/labels", "--glb", f"{place}/a.glb", "--episode", f"{place}/store"]
    assert simulate(world, ["--actions", f"{place}/a.csv", "--out", f"{place}/a.mp4", *options, *written]) == 0
    return place


def simulate(world: World, arguments: list[str]) -> int:
    return main(["simulate", "--world", str(world.folder), "--width", "48", *arguments])


def test_everything_asked_for_is_written(world: World, folder: Path) -> None:
    frames = list(read_video(folder / "a.mp4"))
    assert len(frames) == STEPS + 1 and frames[0].shape == (4 * 32, 4 * 48 + 3 * 2, 3)
    rollout = read_rollout(folder / "a.parquet")
    assert len(rollout) == STEPS + 1 and rollout.link_names == tuple(link.name for link in world.links)
    table = read_gltf(folder / "a.glb")
    assert len(table) == len(world.gaussians) and [link.name for link in table.link_table][1] == "cart"
    about = json.loads((folder / "labels" / "labels.json").read_text())
    assert about["entities"]["left"] == [3, 4, 5]
    lines = [json.loads(line) for line in (folder / "labels" / "frames.jsonl").read_text().splitlines()]
    assert len(lines) == STEPS + 1 and lines[3]["time"] == pytest.approx(0.15)
    links = np.asarray(Image.open(folder / "labels" / "world-000" / "front" / "link_id-000003.png")).astype(int) - 1
    counts = np.bincount(links[links >= 0].ravel(), minlength=len(world.links)).tolist()
    assert counts == lines[3]["cameras"]["front"]["pixels"]
    assert {tuple(contact["links"]) for contact in lines[0]["contacts"]} >= {(1, 0), (2, 0)}
    depth = np.asarray(Image.open(folder / "labels" / "world-000" / "front" / "depth-000003.png"))
    assert depth.dtype == np.uint16 and 500 < np.median(depth[depth > 0]) < 3000
    flow = np.load(folder / "labels" / "world-000" / "front" / "scene_flow-000003.npz")["scene_flow"]
    np.testing.assert_allclose(flow[links == 1], np.tile([0, 0.02, 0], (counts[1], 1)), atol=1e-4)


def test_episodes_are_read_back(world: World, folder: Path) -> None:
    episode = read_episode(open_episodes(folder / "store"), 0)
    rollout = read_rollout(folder / "a.parquet")
    assert episode.link_poses is not None and np.array_equal(episode.link_poses.numpy(), rollout.link_poses.numpy())
    assert [video.name for video in episode.videos] == ["front", "east", "west", "wrist"]
    assert episode.cameras is not None and episode.cameras.links == (0, 0, 0, 5)
    assert episode.behaviour == "replay" and episode.names["actions/left"] == ("yaw/position", "elbow/position")
    assert episode.joints["left"].shape == (STEPS + 1, 2) and float(episode.joints["left"][-1, 0]) > 1.0


def test_truth_stands_beside_prediction(world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = str(folder / "store" / "episode-000000")
    assert simulate(world, ["--compare", truth, "--out", str(folder / "c.mp4")]) == 0
    said = capsys.readouterr().err
    assert (
        "result: 0.0 mm off after 0.50 s" in said and "copying the start" in said and "dB against the footage" in said
    )
    with open(folder / "c-errors.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    last = {row["body"]: row for row in rows[-5:]}
    assert float(last["cart"]["position_m"]) < 1e-5 and float(last["cart"]["position_m_copy"]) > 0.15
    assert float(last["(pictures)"]["psnr_front"]) > 25 > 0
    assert next(read_video(folder / "c.mp4")).shape[0] == 2 * 32


def test_one_agent_is_swapped(world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--actions", f"{folder}/a.csv", "--swap", f"cart={folder}/b.csv", "--rate", "20", "--cameras", "front"]
    assert simulate(world, [*arguments, "--out", f"{folder}/s.mp4"]) == 0
    assert "result: cart moved otherwise" in capsys.readouterr().err
    one, two = read_rollout(folder / "s.parquet"), read_rollout(folder / "s-swapped.parquet")
    others = [0, *range(2, len(world.links))]
    assert np.array_equal(one.link_poses[:, others].numpy(), two.link_poses[:, others].numpy())
    assert not np.array_equal(one.link_poses[:, 1].numpy(), two.link_poses[:, 1].numpy())


def test_many_worlds_under_a_policy(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--policy", "cart=expert,left=random", "--task", "reach", "--worlds", "3", "--seconds", "0.2"]
    more = ["--jitter", "0.2", "--episode", f"{tmp_path}/store", "--out", f"{tmp_path}/w.mp4", "--json"]
    assert simulate(world, [*arguments, *more]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["worlds"] == 3 and facts["steps"] == 6 and facts["stuck"] == 0
    starts = [read_rollout(tmp_path / f"w-00{row}.parquet").link_poses[0] for row in range(3)]
    assert not np.array_equal(starts[0].numpy(), starts[1].numpy())
    store = open_episodes(tmp_path / "store")
    assert len(store) == 3 and read_episode(store, 2).behaviours["cart"] == "expert"


def test_a_rollout_is_acted_again_from_an_orbit(world: World, folder: Path, tmp_path: Path) -> None:
    arguments = ["--actions", f"{folder}/a.parquet", "--cameras", "orbit", "--seconds", "0.2"]  # at its own 20 steps/s
    assert simulate(world, [*arguments, "--fps", "10", "--out", f"{tmp_path}/o.mp4"]) == 0
    again, first = read_rollout(tmp_path / "o.parquet"), read_rollout(folder / "a.parquet")
    assert np.array_equal(again.link_poses.numpy(), first.link_poses[:5].numpy())
    assert len(list(read_video(tmp_path / "o.mp4"))) == 3


def test_what_the_footage_showed_is_told_per_pixel(world: World, tmp_path: Path) -> None:
    assert world.folder is not None and world.cameras is not None
    shutil.copytree(world.folder, tmp_path / "world")
    front = pick_cameras(world.cameras, [0])
    save_coverage(
        measure_coverage(world.gaussians, [front, front], world_from_link=world.rest_poses()), tmp_path / "world"
    )
    seen = replace(world, folder=tmp_path / "world")
    arguments = ["--policy", "null", "--seconds", "0.04", "--outputs", "rgb", "seen", "--labels", f"{tmp_path}/labels"]
    assert simulate(seen, [*arguments, "--out", f"{tmp_path}/a.mp4"]) == 0
    maps = {
        name: np.asarray(Image.open(tmp_path / "labels" / "world-000" / name / "seen-000000.png"))
        for name in ("front", "east")
    }
    assert set(np.unique(maps["front"])) <= {0, 2} and (maps["front"] == 2).mean() > 0.3
    assert (maps["east"] == 2).mean() < 0.2 * (maps["front"] == 2).mean()


def test_of_a_scans_cameras_those_that_see_robots_are_shown(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.cameras is not None
    four = pick_cameras(replace(world.cameras, links=()), [0, 1, 0, 1])
    turned = four.world_from_camera.clone()
    turned[:2, :3, 0], turned[:2, :3, 2] = -turned[:2, :3, 0], -turned[:2, :3, 2]
    four = replace(four, world_from_camera=turned, names=())
    assert seeing(world, four, [0, 1, 2, 3]) == [2, 3] and not capsys.readouterr().err
    assert seeing(world, four, [0, 1]) == [0, 1] and "no camera sees" in capsys.readouterr().err


REFUSED = {
    "nothing": (["--out", "x.mp4"], 2, "nothing acts"),
    "both": (["--actions", "a.csv", "--policy", "random"], 2, "both `--actions` and `--policy`"),
    "policy": (["--policy", "clever"], 2, "no policy `clever`"),
    "file": (["--actions", "none.csv"], 3, "`none.csv` does not exist"),
    "camera": (["--policy", "null", "--cameras", "roof"], 2, "no camera `roof`; there are front, east, west, wrist"),
    "seen": (["--policy", "null", "--outputs", "seen"], 3, "no coverage"),
    "dynamics": (["--policy", "null", "--dynamics", "."], 3, "holds no dynamics checkpoint"),
    "out": (["--policy", "null", "--out", "x.gif"], 2, "is no .mp4 file"),
    "fps": (["--policy", "null", "--fps", "60"], 2, "more than the 30 steps per second"),
    "swap": (["--policy", "null", "--swap", "left=a.csv"], 2, "`--swap` changes `--actions`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_one_sentence(
    world: World, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, code, message = REFUSED[name]
    assert simulate(world, arguments) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gworld: ") and message in last
    assert not list(tmp_path.glob("*.mp4"))


def test_nothing_is_replaced_unasked(world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(world, ["--policy", "null", "--out", f"{folder}/a.mp4"]) == 2
    assert "exists already" in capsys.readouterr().err
