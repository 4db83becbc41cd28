"""Models on disk, the shipped ones, and the command that trains them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gworld.bench.phys_models import law_recordings
from gworld.cli import main as cli
from gworld.data.laws import draw_trials
from gworld.dynamics.baselines import ConstantVelocity, Copy, Plain, PlainConfig
from gworld.dynamics.judge import validate
from gworld.dynamics.network import Dynamics, model_from, save_values
from gworld.dynamics.saved import load_model, save_model
from gworld.errors import InputError, UsageError

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "dynamics"


def test_a_model_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    model = Dynamics()
    save_model(model, tmp_path / "model", 7)
    again = load_model(tmp_path / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(UsageError, match="exists"):
        save_model(model, tmp_path / "model")


def test_a_model_from_before_grips_were_mixed_does_as_it_did() -> None:
    model = Dynamics()
    older = {f"model.{name}": value for name, value in model.state_dict().items() if name != "materials.mix"}
    again = model_from(save_values(model), older)
    assert float(again.materials.mix.detach()) == 0.0
    with pytest.raises(InputError, match="not those of its network"):
        model_from(save_values(model), {n: v for n, v in older.items() if n != "model.materials.grip"})


def test_a_damaged_or_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dynamics checkpoint"):
        load_model(tmp_path)
    save_model(Dynamics(), tmp_path / "model")
    file = tmp_path / "model" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="hash"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("law", ["uniform", "parabola", "collision"])
def test_shipped_models_know_their_law_outside_the_training_range(law: str) -> None:
    outside = "all" if law == "collision" else "r v"
    data = law_recordings(draw_trials(law, 8, 99, outside=outside))
    error = validate(load_model(ASSETS / law), data)
    assert error < 0.01
    assert error < 0.1 * validate(Copy(), data)
    if law != "uniform":
        assert error < 0.1 * validate(ConstantVelocity(), data)


def test_the_plain_network_predicts_and_can_be_trained() -> None:
    data = law_recordings(draw_trials("collision", 4, 1))
    assert validate(Plain(PlainConfig(links=3, length=3.0)), data) > 0.05


def test_the_command_trains_and_goes_on(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    words = ["train", "dynamics", "--law", "uniform", "--limit", "12", "--batch", "8", "--out", str(run), "--json"]
    assert cli.main([*words, "--steps", "50", "--horizons", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 50 and told["error"] < told["copy"]
    assert (run / "metrics.csv").is_file()
    assert load_model(run).config.support is False
    assert cli.main(["train", "dynamics", "--out", str(run)]) == 2
