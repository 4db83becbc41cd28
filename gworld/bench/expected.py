"""Expected scores: what a bench measured when its figures were last agreed on, and whether a row has drifted from it.

`assets/expected_scores.json` holds `{bench: {row: {"value", "spread"}}}`; a quick run is a bench of its own
(`attr --quick`). It changes only in a commit that says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gworld.bench.rows import Row
from gworld.errors import InputError
from gworld.files import find_asset

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]


def expected_scores(place: Path | None = None) -> Scores:
    """The expected scores (those that come with gworld unless told), none where the file is not there; raises
    `InputError` where it cannot be read."""
    place = place or find_asset("expected_scores.json")
    if place is None or not place.is_file():
        return {}
    try:
        told = json.loads(place.read_text(encoding="utf-8"))
        return {
            bench: {row: {key: float(each[key]) for key in ("value", "spread")} for row, each in rows.items()}
            for bench, rows in told.items()
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"`{place}` holds no expected scores ({error}); take it from the repository.") from error


def beside_expected(row: Row, bench: str, quick: bool, scores: Scores) -> Row:
    """The row, with a note where its value is farther from the expected one than the stated spread."""
    told = scores.get(f"{bench} --quick" if quick else bench, {}).get(row.name)
    if told is None or (math.isfinite(row.value) and abs(row.value - told["value"]) <= told["spread"]):
        return row
    drift = f"drifted: {told['value']:.4g} +- {told['spread']:.2g} is expected"
    return replace(row, note=f"{row.note}; {drift}" if row.note else drift)
