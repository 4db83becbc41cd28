"""Pretrained diffusion backbones as the refiner: a local diffusers folder, one denoising step, the same gate.

Read are Stable Diffusion folders, with or without a ControlNet that sees the render (`image`), and Stable Video
Diffusion folders (`video`), whose frames are denoised together with the renders as their condition. Weights come from
safetensors alone; nothing is fetched, and no code of the folder is run. Licence and hashes are recorded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gworld.errors import InputError, MissingBackendError
from gworld.files import existing_file, read_json, safe_join

KINDS: dict[str, Literal["image", "video"]] = {
    "StableDiffusionPipeline": "image",
    "StableDiffusionImg2ImgPipeline": "image",
    "StableDiffusionControlNetPipeline": "image",
    "StableDiffusionControlNetImg2ImgPipeline": "image",
    "StableVideoDiffusionPipeline": "video",
}
CLASSES = {
    "vae": ("AutoencoderKL", "AutoencoderKLTemporalDecoder"),
    "unet": ("UNet2DConditionModel", "UNetSpatioTemporalConditionModel"),
    "controlnet": ("ControlNetModel",),
}
"""What is loaded of a folder, by part and class; text encoders and the rest are left alone (the prompt is empty)."""
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
STRENGTH = 0.25
"""Part of the noise schedule at which the one step is taken (`image`)."""
SIGMA = 0.5
"""Noise of the one step, in units of the latents (`video`)."""
CHUNK = 8
"""Frames that are refined at once."""
FRAME_RATE, MOTION = 7.0, 127.0
"""What video models are told of a film; these are the values they are shipped with."""


@dataclass(frozen=True)
class BackboneFacts:
    """What a folder is: pipeline class, kind, licence as it names it (`unknown` otherwise), sha256 of each weight."""

    pipeline: str
    kind: Literal["image", "video"]
    licence: str
    hashes: dict[str, str]


class Backbone(nn.Module):
    """A pretrained denoiser behind the refiner's gate: `backbone(rgb, doubt) -> pictures`."""

    def __init__(self, facts: BackboneFacts, vae: nn.Module, unet: nn.Module, controlnet: nn.Module | None) -> None:
        super().__init__()
        self.facts = facts
        self.vae: Any = vae  # diffusers' models have methods of their own
        self.unet: Any = unet
        self.controlnet = controlnet
        self.requires_grad_(False)
        self.eval()

    @property
    def step(self) -> int:
        """Pixels that pictures are padded to a multiple of."""
        blocks = [len(_config(part)["down_block_types"]) for part in (self.vae, self.unet)]
        return 2 ** (blocks[0] - 1 + blocks[1] - 1)

    def forward(self, rgb: Float[Tensor, "T 3 H V"], doubt: Float[Tensor, "T 1 H V"], seed: int = 0) -> Tensor:
        """Refined frames [T,3,H,W]; where doubt is 0 they are the render."""
        height, width = rgb.shape[2:]
        pad = (0, -width % self.step, 0, -height % self.step)
        whole = nn.functional.pad(rgb, pad, mode="replicate")
        latents = self.encode(whole)
        found = self.denoise(latents, whole, nn.functional.pad(doubt, pad), seed)
        decoded = self.decode(found)[..., :height, :width]
        return rgb + doubt * (decoded.clamp(0, 1) - rgb)

    def encode(self, pictures: Float[Tensor, "T 3 H V"]) -> Tensor:
        """Latents [T,C,h,w], scaled as the denoiser knows them."""
        kept = self.vae.encode(2 * pictures - 1).latent_dist.mode()
        return kept * _config(self.vae)["scaling_factor"]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [T,3,H,W] of latents; 0..1, not clamped."""
        told = {"num_frames": len(latents)} if self.facts.kind == "video" else {}
        return self.vae.decode(latents / _config(self.vae)["scaling_factor"], **told).sample / 2 + 0.5

    def denoise(self, latents: Tensor, pictures: Tensor, doubt: Tensor, seed: int = 0) -> Tensor:
        """One step: noise where there is doubt, and what the denoiser makes of it (an estimate of clean latents)."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        noise = noise * nn.functional.adaptive_avg_pool2d(doubt, (latents.shape[2], latents.shape[3]))
        return self._video(latents, noise) if self.facts.kind == "video" else self._image(latents, pictures, noise)

    def _image(self, latents: Tensor, pictures: Tensor, noise: Tensor) -> Tensor:
        moment = int(STRENGTH * 999)
        kept = _kept_signal(moment)
        noisy = kept**0.5 * latents + (1 - kept) ** 0.5 * noise
        told = torch.full((len(latents),), moment, device=latents.device)
        empty = latents.new_zeros(len(latents), 77, _config(self.unet)["cross_attention_dim"])
        more: dict[str, Any] = {}
        if self.controlnet is not None:
            down, middle = self.controlnet(noisy, told, empty, controlnet_cond=pictures, return_dict=False)
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        # All folders read here predict the noise (Ho et al., 2020).
        found = self.unet(noisy, told, empty, **more).sample
        return (noisy - (1 - kept) ** 0.5 * found) / kept**0.5

    def _video(self, latents: Tensor, noise: Tensor) -> Tensor:
        # Preconditioning of Karras et al., "Elucidating the design space of diffusion models", 2022, v-prediction.
        size = (SIGMA**2 + 1) ** 0.5
        noisy = latents + SIGMA * noise
        condition = latents / _config(self.vae)["scaling_factor"]
        both = torch.cat([noisy / size, condition], dim=1)[None]
        empty = latents.new_zeros(1, 1, _config(self.unet)["cross_attention_dim"])
        told = latents.new_tensor([[FRAME_RATE - 1, MOTION, 0.0]])
        moment = latents.new_tensor(0.25).mul(torch.tensor(SIGMA).log().item())
        found = self.unet(both, moment, empty, added_time_ids=told).sample[0]
        return noisy / size**2 - SIGMA / size * found


