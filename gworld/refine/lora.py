"""Low-rank adaptation of a pretrained backbone to a scene's own pairs: trained, saved and loaded as safetensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gworld.checkpoint import Checkpoint, load_checkpoint, write_bundle
from gworld.data.pairset import Pair
from gworld.errors import InputError, MissingBackendError
from gworld.files import atomic_folder
from gworld.refine.pretrained import Backbone

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers of attention that are adapted (Hu et al., "LoRA", 2021)."""
MOST = 512
"""The largest rank that is read."""


@dataclass(frozen=True)
class LoraConfig:
    """How a backbone is adapted."""

    rank: int = 8
    """Rank of what is added to each layer."""
    steps: int = 200
    """Steps of the optimiser."""
    frames: int = 2
    """Frames per step, in a row."""
    crop: int = 128
    """Side of the square that is cut out, in pixels."""
    rate: float = 1e-4
    """Learning rate."""
    seed: int = 0
    """Draws stretches, squares and noise."""


def add_lora(backbone: Backbone, rank: int, seed: int = 0) -> list[Tensor]:
    """Put adapters into the denoiser's attention and return what is to be learned; they begin as nothing added."""
    peft = _peft()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        told = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights="gaussian")
        peft.inject_adapter_in_model(told, backbone.unet)
    return [value for value in backbone.unet.parameters() if value.requires_grad]


def tune_backbone(backbone: Backbone, pairs: Sequence[Pair], config: LoraConfig = LoraConfig()) -> list[float]:
    """Adapt a backbone to pairs (adapters are added where it has none) and return the loss of each step.

    The loss is that of clean latents where the confidence is low. Raises `InputError` where no pair can be used.
    """
    usable = [pair.clip for pair in pairs if pair.clip.truth is not None]
    least = min((min(clip.rgb.shape[1:3]) for clip in usable), default=0)
    crop = min(config.crop, least) // backbone.step * backbone.step
    if crop == 0:
        raise InputError(f"pairs of at least {backbone.step} pixels a side are needed to adapt this backbone.")
    learned: list[Tensor] = [value for value in backbone.unet.parameters() if value.requires_grad]
    learned = learned or add_lora(backbone, config.rank, config.seed)
    optimiser = torch.optim.AdamW(learned, lr=config.rate)
    generator = torch.Generator().manual_seed(config.seed)
    losses = []
    for step in range(config.steps):
        clip = usable[_draw(len(usable), generator)]
        height, width = clip.rgb.shape[1:3]
        first = _draw(max(1, len(clip) - config.frames + 1), generator)
        top, left = _draw(height - crop + 1, generator), _draw(width - crop + 1, generator)
        cut = (slice(first, first + config.frames), slice(top, top + crop), slice(left, left + crop))
        assert clip.truth is not None
        rgb, truth = clip.rgb[cut].movedim(-1, 1), clip.truth[cut].movedim(-1, 1)
        doubt = 1 - clip.confidence[cut][:, None]
        with torch.no_grad():
            latents, wanted = backbone.encode(rgb), backbone.encode(truth)
        found = backbone.denoise(latents, rgb, doubt, config.seed + step)
        weight = torch.nn.functional.adaptive_avg_pool2d(doubt, (found.shape[2], found.shape[3]))
        loss = ((found - wanted).square() * weight).mean() / weight.mean().clamp_min(1e-6)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise InputError("the backbone's output is not finite on these pairs; it cannot be adapted.")
    return losses


def save_lora(backbone: Backbone, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write the adapters alone, with the licence and hashes of the backbone that they belong to."""
    tensors = {f"lora.{name}": value for name, value in _adapters(backbone).items()}
    if not tensors:
        raise InputError("the backbone has no adapters yet; adapt it with `tune_backbone`.")
    values: dict[str, Any] = {
        "lora": {"rank": min(min(value.shape) for value in tensors.values())},
        "backbone": {
            "pipeline": backbone.facts.pipeline, "licence": backbone.facts.licence, "files": backbone.facts.hashes,
        },
    }  # fmt: skip
    with atomic_folder(folder, own=("*.safetensors", "manifest.json"), overwrite=overwrite) as temporary:
        write_bundle(temporary, Checkpoint(0, tensors, values))


def load_lora(backbone: Backbone, folder: str | Path) -> None:
    """Put saved adapters into the backbone they were learned on; raises `InputError` for another one, or damage."""
    checkpoint = load_checkpoint(folder)
    told, base = checkpoint.values.get("lora"), checkpoint.values.get("backbone")
    if not isinstance(told, dict) or not isinstance(base, dict) or told.get("rank") not in range(1, MOST + 1):
        raise InputError(f"`{folder}` holds no adapters; write them with `save_lora`.")
    if base.get("files") != backbone.facts.hashes:
        raise InputError(f"`{folder}` was learned on another backbone ({base.get('pipeline')}); load that one.")
    add_lora(backbone, told["rank"])
    weights = {name.removeprefix("lora."): value for name, value in checkpoint.tensors.items()}
    wanted = {name: value.shape for name, value in _adapters(backbone).items()}
    if {name: value.shape for name, value in weights.items()} != wanted:
        raise InputError(f"`{folder}` does not fit its backbone; it is damaged.")
    backbone.unet.load_state_dict(weights, strict=False)


def _adapters(backbone: Backbone) -> dict[str, Tensor]:
    """What was added to the denoiser, by name."""
    return {name: value for name, value in backbone.unet.state_dict().items() if ".lora_" in name}


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingBackendError("adapting a pretrained refiner needs peft: pip install 'gworld[refine]'.") from error
    return peft


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
