"""Runs that are watched: what they tell, when they rest, that no viewer can stop them; what viewers make of a run."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.checkpoint import Checkpoint, save_checkpoint
from gworld.cli.main import main
from gworld.data.shapes import plain, sphere
from gworld.formats.transforms import write_transforms
from gworld.render.paths import orbit, path_cameras
from gworld.render.select import render
from gworld.render.video import as_uint8
from gworld.scene.gaussians import Gaussians
from gworld.scene.views import View, Views
from gworld.viewer.app import ViewOptions
from gworld.viewer.follow import FORGOTTEN, LIVE, WISH, Live, Watched, read_live, write_wish
from gworld.viewer.live import LiveViewer, draw_view, newest_step, read_metrics, read_snapshot

IDLE = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with Watched(tmp_path / "run", command=IDLE) as found:
        yield found


def counting(watched: Watched, saves: list[int], end: int = 30) -> int:
    """Work that can rest between any two steps and reports every ten of them, as a fit does; `saves` are its rests."""
    for step in range(1, end + 1):
        watched.between(lambda step=step: saves.append(step - 1), ())
        time.sleep(0.01)
        if step % 10 == 0:
            watched.tell(f"step {step}", step / end)
    return end


def when(path: Path, fact: str) -> None:
    end = time.monotonic() + 10
    while fact not in (path.read_text() if path.exists() else "") and time.monotonic() < end:
        time.sleep(0.02)
    assert fact in path.read_text()


def test_a_run_rests_at_once_steps_and_goes_on_as_it_is_asked(watched: Watched) -> None:
    saves: list[int] = []

    def visitor() -> None:
        when(watched.run / LIVE, '"resting": true')
        write_wish(watched.run, "step", 2)
        when(watched.run / LIVE, '"step 10"')
        when(watched.run / LIVE, '"resting": true')
        write_wish(watched.run, "go", 3)

    write_wish(watched.run, "pause", 1)
    thread = threading.Thread(target=visitor)
    thread.start()
    assert counting(watched, saves) == 30
    thread.join()
    assert saves[0] < 9 and 10 <= saves[1] < 20 and len(saves) == 2  # at once; then after the report at ten
    assert read_live(watched.run).stage == "step 30"


def test_seconds_of_rest_are_told_and_an_interrupt_ends_them(watched: Watched) -> None:
    stopped: list[int] = []
    write_wish(watched.run, "pause", 1)
    threading.Timer(0.6, lambda: stopped.append(2)).start()
    begin = time.monotonic()
    rested = watched.between(lambda: None, stopped)
    assert 0.4 < rested <= time.monotonic() - begin and stopped
    write_wish(watched.run, "go", 2)
    time.sleep(0.1)
    assert watched.between(lambda: None, ()) == 0.0


def test_a_wish_that_nobody_renews_is_forgotten(watched: Watched) -> None:
    write_wish(watched.run, "pause", 1)
    path = watched.run / WISH
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": time.time() - FORGOTTEN - 1}))
    saves: list[int] = []
    assert counting(watched, saves) == 30 and saves == []
    path.write_text("{ broken")
    assert counting(watched, saves) == 30 and saves == []


def test_a_viewer_that_dies_stops_nothing(watched: Watched) -> None:
    write_wish(watched.run, "pause", 1)
    viewer = watched._viewer
    assert viewer is not None
    threading.Timer(0.5, viewer.kill).start()
    assert counting(watched, []) == 30


def test_a_viewer_that_cannot_start_stops_nothing(tmp_path: Path) -> None:
    with Watched(tmp_path / "run", command=(str(tmp_path / "nothing"),)) as watched:
        assert counting(watched, []) == 30
    assert read_live(tmp_path / "run").ended


def test_what_a_run_says_is_read_with_care(tmp_path: Path) -> None:
    assert read_live(tmp_path) == Live()
    (tmp_path / LIVE).write_text('{"stage": 3, "share": 0.5, "more": 1}')
    assert read_live(tmp_path) == Live(share=0.5)
    (tmp_path / LIVE).write_text("[")
    assert read_live(tmp_path) == Live()
    assert read_metrics(tmp_path) == {} and newest_step(tmp_path) == -1 and read_snapshot(tmp_path, 3) is None
    (tmp_path / "metrics.csv").write_text("step,loss,psnr\n100,0.5,\n200,0.25,20\n300,0.1")
    found = read_metrics(tmp_path)
    assert found["loss"].tolist() == [0.5, 0.25] and np.isnan(found["psnr"][0]) and found["psnr"][1] == 20


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of a ball with their exact poses."""
    folder = tmp_path_factory.mktemp("posed")
    ball = sphere(0.5, 0.05, plain(0.8, 0.3, 0.2))
    cameras = path_cameras(orbit(torch.zeros(3), 2.0, 0.7, 8), 64, 48, 0.6)
    drawn = render(ball, None, cameras, outputs=("rgb",)).rgb
    assert drawn is not None
    views = []
    for index, picture in enumerate(drawn[0]):
        file = folder / f"{index}.png"
        Image.fromarray(as_uint8(picture)).save(file)
        views.append(View(file.name, 64, 48, cameras.K[index], cameras.world_from_camera[index], image=file))
    write_transforms(Views(tuple(views), ball.means[::5].double(), metric=True), folder / "transforms.json")
    return folder


def saved(run: Path, step: int, gaussians: Gaussians) -> None:
    names = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh")
    save_checkpoint(run, Checkpoint(step, {f"gaussians.{name}": getattr(gaussians, name) for name in names}))


