"""Ingest: found, told apart, resumed; described in words and pictures; the same from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gworld.data.source as source_module
from gworld.cli.ingest import Options, run
from gworld.data.describe import describe_episodes, draw_contact_sheet, episode_rows
from gworld.data.ingest import ingest, open_source
from gworld.data.source import Source, table_from_csv
from gworld.data.split import parse_agents
from gworld.data.store import EpisodeWriter, open_episodes, read_episode
from gworld.errors import InputError, UsageError
from gworld.scene.episode import Episode
from tests.episodes import assert_same, small_video
from tests.recordings import make_annotated, make_lerobot_v2, make_rlds


def test_ingest_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source = open_source(make_lerobot_v2(tmp_path / "set", lengths=(12, 9, 8)))
    first = ingest(source, tmp_path / "store", limit=1)
    assert (first.added, first.skipped) == ((0,), 0)

    def failing(index: int, scratch: Path) -> Episode:
        if index == 2:
            raise InputError("`disk` went away.")
        return source.read(index, scratch)

    with pytest.raises(InputError, match="went away"):
        ingest(replace(source, read=failing), tmp_path / "store")
    assert len(open_episodes(tmp_path / "store")) == 2
    last = ingest(source, tmp_path / "store", behaviour="human", licence="MIT")
    assert (last.added, last.skipped) == ((2,), 2)
    again = ingest(source, tmp_path / "store")
    assert (again.added, again.skipped) == ((), 3)
    episodes = open_episodes(tmp_path / "store")
    assert [entry.steps for entry in episodes.entries] == [12, 9, 8]
    kept = read_episode(episodes, 2)
    assert (kept.behaviour, kept.licence) == ("human", "MIT")
    assert_same(replace(kept, behaviour="unknown", licence=""), source.read(2, tmp_path))


def test_two_sources_share_a_store(tmp_path: Path) -> None:
    ingest(open_source(make_lerobot_v2(tmp_path / "a")), tmp_path / "store", agents=parse_agents("l=left*,r=right*"))
    ingest(open_source(make_rlds(tmp_path / "b"), 5.0), tmp_path / "store", sync="none")
    episodes = open_episodes(tmp_path / "store")
    assert [dict(entry.agents) for entry in episodes.entries] == [{"l": 2, "r": 2}] * 2 + [{"robot": 7}] * 2
    facts = describe_episodes(tmp_path / "store")
    assert (facts["episodes"], facts["steps"], list(facts["agents"])) == (4, 37, ["l", "r"])


def test_a_foreign_folder_is_not_written_to(tmp_path: Path) -> None:
    source = open_source(make_rlds(tmp_path / "set"), 5.0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds other files"):
        ingest(source, tmp_path / "photos")
    with pytest.raises(InputError, match="already"):
        ingest(source, tmp_path / "store")
        open_source(tmp_path / "store")


def test_the_ten_line_adapter_of_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (source_module.__doc__ or "").split("name, into an episode store:")[-1].splitlines()
    code = "\n".join(line[4:] for line in text if line.startswith("    "))
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 12
    (tmp_path / "logs").mkdir()
    rows = ["t,j1,j2,cmd1,cmd2", *(f"{i / 10},{i},{-i},{i + 1}," for i in range(8))]
    (tmp_path / "logs" / "one.csv").write_text("\n".join(rows))
    small_video(tmp_path / "logs" / "one.mp4", 8)
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "adapter.py"
    script.write_text(code)
    import runpy

    runpy.run_path(str(script))
    episode = read_episode(open_episodes(tmp_path / "episodes"), 0)
    assert np.allclose(episode.joints["robot"][:, 0], np.arange(8)) and episode.actions["robot"][:, 1].isnan().all()
    assert [(video.name, len(video.times)) for video in episode.videos] == [("front", 8)]
    (tmp_path / "logs" / "one.csv").write_text("t,j1\n0,x\n")
    with pytest.raises(InputError, match="no table of numbers"):
        table_from_csv(tmp_path / "logs" / "one.csv")


def test_a_contact_sheet_shows_frames_and_plots(tmp_path: Path) -> None:
    ingest(open_source(make_annotated(tmp_path / "set")), tmp_path / "store")
    episodes = open_episodes(tmp_path / "store")
    assert draw_contact_sheet(episodes, tmp_path / "sheet.png") == 2
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape[1] == 8 * 160 + 7 * 4
    yellow = (sheet[..., 0] > 180) & (sheet[..., 1] > 150) & (sheet[..., 2] < 110)
    assert yellow.sum() > 8 * 4 * 500  # the moving square, in eight frames of four cameras
    for row in episode_rows(describe_episodes(tmp_path / "store")):
        assert all(isinstance(part, str) and part for part in row)
    with EpisodeWriter(tmp_path / "empty"):
        pass
    (tmp_path / "empty" / "index.jsonl").write_text("")
    assert describe_episodes(tmp_path / "empty")["episodes"] == 0
    assert episode_rows(describe_episodes(tmp_path / "empty"))[1][1].startswith("0, 0 steps")
    with pytest.raises(InputError, match="nothing to draw"):
        draw_contact_sheet(open_episodes(tmp_path / "empty"), tmp_path / "none.png")


def test_the_command_says_where_how_good_and_what_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_lerobot_v2(tmp_path / "set", lengths=(30, 24))
    options = Options(root, tmp_path / "store", agents="left=left*,right=right*", sync="auto", behaviour="human")
    run(options)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].endswith("LeRobot v2.1, 2 episodes")
    assert [line.split(":")[0] for line in lines[-3:]] == ["episodes", "result", "next"]
    assert "2 added, 5.2 s of recording" in lines[-2] and "clocks found" in lines[-2]
    run(replace(options, json=True))
    report = json.loads(capsys.readouterr().out)
    assert (report["added"], report["skipped"]) == ([], 2)
    for bad in ({"limit": 0}, {"rate": -1.0}, {"agents": "x"}):
        with pytest.raises(UsageError):
            run(replace(options, **bad))  # type: ignore[arg-type]  # each is a field of Options


def test_nothing_is_left_behind_by_a_source_that_fails(tmp_path: Path) -> None:
    def read(index: int, scratch: Path) -> Episode:
        (scratch / "half.mp4").write_bytes(b"half")
        raise InputError("`x` is damaged.")

    with pytest.raises(InputError, match="damaged"):
        ingest(Source("test", tmp_path, ("one",), read), tmp_path / "store")
    assert [entry.name for entry in (tmp_path / "store").iterdir()] == [".lock"]
