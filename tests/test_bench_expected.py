"""Expected scores: a drift beyond the stated spread is reported, and the shipped file can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gworld.bench.catalogue import BENCHES
from gworld.bench.expected import beside_expected, expected_scores
from gworld.bench.rows import Row
from gworld.errors import InputError
from gworld.files import need_asset


def test_a_drift_beyond_the_spread_is_reported(tmp_path: Path) -> None:
    place = tmp_path / "scores.json"
    place.write_text(json.dumps({"phys": {"gravity": {"value": 4.0, "spread": 0.05}}}))
    scores = expected_scores(place)
    close, far, lost = (Row("gravity", value, "m", note="n") for value in (4.04, 4.06, float("nan")))
    assert beside_expected(close, "phys", False, scores) == close
    for row in (far, lost):
        assert beside_expected(row, "phys", False, scores).note == "n; drifted: 4 +- 0.05 is expected"
    assert beside_expected(far, "phys", True, scores) == far  # a quick run is another bench
    assert beside_expected(Row("other", 1.0, "m"), "phys", False, scores).note == ""


def test_the_shipped_scores_name_benches_and_a_broken_file_is_refused(tmp_path: Path) -> None:
    scores = expected_scores()
    assert need_asset("expected_scores.json").is_file() and scores
    for bench, rows in scores.items():
        assert bench.removesuffix(" --quick") in BENCHES and all(each["spread"] >= 0 for each in rows.values())
    (tmp_path / "bad.json").write_text('{"phys": {"gravity": {"value": "high"}}}')
    with pytest.raises(InputError, match="expected scores"):
        expected_scores(tmp_path / "bad.json")
    assert expected_scores(tmp_path / "none.json") == {}
