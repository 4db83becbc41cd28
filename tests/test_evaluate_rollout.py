"""Judging predictions: errors and intervals against closed forms, physics that is broken on purpose, and the page."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.cli.main import main
from gworld.data.shapes import box, plain
from gworld.data.store import EpisodeWriter
from gworld.dynamics.tokens import compile_scene
from gworld.evaluate.charts import Line, line_chart
from gworld.evaluate.physics import measure_physics
from gworld.evaluate.rollout_report import Check, Film, RolloutFacts, rollout_page
from gworld.evaluate.trials import Trial, body_rows, false_motion, horizon_lines, pick
from gworld.formats.world import save_world
from gworld.geometry import pose_from_transform
from gworld.scene.episode import Episode
from gworld.scene.world import World
from gworld.simulate.score import changed_pixels, coast, interval, motion_ratio, score_pixels
from tests.acting import acting_world
from tests.test_evaluate_report import checked

BALL, CART = 2, 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"), 48, 32)


def motion(world: World, speed: float, count: int = 21, seconds: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Times, and poses in which the ball rolls along x at a speed and all else rests."""
    times = torch.arange(count, dtype=torch.float64) * seconds
    poses = world.rest_poses().expand(count, -1, 4, 4).clone()
    poses[:, BALL, 0, 3] += speed * times.float()
    return times, poses


def test_errors_over_the_horizon_are_those_of_two_speeds(world: World) -> None:
    times, truth = motion(world, 0.2)
    trials = [Trial(str(speed), times, motion(world, speed)[1], truth) for speed in (0.2, 0.25, 0.3)]
    lines = {line.name: line for line in horizon_lines(world, trials, "object", 20)}
    end = float(times[-1])
    assert lines["prediction"].y[-1] == pytest.approx(50 * end, rel=1e-3)
    assert lines["prediction"].low[-1] == pytest.approx(10 * end, rel=1e-3)
    assert lines["prediction"].high[-1] == pytest.approx(90 * end, rel=1e-3)
    assert lines["copy"].y[-1] == pytest.approx(200 * end, rel=1e-3)
    assert horizon_lines(world, trials, "agent") == []
    ball = next(row for row in body_rows(world, trials) if row.body == "ball")
    assert ball.moved == pytest.approx(0.2 * end, rel=1e-3) and ball.error == pytest.approx(0.05 * end, rel=1e-3)
    assert [trial.name for trial in pick(trials, world, 2)] == ["0.3", "0.2"]
    assert motion_ratio(world, trials[1].predicted, truth) == pytest.approx(1.25, rel=1e-3)


def test_constant_velocity_and_rest_are_judged(world: World) -> None:
    times, truth = motion(world, 0.2)
    twists = torch.zeros(len(world.links), 6)
    twists[BALL, 0] = 0.2
    assert torch.allclose(coast(truth[0], twists, times), truth, atol=1e-6)
    still, strayed = motion(world, 0.0)[1], motion(world, 0.01)[1]
    assert false_motion(world, [Trial("kept", times, still, still), Trial("lost", times, strayed, still)]) == (1, 2)
    assert interval([1.0, 2.0, 3.0, math.nan])[0] == 2.0 and math.isnan(interval([])[0])


def test_pixels_of_the_true_motion_are_the_footage(world: World) -> None:
    assert world.cameras is not None
    _, truth = motion(world, 0.2, 5)
    cameras = replace(world.cameras[:2], names=(), links=())
    rows = {"oracle": truth, "copy": truth[:1].expand_as(truth)}
    from gworld.simulate.score import draw_rows

    footage = draw_rows(world, cameras, truth)
    found = score_pixels(world, cameras, rows, footage)
    assert bool((found["oracle"].full > 80).all()) and float(found["copy"].full[-1]) < 40
    assert float(found["copy"].moving[-1]) < float(found["copy"].full[-1])
    assert not bool(changed_pixels(footage)[0].any()) and bool(changed_pixels(footage)[-1].any())