def test_a_viewer_shows_what_is_saved_beside_the_truth(posed: Path, tmp_path: Path) -> None:
    ball = sphere(0.5, 0.05, plain(0.8, 0.3, 0.2))
    viewer = LiveViewer(tmp_path, ViewOptions(port=0))
    try:
        viewer.look()
        assert viewer.stage is None and "waiting" in viewer.says.content
        (tmp_path / "poses").mkdir()
        for file in posed.iterdir():
            (tmp_path / "poses" / file.name).write_bytes(file.read_bytes())
        saved(tmp_path, 0, replace(ball, sh=-ball.sh))
        (tmp_path / "metrics.csv").write_text("step,loss,psnr\n100,0.5,18\n200,0.25,20\n")
        viewer.look()
        assert viewer.stage is not None and len(viewer.views) == 8 and viewer.snapshot is not None
        assert "20.00 dB held out" in viewer.figures.content and viewer.charted == "psnr"
        viewer.server.get_clients = lambda: {0: None}  # type: ignore[method-assign, assignment, dict-item]  # somebody looks
        viewer.choice.value = viewer.choice.options[2]
        viewer.compare()
        before = float(viewer.told.content.split(";")[1].split()[0])
        saved(tmp_path, 200, ball)
        viewer.look()
        after = float(viewer.told.content.split(";")[1].split()[0])
        assert after > 35 > before and "step 200" in viewer.told.content  # the very Gaussians that were pictured
        assert viewer.strip.image.shape == (3 * 48, 64, 3)
        viewer.ask("pause")
        assert json.loads((tmp_path / WISH).read_text())["wish"] == "pause"
    finally:
        viewer.close()
    assert json.loads((tmp_path / WISH).read_text())["wish"] == "go"  # nobody is left who could let it go on


def test_a_view_is_drawn_at_another_size(posed: Path) -> None:
    camera = path_cameras(orbit(torch.zeros(3), 2.0, 0.7, 8), 64, 48, 0.6)[0]
    view = View("a", 64, 48, camera.K[0], camera.world_from_camera[0])
    drawn = draw_view(sphere(0.5, 0.05, plain(0.8, 0.3, 0.2)), view, 32, 24)
    assert drawn.shape == (24, 32, 3) and drawn[12, 16].astype(int)[0] > 120 and drawn[0, 0].max() == 0


VISITOR = """
import sys, time, pathlib
from gworld.viewer.follow import write_wish, read_live
run = pathlib.Path(sys.argv[1])
write_wish(run, "pause", 1)
while not read_live(run).resting:
    time.sleep(0.05)
(run.parent / "rested").write_text(read_live(run).stage)
write_wish(run, "go", 2)
time.sleep(60)
"""


@pytest.fixture
def visited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose viewer is a visitor that pauses the run once; from the run's first look on there is a wish."""
    script, run = tmp_path / "visitor.py", tmp_path / "watched"
    script.write_text(VISITOR)
    begin, enter = Watched.__init__, Watched.__enter__

    def with_visitor(self: Watched, run: Path) -> None:
        begin(self, run, command=(sys.executable, str(script), str(run)))

    def entered(self: Watched) -> Watched:
        found = enter(self)
        (self.run / WISH).write_text(json.dumps({"wish": "pause", "number": 1, "time": time.time() + 5}))
        return found

    monkeypatch.setattr(Watched, "__init__", with_visitor)
    monkeypatch.setattr(Watched, "__enter__", entered)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    return run


def test_a_watched_fit_rests_at_once_and_ends_as_one_that_never_rested(
    posed: Path, tmp_path: Path, visited: Path
) -> None:
    options = ["--data", str(posed), "--fit.steps", "120", "--fit.gaussians", "800", "--fit.score-every", "0"]
    assert main(["reconstruct", *options, "--out", str(visited), "--view"]) == 0
    assert "100" not in (tmp_path / "rested").read_text() and read_live(visited).ended  # before its first report
    events = [json.loads(line) for line in (visited / "log.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events] == [("fit", 0), ("done", 120)]
    assert main(["reconstruct", *options, "--out", str(tmp_path / "alone")]) == 0
    watched, alone = (read_snapshot(run, 120) for run in (visited, tmp_path / "alone"))
    assert watched is not None and alone is not None
    assert torch.equal(watched.gaussians.means, alone.gaussians.means)
    assert main(["reconstruct", *options, "--out", str(visited), "--overwrite", "--fit.backend", "nothing"]) == 2


def test_watched_training_rests_and_is_shown_to_its_end(tmp_path: Path, visited: Path) -> None:
    options = ["--law", "uniform", "--limit", "6", "--steps", "50", "--batch", "4", "--horizons", "1"]
    assert main(["train", "dynamics", *options, "--out", str(visited), "--view"]) == 0
    assert not (tmp_path / "rested").read_text().startswith("step 50")  # before its first fifty steps were done
    live = read_live(visited)
    assert live.ended and live.stage.startswith("step 50 of 50") and "radii off held out" in live.stage
    viewer = LiveViewer(visited, ViewOptions(port=0))
    try:
        viewer.look()
        assert viewer.charted == "validation" and "error held out" in viewer.figures.content
        assert viewer.stage is None and "ended" in viewer.says.content and "step 50 of 50" in viewer.says.content
    finally:
        viewer.close()


def test_a_watched_refiner_rests_too(posed: Path, tmp_path: Path, visited: Path) -> None:
    small = ["--refiner.longest", "48", "--refiner.fit-steps", "12", "--refiner.steps", "2", "--refiner.crop", "32"]
    told = ["--refiner.data", str(posed), "--refiner.width", "8", "--refiner.batch", "1"]
    assert main(["train", "refiner", "--out", str(visited), *small, *told, "--view"]) == 0
    assert (tmp_path / "rested").read_text() == "reading what to learn from"  # before its first report
    assert read_live(visited).ended and "held out" in read_live(visited).stage
