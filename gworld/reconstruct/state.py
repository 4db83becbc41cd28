"""Everything a fit must remember between two steps, to and from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gworld.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from gworld.errors import InputError
from gworld.render.native_train import AdamState, adam_state_from, adam_state_tensors
from gworld.scene.gaussians import Gaussians

NAMES = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh")


@dataclass
class State:
    """A fit after `step` steps.

    `params` are the Gaussians' columns by name; `appearance` the per-picture corrections; `pull`, `hits` and `since`
    are what density control gathered: pull on centres, steps that saw each Gaussian, and the step it began at.
    `seconds` is the time spent so far, `skipped` counts the steps whose result was not finite, `resets` the rare
    interventions of density control.
    """

    step: int
    params: dict[str, Tensor]
    adam: AdamState
    appearance: dict[str, Tensor]
    appearance_adam: AdamState
    pull: Tensor
    hits: Tensor
    since: int = 0
    first: int = 0
    skipped: int = 0
    resets: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def gaussians_of(params: dict[str, Tensor]) -> Gaussians:
    """The columns as Gaussians of the static world."""
    links = torch.zeros(len(params["means"]), dtype=torch.int32, device=params["means"].device)
    return Gaussians(**params, links=links)


def save_state(run: Path, state: State, facts: dict[str, Any]) -> Path:
    """Write a checkpoint; `facts` must be equal when the run is resumed."""
    tensors = {f"gaussians.{name}": value for name, value in state.params.items()}
    tensors |= {f"appearance.{name}": value for name, value in state.appearance.items()}
    tensors |= {f"adam.{name}": value for name, value in adam_state_tensors(state.adam).items()}
    tensors |= {f"appearance_adam.{n}": value for n, value in adam_state_tensors(state.appearance_adam).items()}
    tensors |= {"pull": state.pull, "hits": state.hits}
    counters = {name: getattr(state, name) for name in ("since", "first", "skipped", "resets", "seconds", "history")}
    return save_checkpoint(run, Checkpoint(state.step, tensors, {"facts": facts, **counters}))


def load_state(run: Path, facts: dict[str, Any], device: torch.device) -> State | None:
    """The newest sound checkpoint of a run, or None; raises `InputError` when it was made with other facts."""
    folder = latest_checkpoint(run)
    if folder is None:
        return None
    checkpoint = load_checkpoint(folder)
    saved = checkpoint.values.get("facts")
    if saved != facts:
        changed = [key for key in facts if not isinstance(saved, dict) or saved.get(key) != facts[key]]
        raise InputError(
            f"`{folder}` was made with other settings ({', '.join(changed)}). Resume with the settings of the run, or "
            "start another one."
        )

    def part(prefix: str) -> dict[str, Tensor]:
        names = [name for name in checkpoint.tensors if name.startswith(prefix + ".")]
        return {name.removeprefix(prefix + "."): checkpoint.tensors[name].to(device) for name in names}

    values = {key: value for key, value in checkpoint.values.items() if key != "facts"}
    return State(
        step=checkpoint.step,
        params=part("gaussians"),
        adam=adam_state_from(part("adam")),
        appearance=part("appearance"),
        appearance_adam=adam_state_from(part("appearance_adam")),
        pull=checkpoint.tensors["pull"].to(device),
        hits=checkpoint.tensors["hits"].to(device),
        **values,
    )
