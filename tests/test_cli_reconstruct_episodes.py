"""`gworld reconstruct --episodes`: recorded episodes become a world, judged on the one that was held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.cli.main import main
from gworld.data.store import EpisodeWriter
from gworld.formats.world import load_world, save_world
from gworld.geometry import pose_from_transform
from gworld.render.video import read_video, write_video
from gworld.scene.episode import Episode, Video
from gworld.scene.harmonics import rgb_from_sh
from tests.test_reconstruct_moving import SIZE, eyes, footage_of, table_world

STEPS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of a blue block that goes about a table, and in `world` the block's shape, grey."""
    place, world, cameras = tmp_path_factory.mktemp("films") / "store", table_world(), eyes()
    names = tuple(f"camera{index}" for index in range(len(cameras)))
    cameras = replace(cameras, names=names, links=(0,) * len(names))
    with EpisodeWriter(place) as writer:
        for number in range(3):
            turn = torch.arange(STEPS) * 0.9 + number
            footage = footage_of(world, cameras, 0.28 * torch.stack([turn.cos(), turn.sin()], dim=1))
            times, videos, folder = torch.arange(STEPS, dtype=torch.float64) / 10, [], writer.scratch()
            for index, name in enumerate(names):
                write_video(iter(footage.pictures[footage.camera == index]), folder / f"{name}.mp4", 10.0, quality=8)
                videos.append(Video(name, folder / f"{name}.mp4", times))
            poses = pose_from_transform(footage.poses[:: len(cameras)])
            writer.add(Episode(times, link_poses=poses, link_names=("world", "block"), videos=tuple(videos),
                               cameras=cameras))  # fmt: skip
        writer.add(Episode(torch.arange(3, dtype=torch.float64)))
    grey = torch.where(world.gaussians.links[:, None, None] > 0, 0.0, world.gaussians.sh)
    save_world(replace(world, gaussians=replace(world.gaussians, sh=grey)), place / "world")
    return place


def test_a_world_is_learned_and_judged(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for number in range(3):  # without the last one, which has no films
        (films / f"episode-{number:06d}").symlink_to(store / f"episode-{number:06d}")
    (films / "index.jsonl").write_text("".join((store / "index.jsonl").read_text().splitlines(keepends=True)[:3]))
    arguments = ["reconstruct", "--episodes", str(films), "--bound", str(store), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--fit.steps", "60", "--fit.gaussians", "1500", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pictures"] == 2 * STEPS * 10 and facts["psnr"] > 20 and facts["baseline_psnr"] > 20
    world = load_world(tmp_path / "run" / "world")
    assert [entity.name for entity in world.entities] == ["scene", "block"] and world.cameras is not None
    block = rgb_from_sh(world.gaussians.sh[world.gaussians.links == 1][:, 0]).mean(0)
    assert float(block[2]) > 1.5 * float(block[0])  # blue, as filmed
    frames = list(read_video(tmp_path / "run" / "held-out.mp4"))
    assert len(frames) == STEPS and frames[0].shape == (2 * SIZE[1], 3 * SIZE[0], 3)
    assert np.abs(frames[0][: SIZE[1]].astype(int) - frames[0][SIZE[1] :]).mean() < 40
    assert main(arguments) == 2


def test_what_cannot_be_learned_from_is_said(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["reconstruct", "--episodes", str(store), "--video", "a.mp4", *out]) == 2
    assert "goes without `--video`" in capsys.readouterr().err
    assert main(["reconstruct", "--episodes", str(store / "world"), *out]) == 3
    assert main(["reconstruct", "--episodes", str(store), "--fit.steps", "1", *out]) == 3
    assert "calibrated videos" in capsys.readouterr().err and not (tmp_path / "run").exists()
