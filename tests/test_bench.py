"""Benches run, print their goals beside what was measured, and write the table that is committed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from gworld.bench import rows
from gworld.bench.catalogue import BENCHES, BenchInput, run_bench
from gworld.bench.formats import surface_table
from gworld.cli import main as cli


def test_formats_bench_runs_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["bench", "formats", "--quick", "--json", "--peer", str(tmp_path), "--out", str(tmp_path / "t.md")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    report = json.loads(captured.out)
    assert report["bench"] == "formats" and report["machine"] and report["seconds"] > 0
    names = [row["name"] for row in report["rows"]]
    for wanted in ("gworld --help, whole command", "gworld info of the PLY, peak memory", "spz write", "sog read"):
        assert wanted in names
    assert all(row["value"] >= 0 and row["unit"] for row in report["rows"])
    table = (tmp_path / "t.md").read_text()
    assert "| figure | value |" in table and "quick" in table


def test_every_bench_is_a_file_and_unknown_ones_are_refused() -> None:
    for name in BENCHES:
        assert callable(__import__(f"gworld.bench.{name}", fromlist=["rows"]).rows)
    with pytest.raises(Exception, match="there is no bench `x`"):
        list(run_bench("x", BenchInput()))


def test_goals_decide_by_the_value() -> None:
    assert rows.at_most("a", 1.0, "s", 1.0).ok and not rows.at_most("a", 1.1, "s", 1.0).ok
    assert rows.at_least("a", 1.0, "s", 1.0).ok and not rows.at_least("a", 0.9, "s", 1.0).ok
    lines = rows.table_lines(
        [rows.at_most("a", 2.0, "s", 1.0, baseline=4.0, note="n"), rows.Row("b", float("nan"), "x")]
    )
    assert lines[2] == "| a (n) | 2 | s | 4 | <= 1 | **no** |"
    assert lines[3] == "| b | - | x |  |  |  |"


def test_timers_measure() -> None:
    assert rows.median_seconds(lambda: time.sleep(0.01), 3) > 0.009
    assert rows.peak_growth(lambda: bytearray(b"x" * 50_000_000)) > 30e6


def test_generated_capture_is_seeded() -> None:
    first, again, other = surface_table(100, 1), surface_table(100, 1), surface_table(100, 2)
    assert (first.means == again.means).all() and (first.means != other.means).any()


def test_skipped_rows_are_null_for_machines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "gworld.cli.bench.run_bench", lambda name, given: [rows.Row("a", float("nan"), "", note="skipped")]
    )
    assert cli.main(["bench", "phys", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["value"] is None
