"""Checkpoints: a folder of safetensors and a manifest of hashes, written aside and renamed last.

A checkpoint is either complete and verified or it does not exist: killing the writer at any moment leaves the previous
one.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gworld.errors import InputError
from gworld.files import atomic_folder, existing_file, parse_json, safe_join, sweep_temporaries

FORMAT = "gworld checkpoint 1"
_NAME = re.compile(r"^step-(\d{1,12})$")


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: named tensors, JSON values and the states of its random generators."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(run: str | Path, checkpoint: Checkpoint, *, keep: int = 3) -> Path:
    """Write `run/checkpoints/step-N` and return it; only the newest `keep` are left.

    Later steps, which a run that went back to an earlier checkpoint has given up, are removed.
    """
    folder = Path(run) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(folder)
    target = folder / f"step-{checkpoint.step}"
    with atomic_folder(target, own=("*.safetensors", "manifest.json"), overwrite=True) as temporary:
        write_bundle(temporary, checkpoint)
    past = [step for step in _steps(folder) if step <= checkpoint.step]
    kept = past[-max(1, keep) :]
    for old in set(_steps(folder)) - set(kept):
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)
    return target


def latest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint of a run whose manifest and hashes hold, or None; damaged ones are passed over."""
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        return None
    for step in reversed(_steps(folder)):
        try:
            verify_bundle(folder / f"step-{step}")
            return folder / f"step-{step}"
        except InputError:
            continue
    return None


def write_bundle(folder: Path, checkpoint: Checkpoint) -> None:
    """Write tensors, generators and manifest into an existing folder (the caller makes it atomic)."""
    parts = {"tensors.safetensors": checkpoint.tensors, "generators.safetensors": checkpoint.generators}
    for name, tensors in parts.items():
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, folder / name)
    manifest = {
        "format": FORMAT,
        "step": checkpoint.step,
        "values": checkpoint.values,
        "files": {name: _sha256(folder / name) for name in parts},
    }
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def verify_bundle(folder: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder whose files all have the recorded hashes; raises `InputError` otherwise."""
    file = existing_file(Path(folder) / "manifest.json")
    manifest = parse_json(file.read_bytes(), str(file))
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise InputError(f"`{file}` is not a manifest of `{FORMAT}`; a checkpoint written by gworld is needed.")
    if not isinstance(manifest.get("step"), int) or not isinstance(manifest.get("values"), dict):
        raise InputError(f"`{file}` lacks its step or values; the checkpoint is damaged, use an earlier one.")
    for name in ("tensors.safetensors", "generators.safetensors"):
        part = existing_file(safe_join(folder, name))
        if _sha256(part) != manifest["files"].get(name):
            raise InputError(f"`{part}` does not have the hash its manifest names; it is damaged, use an earlier one.")
    return manifest


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder after checking every hash; raises `InputError` when anything is missing or damaged."""
    manifest = verify_bundle(folder)
    try:
        tensors = load_file(Path(folder) / "tensors.safetensors")
        generators = load_file(Path(folder) / "generators.safetensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"`{folder}` cannot be read: {error}. Use an earlier checkpoint.") from error
    return Checkpoint(manifest["step"], tensors, manifest["values"], generators)


def flatten_state(state: Mapping[Any, Any] | list[Any], prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split a nested state (an optimiser's `state_dict()`, say) into named tensors and a JSON skeleton."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            name = f"{path}#{len(tensors)}"  # numbered, for two paths may read alike
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"map": [[key, walk(item, f"{path}.{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [walk(item, f"{path}.{index}") for index, item in enumerate(value)]}
        return {"value": value}

    return tensors, walk(state, prefix or "state")


def unflatten_state(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """Rebuild what `flatten_state` took apart (tuples come back as lists)."""
    if "tensor" in skeleton:
        return tensors[skeleton["tensor"]]
    if "map" in skeleton:
        return {key: unflatten_state(tensors, item) for key, item in skeleton["map"]}
    if "list" in skeleton:
        return [unflatten_state(tensors, item) for item in skeleton["list"]]
    return skeleton["value"]


def capture_generators(
    generators: Mapping[str, torch.Generator | np.random.Generator | random.Random],
) -> dict[str, Tensor]:
    """The states of torch, numpy and Python generators as byte tensors, by name."""
    return {name: _state_of(generator) for name, generator in generators.items()}


def restore_generators(
    states: Mapping[str, Tensor], generators: Mapping[str, torch.Generator | np.random.Generator | random.Random]
) -> None:
    """Set generators to captured states; raises `InputError` when one has no state in the checkpoint."""
    for name, generator in generators.items():
        if name not in states:
            raise InputError(f"the checkpoint holds no state for the random generator `{name}`; it is of another run.")
        if isinstance(generator, torch.Generator):
            generator.set_state(states[name])
            continue
        state = parse_json(states[name].numpy().tobytes(), f"generator {name}")
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        else:
            generator.setstate((state[0], tuple(state[1]), state[2]))


def _state_of(generator: torch.Generator | np.random.Generator | random.Random) -> Tensor:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        state: Any = generator.bit_generator.state
        text = json.dumps(state, default=lambda value: value.tolist())
    else:
        text = json.dumps(generator.getstate())
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _steps(folder: Path) -> list[int]:
    found = (_NAME.match(entry.name) for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(match.group(1)) for match in found if match)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
