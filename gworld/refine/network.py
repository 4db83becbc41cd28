"""The refiner's network: one denoising step of a small U-Net that sees the render, the world's knowledge and photos.

Pixels are folded 2 x 2 into channels (a shallow latent space); photos warped onto the frame are joined by attention
per pixel, the frame before by attention over time at the bottleneck and by its warped output. The step predicts what
the render lacks, as a blend of what the photos offer and of its own correction, and

    output = render + (1 - confidence) * correction

so that where the world is sure, the render stands, whatever the weights are. Where the frame before shows the same
surface, most of the correction is what was shown there: what would change from frame to frame is thereby held back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gworld.config import config_from
from gworld.errors import InputError
from gworld.refine.inputs import Inputs, warp

FOLD = 2
COARSE = 8
"""Pixels of a bottleneck cell; pictures are padded to a multiple of it."""
PLANES = 21
"""Of the conditions: noisy picture, render, doubt, noise, geometry, points, the output before, whether it holds."""
CALM = 3.0
"""Logit of adding nothing, where photos begin at 0: a fresh network changes little."""


@dataclass(frozen=True)
class RefinerConfig:
    """Size of the network and what it may use; each switch takes one condition away."""

    width: int = 24
    """Channels of the finest level; the coarser ones have twice and three times as many."""
    sigma: float = 0.06
    """Standard deviation of the noise where confidence is 0, in 0..1 of the pictures."""
    hold: float = 0.6
    """Part of the correction that is carried over from the output before where that shows the same surface."""
    gate: bool = True
    """Keep the render where confidence is 1."""
    noise: bool = True
    """Add noise where confidence is low."""
    references: bool = True
    """Refer to photos."""
    previous: bool = True
    """See the output before, warped by the flow."""
    temporal: bool = True
    """Attend to the bottleneck of the frame before."""
    depth: bool = True
    """See alpha and depth."""
    points: bool = True
    """See where each pixel's surface lies in its link."""
    links: bool = True
    """See borders of links, and which of them move."""
    flow: bool = True
    """See the flow."""
    confidence: bool = True
    """See the confidence (the gate works without)."""
    seed: int = 0
    """Draws the first weights."""


@dataclass(frozen=True)
class State:
    """What is carried from frame to frame: the last output [B,3,H,W] and its bottleneck [B,C,h,w]."""

    output: Float[Tensor, "B 3 H V"]
    bottleneck: Float[Tensor, "B C h v"]


