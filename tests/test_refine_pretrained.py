"""Pretrained backbones: tiny ones of the real classes with random weights, loaded, gated, adapted, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gworld.data.pairset import Pair
from gworld.errors import InputError
from gworld.refine.lora import LoraConfig, add_lora, load_lora, save_lora, tune_backbone
from gworld.refine.pretrained import _kept_signal, inspect_backbone, load_backbone, refine_film
from tests.test_refine_network import film

KINDS = ("image", "control", "video")


def test_a_folder_that_is_not_understood_or_not_safe_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "OtherPipeline"}))
    with pytest.raises(InputError, match="OtherPipeline"):
        inspect_backbone(tmp_path)
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(InputError, match="no unet"):
        inspect_backbone(tmp_path)
    told = {"vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet2DConditionModel"]}
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **told}))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"only `diffusion_pytorch_model\.bin`"):
        inspect_backbone(tmp_path)


def test_the_schedule_is_stable_diffusions() -> None:
    assert _kept_signal(999) == pytest.approx(0.00466, rel=1e-2)  # alphas_cumprod[-1] of its published scheduler
    assert _kept_signal(0) == pytest.approx(1 - 0.00085, rel=1e-6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    diffusers = pytest.importorskip("diffusers", reason="pretrained backbones need diffusers (gworld[refine])")
    root = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    flat = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(latent_channels=4, **flat, **blocks)
    temporal = diffusers.AutoencoderKLTemporalDecoder(
        latent_channels=4, block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
    )
    cross = {"cross_attention_dim": 8, "attention_head_dim": 4, "layers_per_block": 1}
    down = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    unet = diffusers.UNet2DConditionModel(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **down, **blocks, **cross)
    control = diffusers.ControlNetModel(conditioning_embedding_out_channels=(8, 8), **down, **blocks, **cross)
    spatial = diffusers.UNetSpatioTemporalConditionModel(
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        num_attention_heads=(2, 4),
        layers_per_block=1,
        cross_attention_dim=8,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=2,
    )
    made = {
        "image": ("StableDiffusionImg2ImgPipeline", {"vae": vae, "unet": unet}),
        "control": ("StableDiffusionControlNetImg2ImgPipeline", {"vae": vae, "unet": unet, "controlnet": control}),
        "video": ("StableVideoDiffusionPipeline", {"vae": temporal, "unet": spatial}),
    }
    for name, (pipeline, parts) in made.items():
        index: dict[str, object] = {"_class_name": pipeline, "text_encoder": [None, None]}
        for part, model in parts.items():
            model.save_pretrained(root / name / part, safe_serialization=True)
            index[part] = ["diffusers", type(model).__name__]
        (root / name / "model_index.json").write_text(json.dumps(index))
        (root / name / "README.md").write_text("---\nlicense: openrail\n---\n")
    return {name: root / name for name in made}


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_is_loaded_gated_and_chunked(folders: dict[str, Path], kind: str) -> None:
    backbone = load_backbone(folders[kind])
    assert backbone.facts.licence == "openrail" and backbone.facts.kind == ("video" if kind == "video" else "image")
    assert all(len(value) == 64 for value in backbone.facts.hashes.values())
    assert not any(value.requires_grad for value in backbone.parameters())
    clip = film(3)
    confidence = clip.confidence.clone()
    confidence[:, :, 16:] = 1.0
    frames = torch.stack(list(refine_film(backbone, clip.rgb, confidence, chunk=2)))
    assert frames.shape == clip.rgb.shape and bool(frames.isfinite().all())
    assert torch.equal(frames[:, :, 16:], clip.rgb[:, :, 16:])
    assert not torch.equal(frames[:, :, :16], clip.rgb[:, :, :16])
    again = torch.stack(list(refine_film(backbone, clip.rgb, confidence, chunk=2)))
    assert torch.equal(frames, again)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_begin_as_nothing_learn_and_come_back(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapting needs peft (gworld[refine])")
    backbone = load_backbone(folders[kind])
    clip = film(3)
    before = torch.stack(list(refine_film(backbone, clip.rgb, clip.confidence)))
    learned = add_lora(backbone, 2)
    assert 0 < sum(value.numel() for value in learned) < 0.5 * sum(p.numel() for p in backbone.unet.parameters())
    torch.testing.assert_close(
        torch.stack(list(refine_film(backbone, clip.rgb, clip.confidence))), before, atol=1e-5, rtol=0
    )
    losses = tune_backbone(
        backbone, [Pair(clip, None, "sparse", "plane")], LoraConfig(2, steps=8, crop=24, rate=2e-2, frames=2)
    )
    assert len(losses) == 8 and all(loss > 0 for loss in losses)
    after = torch.stack(list(refine_film(backbone, clip.rgb, clip.confidence)))
    assert (after - before).abs().max() > 1e-4
    save_lora(backbone, tmp_path / "lora")
    fresh = load_backbone(folders[kind])
    load_lora(fresh, tmp_path / "lora")
    torch.testing.assert_close(
        torch.stack(list(refine_film(fresh, clip.rgb, clip.confidence))), after, atol=1e-5, rtol=0
    )
    other = load_backbone(folders["video" if kind != "video" else "image"])
    with pytest.raises(InputError, match="another backbone"):
        load_lora(other, tmp_path / "lora")


def test_damaged_weights_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folders["image"], tmp_path / "copy")
    file = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_backbone(tmp_path / "copy")
