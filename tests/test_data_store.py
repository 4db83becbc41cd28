"""The episode store: what goes in comes out, disagreement is refused, and a kill costs nothing that was finished."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.data.clips import write_clip
from gworld.data.store import EpisodeWriter, episode_folder, open_episodes, read_episode
from gworld.errors import InputError, UsageError
from gworld.scene.episode import Video
from tests.episodes import assert_same, moving_square, small_episode, small_video

pytest.importorskip("pyarrow")

WRITER = """
import sys, tempfile
from pathlib import Path
from gworld.data.store import EpisodeWriter
from tests.episodes import small_episode
with tempfile.TemporaryDirectory() as warm, EpisodeWriter(warm) as writer:
    writer.add(small_episode(Path(sys.argv[2])))
with EpisodeWriter(sys.argv[1]) as writer:
    print("ready", flush=True)
    while True:
        seed = writer.entries[-1].episode + 1 if writer.entries else 0
        number = writer.add(small_episode(Path(sys.argv[2]), seed=seed), key=f"made-{seed}")
        print(number, flush=True)
"""


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    video = small_video(tmp_path / "front.mp4")
    made = [small_episode(video, seed=0), small_episode(None, seed=1), small_episode(video, steps=1, seed=2)]
    with EpisodeWriter(tmp_path / "store") as writer:
        assert [writer.add(episode, f"k{i}") for i, episode in enumerate(made)] == [0, 1, 2]
        assert writer.keys == {"k0", "k1", "k2"}
    episodes = open_episodes(tmp_path / "store")
    assert [(e.episode, e.steps, dict(e.frames)) for e in episodes.entries] == [
        (0, 24, {"front": 12}),
        (1, 24, {}),
        (2, 1, {"front": 12}),
    ]
    for position, episode in enumerate(made):
        assert_same(read_episode(episodes, position), episode)
    assert episodes.entries[0].agents == {"left": 3, "right": 2}


def test_an_episode_without_actions_and_one_with_empty_ones(tmp_path: Path) -> None:
    bare = replace(small_episode(), actions={}, joints={}, signals={}, names={}, link_poses=None, link_names=())
    still = replace(bare, actions={"none": torch.zeros(24, 0)})
    with EpisodeWriter(tmp_path) as writer:
        writer.add(bare)
        writer.add(still)
    assert_same(read_episode(open_episodes(tmp_path), 0), bare)
    assert_same(read_episode(open_episodes(tmp_path), 1), still)


def test_part_of_a_video_and_one_made_in_place(tmp_path: Path) -> None:
    video = small_video(tmp_path / "long.mp4", count=20)
    part = Video("front", video, torch.arange(5) / 10.0, first=7)
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add(replace(small_episode(), videos=(part,)))
        here = writer.scratch() / "made here.mp4"
        write_clip(moving_square(6), np.arange(6) / 10, here)
        writer.add(replace(small_episode(), videos=(Video("front", here, torch.arange(6) / 10.0),)))
    episodes = open_episodes(tmp_path / "store")
    assert [dict(entry.frames) for entry in episodes.entries] == [{"front": 5}, {"front": 6}]
    assert read_episode(episodes, 1).videos[0].path.name == "made here.mp4"


def test_masks_and_depth_come_along(tmp_path: Path) -> None:
    video = small_video(tmp_path / "front.mp4")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "0.png").write_bytes(b"picture")
    depth = small_video(tmp_path / "depth.mp4")
    seen = Video("front", video, torch.arange(12) / 10.0, masks=tmp_path / "masks", depth=depth)
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add(replace(small_episode(), videos=(seen,)))
    loaded = read_episode(open_episodes(tmp_path / "store"), 0).videos[0]
    assert loaded.masks is not None and (loaded.masks / "0.png").read_bytes() == b"picture"
    assert loaded.depth is not None and loaded.depth.read_bytes() == depth.read_bytes()


def store_of(tmp_path: Path, count: int = 2) -> Path:
    video = small_video(tmp_path / "front.mp4")
    with EpisodeWriter(tmp_path / "store") as writer:
        for seed in range(count):
            writer.add(small_episode(video, seed=seed))
    return tmp_path / "store"


def test_disagreement_is_refused_with_both_counts(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    small_video(episode_folder(store, 0) / "0-front.mp4", count=11)
    with pytest.raises(InputError, match=r"11 frames; frames.parquet times 12"):
        read_episode(open_episodes(store), 0)
    lines = (store / "index.jsonl").read_text().splitlines()
    (store / "index.jsonl").write_text(lines[0].replace('"steps": 24', '"steps": 23') + "\n" + lines[1] + "\n")
    with pytest.raises(InputError, match=r"has 24 rows; the index says 23 steps"):
        read_episode(open_episodes(store), 0)
    (store / "index.jsonl").write_text(lines[0].replace('"front": 12', '"front": 13') + "\n" + lines[1] + "\n")
    with pytest.raises(InputError, match=r"frames; the index says 13|11 frames; frames.parquet times 12"):
        read_episode(open_episodes(store), 0)
    assert len(read_episode(open_episodes(store), 1)) == 24


def test_counts_are_nowhere_but_in_the_index(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    kept = json.loads((episode_folder(store, 0) / "episode.json").read_text())
    assert not {"steps", "frames", "length", "count"} & set(kept)


def test_a_torn_line_and_an_unentered_episode_are_put_right(tmp_path: Path) -> None:
    store = store_of(tmp_path, count=3)
    lines = (store / "index.jsonl").read_bytes().splitlines(keepends=True)
    (store / "index.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:25])
    (store / "episode-000003.tmp").mkdir()
    assert len(open_episodes(store)) == 2  # a reader leaves the torn line out
    with EpisodeWriter(store) as writer:
        assert [entry.episode for entry in writer.entries] == [0, 1, 2]
        assert not (store / "episode-000003.tmp").exists()
        assert writer.add(small_episode()) == 3
    assert (store / "index.jsonl").read_bytes().splitlines(keepends=True)[:3] == lines


def test_a_damaged_index_is_refused_by_line(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    lines = (store / "index.jsonl").read_text().splitlines()
    (store / "index.jsonl").write_text("{}\n" + lines[1] + "\n")
    with pytest.raises(InputError, match=r"index.jsonl:1"):
        open_episodes(store)
    (store / "index.jsonl").write_text(lines[1] + "\n" + lines[0] + "\n")
    with pytest.raises(InputError, match="episode 0 after 1"):
        open_episodes(store)


def test_two_writers_do_not_share_a_store(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path), pytest.raises(UsageError, match="in use"):
        EpisodeWriter(tmp_path)


def test_a_failed_episode_leaves_nothing(tmp_path: Path) -> None:
    missing = Video("front", tmp_path / "none.mp4", torch.arange(3) / 10.0)
    with EpisodeWriter(tmp_path / "store") as writer:
        with pytest.raises(InputError, match=r"none\.mp4"):
            writer.add(replace(small_episode(), videos=(missing,)))
        with pytest.raises(InputError, match="infinity"):
            writer.add(replace(small_episode(), signals={"bad": torch.full((24, 1), torch.inf)}))
        assert writer.add(small_episode()) == 0
    assert not list((tmp_path / "store" / "episode-000000").glob("*.mp4"))
    assert sorted(place.name for place in (tmp_path / "store").iterdir()) == [".lock", "episode-000000", "index.jsonl"]


def test_killed_at_any_moment_nothing_finished_is_lost_or_misnumbered(tmp_path: Path) -> None:
    video = small_video(tmp_path / "front.mp4")
    store, rng, promised = tmp_path / "store", random.Random(0), -1
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store), str(video)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.4))
        process.kill()
        said = process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        promised = max(promised, *(int(line) for line in said if line.isdigit()), -1)
        if (store / "index.jsonl").exists():
            numbers = [entry.episode for entry in open_episodes(store).entries]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) > promised
    with EpisodeWriter(store) as writer:
        count = len(writer.entries)
    assert count > promised >= 0
    episodes = open_episodes(store)
    for position in {0, count // 2, count - 1}:
        assert episodes.entries[position].key == f"made-{position}"
        assert_same(read_episode(episodes, position), small_episode(video, seed=position))


def test_where_an_episode_comes_from_is_kept_and_old_stores_are_read(tmp_path: Path) -> None:
    origin = {"seed": 3, "drawn": {"light": {"exposure": 0.5}}, "rejected": {}}
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add(replace(small_episode(), origin=origin))
    assert read_episode(open_episodes(tmp_path / "store"), 0).origin == origin
    file = episode_folder(tmp_path / "store", 0) / "episode.json"
    facts = json.loads(file.read_text())
    del facts["origin"]
    file.write_text(json.dumps(facts))
    assert read_episode(open_episodes(tmp_path / "store"), 0).origin == {}
