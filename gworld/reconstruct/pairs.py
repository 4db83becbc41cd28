"""Pairs for the refiner out of any posed photos: what a reconstruction shows, beside what was there.

Five ways, each a way in which renders go wrong: `sparse` fits a part of the photos and looks from the others;
`underfit` stops early; `cross` fits the photos of one side and looks from the other; `cycle` fits the renders of a
shifted path and comes back; `rollout` sets a simulated film beside the true one. A photo is never among the references
of its own pair, and photos set aside are in no fit and no reference: they become the pairs that are held out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gworld.data.pairset import Pair, PairSet, Split, Way, write_pairs
from gworld.errors import InputError, UsageError
from gworld.reconstruct.appearance import exposed, neutral
from gworld.reconstruct.contribution import single_cameras, view_masks
from gworld.reconstruct.coverage import Coverage, count_views, measure_coverage
from gworld.reconstruct.fit import fit_views
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.pictures import read_album
from gworld.render.conditions import Counts, render_clip
from gworld.render.video import as_uint8
from gworld.scene.cameras import Cameras
from gworld.scene.clip import Clip
from gworld.scene.gaussians import Gaussians
from gworld.scene.views import View, Views, split_views

FEWEST = 6
"""Photos below which no pairs can be made of a scene."""
MOST_REFERENCES = 32
BLUR = 8
"""Side in pixels of the cells over which photos are averaged before their exposures are compared."""
GAINS = (0.25, 4.0)
EVEN = 0.04
"""Differences of brightness, as a part of it, that fits of evenly exposed photos may feign (0.02 was seen)."""
DRAWN = 0.1
"""How strongly offsets of exposure are drawn to 0, beside errors of colour."""


@dataclass(frozen=True)
class PairOptions:
    """How pairs are made."""

    ways: tuple[Way, ...] = ("sparse", "underfit", "cross", "cycle")
    """Which: sparse, underfit, cross, cycle."""
    longest: int = 160
    """Longest side of the pictures, in pixels."""
    steps: int = 1500
    """Steps of each fit."""
    gaussians: int = 6000
    """Gaussians of each fit; 0 plans them."""
    keep: tuple[int, ...] = (2, 4)
    """`sparse`: fits of every second photo, of every fourth, .."""
    early: tuple[float, ...] = (0.08, 0.25)
    """`underfit`: parts of the steps after which a fit stops."""
    shift: float = 0.12
    """`cycle`: how far the path is moved aside, as a part of the distance to the scene."""
    hold_out: int = 8
    """Every this many-th photo is set aside; 0 sets none aside."""
    seed: int = 0
    """Seed of the fits."""


@dataclass(frozen=True)
class Scene:
    """Gaussians fitted to some photos, what these saw, and the photos as references."""

    gaussians: Gaussians
    counts: Counts
    references: Clip


def make_pairs(
    views: Views,
    folder: str | Path,
    options: PairOptions = PairOptions(),
    *,
    scene: str = "scene",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> PairSet:
    """Fit a scene in every way asked for and write the pairs into `folder`.

    Raises `InputError` for fewer than `FEWEST` photos or photos that cannot be fitted, `UsageError` for unknown ways.
    """
    return write_pairs(scene_pairs(views, options, scene=scene, say=say), folder, overwrite=overwrite)


def scene_pairs(
    views: Views, options: PairOptions, *, scene: str = "scene", say: Callable[[str], None] = lambda line: None
) -> Iterator[Pair]:
    """The pairs of one scene, one in memory at a time (see `make_pairs`)."""
    makers = {"sparse": _sparse, "underfit": _underfit, "cross": _cross, "cycle": _cycle}
    strange = [way for way in options.ways if way not in makers]
    if strange or not options.ways:
        raise UsageError(f"pairs cannot be made in the ways {', '.join(strange)}; choose of {', '.join(makers)}.")
    learn, aside = split_views(views, options.hold_out) if options.hold_out else (views, Views(()))
    if len(learn) < FEWEST:
        raise InputError(f"{len(learn)} photos are left to make pairs of; at least {FEWEST} are needed.")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for way in options.ways:
            say(f"pairs: {way}")
            for clip, references in makers[way](learn, options, work / way):
                yield Pair(clip, references, way, scene)
        if len(aside):
            whole = fit_scene(learn, options, work / "whole")
            pictures = true_pictures(aside, options.longest)
            yield Pair(look(whole, cameras_at(aside, options.longest), pictures), whole.references, "sparse", scene,
                       "held_out")  # fmt: skip


def rollout_pair(
    scene: Scene,
    cameras: Cameras,
    world_from_link: Float[Tensor, "T L 4 4"],
    truth: Float[Tensor, "T H V 3"],
    *,
    name: str = "scene",
    split: Split = "train",
) -> Pair:
    """A simulated film beside the true one of the same actions: link poses as predicted, pictures as filmed."""
    return Pair(look(scene, cameras, truth, world_from_link), scene.references, "rollout", name, split)


def fit_scene(views: Views, options: PairOptions, run: Path, *, part: float = 1.0) -> Scene:
    """Fit photos, measure what they saw, and draw them as references; `part` of the steps are taken."""
    steps = max(1, round(part * options.steps))
    told = FitOptions(
        steps=steps, gaussians=options.gaussians, longest=options.longest, hold_out=0, score_every=0, seed=options.seed
    )
    gaussians = fit_views(views, told, run).gaussians
    return known_scene(gaussians, views, options.longest)


def known_scene(
    gaussians: Gaussians,
    views: Views,
    longest: int,
    coverage: Coverage | None = None,
    world_from_link: Tensor | None = None,
) -> Scene:
    """The same of Gaussians that were fitted already, to these photos; their coverage is measured where none is given.

    world_from_link [L,4,4]: where links stood when the photos were taken (the identity without).
    """
    seen = coverage or measure_coverage(
        gaussians, single_cameras(views), masks=view_masks(views), world_from_link=world_from_link
    )

    def counts(eye: Tensor, poses: Tensor) -> Tensor:
        return count_views(seen, gaussians, eye, world_from_link=poses)

    rows = torch.linspace(0, len(views) - 1, min(len(views), MOST_REFERENCES)).round().long().tolist()
    some = replace(views, views=tuple(views.views[row] for row in rows))
    references = render_clip(gaussians, cameras_at(some, longest), world_from_link, truth=true_pictures(some, longest))
    return Scene(gaussians, counts, match_exposures(references))


def match_exposures(photos: Clip) -> Clip:
    """The photos of a clip in the light of their renders: where one is brighter or warmer than others, it is undone.

    A gain and an offset per channel, found between blurred photo and render, what disagrees most counting least; the
    mean of all photos' corrections is taken out, so that an error that all renders share stays visible in the photos.
    Corrections are shrunk by what is found where all photos have one exposure (James and Stein, 1961): there, none.
    """
    assert photos.truth is not None
    both = zip(photos.truth, photos.rgb, photos.alpha, strict=True)
    exposures = neutral(torch.stack([_exposure(photo, render, alpha) for photo, render, alpha in both]))
    lights = photos.truth.mean((1, 2)).clamp_min(1e-3)
    change = exposures[:, :3].exp() - 1 + exposures[:, 3:] / lights
    exposures = exposures * (1 - EVEN**2 / change.square().mean().clamp_min(1e-12)).clamp_min(0)
    matched = [exposed(photo, each).clamp(0, 1) for photo, each in zip(photos.truth, exposures, strict=True)]
    return replace(photos, truth=torch.stack(matched))


def _exposure(
    photo: Float[Tensor, "H V 3"], render: Float[Tensor, "H V 3"], alpha: Float[Tensor, "H V"]
) -> Float[Tensor, " 6"]:
    """Logarithms of gains, and offsets, that bring a blurred photo to its render, by reweighted least squares."""
    planes = torch.cat([photo, render, alpha[..., None]], dim=-1).movedim(-1, 0)[None]
    cells = torch.nn.functional.avg_pool2d(planes, min(BLUR, *alpha.shape))[0].flatten(1).T
    x, y, weight = cells[:, :3], cells[:, 3:6], cells[:, 6:] > 0.9
    share = weight.float().expand(-1, 3)
    gain, offset = x.new_ones(3), x.new_zeros(3)
    for _ in range(8 if bool(weight.any()) else 0):
        total = share.sum(0).clamp_min(1e-6)
        xx, xy = ((share * x * z).sum(0) / total for z in (x, y))
        xm, ym = ((share * z).sum(0) / total for z in (x, y))
        # Light multiplies: an offset has to be seen (`DRAWN`), a gain need not.
        xx, xy, one = xx + 1e-3, xy + 1e-3, 1 + DRAWN
        gain = ((xy * one - xm * ym) / (xx * one - xm * xm)).clamp(*GAINS)
        offset = (ym - gain * xm) / one
        off = (y - gain * x - offset).abs()
        share = weight / (1 + (off / off[weight[:, 0]].median(0).values.clamp_min(1e-3)).square())
    return torch.cat([gain.log(), offset])


def look(scene: Scene, cameras: Cameras, truth: Tensor | None = None, world_from_link: Tensor | None = None) -> Clip:
    """What a fitted scene shows to cameras, with all conditions."""
    return render_clip(
        scene.gaussians, cameras, world_from_link, truth=truth, counts=scene.counts, references=scene.references
    )


def true_pictures(views: Views, longest: int) -> Float[Tensor, "T H V 3"]:
    """The photos, brought down to `longest` pixels; raises `InputError` where their sizes differ."""
    pictures = [picture.truth for picture in read_album(views, longest, 1, torch.device("cpu")).levels[0]]
    if len({picture.shape for picture in pictures}) != 1:
        raise InputError("the photos have different sizes; pairs need photos of one camera size.")
    return torch.stack(pictures)


def cameras_at(views: Views, longest: int) -> Cameras:
    """The cameras of the photos at that size."""
    pictures = read_album(views, longest, 1, torch.device("cpu")).levels[0]
    first = pictures[0].camera
    K = torch.cat([picture.camera.K for picture in pictures])
    poses = torch.cat([picture.camera.world_from_camera for picture in pictures])
    return replace(first, K=K, world_from_camera=poses, names=())


def _some(views: Views, rows: Sequence[int]) -> Views:
    return replace(views, views=tuple(views.views[row] for row in rows))


Made = Iterator[tuple[Clip, Clip]]


def _sparse(views: Views, options: PairOptions, work: Path) -> Made:
    for keep in options.keep:
        for first in range(0, keep, max(1, keep // 2)):
            fitted = list(range(first, len(views), keep))
            others = [row for row in range(len(views)) if row not in fitted]
            if len(fitted) < 2 or not others:
                continue
            scene = fit_scene(_some(views, fitted), options, work / f"{keep}-{first}")
            yield _seen_from(scene, _some(views, others), options), scene.references


def _underfit(views: Views, options: PairOptions, work: Path) -> Made:
    for part in options.early:
        yield from _halves(fit_scene(views, options, work / f"{part}", part=part), views, options)


def _cross(views: Views, options: PairOptions, work: Path) -> Made:
    centres = cameras_of_any(views)
    axis = torch.linalg.svd(centres - centres.mean(0), full_matrices=False).Vh[0]
    order = (centres @ axis).argsort(stable=True).tolist()
    middle = len(order) // 2
    for number, side in enumerate((order[:middle], order[middle:])):
        others = sorted(set(order) - set(side))
        scene = fit_scene(_some(views, sorted(side)), options, work / str(number))
        yield _seen_from(scene, _some(views, others), options), scene.references


def _cycle(views: Views, options: PairOptions, work: Path) -> Made:
    scene = fit_scene(views, options, work / "there")
    cameras = cameras_at(views, options.longest)
    depth = scene.references.depth
    aside = options.shift * float(depth[depth > 0].median())
    poses = cameras.world_from_camera.clone()
    signs = torch.where(torch.arange(len(poses)) % 2 == 0, 1.0, -1.0)
    poses[:, :3, 3] += (aside * signs)[:, None] * poses[:, :3, 0]
    shifted = render_clip(scene.gaussians, replace(cameras, world_from_camera=poses))
    folder = work / "shifted"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for row, picture in enumerate(shifted.rgb):
        path = folder / f"{row:05d}.png"
        Image.fromarray(as_uint8(picture)).save(path)
        drawn.append(View(path.name, cameras.width, cameras.height, cameras.K[row], poses[row], image=path))
    back = fit_scene(replace(views, views=tuple(drawn)), options, work / "back")
    yield from _halves(known_scene(back.gaussians, views, options.longest), views, options)


def _halves(scene: Scene, views: Views, options: PairOptions) -> Made:
    """A fit of all photos, seen from every second one with the others as references, and the other way round."""
    for first in (0, 1):
        mine, others = (list(range(start, len(views), 2)) for start in (first, 1 - first))
        apart = known_scene(scene.gaussians, _some(views, others), options.longest)
        yield _seen_from(apart, _some(views, mine), options), apart.references


def _seen_from(scene: Scene, views: Views, options: PairOptions) -> Clip:
    return look(scene, cameras_at(views, options.longest), true_pictures(views, options.longest))


def cameras_of_any(views: Views) -> Float[Tensor, "V 3"]:
    """Where the photos were taken (world)."""
    return torch.stack([view.world_from_camera[:3, 3].float() for view in views.views])
