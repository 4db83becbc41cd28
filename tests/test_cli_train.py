"""`gworld train dynamics`: learns, is judged beside its baselines, goes on where it stopped, refuses in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gworld.cli.main import main
from gworld.dynamics.saved import load_model

SMALL = ["--law", "parabola", "--limit", "12", "--batch", "8", "--horizons", "1", "--json"]


def test_a_law_is_learned_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "dynamics", "--out", str(tmp_path / "run"), *SMALL, "--steps", "120"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 120 and 20 * told["error"] < told["constant_velocity"] < told["copy"]
    weights = load_model(tmp_path / "run").state_dict()
    assert main(arguments) == 0, "the same command goes on, and finds that all is done"
    again = json.loads(capsys.readouterr().out)
    assert again["error"] == told["error"]
    after = load_model(tmp_path / "run").state_dict()
    assert all((weights[name] == after[name]).all() for name in weights)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "one of `--episodes` and `--law`"),
        (["--law", "uniform", "--episodes", "x"], 2, "one of `--episodes` and `--law`"),
        (["--law", "uniform", "--limit", "1"], 3, "at least 2 are needed"),
        (["--episodes", "nowhere"], 2, "`--episodes` needs `--world`"),
        (["--episodes", "nowhere", "--world", "nowhere"], 3, "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main(["train", "dynamics", "--out", str(tmp_path / "run"), *arguments]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
