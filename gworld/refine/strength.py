"""How strongly each link is refined, measured where the truth is known.

A refiner that learned elsewhere mends some surfaces and spoils others. Every photo, refined as if it had never been
taken, tells which: what it does to a link there is what it may do in views that nobody took.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.data.pairset import Pair
from gworld.errors import InputError
from gworld.refine.network import Refiner
from gworld.refine.sample import Film
from gworld.render.conditions import trust_references
from gworld.render.metrics import ssim_map
from gworld.scene.clip import Clip, join_clips

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What is tried: parts of the whole change."""
LEAST = 64
"""Unsure pixels of a link that a frame must show to have a say about it."""
SURE = 0.99
"""Confidence from which a pixel is the render's anyway."""
MOST = 16
"""Photos that are asked."""
Place = tuple[float, ...]
"""Where a camera stood, to the millimetre and milliradian."""


@torch.no_grad()
def measure_strengths(model: Refiner, pairs: Iterable[Pair]) -> dict[int, float]:
    """The strength (0..1) of each link that the pairs' frames show.

    It is to hold from places that nobody looked from, so each place of a camera counts once, with the mean of its
    frames. A strength is good when over places the squared error falls and SSIM rises, each by more than the standard
    error of its mean (of two places: in both). Of the good ones the one that raises SSIM most is taken; it is 0 where
    none is good, or one place alone shows the link. Raises `InputError` for pairs without truth, and where no frame
    shows an unsure surface.
    """
    found: dict[int, dict[Place, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        if pair.clip.truth is None:
            raise InputError("a pair has no true pictures; nothing can be measured on it.")
        film = Film(model, pair.references)
        for t in range(len(pair.clip)):
            frame = pair.clip[t]
            for link, gains in _gains(frame, film(frame).picture).items():
                found[link][_place(frame)].append(gains)
    if not found:
        raise InputError(
            "no frame shows a surface of which the world is unsure, or all were taken from one place; "
            "there is nothing to measure."
        )
    return {link: _chosen([torch.stack(gains).mean(0) for gains in found[link].values()]) for link in sorted(found)}


def photo_pairs(photos: Clip, most: int = MOST) -> Iterator[Pair]:
    """Each photo (at most `most`, evenly spread) with those from other places, as if it had never been taken.

    A camera that stands still has seen the very picture a moment ago: photos from its place are left out too.
    """
    rows = torch.linspace(0, len(photos) - 1, min(most, len(photos))).round().long().tolist()
    for row in rows:
        apart = (photos.world_from_camera - photos.world_from_camera[row]).abs().amax((1, 2))
        others = [photos[other] for other in range(len(photos)) if float(apart[other]) > 1e-4]
        if others:
            references, frame = join_clips(others), photos[row]
            frame = trust_references(replace(frame, confidence=frame.alpha.clamp(0, 1)), references)
            yield Pair(frame, references, "cross", "")


def _place(frame: Clip) -> Place:
    return tuple(round(value, 3) for value in frame.world_from_camera[0, :3].flatten().tolist())


def _gains(frame: Clip, done: Float[Tensor, "H V 3"]) -> dict[int, Float[Tensor, "2 S"]]:
    """Of each link: by how much each strength lowers the squared error, and raises SSIM."""
    assert frame.truth is not None
    raw, truth, links = frame.rgb[0], frame.truth[0], frame.link_id[0]
    pictures = [torch.lerp(raw, done, strength) for strength in STRENGTHS]
    errors = torch.stack([(picture - truth).square().mean(-1) for picture in pictures])
    alike = torch.stack([ssim_map(picture, truth).mean(-1) for picture in pictures])
    found = {}
    for link in links.unique().tolist():
        where = (frame.confidence[0] < SURE) & (links == link)
        if link >= 0 and int(where.sum()) >= LEAST:
            error, like = errors[:, where].mean(1), alike[:, where].mean(1)
            found[link] = torch.stack([error[0] - error, like - like[0]])
    return found


def _chosen(gains: Sequence[Float[Tensor, "2 S"]]) -> float:
    """The best of the good strengths; one place alone is no evidence."""
    if len(gains) < 2:
        return 0.0
    mean, spread = torch.stack(list(gains)).mean(0), torch.stack(list(gains)).std(0)
    good = (mean > spread / len(gains) ** 0.5).all(0)
    return STRENGTHS[int(torch.where(good, mean[1], torch.zeros_like(mean[1])).argmax())]
