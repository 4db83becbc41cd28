"""LeRobot data sets: both layouts are read, and what is exported equals `lerobot`'s own sample field by field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.data.annotated import open_annotated
from gworld.data.clips import probe_clip, read_frames
from gworld.data.ingest import ingest, open_source
from gworld.data.lerobot import open_lerobot
from gworld.data.lerobot_stats import pooled_stats, table_stats
from gworld.data.lerobot_write import write_lerobot
from gworld.data.split import parse_agents, split_agents
from gworld.data.store import EpisodeSet, EpisodeWriter, open_episodes
from gworld.errors import InputError, UsageError
from tests.episodes import small_episode, small_video
from tests.recordings import make_annotated, make_lerobot_v2

pq = pytest.importorskip("pyarrow.parquet")
TABLES = (
    "data/chunk-000/file-000.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "meta/tasks.parquet",
)


def stored(source_path: Path, folder: Path, **options: object) -> EpisodeSet:
    ingest(open_source(source_path), folder, **options)  # type: ignore[arg-type]  # options are passed through
    return open_episodes(folder)


def test_v2_is_read(tmp_path: Path) -> None:
    source = open_lerobot(make_lerobot_v2(tmp_path / "set"))
    assert source.names == ("episode_000000", "episode_000001")
    episode = source.read(1, tmp_path)
    assert torch.allclose(episode.times, torch.arange(9, dtype=torch.float64) / 10, atol=0)
    assert torch.allclose(episode.actions["robot"], episode.joints["robot"] + 1)
    assert episode.names["joints/robot"] == episode.names["actions/robot"] == ("left_a", "left_b", "right_a", "right_b")
    assert episode.task == "wander" and [(v.name, len(v.times)) for v in episode.videos] == [("top", 9)]
    assert list(episode.signals) == ["next.reward"]


def test_v2_that_disagrees_is_refused_with_both_counts(tmp_path: Path) -> None:
    root = make_lerobot_v2(tmp_path / "set")
    small_video(root / "videos/chunk-000/observation.images.top/episode_000000.mp4", 11)
    with pytest.raises(InputError, match=r"frames has 11, .* has 12"):
        open_lerobot(root).read(0, tmp_path)
    lines = (root / "meta/episodes.jsonl").read_text().replace('"length": 9', '"length": 8')
    (root / "meta/episodes.jsonl").write_text(lines)
    with pytest.raises(InputError, match=r"table has 9, its length in the index has 8"):
        open_lerobot(root).read(1, tmp_path)
    (root / "meta/episodes.jsonl").write_text(lines.splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"total_episodes has 2, the list has 1"):
        open_lerobot(root)


def test_a_partial_download_is_read_and_said(tmp_path: Path) -> None:
    root = make_lerobot_v2(tmp_path / "set")
    (root / "data/chunk-000/episode_000000.parquet").unlink()
    source = open_lerobot(root)
    assert source.names == ("episode_000001",) and "1 of 2 episodes" in source.notes[0]


def test_a_template_cannot_leave_the_folder(tmp_path: Path) -> None:
    root = make_lerobot_v2(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    for bad in ("../{episode_index:06d}.parquet", "/etc/passwd", "{episode_index.__class__}", "{nothing}"):
        (root / "meta/info.json").write_text(json.dumps(info | {"data_path": bad}))
        with pytest.raises(InputError):
            open_lerobot(root)


def test_agents_are_split_by_name_and_by_number(tmp_path: Path) -> None:
    episode = open_lerobot(make_lerobot_v2(tmp_path / "set")).read(0, tmp_path)
    named = split_agents(episode, parse_agents("left=LEFT_*, right=*right*"))
    assert torch.equal(named.actions["right"], episode.actions["robot"][:, 2:])
    assert named.names["joints/left"] == ("left_a", "left_b")
    numbered = split_agents(episode, parse_agents("one=0:1|3:4,two=1:3"))
    assert torch.equal(numbered.joints["one"], episode.joints["robot"][:, [0, 3]])
    with pytest.raises(InputError, match="no pattern of `--agents` takes right_a, right_b"):
        split_agents(episode, parse_agents("left=left*"))
    with pytest.raises(InputError, match="'third' matches none"):
        split_agents(episode, parse_agents("left=left*,right=right*,third=x*"))
    for bad in ("left", "left=", "=x", "a=x,a=y", "a=x||y"):
        with pytest.raises(UsageError):
            parse_agents(bad)


def test_what_is_exported_is_read_back(tmp_path: Path) -> None:
    agents = parse_agents("left=left*,right=right*")
    episodes = stored(make_lerobot_v2(tmp_path / "set"), tmp_path / "store", agents=agents)
    info = write_lerobot(episodes, tmp_path / "out", robot_type="two arms")
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (2, 21, 10)
    assert info["features"]["action"]["names"] == ["left/left_a", "left/left_b", "right/right_a", "right/right_b"]
    before, after = open_lerobot(tmp_path / "set"), open_lerobot(tmp_path / "out")
    for index in (0, 1):
        one, two = before.read(index, tmp_path), after.read(index, tmp_path)
        assert torch.equal(one.times, two.times)
        assert torch.allclose(one.actions["robot"], two.actions["robot"], atol=1e-6)
        assert torch.allclose(one.joints["robot"], two.joints["robot"], atol=1e-6)
        old, new = one.videos[0], two.videos[0]
        assert (new.first, len(new.times)) == (12 * index, len(old.times))
        frames = zip(read_frames(old.path), read_frames(new.path, range(new.first, new.first + 9)), strict=False)
        assert all(np.array_equal(a, b) for a, b in frames)  # re-muxed, not encoded again


def test_v3_that_disagrees_is_refused_with_both_counts(tmp_path: Path) -> None:
    episodes = stored(make_lerobot_v2(tmp_path / "set"), tmp_path / "store")
    write_lerobot(episodes, tmp_path / "out")
    small_video(tmp_path / "out/videos/observation.images.top/chunk-000/file-000.mp4", 20)
    source = open_lerobot(tmp_path / "out")
    assert len(source.read(0, tmp_path)) == 12
    with pytest.raises(InputError, match=r"frames from 1.2 s to 2.1 s has 8, .* has 9"):
        source.read(1, tmp_path)


def test_cameras_slower_than_the_log_and_videos_that_differ(tmp_path: Path) -> None:
    source = open_annotated(make_annotated(tmp_path / "droid"))
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add(source.read(0, tmp_path))
    info = write_lerobot(open_episodes(tmp_path / "store"), tmp_path / "out")
    assert (info["fps"], info["total_frames"]) == (5, 10)
    back, episode = open_lerobot(tmp_path / "out").read(0, tmp_path), source.read(0, tmp_path)
    assert torch.allclose(back.actions["robot"], episode.actions["robot"][::3])
    assert torch.allclose(back.joints["robot"], episode.joints["robot"][::3], atol=1e-6)
    faster = write_lerobot(open_episodes(tmp_path / "store"), tmp_path / "fast", fps=15)
    assert faster["total_frames"] == 28  # both clocks end with the last frame, at 1.8 s
    video = tmp_path / "fast/videos/observation.images.wrist/chunk-000/file-000.mp4"
    assert len(probe_clip(video)) == 28


def test_unknown_actions_stay_unknown(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add(small_episode())
    write_lerobot(open_episodes(tmp_path / "store"), tmp_path / "out")
    back = open_lerobot(tmp_path / "out").read(0, tmp_path)
    lost = torch.isnan(torch.cat(list(small_episode().actions.values()), dim=1))
    assert torch.equal(torch.isnan(back.actions["robot"]), lost) and lost.any()
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    assert all(value is not None for value in stats["action"]["mean"])


def test_episodes_of_two_layouts_are_not_mixed(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add(small_episode())
        writer.add(small_episode(small_video(tmp_path / "a.mp4")))
    with pytest.raises(InputError, match="one layout"):
        write_lerobot(open_episodes(tmp_path / "store"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_statistics_pool_exactly() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(loc, 1 + loc, (40 + 10 * loc, 3)).astype(np.float32) for loc in range(3)]
    pooled, whole = pooled_stats([table_stats(part) for part in parts]), table_stats(np.concatenate(parts))
    for name in ("min", "max", "mean", "std", "count"):
        assert np.allclose(pooled[name], whole[name], rtol=1e-6)


def test_export_equals_the_librarys_own_sample(tmp_path: Path, real_data: Path) -> None:
    sample = real_data / "lerobot_v3_sample"
    write_lerobot(stored(sample, tmp_path / "store"), tmp_path / "out")
    files = {
        path.relative_to(root) for root in (sample, tmp_path / "out") for path in root.rglob("*.*") if path.is_file()
    }
    assert all((sample / file).is_file() and (tmp_path / "out" / file).is_file() for file in files) and len(files) == 6
    ours, theirs = (json.loads((root / "meta/info.json").read_text()) for root in (tmp_path / "out", sample))
    assert ours == theirs and list(ours) == list(theirs)
    for name in TABLES:
        one, two = pq.read_table(tmp_path / "out" / name), pq.read_table(sample / name)
        assert one.schema.equals(two.schema, check_metadata=False)
        groups = [pq.ParquetFile(root / name).num_row_groups for root in (tmp_path / "out", sample)]
        assert groups[0] == groups[1]
        for column in one.schema.names:
            if not column.startswith("stats/"):
                assert one[column].to_pylist() == two[column].to_pylist(), column
    ours, theirs = (json.loads((root / "meta/stats.json").read_text()) for root in (tmp_path / "out", sample))
    assert set(ours) == set(theirs)
    for feature in theirs:
        assert set(ours[feature]) == set(theirs[feature])
        for name, value in theirs[feature].items():
            assert np.shape(ours[feature][name]) == np.shape(value)
            # Their quantiles come from a histogram of whole numbers, ours from the values; their pictures were
            # measured before they were encoded, and frame by frame.
            slack = 0.6 if name.startswith("q") else 0.01 if "image" in feature else 1e-6
            if not ("image" in feature and name == "std"):
                assert np.allclose(ours[feature][name], value, atol=slack), (feature, name)


def test_lerobot_itself_opens_it(tmp_path: Path) -> None:
    python = os.environ.get("GWORLD_LEROBOT_PYTHON")
    if not python:
        pytest.skip("set GWORLD_LEROBOT_PYTHON to a Python that has lerobot (its torch pin differs from ours)")
    write_lerobot(stored(make_lerobot_v2(tmp_path / "set"), tmp_path / "store"), tmp_path / "out")
    script = Path(__file__).parent / "peers" / "lerobot_check.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, str(script), str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert lines, done.stderr[-2000:]
    report = json.loads(lines[-1].removeprefix("REPORT "))
    assert (report["frames"], report["episodes"], report["fps"]) == (21, 2, 10)
    print(report["decoder"], file=sys.stderr)
    source = open_lerobot(tmp_path / "set")
    for item in report["items"]:
        episode, row = source.read(item["episode"], tmp_path), item["index"] - 12 * item["episode"]
        assert item["task"] == "wander" and abs(item["time"] - row / 10) < 1e-6
        assert np.allclose(item["action"], episode.actions["robot"][row], atol=1e-6)
        frame = next(iter(read_frames(episode.videos[0].path, [row])))
        assert abs(item["images"]["observation.images.top"] - frame.mean() / 255) < 0.02
