"""Models on disk: a checkpoint folder with the weights alone, or the newest checkpoint of a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from gworld.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, write_bundle
from gworld.dynamics.network import Dynamics, model_from, save_values
from gworld.dynamics.uncertainty import KEY, Calibration, calibration_from
from gworld.errors import InputError
from gworld.files import atomic_folder


def save_model(
    model: Dynamics, folder: str | Path, step: int = 0, told: Calibration | None = None, *, overwrite: bool = False
) -> None:
    """Write a model's weights and make-up, to be shipped with a world, and with `told` how sure its predictions are;
    raises `UsageError` when the folder exists."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    values = save_values(model) | ({} if told is None else {KEY: asdict(told)})
    with atomic_folder(folder, own=("*.safetensors", "manifest.json"), overwrite=overwrite) as temporary:
        write_bundle(temporary, Checkpoint(step, tensors, values))


def load_model(place: str | Path) -> Dynamics:
    """The model of a checkpoint folder or of a run's newest checkpoint, ready to predict.

    Raises `InputError` when there is none, or it is damaged.
    """
    checkpoint = _read(place)
    return model_from(checkpoint.values, checkpoint.tensors).eval()


def load_calibration(place: str | Path) -> Calibration | None:
    """How sure the model of a checkpoint folder or of a run is, None where it was not calibrated; raises `InputError`
    when there is no checkpoint, or it is damaged."""
    return calibration_from(_read(place).values)


def _read(place: str | Path) -> Checkpoint:
    folder = Path(place)
    found = folder if (folder / "manifest.json").is_file() else latest_checkpoint(folder)
    if found is None:
        raise InputError(f"`{folder}` holds no dynamics checkpoint; train one with `gworld train dynamics`.")
    return load_checkpoint(found)
