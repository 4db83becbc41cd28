"""`gworld train refiner`: pairs made of a scene's own photos, a refiner learned from them, its photos kept with it."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gworld.cli.options import print_json, say
from gworld.errors import InputError, UsageError

if TYPE_CHECKING:
    from gworld.checkpoint import Checkpoint
    from gworld.refine.network import Refiner
    from gworld.scene.clip import Clip

DIFFERENT = 12.0
"""PSNR (dB) of a world's renders of its photos below which these are not its photos."""


@dataclass(frozen=True)
class RefinerTraining:
    """What a refiner learns from."""

    data: Path | None = None
    """Posed photos of the scene: a transforms.json or a COLMAP model, in the world's own frame."""
    pairs: tuple[Path, ...] = ()
    """Pair sets that are there already; made of --refiner.data otherwise and kept in OUT/pairs."""
    episodes: Path | None = None
    """Recorded episodes with tracked poses and calibrated film: each is simulated in --world under its own actions, and
    the prediction learned from beside the film; kept in OUT/rollouts."""
    seconds: float = 2.0
    """How long such predictions are."""
    base: Path | None = None
    """A refiner to go on from, instead of fresh weights."""
    longest: int = 160
    """Longest side of the pictures, in pixels."""
    fit_steps: int = 1500
    """Steps of each fit that pairs are made of."""
    steps: int = 1200
    """Steps of the optimiser."""
    batch: int = 4
    """Stretches of film per step."""
    crop: int = 96
    """Side of the squares that are learned from, in pixels."""
    width: int = 24
    """Channels of the finest level."""


def train_refiner(
    options: RefinerTraining,
    out: Path,
    world: Path | None,
    *,
    device: str = "cpu",
    seed: int = 0,
    json: bool = False,
    view: bool = False,
) -> None:
    """Train, watched in the browser with `view`.

    Raises `UsageError` when there is nothing to learn from, `InputError` for photos of another scene.
    """
    import torch

    from gworld.data.pairset import iterate_pairs, open_pairs
    from gworld.refine.train import TrainConfig, train
    from gworld.viewer.follow import Watched, resting_between_steps

    if options.data is None and not options.pairs and options.episodes is None:
        raise UsageError(
            "`--refiner.data PHOTOS`, `--refiner.episodes STORE` or `--refiner.pairs FOLDER` is needed, to learn from."
        )
    if options.episodes is not None and world is None:
        raise UsageError("`--refiner.episodes` needs the world that the episodes are simulated in; add `--world`.")
    if device != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"`--device {device}` is not here: this machine shows PyTorch no CUDA device.")
    started = time.monotonic()
    photos = _photos(options, world)
    made = (*_own_pairs(options, out, seed), *_rollouts(options, out, world, photos))
    sets = [open_pairs(folder) for folder in (*options.pairs, *made)]
    learn = (pair for pairs in sets for pair in iterate_pairs(pairs, "train"))
    judge = [pair for pairs in sets for pair in iterate_pairs(pairs, "held_out")]
    model = _network(options, seed).to(device)
    config = TrainConfig(steps=options.steps, batch=options.batch, crop=options.crop, seed=seed)
    say(f"learning from {sum(len(pairs) for pairs in sets)} clips")
    with contextlib.ExitStack() as stack:
        watched = stack.enter_context(Watched(out)) if view else None
        if watched is not None:
            stack.enter_context(resting_between_steps(watched))
            watched.tell("reading what to learn from", 0.0)

        def told(step: int, score: float) -> None:
            line = f"step {step}" + ("" if math.isnan(score) else f": held out {score:.2f} dB")
            say(f"  {line}")
            if watched is not None:
                watched.tell(line, step / options.steps)

        done = train(model, learn, judge, config, out, told, _along(photos, world))
    score = done.scores[-1][1] if done.scores else math.nan
    facts = {"held_out_db": None if math.isnan(score) else score, "raw_db": None if math.isnan(done.raw) else done.raw}
    if json:
        print_json({"run": str(out), "steps": done.steps, "seconds": time.monotonic() - started, **facts})
        return
    say(f"{out}: {done.steps} steps, {time.monotonic() - started:.0f} s")
    if not math.isnan(score):
        say(f"  held-out views {score:.2f} dB (renders {done.raw:.2f} dB)")
    say(f"next: gworld refine rollout.parquet --world WORLD --refiner {out}")


def _own_pairs(options: RefinerTraining, out: Path, seed: int) -> list[Path]:
    """The pairs of the scene's own photos, made unless an earlier run made them."""
    if options.data is None:
        return []
    from gworld.data.pairset import INDEX
    from gworld.formats.registry import read_views
    from gworld.reconstruct.pairs import PairOptions, make_pairs

    folder = out / "pairs"
    if not (folder / INDEX).is_file():
        told = PairOptions(longest=options.longest, steps=options.fit_steps, seed=seed)
        make_pairs(read_views(options.data), folder, told, scene=options.data.name, say=say)
    return [folder]


def _network(options: RefinerTraining, seed: int) -> Refiner:
    from gworld.refine.network import Refiner, RefinerConfig
    from gworld.refine.saved import load_refiner

    if options.base is not None:
        return load_refiner(options.base).model.train()
    return Refiner(RefinerConfig(width=options.width, seed=seed))


def _rollouts(options: RefinerTraining, out: Path, world: Path | None, photos: Clip | None) -> list[Path]:
    """The pairs of recorded episodes, made unless an earlier run made them."""
    if options.episodes is None or world is None:
        return []
    from gworld.cli.train_rollouts import rollout_pairs
    from gworld.data.pairset import INDEX, write_pairs

    folder = out / "rollouts"
    if not (folder / INDEX).is_file():
        say("pairs: rollout")
        write_pairs(rollout_pairs(world, options.episodes, photos, options.longest, options.seconds), folder)
    return [folder]


def _photos(options: RefinerTraining, world: Path | None) -> Clip | None:
    """The photos with the world's own renders of them, for the refiner to refer to."""
    if world is None or options.data is None:
        return None
    from gworld.formats.registry import read_views, world_folder
    from gworld.formats.world import load_world
    from gworld.reconstruct.coverage import load_coverage
    from gworld.reconstruct.pairs import known_scene
    from gworld.render.metrics import psnr

    folder = world_folder(world)
    loaded = load_world(folder)
    scene = known_scene(
        loaded.gaussians, read_views(options.data), options.longest, load_coverage(folder), loaded.rest_poses()
    )
    photos = scene.references
    assert photos.truth is not None
    found = float(psnr(photos.rgb, photos.truth).clamp(max=99).mean())
    if found < DIFFERENT:
        raise InputError(
            f"`{world}` shows the photos of `{options.data}` at {found:.1f} dB: they are not in one frame, or of "
            "different scenes. Give the poses that the world was reconstructed with."
        )
    return photos


def _along(photos: Clip | None, world: Path | None) -> Checkpoint | None:
    """What goes into every checkpoint: the photos, and whose they are."""
    if world is None or photos is None:
        return None
    from gworld.checkpoint import Checkpoint
    from gworld.formats.registry import world_folder
    from gworld.formats.world import gaussians_hash
    from gworld.refine.saved import photo_tensors

    return Checkpoint(0, photo_tensors(photos), {"gaussians": gaussians_hash(world_folder(world))})
