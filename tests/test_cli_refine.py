"""`gworld refine`, `gworld train refiner` and `simulate --refine`, end to end on tiny scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.bench.refine_scene import photo_cameras, random_stage, take_photos
from gworld.cli.main import main
from gworld.data.pairset import iterate_pairs, open_pairs
from gworld.data.toys import tabletop_world, waving_rollout
from gworld.formats.transforms import write_transforms
from gworld.formats.world import gaussians_hash, load_world, save_world
from gworld.reconstruct.coverage import load_coverage
from gworld.reconstruct.pairs import PairOptions, fit_scene
from gworld.refine.network import Refiner, RefinerConfig
from gworld.refine.saved import SavedRefiner, load_refiner, save_refiner
from gworld.refine.strength import STRENGTHS
from gworld.render.conditions import render_clip
from gworld.render.metrics import psnr
from gworld.render.paths import orbit, path_cameras
from gworld.render.video import read_video, write_video
from gworld.scene.world import World
from gworld.simulate.files import write_rollout
from tests.acting import acting_world
from tests.test_refine_network import shaken


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner") / "shaken"
    save_refiner(SavedRefiner(shaken()), folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "table"
    save_world(tabletop_world(0.05), folder)
    return folder


def test_a_rollout_is_refined_where_it_is_not_trusted(
    world: Path, refiner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    motion = tmp_path / "motion.parquet"
    write_rollout(waving_rollout(load_world(world), 0.2, 20.0), motion)
    told = ["refine", str(motion), "--world", str(world), "--refiner", str(refiner), "--width", "64", "--json"]
    assert main([*told, "--out", str(tmp_path / "a.mp4"), "--changes", str(tmp_path / "c.mp4")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["frames"] == 4 and facts["changed"] < 0.5  # all is trusted where something is
    assert main([*told, "--out", str(tmp_path / "b.mp4"), "--trust", "0.2", "--beside"]) == 0
    changed = json.loads(capsys.readouterr().out)["changed"]
    assert changed > facts["changed"] + 0.2
    # Fits that agree are trusted: beside itself a world is in doubt nowhere.
    assert main([*told, "--out", str(tmp_path / "d.mp4"), "--trust", "0.2", "--also", str(world)]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 0
    shapes = [next(read_video(tmp_path / f"{name}.mp4")).shape for name in "abc"]
    assert shapes == [(48, 64, 3), (48, 128, 3), (48, 64, 3)]


def test_links_are_refined_as_strongly_as_helps_their_photos(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    motion, shown = tmp_path / "motion.parquet", load_world(world)
    write_rollout(waving_rollout(shown, 0.1, 20.0), motion)
    cameras = path_cameras(orbit(torch.tensor([0.0, 0.0, 0.1]), 1.2, 0.6, 4), 48, 36)
    photos = render_clip(shown.gaussians, cameras, shown.rest_poses())
    truth = (photos.rgb + 0.04).clamp(0, 1)  # so that the renders are trusted nowhere
    for name, folder in (("own", world), ("bare", None)):
        kept = replace(photos, truth=truth) if folder else None
        save_refiner(SavedRefiner(shaken(), kept, gaussians_hash(world)), tmp_path / name)
    told = ["refine", str(motion), "--world", str(world), "--width", "48", "--trust", "0.2", "--json"]
    changed = []
    for more in ([], ["--measured"]):
        out = tmp_path / f"{len(more)}.mp4"
        assert main([*told, "--refiner", str(tmp_path / "own"), "--out", str(out), *more]) == 0
        facts = json.loads(capsys.readouterr().out)
        changed.append(facts["changed"])
    assert facts["strengths"] and set(facts["strengths"].values()) <= set(STRENGTHS)
    assert changed[1] < changed[0]  # weights drawn at random help nowhere, or little
    bare = ["--refiner", str(tmp_path / "bare"), "--measured", "--out", str(tmp_path / "x.mp4")]
    assert main([*told, *bare]) == 2 and "has none of this world" in capsys.readouterr().err


def test_a_plain_video_is_refined_and_contradictions_are_refused(refiner: Path, tmp_path: Path, world: Path) -> None:
    film = tmp_path / "film.mp4"
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8)
    write_video(list(pictures), film, 10.0)
    out = tmp_path / "out.mp4"
    assert main(["refine", str(film), "--refiner", str(refiner), "--out", str(out)]) == 0
    assert len(list(read_video(out))) == 3
    for wrong in (
        ["refine", str(film), "--refiner", str(refiner), "--out", str(out)],
        ["refine", str(film), "--world", str(world), "--out", str(tmp_path / "x.mp4")],
        ["refine", str(tmp_path / "motion.parquet"), "--out", str(tmp_path / "x.mp4")],
        ["refine", str(film), "--trust", "2", "--out", str(tmp_path / "x.mp4")],
        ["train", "refiner", "--out", str(tmp_path / "run")],
        ["refine", str(film), "--also", str(world), "--out", str(tmp_path / "x.mp4")],
        ["refine", str(film), "--measured", "--refiner", str(refiner), "--out", str(tmp_path / "x.mp4")],
        ["refine", str(world), "--rounds", "1", "--out", str(tmp_path / "w")],
        ["refine", str(film), "--rounds", "1", "--data", str(tmp_path), "--out", str(tmp_path / "w")],
        ["refine", str(world), "--rounds", "1", "--data", str(tmp_path), "--out", str(tmp_path / "w.mp4")],
    ):
        assert main(wrong) == 2
    assert main(["refine", str(film), "--refiner", str(tmp_path), "--out", str(tmp_path / "x.mp4")]) == 3


def test_simulating_refines_as_it_goes(world: Path, refiner: Path, tmp_path: Path) -> None:
    told = ["simulate", "--world", str(world), "--policy", "random", "--seconds", "0.1", "--width", "48"]
    told += ["--cameras", "front", "--rate", "20"]
    assert main([*told, "--out", str(tmp_path / "raw.mp4")]) == 0
    assert main([*told, "--out", str(tmp_path / "refined.mp4"), "--refiner", str(refiner)]) == 0
    raw, refined = (np.stack(list(read_video(tmp_path / name))) for name in ("raw.mp4", "refined.mp4"))
    assert raw.shape == refined.shape and np.abs(raw.astype(int) - refined).max() > 3


def test_a_refiner_is_trained_from_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = random_stage(0, 48, 40, spacing=0.05)
    views = take_photos(stage, photo_cameras(stage, 9), tmp_path / "images")
    write_transforms(views, tmp_path / "transforms.json")
    told = ["train", "refiner", "--out", str(tmp_path / "run"), "--json", "--refiner.data", str(tmp_path)]
    small = ["--refiner.longest", "48", "--refiner.fit-steps", "12", "--refiner.steps", "2", "--refiner.crop", "40"]
    assert main([*told, *small, "--refiner.width", "8", "--refiner.batch", "1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["steps"] == 2 and facts["raw_db"] > 3
    assert load_refiner(tmp_path / "run").photos is None  # no world was given, to which they would belong
    assert (tmp_path / "run" / "pairs" / "pairs.json").is_file()
    torch.testing.assert_close(facts["held_out_db"], facts["raw_db"], atol=1.0, rtol=0)
    assert Refiner(RefinerConfig(width=8)).config.width == 8


def test_rollouts_are_learned_from_beside_their_footage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = str(acting_world(tmp_path, 48, 32).folder)
    store = tmp_path / "store"
    for seed in "01":
        told = ["simulate", "--world", str(world), "--policy", "random", "--seconds", "0.3", "--width", "48"]
        told += ["--seed", seed, "--rate", "20", "--episode", str(store)]
        assert main([*told, "--out", str(tmp_path / f"{seed}.mp4")]) == 0
    run = tmp_path / "run"
    learn = ["train", "refiner", "--out", str(run), "--refiner.episodes", str(store), "--refiner.longest", "48"]
    learn += ["--refiner.steps", "2", "--refiner.crop", "24", "--refiner.width", "8", "--refiner.batch", "1", "--json"]
    assert main(learn) == 2  # in which world?
    capsys.readouterr()
    assert main([*learn, "--world", str(world)]) == 0
    facts = json.loads(capsys.readouterr().out)
    pairs = list(iterate_pairs(open_pairs(run / "rollouts")))
    assert {pair.way for pair in pairs} == {"rollout"} and {pair.split for pair in pairs} == {"train", "held_out"}
    # Motion is told by kinematics alone here, as it was when the film was made: only its compression differs.
    assert all(psnr(pair.clip.rgb, pair.clip.truth).mean() > 25 for pair in pairs) and facts["raw_db"] > 25
    assert max(float(pair.clip.flow.abs().max()) for pair in pairs) > 0.2


def test_views_are_written_back_into_a_world(refiner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = random_stage(0, 32, 24, spacing=0.06)
    views = take_photos(stage, photo_cameras(stage, 9), tmp_path / "images")
    write_transforms(views, tmp_path / "transforms.json")
    fit = fit_scene(views, PairOptions(longest=32, steps=15, gaussians=300, hold_out=0), tmp_path / "fit")
    save_world(World(fit.gaussians), tmp_path / "bad")
    told = ["refine", str(tmp_path / "bad"), "--rounds", "1", "--data", str(tmp_path), "--refiner", str(refiner)]
    told += ["--fits", "1", "--longest", "32", "--hold-out", "3", "--json"]
    assert main([*told, "--fit-steps", "60", "--out", str(tmp_path / "better")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["round"] == 1 and facts["held_out_db"][1] > facts["held_out_db"][0]
    assert load_coverage(tmp_path / "better") is not None and load_world(tmp_path / "better").folder is not None
    assert main([*told, "--fit-steps", "1", "--out", str(tmp_path / "worse")]) == 3
    assert "nothing is written" in capsys.readouterr().err and not (tmp_path / "worse").exists()
    assert main([*told[:1], str(tmp_path / "nothing"), *told[2:], "--out", str(tmp_path / "none")]) == 2
