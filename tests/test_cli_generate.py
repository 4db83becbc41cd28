"""`gworld generate`: resumed, killed, spread over workers: never an episode lost, doubled or changed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch

from gworld.cli.main import main
from gworld.data.store import EpisodeSet, open_episodes, read_episode
from gworld.data.truth import read_depth, read_links
from gworld.formats.world import load_world, save_world
from tests.acting import acting_world
from tests.test_simulate_generate import same
from tests.test_simulate_plausible import table_world

SMALL = ["--seconds", "0.4", "--policy", "random:3,null:1", "--round", "4", "--hard-share", "0.3"]


def generate(world: Path, out: Path, *more: str) -> int:
    return main(["generate", "--world", str(world), "--out", str(out), *SMALL, *more])


def equal(one: EpisodeSet, two: EpisodeSet) -> None:
    assert [entry.key for entry in one.entries] == [entry.key for entry in two.entries]
    for index in range(len(one)):
        same(read_episode(one, index), read_episode(two, index))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("worlds") / "world"
    save_world(table_world(), place)
    return place


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine episodes made in one go, in this process."""
    out = tmp_path_factory.mktemp("whole") / "store"
    assert generate(folder, out, "--episodes", "9") == 0
    return out


def test_gone_on_with_it_is_the_same_store(
    folder: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "store"
    assert generate(folder, out, "--episodes", "6") == 0
    said = capsys.readouterr().err
    assert "6 added" in said and "% of attempts accepted" in said and "visited:" in said
    assert generate(folder, out, "--episodes", "9", "--json", "--lerobot", str(tmp_path / "lerobot")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["added"], facts["skipped"]) == (3, 6) and 0 < facts["acceptance"] <= 1
    equal(open_episodes(out), open_episodes(whole))
    info = json.loads((tmp_path / "lerobot" / "meta" / "info.json").read_text())
    assert info["total_episodes"] == 9 and info["features"]["action"]["shape"] == [2]
    kinds = {read_episode(open_episodes(out), index).origin["kind"] for index in range(9)}
    assert kinds == {"policy", "hard"}
    assert not (out / ".parts").exists()


def test_workers_killed_or_not_make_the_same_store(folder: Path, whole: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "store", random.Random(3)
    command = [sys.executable, "-m", "gworld", "generate", "--world", str(folder), "--out", str(out), *SMALL]
    command += ["--episodes", "9", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GWORLD_TEST_TOKEN": uuid.uuid4().hex}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    wanted = rng.randint(1, 6)
    while process.poll() is None and (len(open_episodes(out)) if (out / "index.jsonl").exists() else 0) < wanted:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(open_episodes(out)) <= 9
    assert end_of(environment["GWORLD_TEST_TOKEN"]), "workers end with the run"
    assert main(command[3:]) == 0
    equal(open_episodes(out), open_episodes(whole))


def end_of(token: str) -> bool:
    """Whether, after a while, no process is left that was started with this in its environment."""
    for _ in range(300):
        left = 0
        for place in Path("/proc").iterdir():
            try:
                if place.name.isdigit() and int(place.name) != os.getpid():
                    left += token.encode() in (place / "environ").read_bytes()
            except OSError:
                continue
        if not left:
            return True
        time.sleep(0.1)
    return False


def test_a_lost_worker_costs_nothing(folder: Path, whole: Path, tmp_path: Path) -> None:
    from gworld.simulate.generate import Recipe
    from gworld.simulate.pool import Workers
    from gworld.simulate.produce import PARTS, Plan, produce

    out = tmp_path / "store"
    recipe = Recipe(folder, seconds=0.4, policy="random:3,null:1")
    killed: list[int] = []

    def kill(done: int) -> None:
        """Kill one worker when the second episode is there."""
        if done == 2:
            import multiprocessing

            victims = multiprocessing.active_children()
            for victim in victims[:1]:
                os.kill(victim.pid or 0, signal.SIGKILL)
                killed.append(victim.pid or 0)

    backend = Workers(recipe, out / PARTS, 2)
    found = produce(recipe, Plan(9, hard_share=0.3, round=4), out, backend, kill)
    backend.close()
    assert killed and found.added == 9
    equal(open_episodes(out), open_episodes(whole))


def test_other_options_are_refused(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(folder, whole, "--episodes", "9", "--seed", "5") == 2
    assert "made in another way" in capsys.readouterr().err
    assert generate(folder, whole, "--labels") == 2
    assert "add `--video`" in capsys.readouterr().err
    assert generate(folder, whole, "--demo-share", "0.9", "--hard-share", "0.9") == 2


VARY = """
remove: [{entity: right, chance: 0.5}]
looks: [{entity: cart, hue: [90, 90]}]
cameras: {shift: 0.02, turn: 1}
background: {color: [[1, 1], [0, 0], [0, 0]]}
"""


def test_films_labels_and_variations(tmp_path: Path) -> None:
    world = acting_world(tmp_path)
    (tmp_path / "vary.yaml").write_text(VARY)
    options = ["--video", "--labels", "--width", "48", "--vary", str(tmp_path / "vary.yaml"), "--episodes", "3"]
    more = ["--seconds", "0.2", "--limits.penetration", "1", "--cameras", "front", "east"]
    out = tmp_path / "store"
    assert world.folder is not None and generate(world.folder, out, *options, *more) == 0
    episodes = [read_episode(open_episodes(out), index) for index in range(3)]
    assert {len(episode.link_names) for episode in episodes} == {len(world.links), len(world.links) - 3}
    for episode in episodes:
        assert [video.name for video in episode.videos] == ["front", "east"] and episode.cameras is not None
        assert world.cameras is not None
        shift = (episode.cameras.world_from_camera[:, :3, 3] - world.cameras.world_from_camera[:2, :3, 3]).abs()
        assert 0 < float(shift.max()) < 0.05
        video = episode.videos[0]
        assert video.depth is not None and video.masks is not None and len(video.times) == len(episode) == 4
        depth, links = read_depth(video.depth), read_links(video.masks)
        assert depth.shape == links.shape == (4, 32, 48) and 0.3 < float(depth[depth > 0].min()) < 2.0
        assert int(links.max()) < len(episode.link_names)
        assert episode.origin["drawn"]["background"] == {"color": [1.0, 0.0, 0.0]}
    from gworld.data.clips import read_frames

    picture = next(iter(read_frames(episodes[0].videos[0].path, [0])))
    assert picture[0, 0].tolist() == pytest.approx([255, 0, 0], abs=12), "nothing is there but the drawn background"
    assert load_world(world.folder).background is None and torch.is_tensor(episodes[0].times)
