"""Runs that are watched: what they tell, when they rest, that no viewer can stop them; what viewers make of a run."""

from __future__ import annotations

import json
import signal
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
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told us to ignore it
    with Watched(tmp_path / "run", command=IDLE) as found:
        yield found
    signal.signal(signal.SIGINT, before)


def counting(watched: Watched, steps: list[int], resumes: list[bool], end: int = 30) -> int:
    """Work that reports every ten steps and can be taken up again, as a fit does."""

    def work(resume: bool) -> int:
        resumes.append(resume)
        while (step := len(steps)) < end:
            steps.append(step)
            if len(steps) % 10 == 0:
                watched.tell(f"step {len(steps)}", len(steps) / end)
        return len(steps)

    return watched.patient(work)


def when(path: Path, fact: str) -> None:
    end = time.monotonic() + 10
    while fact not in (path.read_text() if path.exists() else "") and time.monotonic() < end:
        time.sleep(0.02)
    assert fact in path.read_text()


def test_a_run_rests_steps_and_goes_on_as_it_is_asked(watched: Watched) -> None:
    steps: list[int] = []
    resumes: list[bool] = []
    seen: list[int] = []

    def visitor() -> None:
        when(watched.run / LIVE, '"resting": true')
        seen.append(len(steps))
        write_wish(watched.run, "step", 2)
        when(watched.run / LIVE, '"step 20"')
        when(watched.run / LIVE, '"resting": true')
        seen.append(len(steps))
        write_wish(watched.run, "go", 3)

    write_wish(watched.run, "pause", 1)
    thread = threading.Thread(target=visitor)
    thread.start()
    assert counting(watched, steps, resumes) == 30
    thread.join()
    assert steps == list(range(30)) and seen == [10, 20] and resumes == [False, True, True]
    assert read_live(watched.run).stage == "step 30"


def test_a_wish_that_nobody_renews_is_forgotten(watched: Watched) -> None:
    write_wish(watched.run, "pause", 1)
    path = watched.run / WISH
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": time.time() - FORGOTTEN - 1}))
    resumes: list[bool] = []
    assert counting(watched, [], resumes) == 30 and resumes == [False]
    path.write_text("{ broken")
    assert counting(watched, [], resumes) == 30


def test_a_viewer_that_dies_stops_nothing(watched: Watched) -> None:
    write_wish(watched.run, "pause", 1)
    viewer = watched._viewer
    assert viewer is not None
    threading.Timer(0.5, viewer.kill).start()
    assert counting(watched, [], []) == 30


def test_a_viewer_that_cannot_start_stops_nothing_and_others_may_interrupt(tmp_path: Path) -> None:
    with Watched(tmp_path / "run", command=(str(tmp_path / "nothing"),)) as watched:
        assert counting(watched, [], []) == 30

        def stopped(resume: bool) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            watched.patient(stopped)
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


def test_a_watched_fit_rests_and_ends_as_planned(posed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a viewer beside it that pauses it once, `reconstruct --view` goes on from where it rested to its end."""
    options = ["--data", str(posed), "--fit.steps", "220", "--fit.gaussians", "800", "--fit.score-every", "0"]
    script = tmp_path / "visitor.py"
    script.write_text(
        "import sys, time, pathlib\nfrom gworld.viewer.follow import write_wish, read_live\n"
        "run = pathlib.Path(sys.argv[1])\nwrite_wish(run, 'pause', 1)\n"
        "while not read_live(run).resting:\n    time.sleep(0.05)\n"
        "(run.parent / 'rested').touch()\nwrite_wish(run, 'go', 2)\n"
        "time.sleep(60)\n"
    )
    run = tmp_path / "watched"
    real = Watched.__init__

    def with_visitor(self: Watched, run: Path) -> None:
        real(self, run, command=(sys.executable, str(script), str(run)))

    monkeypatch.setattr(Watched, "__init__", with_visitor)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    with monkeypatch.context() as patch:
        pause = {"wish": "pause", "number": 1, "time": time.time() + 5}
        patch.setattr(Watched, "__enter__", lambda self: entered(self, pause))
        assert main(["reconstruct", *options, "--out", str(run), "--view"]) == 0
    assert (tmp_path / "rested").exists() and read_live(run).ended
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events] == [("fit", 0), ("fit", 100), ("done", 220)]
    assert (run / "world" / "world.json").is_file()
    assert main(["reconstruct", *options, "--out", str(run), "--overwrite", "--fit.backend", "nothing"]) == 2


_enter = Watched.__enter__


def entered(watched: Watched, wish: dict[str, object]) -> Watched:
    """Begin with a wish in place, so that the first report finds it."""
    found = _enter(watched)
    (watched.run / WISH).write_text(json.dumps(wish))
    return found
