"""`gworld demo` with a fraction of its fitting: everything is made, and held-out motion is judged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mujoco", reason="MuJoCo is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from gworld.cli.demo_steps import bind_scene, find_recording
from gworld.cli.main import main
from gworld.formats.world import load_world
from gworld.render.video import read_video
from gworld.simulate.files import read_rollout


def test_films_become_a_judged_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--seconds", "0.5", "--train", "1", "--effort", "0.06", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    world = load_world(out / "world")
    assert [entity.name for entity in world.agents] == ["left", "right"] and len(world.gaussians) > 2000
    assert facts["simulate"]["trials"] == 1 and facts["simulate"]["seconds"] == pytest.approx(0.5)
    assert len(read_rollout(out / "demo.parquet")) == 11
    assert next(read_video(out / "demo.mp4")).shape == (2 * 180, 3 * 240 + 2 * 2, 3)
    assert next(read_video(out / "refined.mp4")).shape[0] == 180
    page = (out / "report.html").read_text()
    assert "data:video/mp4;base64," in page and "http" not in page.replace("http-equiv", "")
    record = json.loads((out / "demo-run.json").read_text())
    assert Path(record["world"]).is_dir() and Path(record["dynamics"]).is_dir()
    assert main(["demo", "--out", str(out)]) == 2


def test_bodies_stand_where_the_recording_has_them() -> None:
    recording = find_recording()
    world, robots = bind_scene(recording)
    episode = recording.episode(recording.scan[0])
    assert episode.link_poses is not None and set(robots) == {"left", "right"}
    first = dict(zip(episode.link_names, episode.link_poses[0].tolist(), strict=True))
    shared = [link for link in world.links if link.name in first]
    assert len(shared) == len(first)
    for link in shared:
        assert link.pose[:3] == pytest.approx(first[link.name][:3], abs=2e-4), link.name
    assert not set(recording.held_out) & (set(recording.learn) | set(recording.scan))


def test_everything_that_is_opened_from_assets_is_installed() -> None:
    """Wheels and source distributions hold what the code looks for; an editable installation would not show it."""
    root = Path(__file__).resolve().parent.parent
    opened = {"tabletop.mp4", "recording", "refiner", "dynamics", "expected_scores.json"}
    installed = re.findall(
        r"/\.\./assets/(\S+) DESTINATION gworld/assets", (root / "cuda_ext/CMakeLists.txt").read_text()
    )
    (line,) = [line for line in (root / "pyproject.toml").read_text().splitlines() if line.startswith("sdist.include")]
    assert set(installed) == opened == set(re.findall(r'"assets/([^"]+)"', line))
    assert all((root / "assets" / name).exists() for name in opened)