def test_broken_physics_is_found(world: World) -> None:
    _, calm = motion(world, 0.0)
    shapes = compile_scene([world], 0.1)
    fine = measure_physics(world, calm, 0.1, shapes)
    assert fine.overlap == 0.0 and fine.drift == 0.0 and fine.energy == 0.0
    inside = calm.clone()
    inside[5:, BALL, :3, 3] = inside[5:, CART, :3, 3] + torch.tensor([0.05, 0.0, 0.02])
    deep = measure_physics(world, inside, 0.1, shapes)
    assert 0.02 < deep.overlap < 0.08 and set(deep.between.split(" and ")) == {"cart", "ball"}
    rushed = calm.clone()
    rushed[:, BALL, 0, 3] += 0.5 * (torch.arange(21) * 0.1).square() * 0.4  # speeds up by 0.04 m/s in every step
    assert measure_physics(world, rushed, 0.1, shapes).speed == pytest.approx(0.04, rel=0.05)
    drifting = calm.clone()
    drifting[:, BALL, 0, 3] += torch.linspace(0, 1e-3, 21)
    assert measure_physics(world, drifting, 0.1, shapes).drift == pytest.approx(1e-3, rel=0.05)
    sunken = calm.clone()
    sunken[:, BALL, 2, 3] -= 0.02  # the middles of a coarse table's Gaussians lie a centimetre deep
    assert measure_physics(world, sunken, 0.1, shapes).sunk == pytest.approx(0.01, abs=0.003)


def test_page_holds_its_films_and_bands_and_escapes_text() -> None:
    evil = "<script>x</script>"
    chart = Line("ours", [0, 1, 2], [1, 2, 3], low=[0, 1, 2], high=[2, 3, 4])
    assert "<polygon" in line_chart([chart], "s", "mm")
    facts = RolloutFacts(
        title=evil,
        source=evil,
        headline=evil,
        films=[Film(evil, b"film", evil, evil)],
        checks=[Check(evil, "1", "2", "<= 3", False)],
        costs={evil: "1"},
        command=evil,
    )
    page = rollout_page(facts)
    found = checked(page)
    assert evil not in page and "media-src data:" in page
    sources = [attributes["src"] for tag, attributes in found.tags if tag == "video"]
    assert sources == [f"data:video/mp4;base64,{base64.b64encode(b'film').decode()}"]


def test_a_rollout_is_judged_from_the_command_line(world: World, tmp_path: Path) -> None:
    count = 16
    times, poses = motion(world, 0.3, count, 0.05)
    episode = Episode(
        times,
        actions={"cart": torch.zeros(count, 3)},
        link_poses=pose_from_transform(poses),
        link_names=tuple(link.name for link in world.links),
    )
    with EpisodeWriter(tmp_path / "truth") as writer:
        writer.add(episode)
    out = tmp_path / "a.mp4"
    told = ["simulate", "--world", str(world.folder), "--compare", f"{tmp_path}/truth", "--rate", "20", "--width", "48"]
    assert main([*told, "--out", str(out)]) == 0
    record = json.loads((tmp_path / "a-run.json").read_text())
    assert record["truth"]["number"] == 0 and record["world"] == str(world.folder) and record["costs"]
    assert main(["evaluate", str(out), "--width", "96"]) == 0
    page = (tmp_path / "a-report.html").read_text()
    said = " ".join(checked(page).said)
    assert "objects that truly moved" in said and "overlap of two bodies" in said and "steps per second" in said
    film = re.search(r"data:video/mp4;base64,([^\"]+)", page)
    assert film is not None and b"ftyp" in base64.b64decode(film[1])[:16]
    assert main(["evaluate", str(out)]) == 2  # the page is there
    assert main(["evaluate", str(tmp_path / "nothing")]) == 3


def test_a_world_is_judged_on_recorded_episodes(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 24
    times, poses = motion(world, 0.3, count, 0.05)
    names = tuple(link.name for link in world.links)
    with EpisodeWriter(tmp_path / "truth") as writer:
        writer.add(
            Episode(
                times, link_poses=pose_from_transform(poses), link_names=names, actions={"cart": torch.zeros(count, 3)}
            )
        )
    page = tmp_path / "page.html"
    told = ["evaluate", str(world.folder), "--truth", f"{tmp_path}/truth", "--seconds", "0.5", "--films", "0"]
    assert main([*told, "--out", str(page), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["trials"] == 2 and figures["error_m"] == pytest.approx(0.15, rel=0.05)  # kinematics leave the ball
    assert figures["constant_velocity_m"] == pytest.approx(0.0, abs=1e-3) and np.isfinite(figures["overlap_m"])
    assert main(["evaluate", str(world.folder)]) == 2


def test_a_world_without_bodies_is_run_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = box((1.0, 1.0, 0.02), 0.1, plain(0.7, 0.7, 0.6))
    save_world(World(top, metric=True), tmp_path / "bare")
    told = ["simulate", "--world", f"{tmp_path}/bare", "--policy", "random", "--seconds", "0.1", "--width", "32"]
    assert main([*told, "--out", f"{tmp_path}/a.mp4"]) == 0
    assert "put a robot into it" in capsys.readouterr().err
    assert main(["evaluate", f"{tmp_path}/a.mp4", "--width", "32"]) == 0
    assert "no truth is known" in (tmp_path / "a-report.html").read_text()
