"""Refiners on disk: the weights, the photos they refer to, and the hash of the Gaussians these photos belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gworld.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, write_bundle
from gworld.data.pairset import pack_clip, unpack_clip
from gworld.errors import InputError
from gworld.files import atomic_folder
from gworld.refine.network import Refiner, refiner_from, save_values
from gworld.scene.clip import Clip

PHOTOS = "photos."


@dataclass(frozen=True)
class SavedRefiner:
    """A refiner ready to use, its photos (None for one that is for all scenes) and where they belong."""

    model: Refiner
    photos: Clip | None = None
    gaussians: str = ""


def save_refiner(
    saved: SavedRefiner, folder: str | Path, *, facts: dict[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write a refiner without its training's state, to be shipped; raises `UsageError` when the folder exists."""
    values = {**save_values(saved.model), "gaussians": saved.gaussians, **(facts or {})}
    tensors = {f"model.{name}": value for name, value in saved.model.state_dict().items()} | photo_tensors(saved.photos)
    with atomic_folder(folder, own=("*.safetensors", "manifest.json"), overwrite=overwrite) as temporary:
        write_bundle(temporary, Checkpoint(0, tensors, values))


def load_refiner(place: str | Path) -> SavedRefiner:
    """The refiner of a checkpoint folder or of a run's newest checkpoint.

    Raises `InputError` when there is none, or it is damaged.
    """
    folder = Path(place)
    found = folder if (folder / "manifest.json").is_file() else latest_checkpoint(folder)
    if found is None:
        raise InputError(f"`{folder}` holds no refiner checkpoint; train one with `gworld train refiner`.")
    checkpoint = load_checkpoint(found)
    photos = {name.removeprefix(PHOTOS): v for name, v in checkpoint.tensors.items() if name.startswith(PHOTOS)}
    clip = unpack_clip(photos, str(found)) if photos else None
    if clip is not None and clip.truth is None:
        raise InputError(f"`{found}` holds renders without their photos; it is damaged, train again.")
    return SavedRefiner(
        refiner_from(checkpoint.values, checkpoint.tensors).eval(), clip, str(checkpoint.values.get("gaussians", ""))
    )


def photo_tensors(photos: Clip | None) -> dict[str, Tensor]:
    """Photos as tensors of a checkpoint."""
    return {} if photos is None else {PHOTOS + name: value for name, value in pack_clip(photos).items()}
