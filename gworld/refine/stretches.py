"""Stretches to learn from: pairs made ready once, then cut, mirrored and coloured at random for every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gworld.data.pairset import Pair
from gworld.errors import InputError
from gworld.refine.inputs import Inputs, change_inputs, move_inputs, prepare, stack_inputs

LIGHT = 0.06
"""By how much a photo may be brighter or darker than the render, after exposures were matched, at the most."""


@dataclass(frozen=True)
class Reel:
    """The frames of one pair as the network takes them, in half precision."""

    frames: tuple[Inputs, ...]
    size: tuple[int, int]


def make_reel(pair: Pair) -> Reel:
    """Make a pair's frames ready once; raises `InputError` without truth."""
    clip = pair.clip
    if clip.truth is None:
        raise InputError("a pair has no true pictures; nothing can be learned from it.")
    frames = [
        move_inputs(prepare(clip[t], clip[t - 1] if t else None, pair.references), torch.float16)
        for t in range(len(clip))
    ]
    return Reel(tuple(frames), (clip.rgb.shape[1], clip.rgb.shape[2]))


def cut_batch(
    reels: Sequence[Reel], count: int, length: int, crop: int, dropped: float, generator: torch.Generator
) -> list[Inputs]:
    """`count` squares out of `length` frames in a row: one batch per frame, the same cut and colours in all of them.

    A frame weighs the same whatever reel it is in. Photos are left out of a part of the squares.
    """
    weights = torch.tensor([float(len(reel.frames)) for reel in reels])
    rows = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    parts: list[list[Inputs]] = []
    for row in rows:
        reel = reels[row]
        height, width = reel.size
        t, top, left = (_draw(n, generator) for n in (max(len(reel.frames) - length, 0), height - crop, width - crop))
        found = [_cut(reel.frames[min(t + k, len(reel.frames) - 1)], top, left, crop) for k in range(length)]
        found = [replace(found[0], kept=torch.zeros_like(found[0].kept)), *found[1:]]
        parts.append(_augment(found, dropped, generator))
    return [stack_inputs([part[k] for part in parts]) for k in range(length)]


def _cut(frame: Inputs, top: int, left: int, crop: int) -> Inputs:
    cut = change_inputs(frame, lambda value: value[..., top : top + crop, left : left + crop].float())
    place = cut.place - torch.tensor([float(left), float(top)])[:, None, None]
    inside = ((place > 0) & (place < crop)).all(1, keepdim=True)
    return replace(cut, place=place, kept=cut.kept * inside)


def _augment(frames: list[Inputs], dropped: float, generator: torch.Generator) -> list[Inputs]:
    """Mirror left and right, change exposure and colours, leave photos out, or put each in a light of its own: the same
    for all frames of a stretch."""
    mirrored = float(torch.rand((), generator=generator)) < 0.5
    bare = float(torch.rand((), generator=generator)) < dropped
    gain = 1 + 0.15 * (2 * torch.rand(3, generator=generator) - 1)
    order = torch.randperm(3, generator=generator) if float(torch.rand((), generator=generator)) < 0.3 else None
    count = frames[0].photos.shape[1]
    light = LIGHT * (2 * torch.rand(count, generator=generator) - 1)
    light = light * (torch.rand((), generator=generator) < 0.5)
    found = []
    for frame in frames:
        photos = torch.zeros_like(frame.photos) if bare else _lit(frame, light)
        frame = _coloured(replace(frame, photos=photos), gain, order)
        found.append(_mirror(frame) if mirrored else frame)
    return found


def _lit(frame: Inputs, light: Tensor) -> Tensor:
    """The photos, each brighter by its own part; their renders stay."""
    more = (frame.rgb[:, None] + frame.photos[:, :, :3]) * light[:, None, None, None] * (frame.photos[:, :, 6:] > 0)
    return torch.cat([frame.photos[:, :, :3] + more, frame.photos[:, :, 3:6] + more, frame.photos[:, :, 6:]], dim=2)


def _coloured(frame: Inputs, gain: Tensor, order: Tensor | None) -> Inputs:
    by = gain[:, None, None]
    kept = torch.arange(3) if order is None else order

    def change(colours: Tensor) -> Tensor:
        return colours[..., kept, :, :] * by

    truth = None if frame.truth is None else change(frame.truth)
    photos = torch.cat([change(frame.photos[:, :, :3]), change(frame.photos[:, :, 3:6]), frame.photos[:, :, 6:]], dim=2)
    return replace(frame, rgb=change(frame.rgb), truth=truth, photos=photos)


def _mirror(frame: Inputs) -> Inputs:
    flipped = change_inputs(frame, lambda value: value.flip(-1))
    width = frame.rgb.shape[3]
    place = torch.cat([width - flipped.place[:, :1], flipped.place[:, 1:]], dim=1)
    geometry = flipped.geometry.clone()
    geometry[:, 4] *= -1
    return replace(flipped, place=place, geometry=geometry)


def _draw(most: int, generator: torch.Generator) -> int:
    return int(torch.randint(most + 1, (), generator=generator))
