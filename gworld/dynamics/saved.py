"""Models on disk: a checkpoint folder with the weights alone, or the newest checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

from gworld.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, write_bundle
from gworld.dynamics.network import Dynamics, model_from, save_values
from gworld.errors import InputError
from gworld.files import atomic_folder


def save_model(model: Dynamics, folder: str | Path, step: int = 0, *, overwrite: bool = False) -> None:
    """Write a model's weights and make-up, to be shipped with a world; raises `UsageError` when the folder exists."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    with atomic_folder(folder, own=("*.safetensors", "manifest.json"), overwrite=overwrite) as temporary:
        write_bundle(temporary, Checkpoint(step, tensors, dict(save_values(model))))


def load_model(place: str | Path) -> Dynamics:
    """The model of a checkpoint folder or of a run's newest checkpoint, ready to predict.

    Raises `InputError` when there is none, or it is damaged.
    """
    folder = Path(place)
    found = folder if (folder / "manifest.json").is_file() else latest_checkpoint(folder)
    if found is None:
        raise InputError(f"`{folder}` holds no dynamics checkpoint; train one with `gworld train dynamics`.")
    checkpoint = load_checkpoint(found)
    return model_from(checkpoint.values, checkpoint.tensors).eval()
