"""Run folders: every line on disk, every step once, progress readable by people and files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from gworld.errors import MissingBackendError, UsageError
from gworld.runlog import RunLog, progress_line, track


def test_metrics_and_events_survive_and_resume(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.event("start", seed=3)
        for step in range(5):
            log.metrics(step, loss=1.0 / (step + 1))
        log.metrics(5, loss=float("nan"), psnr=20.0)
    with open(tmp_path / "log.jsonl", "a") as stream:
        stream.write('{"event": "to')  # a kill cut this line short
    with RunLog(tmp_path):
        pass  # looking at a run changes nothing
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 7
    with RunLog(tmp_path, resume_step=3) as log:
        log.metrics(3, loss=9.0, psnr=21.0)
        log.event("resume")
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows == ["step,loss,psnr", "0,1,", "1,0.5,", "2,0.33333333,", "3,9,21"]
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events == ["start", "resume"]


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    with RunLog(tmp_path), pytest.raises(UsageError, match="in use"):
        RunLog(tmp_path)
    with RunLog(tmp_path) as log:
        log.event("free again")
    assert "free again" in (tmp_path / "log.jsonl").read_text()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_missing_sink_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingBackendError, match="pip install wandb"):
        RunLog(tmp_path, sinks=("wandb",))
    with RunLog(tmp_path) as log:  # the failed opening released the lock
        log.event("free again")
    assert "free again" in (tmp_path / "log.jsonl").read_text()


def test_progress_lines_have_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress_line("frames", 30, 120, 10.0) == "frames 30/120, 3/s, 30 s left"
    assert progress_line("frames", 120, 120, 40.0) == "frames 120/120, 3/s, 40 s"
    assert progress_line("steps", 1, 100_000, 1.0).endswith("27 h 47 min left")
    assert list(track([1, 2, 3], "items")) == [1, 2, 3]
    assert capsys.readouterr().err.startswith("items 3/3, ")
