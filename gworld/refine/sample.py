"""Refining a film of any length: one step per frame, each after the last, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.refine.inputs import add_seed, move_inputs, prepare
from gworld.refine.network import Refiner, State
from gworld.refine.several import drawn_by, settle
from gworld.render.api import RenderOptions
from gworld.scene.clip import Clip
from gworld.scene.gaussians import Gaussians

VISIBLE = 2.0 / 255
"""Change of a pixel, the largest of its channels, from which it counts as changed."""


@dataclass(frozen=True)
class Refined:
    """One frame: picture [H,W,3] in 0..1, and by how much it differs from the render [H,W] (largest channel)."""

    picture: Float[Tensor, "H V 3"]
    change: Float[Tensor, "H V"]


class Film:
    """One film being refined: `film(frame)` for one frame (a clip of length 1) after the other.

    The same frames, photos and seed give the same pictures. Where confidence is 1 the picture is the render, exactly;
    `trust` caps the confidence, for worlds that say nothing of theirs. `others` are further fits of the same photos,
    drawn with `drawing` (see several.py). `strengths` are parts of the change that links get (see strength.py), all of
    it where a link is not named.
    """

    def __init__(
        self,
        model: Refiner,
        references: Clip | None = None,
        *,
        seed: int = 0,
        sigma: float | None = None,
        trust: float = 1.0,
        others: Sequence[Gaussians] = (),
        drawing: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
        strengths: Mapping[int, float] | None = None,
    ) -> None:
        self.model, self.references = model.eval(), references
        self._seed, self._sigma, self._trust = seed, sigma, trust
        self._others, self._drawing = others, drawing
        self._strengths = strengths or {}
        self._state: State | None = None
        self._before: Clip | None = None
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def __call__(self, frame: Clip) -> Refined:
        """The next frame."""
        shown = frame.rgb[0]
        frame = replace(frame, truth=None, confidence=frame.confidence.clamp(max=self._trust))
        if self._others:
            frame = settle(frame, drawn_by(self._others, frame, self._drawing))
        inputs = prepare(frame, self._before, self.references)
        inputs = inputs if self._seed == 0 else add_seed(inputs, frame, self._seed)
        output, state = self.model(move_inputs(inputs, self._device), self._state, self._sigma)
        picture = output[0].clamp(0, 1).movedim(0, -1).cpu()
        for link, strength in self._strengths.items():
            here = (frame.link_id[0] == link)[..., None]
            picture = torch.where(here, torch.lerp(shown, picture, strength), picture)
        # What the next frame is told is what was shown.
        told = picture.movedim(-1, 0)[None].to(self._device)
        self._state, self._before = State(told, state.bottleneck), frame
        return Refined(picture, (picture - shown).abs().amax(-1))


def refine_frames(
    model: Refiner, frames: Iterable[Clip], references: Clip | None = None, *, seed: int = 0, sigma: float | None = None
) -> Iterator[Refined]:
    """Refine frame after frame (clips of length 1, as `stream_clip` yields them)."""
    film = Film(model, references, seed=seed, sigma=sigma)
    for frame in frames:
        yield film(frame)


def refine_clip(
    model: Refiner,
    clip: Clip,
    references: Clip | None = None,
    *,
    seed: int = 0,
    sigma: float | None = None,
    others: Sequence[Gaussians] = (),
) -> Float[Tensor, "T H V 3"]:
    """All pictures of a clip that is in memory."""
    film = Film(model, references, seed=seed, sigma=sigma, others=others)
    return torch.stack([film(clip[t]).picture for t in range(len(clip))])


def refine_views(
    model: Refiner, clip: Clip, references: Clip | None = None, *, seed: int = 0, others: Sequence[Gaussians] = ()
) -> Float[Tensor, "T H V 3"]:
    """All pictures of a clip whose frames are views apart, none after another."""
    parts = [refine_clip(model, clip[t], references, seed=seed, others=others) for t in range(len(clip))]
    return torch.cat(parts)


def changed_share(change: Float[Tensor, "*B H V"]) -> float:
    """The share of pixels that changed visibly."""
    return float((change > VISIBLE).float().mean())


def film_clip(picture: Float[Tensor, "H V 3"], trust: float = 0.0, flow: Float[Tensor, "H V 2"] | None = None) -> Clip:
    """A frame of film of which no world is known: no depth, no links, the same confidence everywhere."""
    height, width = picture.shape[:2]
    plane = torch.zeros(1, height, width)
    return Clip(
        rgb=picture[None],
        alpha=plane + 1,
        depth=plane,
        link_id=plane.int() - 1,
        flow=torch.zeros(1, height, width, 2) if flow is None else flow[None],
        confidence=plane + trust,
        K=torch.eye(3)[None],
        world_from_camera=torch.eye(4)[None],
        world_from_link=torch.eye(4)[None, None],
    )