def inspect_backbone(folder: str | Path) -> BackboneFacts:
    """Look a diffusers folder through before anything of it is loaded.

    Raises `InputError` for a pipeline that is not known here, parts that are missing, or weights that are not
    safetensors (other formats can run code when they are opened).
    """
    root = Path(folder)
    index = read_json(root / "model_index.json")
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in KINDS:
        raise InputError(f"`{folder}` holds a {name}; one of {', '.join(KINDS)} is needed.")
    hashes = {}
    for part in _parts(index):
        place = safe_join(root, part)
        weights = sorted(place.glob("*.safetensors")) if place.is_dir() else []
        if not weights:
            strange = [file.name for file in place.glob("*") if file.suffix in UNSAFE] if place.is_dir() else []
            found = f"only `{strange[0]}`" if strange else "none"
            raise InputError(f"`{place}` has no safetensors weights ({found}). Save the model with safetensors.")
        for file in weights:
            hashes[f"{part}/{file.name}"] = _sha256(existing_file(safe_join(root, f"{part}/{file.name}")))
    return BackboneFacts(name, KINDS[name], _licence(root), hashes)


def load_backbone(folder: str | Path) -> Backbone:
    """The denoiser of a local diffusers folder, frozen; see `inspect_backbone` for what is refused.

    Raises `MissingBackendError` without diffusers.
    """
    facts = inspect_backbone(folder)
    try:
        import diffusers
    except ImportError as error:
        raise MissingBackendError("pretrained refiners need diffusers: pip install 'gworld[refine]'.") from error
    index = read_json(Path(folder) / "model_index.json")
    parts: dict[str, nn.Module] = {}
    for part in _parts(index):
        kind = index[part][1]
        if kind not in CLASSES[part]:
            raise InputError(f"`{folder}` has a {part} of class {kind}; {' or '.join(CLASSES[part])} is needed.")
        try:
            parts[part] = getattr(diffusers, kind).from_pretrained(
                str(folder), subfolder=part, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"`{Path(folder) / part}` cannot be loaded: {error}. Copy the folder again.") from error
    if not all(bool(value.isfinite().all()) for part in parts.values() for value in part.parameters()):
        raise InputError(f"`{folder}` holds weights that are not finite; copy it again.")
    return Backbone(facts, parts["vae"], parts["unet"], parts.get("controlnet"))


def refine_film(
    backbone: Backbone,
    rgb: Float[Tensor, "T H V 3"],
    confidence: Float[Tensor, "T H V"],
    *,
    chunk: int = CHUNK,
    seed: int = 0,
) -> Iterator[Float[Tensor, "H V 3"]]:
    """Refine a film in chunks of frames."""
    shown: Tensor | None = None
    for start in range(0, len(rgb), chunk):
        part = slice(start, start + chunk)
        made, shown = refine_chunk(backbone, rgb[part], confidence[part], shown, seed)
        yield from made


def refine_chunk(
    backbone: Backbone,
    rgb: Float[Tensor, "T H V 3"],
    confidence: Float[Tensor, "T H V"],
    shown: Tensor | None = None,
    seed: int = 0,
) -> tuple[Float[Tensor, "T H V 3"], Tensor]:
    """Refine some frames in a row, and what the next ones are to begin with.

    A video model begins with the last frame that was shown, which it does not change.
    """
    part, doubt = rgb.movedim(-1, 1), 1 - confidence[:, None]
    lead = shown is not None and backbone.facts.kind == "video"
    if lead and shown is not None:
        part, doubt = torch.cat([shown, part]), torch.cat([torch.zeros_like(doubt[:1]), doubt])
    with torch.no_grad():
        made = backbone(part, doubt, seed)
    return made[int(lead) :].movedim(1, -1), made[-1:]


def _parts(index: dict[str, Any]) -> list[str]:
    """Which of the parts that are used a folder has; a pair (library, class) stands for each."""
    present = {part for part, told in index.items() if isinstance(told, list) and len(told) == 2 and told[1]}
    wanted = ["vae", "unet"] + (["controlnet"] if "ControlNet" in index["_class_name"] else [])
    missing = [part for part in wanted if part not in present]
    if missing:
        raise InputError(f"the model index names no {missing[0]}; a whole diffusers folder is needed.")
    return wanted


def _kept_signal(moment: int) -> float:
    """Share of the signal's variance left at a moment of Stable Diffusion's schedule (scaled linear, 1000 moments)."""
    rates = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return float((1 - rates)[: moment + 1].prod())


def _config(part: nn.Module) -> Any:
    return part.config


def _licence(root: Path) -> str:
    """The licence that a folder names: its model card's front matter, else the first line of its licence file."""
    for name in ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"):
        file = root / name
        if file.is_file() and file.stat().st_size < 1 << 20:
            text = file.read_text(encoding="utf-8", errors="replace")
            told = re.search(r"^license(?:_name)?:\s*(\S.*)$", text, re.MULTILINE) if name == "README.md" else None
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if told or (name != "README.md" and lines):
                return (told[1] if told else lines[0]).strip()[:200]
    return "unknown"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
