"""`gworld refine WORLD --rounds N`: refined views between the photos written back into a new world, if it is better."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gworld.cli.options import print_json, say
from gworld.cli.refine import Options
from gworld.cli.refine_film import choose_refiner
from gworld.cli.train_refiner import DIFFERENT
from gworld.errors import InputError
from gworld.formats.registry import read_views, world_folder
from gworld.formats.world import load_world, save_world
from gworld.reconstruct.contribution import single_cameras, view_masks
from gworld.reconstruct.coverage import load_coverage, measure_coverage, save_coverage
from gworld.reconstruct.pairs import PairOptions, Scene, cameras_at, known_scene, look, true_pictures
from gworld.reconstruct.rounds import RoundOptions, write_back
from gworld.refine.sample import refine_views
from gworld.refine.saved import load_refiner
from gworld.render.metrics import psnr
from gworld.scene.clip import Clip
from gworld.scene.views import Views, split_views
from gworld.scene.world import World


def refine_world(options: Options) -> None:
    """Write views back for `options.rounds` rounds and keep the world that shows the photos set aside best.

    Raises `InputError` for photos that are not the world's, worlds that cannot be fitted again, and where no round is
    better than the world was.
    """
    assert options.data is not None
    started = time.monotonic()
    folder = world_folder(options.source)
    world = load_world(folder)
    if len(world.links) > 1 or any(world.background or ()):
        raise InputError(
            f"`{folder}` has links or a background that is not black, which a fit would lose; rounds are for worlds of "
            "one still scene, before agents are bound to them."
        )
    learn, aside = split_views(read_views(options.data), options.hold_out)
    model = load_refiner(choose_refiner(world, options.refiner)).model
    longest = options.longest
    scene = known_scene(world.gaussians, learn, longest, load_coverage(folder))
    pairs = PairOptions(longest=longest, steps=options.fit_steps, gaussians=len(world.gaussians), seed=options.seed)

    def refine(clip: Clip, photos: Clip) -> Tensor:
        return refine_views(model, clip, photos, seed=options.seed)

    scores = [_score(scene, aside, longest)]
    if scores[0] < DIFFERENT:
        raise InputError(
            f"`{folder}` shows the photos of `{options.data}` at {scores[0]:.1f} dB: they are not in one frame, or of "
            "different scenes. Give the poses that the world was reconstructed with."
        )
    say(f"  as it is: {scores[0]:.2f} dB on {len(aside)} photos set aside")
    best = scene
    with tempfile.TemporaryDirectory() as name:
        for found in write_back(scene, learn, refine, Path(name), pairs, RoundOptions(options.rounds, options.fits)):
            scores.append(_score(found, aside, longest))
            say(f"  round {len(scores) - 1}: {scores[-1]:.2f} dB")
            best = found if scores[-1] >= max(scores) else best
    if max(scores) <= scores[0]:
        raise InputError(
            f"no round shows the photos set aside better than `{folder}` does ({scores[0]:.2f} dB, then "
            f"{max(scores[1:]):.2f}); nothing is written. Give more `--fit-steps`, or a refiner of this scene."
        )
    _save(best, world, learn, options)
    facts: dict[str, Any] = {
        "out": str(options.out), "held_out_db": scores, "round": scores.index(max(scores)),
        "gaussians": len(best.gaussians), "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    if options.json:
        print_json(facts)
        return
    gain = max(scores) - scores[0]
    say(f"{options.out}: round {facts['round']}, {gain:+.2f} dB on the photos set aside, by which it was chosen")
    say(f"{facts['gaussians']} Gaussians, {facts['seconds']:.0f} s")
    say(f"next: gworld train refiner --refiner.data {options.data} --world {options.out}")


def _score(scene: Scene, aside: Views, longest: int) -> float:
    """Mean PSNR (dB) of the photos set aside, without any refining."""
    clip = look(scene, cameras_at(aside, longest))
    return float(psnr(clip.rgb, true_pictures(aside, longest)).clamp(max=99).mean())


def _save(scene: Scene, world: World, views: Views, options: Options) -> None:
    coverage = measure_coverage(scene.gaussians, single_cameras(views), masks=view_masks(views))
    made = replace(world, gaussians=scene.gaussians, refiner=None)
    save_world(made, options.out, overwrite=options.overwrite)
    save_coverage(coverage, options.out)
