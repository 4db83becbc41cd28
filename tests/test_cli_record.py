"""`gworld record` end to end: episodes with truth, resumed, replayed, filmed, and killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")

from gworld.cli.main import main
from gworld.data.clips import read_frames
from gworld.data.simulators import open_scene
from gworld.data.simulators_options import SceneOptions
from gworld.data.store import episode_folder, open_episodes, read_episode
from gworld.data.truth import read_depth, read_links, write_truth
from gworld.errors import InputError, MissingBackendError

QUICK = ["--seconds", "1", "--no-video", "--no-world"]


def record(out: Path, *more: str) -> int:
    return main(["record", "--out", str(out), "--scene", "push", *more])


def can_draw() -> None:
    try:
        open_scene("push", SceneOptions(width=32, height=32)).draw(0)
    except MissingBackendError as error:
        pytest.skip(str(error))


def test_states_are_recorded_and_the_same_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(tmp_path / "e", "--episodes", "3", *QUICK) == 0
    assert "episodes/min" in capsys.readouterr().err
    assert record(tmp_path / "e", "--episodes", "5", *QUICK, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["added"], facts["skipped"], facts["frames"]) == (2, 3, 0)
    episodes = open_episodes(tmp_path / "e")
    assert [entry.episode for entry in episodes.entries] == [0, 1, 2, 3, 4] and len(
        {e.key for e in episodes.entries}
    ) == 5
    episode = read_episode(episodes, 4)
    assert len(episode) == 20 and set(episode.actions) == {"left", "right"} and episode.link_names[0] == "world"
    assert set(episode.behaviours) == {"left", "right"} and episode.link_poses is not None
    assert episode.names["actions/left"] == ("x/velocity", "y/velocity") and "simulator/qpos" in episode.signals


def test_policies_per_agent_and_replay(tmp_path: Path) -> None:
    assert record(tmp_path / "a", "--episodes", "1", "--policy", "left=extreme,right=null", *QUICK) == 0
    first = read_episode(open_episodes(tmp_path / "a"), 0)
    assert first.behaviours == {"left": "extreme", "right": "null"} and first.behaviour == "mixed"
    assert float(first.actions["right"].abs().max()) == 0.0
    more = ["--policy", "replay", "--replay", str(tmp_path / "a"), "--seed", "9", *QUICK]
    assert record(tmp_path / "b", "--episodes", "1", *more) == 0
    again = read_episode(open_episodes(tmp_path / "b"), 0)
    assert again.behaviour == "replay" and again.link_poses is not None and first.link_poses is not None
    np.testing.assert_array_equal(again.link_poses.numpy(), first.link_poses.numpy())


def test_films_depth_links_and_the_true_world(tmp_path: Path) -> None:
    can_draw()
    more = [
        "--episodes",
        "1",
        "--seconds",
        "0.5",
        "--width",
        "96",
        "--height",
        "72",
        "--cameras",
        "2",
        "--objects",
        "1",
    ]
    assert record(tmp_path / "e", *more, "--agents", "1") == 0
    episode = read_episode(open_episodes(tmp_path / "e"), 0)
    assert episode.cameras is not None and len(episode.cameras) == len(episode.videos) == 2
    simulation = open_scene("push", SceneOptions(agents=1, objects=1, cameras=2, width=96, height=72))
    simulation.show(episode.signals["simulator/qpos"][5].numpy())
    for index, video in enumerate(episode.videos):
        truth = simulation.draw(index)
        assert video.depth is not None and video.masks is not None
        depth, links = read_depth(video.depth), read_links(video.masks)
        assert len(depth) == len(links) == len(video.times) == 10
        np.testing.assert_allclose(depth[5], truth.depth, atol=5.1e-4)
        np.testing.assert_array_equal(links[5], truth.links)
        film = next(iter(read_frames(video.path, [5])))
        assert np.abs(film.astype(float) - truth.rgb).mean() < 8.0
    from gworld.agents.binding import load_robot
    from gworld.formats.world import load_world

    world = load_world(tmp_path / "e" / "world")
    assert tuple(link.name for link in world.links) == episode.link_names
    assert [joint.name for joint in load_robot(world, "left").free_joints] == ["x", "y"]


def test_depth_and_links_survive_storage(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0, 70, (4, 30, 44)).astype(np.float32)
    links = rng.integers(-1, 300, (4, 30, 44)).astype(np.int32)
    targets = {"depth": tmp_path / "d.mkv", "masks": tmp_path / "m.mkv"}
    with write_truth(np.arange(4) / 20, targets) as add:
        for one, two in zip(depth, links, strict=True):
            add(depth=one, masks=two)
    np.testing.assert_array_equal(read_links(targets["masks"]), links)
    near = depth < 65.535
    np.testing.assert_allclose(read_depth(targets["depth"])[near], depth[near], atol=5.01e-4)
    assert (read_depth(targets["depth"])[depth > 65.536] == 0).all()
    with (
        pytest.raises(InputError, match="frames and"),
        write_truth(np.arange(4) / 20, {"depth": tmp_path / "x.mkv"}) as add,
    ):
        add(depth=depth[0])
    data = targets["depth"].read_bytes()
    for cut in (0, 10, len(data) // 2):
        (tmp_path / "cut.mkv").write_bytes(data[:cut])
        try:
            assert len(read_depth(tmp_path / "cut.mkv")) < 4
        except InputError:
            continue


def test_requests_that_make_no_sense_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "no scene": ["--scene", "kitchen"],
        "names no simulator": ["--scene", "unity:car"],
        "no behaviour": ["--policy", "clever"],
        "--replay": ["--policy", "replay"],
        "1 to 6": ["--agents", "9"],
        "make no step": ["--seconds", "0", "--no-video"],
    }
    for fact, arguments in cases.items():
        assert record(tmp_path / "e", "--episodes", "1", *arguments) == 2
        assert fact in capsys.readouterr().err
    assert not (tmp_path / "e" / "index.jsonl").exists()


def kill_and_count(out: Path, seed: int) -> int:
    """Record until a random moment, kill, and count what the index holds."""
    code = "import sys; from gworld.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["record", "--out", str(out), "--scene", "push", "--episodes", "60", *QUICK]
    before = len(open_episodes(out)) if (out / "index.jsonl").exists() else 0
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    wait = random.Random(seed).uniform(0.05, 0.6)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "index.jsonl").exists() and (out / "index.jsonl").read_bytes().count(b"\n") > before:
            break
        time.sleep(0.02)
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return (out / "index.jsonl").read_bytes().count(b"\n")


def test_killed_while_recording_nothing_finished_is_lost_or_misnumbered(tmp_path: Path) -> None:
    out, finished = tmp_path / "e", 0
    for seed in range(2):
        count = kill_and_count(out, seed)
        assert count >= finished
        finished = count
    assert record(out, "--episodes", str(finished + 2), *QUICK) == 0
    episodes = open_episodes(out)
    assert [entry.episode for entry in episodes.entries] == list(range(finished + 2))
    assert [int(entry.key.split()[-1]) for entry in episodes.entries] == list(range(finished + 2))
    for position in range(len(episodes)):
        read_episode(episodes, position)
    assert not [place for place in out.iterdir() if place.name.endswith(".tmp")]
    assert episode_folder(out, finished + 1).is_dir()