class Refiner(nn.Module):
    """One step per frame: `model(inputs, state) -> (pictures [B,3,H,W], state)`."""

    def __init__(self, config: RefinerConfig = RefinerConfig()) -> None:
        super().__init__()
        self.config = config
        c = config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.enter = nn.Conv2d(PLANES * FOLD**2, c, 3, padding=1)
            self.photo = nn.Sequential(nn.Conv2d(7 * FOLD**2, c, 3, padding=1), nn.SiLU())
            self.ask, self.offer = nn.Conv2d(c, c, 1), nn.Conv2d(c, 2 * c, 1)
            self.fine = nn.ModuleList([_Block(c), _Block(c)])
            self.down = nn.ModuleList([_down(c, 2 * c), _down(2 * c, 3 * c)])
            self.middle = nn.ModuleList([_Block(2 * c), _Block(2 * c)])
            self.deep = nn.ModuleList([_Block(3 * c), _Block(3 * c)])
            self.over_time = _OverTime(3 * c)
            self.up = nn.ModuleList([nn.Conv2d(3 * c, 2 * c, 1), nn.Conv2d(2 * c, c, 1)])
            self.out = nn.ModuleList([_Block(2 * c), _Block(c), _Block(c)])
            self.own = nn.Conv2d(c, 4 * FOLD**2, 3, padding=1)
            self.choose = nn.Conv2d(2 * c, 2 * FOLD**2, 3, padding=1)
        for layer in (self.own, self.choose):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, inputs: Inputs, state: State | None = None, sigma: float | None = None) -> tuple[Tensor, State]:
        """Refine B frames, each after its own last one; `sigma` overrides how much noise is added."""
        height, width = inputs.rgb.shape[2:]
        last = self._last(inputs, state)
        planes, photos, unsure = self._conditions(inputs, last, self.config.sigma if sigma is None else sigma)
        pad = (0, -width % COARSE, 0, -height % COARSE)
        planes = nn.functional.pad(planes, pad, mode="replicate")
        folded = nn.functional.pixel_unshuffle(planes, FOLD)
        B, R = photos.shape[:2]
        flat = nn.functional.pad(photos.flatten(0, 1), pad, mode="replicate")
        seen = self.photo(nn.functional.pixel_unshuffle(flat, FOLD)).unflatten(0, (B, R))
        top = self._join(self.enter(folded), seen, photos[:, :, 6:], pad)
        for block in self.fine:
            top = block(top)
        middle = self.down[0](top)
        for block in self.middle:
            middle = block(middle)
        deep = self.deep[0](self.down[1](middle))
        deep = self._remember(deep, inputs, state, pad)
        bottleneck = deep
        deep = self.deep[1](deep)
        middle = self.out[0](middle + _twice(self.up[0](deep)))
        top = self.out[2](self.out[1](top + _twice(self.up[1](middle))))
        correction = self._correct(top, seen, photos)[..., :height, :width]
        if last is not None:
            # Both are differences to this render, so that nothing of an earlier one is carried into sure pixels.
            correction = torch.lerp(correction, last, self.config.hold * inputs.kept)
        output = inputs.rgb + unsure * correction
        return output, State(output, bottleneck)

    def _last(self, inputs: Inputs, state: State | None) -> Tensor | None:
        """The output before, brought here, less the render [B,3,H,W]."""
        return None if state is None or not self.config.previous else warp(state.output, inputs.place) - inputs.rgb

    def _conditions(self, inputs: Inputs, before: Tensor | None, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """All planes [B,21,H,W], photos [B,R,7,H,W], and how much may change [B,1,H,W]."""
        use = self.config
        doubt = 1 - inputs.confidence
        noisy = inputs.rgb + (sigma * doubt * inputs.noise if use.noise else 0)
        photos = inputs.photos * use.references
        last, kept = torch.zeros_like(inputs.rgb), torch.zeros_like(inputs.confidence)
        if before is not None:
            last, kept = before * inputs.kept, inputs.kept
        switches = [use.depth] * 2 + [use.links] * 2 + [use.flow] * 2
        geometry = inputs.geometry * inputs.geometry.new_tensor(switches)[:, None, None]
        level = sigma / 0.06 * doubt if use.noise else torch.zeros_like(doubt)
        told = doubt * use.confidence
        planes = [noisy, inputs.rgb, told, level, geometry, inputs.points * use.points, last, kept]
        return torch.cat(planes, dim=1), photos, doubt if use.gate else torch.ones_like(doubt)

    def _join(self, top: Tensor, seen: Tensor, sure: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
        """Attention of each cell to the photos' features there, and to nothing."""
        B, R = seen.shape[:2]
        query = self.ask(top)[:, None]
        key, value = self.offer(seen.flatten(0, 1)).unflatten(0, (B, R)).chunk(2, dim=2)
        weight = nn.functional.avg_pool2d(nn.functional.pad(sure.flatten(0, 1), pad), FOLD).unflatten(0, (B, R))
        logits = (query * key).sum(2, keepdim=True) * key.shape[2] ** -0.5 + _log(weight)
        share = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).softmax(1)[:, 1:]
        return top + (share * value).sum(1)

    def _remember(self, deep: Tensor, inputs: Inputs, state: State | None, pad: tuple[int, int, int, int]) -> Tensor:
        if state is None or not self.config.temporal:
            return self.over_time(deep, None, None)
        place = nn.functional.avg_pool2d(nn.functional.pad(inputs.place, pad, mode="replicate"), COARSE) / COARSE
        kept = nn.functional.avg_pool2d(nn.functional.pad(inputs.kept, pad), COARSE)
        return self.over_time(deep, warp(state.bottleneck, place), kept)

    def _correct(self, top: Tensor, seen: Tensor, photos: Tensor) -> Tensor:
        """What to add to the render: photos' colours and photos' misses by their weights, and the network's own."""
        B, R = photos.shape[:2]
        own = nn.functional.pixel_shuffle(self.own(top), FOLD)
        pairs = torch.cat([top[:, None].expand_as(seen), seen], dim=2).flatten(0, 1)
        logits = nn.functional.pixel_shuffle(self.choose(pairs), FOLD).unflatten(0, (B, R))
        height, width = photos.shape[3:]
        logits = logits[..., :height, :width] + _log(photos[:, :, 6:])
        nothing = own[:, 3:, :height, :width] + CALM
        share = torch.cat([nothing, logits.flatten(1, 2)], dim=1).softmax(1)[:, 1:, None]
        offers = photos[:, :, :6].unflatten(2, (2, 3)).flatten(1, 2)
        return own[:, :3, :height, :width] + (share * offers).sum(1)


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.silu(self.first(nn.functional.silu(self.norm(x)))))


