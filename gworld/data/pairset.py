"""Pair sets: rendered clips with their true pictures, and the photos they may refer to, in one folder.

`pairs.json` lists the pairs with their way of making, scene, split and the hash of every file; pictures are kept in 8
bits, depth and flow in 16, poses in 32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gworld.errors import InputError
from gworld.files import atomic_folder, existing_file, read_json, safe_join, write_json
from gworld.scene.clip import Clip

FORMAT = "gworld pairs 1"
INDEX = "pairs.json"
Way = Literal["sparse", "underfit", "cross", "cycle", "rollout", "given"]
Split = Literal["train", "held_out"]
KINDS = {"rgb": torch.uint8, "truth": torch.uint8, "alpha": torch.uint8, "confidence": torch.uint8,
         "depth": torch.float16, "flow": torch.float16, "link_id": torch.int32}  # fmt: skip
DEEPEST = 6e4
"""Metres or pixels that 16 bits hold."""
MAX_PAIRS = 100_000


@dataclass(frozen=True)
class Pair:
    """A clip with its truth, photos of its scene, the way it was made, which scene it is of, and what it is for."""

    clip: Clip
    references: Clip | None
    way: Way
    scene: str
    split: Split = "train"


@dataclass(frozen=True)
class Entry:
    """One line of the index."""

    file: str
    references: str | None
    way: Way
    scene: str
    split: Split
    frames: int


@dataclass(frozen=True)
class PairSet:
    """A pair set on disk: its folder, its lines, the hash of each file."""

    folder: Path
    entries: tuple[Entry, ...]
    hashes: dict[str, str]

    def __len__(self) -> int:
        return len(self.entries)


def write_pairs(pairs: Iterable[Pair], folder: str | Path, *, overwrite: bool = False) -> PairSet:
    """Write pairs into a new folder, one after the other; raises `InputError` for a pair without truth, or none."""
    entries: list[dict[str, Any]] = []
    hashes: dict[str, str] = {}
    shared: list[tuple[Clip, str]] = []
    with atomic_folder(folder, own=(INDEX, "*.safetensors"), overwrite=overwrite) as temporary:
        for number, pair in enumerate(pairs):
            if pair.clip.truth is None:
                raise InputError(f"pair {number} has no true pictures; a pair needs them.")
            name = f"clip-{number:05d}.safetensors"
            hashes[name] = _put(pair.clip, temporary / name)
            told = next((file for clip, file in shared if clip is pair.references), None)
            if told is None and pair.references is not None:
                told = f"photos-{len(shared):05d}.safetensors"
                hashes[told] = _put(pair.references, temporary / told)
                shared.append((pair.references, told))
            entries.append(
                {"file": name, "references": told, "way": pair.way, "scene": pair.scene, "split": pair.split,
                 "frames": len(pair.clip)}
            )  # fmt: skip
        if not entries:
            raise InputError("no pair was made; nothing is written.")
        write_json(temporary / INDEX, {"format": FORMAT, "pairs": entries, "files": hashes})
    return open_pairs(folder)


def open_pairs(folder: str | Path) -> PairSet:
    """The index of a pair set; raises `InputError` for a folder that is none."""
    path = Path(folder) / INDEX
    data = read_json(path)
    rows, hashes = (data.get(key) for key in ("pairs", "files")) if isinstance(data, dict) else (None, None)
    if not isinstance(rows, list) or not isinstance(hashes, dict) or data.get("format") != FORMAT:
        raise InputError(f"`{path}` is not of the format {FORMAT!r}; make the pairs again with `gworld train refiner`.")
    if len(rows) > MAX_PAIRS:
        raise InputError(f"`{path}` lists {len(rows)} pairs; at most {MAX_PAIRS} are read.")
    return PairSet(Path(folder), tuple(_entry(row, path) for row in rows), {str(k): str(v) for k, v in hashes.items()})


def read_pair(pairs: PairSet, index: int) -> Pair:
    """One pair; raises `InputError` for files that are damaged, missing or not those that were written."""
    entry = pairs.entries[index]
    references = None if entry.references is None else _get(pairs, entry.references)
    return Pair(_get(pairs, entry.file), references, entry.way, entry.scene, entry.split)


def iterate_pairs(pairs: PairSet, split: Split | None = None) -> Iterator[Pair]:
    """The pairs of a split (all with None), one in memory at a time; photos that pairs share are read once."""
    last: tuple[str | None, Clip | None] = (None, None)
    for entry in pairs.entries:
        if split in (None, entry.split):
            if entry.references != last[0]:
                last = (entry.references, None if entry.references is None else _get(pairs, entry.references))
            yield Pair(_get(pairs, entry.file), last[1], entry.way, entry.scene, entry.split)


def pack_clip(clip: Clip) -> dict[str, Tensor]:
    """A clip's tensors as they are stored."""
    return {
        each.name: _stored(value, KINDS.get(each.name, torch.float32))
        for each in fields(clip)
        if (value := getattr(clip, each.name)) is not None
    }


def unpack_clip(tensors: dict[str, Tensor], source: str) -> Clip:
    """The clip of stored tensors; raises `InputError` for parts that are missing, strange or not finite."""
    names = {each.name for each in fields(Clip)}
    strange = set(tensors) - names or names - {"truth"} - set(tensors)
    if strange:
        raise InputError(f"`{source}` lacks or does not know {', '.join(sorted(strange))}; it is damaged.")
    values = {}
    for name, value in tensors.items():
        kind = KINDS.get(name, torch.float32)
        if value.dtype != kind or (value.is_floating_point() and not bool(value.isfinite().all())):
            raise InputError(f"`{source}`: {name} is of type {value.dtype} or not finite; it is damaged.")
        values[name] = value.float() / 255 if kind == torch.uint8 else value if kind == torch.int32 else value.float()
    try:
        clip = Clip(**values)
    except (InputError, ValueError, TypeError) as error:  # shapes that do not go together
        raise InputError(f"`{source}` is damaged: its tensors do not fit each other.") from error
    if len(clip) == 0 or int(clip.link_id.max()) >= clip.world_from_link.shape[1]:
        raise InputError(f"`{source}` has no frames, or links without a pose; it is damaged.")
    return clip


def _stored(value: Tensor, kind: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    if kind == torch.uint8:
        return (value.clamp(0, 1) * 255).round().to(kind).contiguous()
    return (value.clamp(-DEEPEST, DEEPEST) if kind == torch.float16 else value).to(kind).contiguous()


def _put(clip: Clip, path: Path) -> str:
    data = save(pack_clip(clip))
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _get(pairs: PairSet, name: str) -> Clip:
    path = existing_file(safe_join(pairs.folder, name))
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != pairs.hashes.get(name):
        raise InputError(f"`{path}` does not have the hash its index names; it is damaged, make the pairs again.")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"`{path}` cannot be read: {error}. Make the pairs again.") from error
    return unpack_clip(tensors, str(path))


def _entry(row: Any, path: Path) -> Entry:
    wanted = {each.name for each in fields(Entry)}
    if not isinstance(row, dict) or set(row) != wanted or not isinstance(row["frames"], int):
        raise InputError(f"`{path}` has a line that is no pair; make the pairs again.")
    words = [row[name] for name in ("file", "scene", "way", "split")] + [row["references"] or ""]
    if not all(isinstance(word, str) for word in words) or row["way"] not in get_args(Way):
        raise InputError(f"`{path}` has a pair of an unknown kind; use the gworld that wrote it.")
    if row["split"] not in get_args(Split):
        raise InputError(f"`{path}` has a pair for `{row['split']}`; train or held_out is needed.")
    return Entry(**row)