class _OverTime(nn.Module):
    """Each cell attends to itself now and to its own surface a frame ago, four heads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = 4
        self.norm = nn.GroupNorm(4, channels)
        self.query, self.pair = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 2 * channels, 1)
        self.close = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.close.weight)

    def forward(self, now: Tensor, before: Tensor | None, kept: Tensor | None) -> Tensor:
        frames = [self.norm(now)] + ([] if before is None else [self.norm(before)])
        query = self.query(frames[0]).unflatten(1, (self.heads, -1))
        keys, values = zip(*(self.pair(frame).chunk(2, dim=1) for frame in frames), strict=True)
        scores = [(query * key.unflatten(1, (self.heads, -1))).sum(2, keepdim=True) for key in keys]
        scores = [score * query.shape[2] ** -0.5 for score in scores]
        if kept is not None:
            scores[1] = scores[1] + _log(kept)[:, None]
        share = torch.stack(scores).softmax(0)
        mixed = sum(s * value.unflatten(1, (self.heads, -1)) for s, value in zip(share, values, strict=True))
        assert isinstance(mixed, Tensor)
        return now + self.close(mixed.flatten(1, 2))


def count_parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in model.parameters())


def save_values(model: Refiner) -> dict[str, Any]:
    """What must be known beside the weights to make the network again."""
    return {"refiner": asdict(model.config)}


def refiner_from(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Refiner:
    """The network of a checkpoint's values and tensors (`model.*`); raises `InputError` when they do not fit."""
    told = values.get("refiner")
    if not isinstance(told, dict):
        raise InputError("the checkpoint is of no refiner; train one with `gworld train refiner`.")
    config = config_from(RefinerConfig, told, source="the checkpoint")
    if not (4 <= config.width <= 512 and config.width % 4 == 0):
        raise InputError(f"the checkpoint tells of {config.width} channels; a multiple of 4 up to 512 is needed.")
    model = Refiner(config)
    weights = {name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")}
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if {name: tuple(value.shape) for name, value in weights.items()} != wanted:
        raise InputError("the checkpoint's weights do not fit the network it tells of; it is damaged.")
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise InputError("the checkpoint holds weights that are not finite; it is damaged.")
    model.load_state_dict(weights)
    return model


def _down(before: int, after: int) -> nn.Module:
    return nn.Conv2d(before, after, 2, stride=2)


def _twice(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def _log(weight: Tensor) -> Tensor:
    return weight.clamp_min(3.4e-4).log()
