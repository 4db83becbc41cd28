"""A run in progress, watched from outside: its figures, its Gaussians as last saved, one view beside the truth."""

from __future__ import annotations

import contextlib
import csv
import io
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import viser
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open

from gworld.errors import GWorldError
from gworld.formats.registry import read_views
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.render.video import as_uint8
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.gaussians import Gaussians
from gworld.scene.views import View, Views
from gworld.scene.world import World
from gworld.viewer.app import ViewOptions
from gworld.viewer.follow import Live, read_live, write_wish
from gworld.viewer.gate import open_gate, open_server
from gworld.viewer.panels import plain
from gworld.viewer.stage import Stage

LOOKED_EVERY = 1.0
"""Seconds between two looks into the run's folder."""
IDLE_EVERY = 5.0
"""The same while nobody looks at us."""
RENEWED_EVERY = 2.0
COMPARED = 420
"""Width in pixels of each picture that is compared."""
AMPLIFIED = 4.0
FIGURES = ("psnr", "validation", "loss")
"""What the chart shows, the first of them that the run has."""
NAMES = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh")


@dataclass(frozen=True)
class Snapshot:
    """The Gaussians of a run after `step` steps, and the checkpoint they are from."""

    step: int
    folder: Path
    gaussians: Gaussians


def newest_step(run: Path) -> int:
    """The step of a run's newest checkpoint, -1 without one."""
    names = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


def read_snapshot(run: Path, step: int) -> Snapshot | None:
    """The Gaussians in a checkpoint of a fit; None where it has none, or is gone already."""
    folder = run / "checkpoints" / f"step-{step}"
    try:
        with safe_open(folder / "tensors.safetensors", framework="pt") as parts:
            if f"gaussians.{NAMES[0]}" not in set(parts.keys()):
                return None
            columns = {name: parts.get_tensor(f"gaussians.{name}").float() for name in NAMES}
        return Snapshot(step, folder, Gaussians(**columns, links=torch.zeros(len(columns["means"]), dtype=torch.int32)))
    except (OSError, SafetensorError, GWorldError):
        return None


def read_metrics(run: Path) -> dict[str, Float[np.ndarray, " T"]]:
    """The columns of a run's `metrics.csv`, NaN where a row has no value; empty without rows."""
    try:
        text = (run / "metrics.csv").read_text(encoding="utf-8")
    except OSError:
        return {}
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    found: dict[str, list[float]] = {}
    for name in rows[0] if rows else ():
        with contextlib.suppress(ValueError, TypeError):  # a column of words is no figure
            found[name] = [float(row[name]) if row.get(name) else float("nan") for row in rows]
    return {name: np.array(values) for name, values in found.items()}


class LiveViewer:
    """Watches the folder of a run; what its visitors ask for is left there as a wish. Listens from when it is made."""

    def __init__(self, run: Path, options: ViewOptions, world: World | None = None) -> None:
        self.run_folder, self.options, self.world = run, options, world
        self.stage: Stage | None = None
        self.views = Views(())
        self.snapshot: Snapshot | None = None
        self.live = Live()
        self.wish, self.number = "go", 0
        self._todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._turning = threading.RLock()
        self._looked = self._renewed = 0.0
        self._step = -1
        self.gate, listener = open_gate(options.host, options.port, options.clients)
        self.server = open_server(self.gate, listener, run.resolve().name)
        self._panel()
        self.server.on_client_connect(lambda client: self.do(self.look))
        if world is not None:
            self.stage = Stage(self.server, world, options.splats)

    def _panel(self) -> None:
        gui = self.server.gui
        gui.configure_theme(show_logo=False, show_share_button=False, control_width="large")
        self.says = gui.add_markdown("")
        self.bar = gui.add_progress_bar(0.0)
        self.pause = gui.add_button("Pause", hint="a fit saves itself and rests at once, training at its next report")
        self.step = gui.add_button("Step", hint="go on to the next report and rest again")
        self.figures = gui.add_markdown("No figures yet.")
        self.chart: Any = None
        self.charted = ""
        with gui.add_folder("Beside the truth"):
            self.choice = gui.add_dropdown("View", ("none",), hint="a picture that the fit is made from")
            self.enter = gui.add_button("Look through")
            self.told = gui.add_markdown("The views come with the camera poses.")
            self.strip: Any = None
        self.pause.on_click(lambda event: self.do(lambda: self.ask("go" if self.wish != "go" else "pause")))
        self.step.on_click(lambda event: self.do(lambda: self.ask("step")))
        self.choice.on_update(lambda event: self.do(self.compare))

        @self.enter.on_click
        def _(event: Any) -> None:
            client, index, stage = event.client, self._chosen(), self.stage
            if client is not None and index is not None and stage is not None:
                self.do(lambda: stage.enter(client, index))

    def do(self, act: Callable[[], object]) -> None:
        """Have something done by the loop, soon."""
        self._todo.put(act)

    def run(self, seconds: float | None = None) -> None:
        """Look and show until `close`, or for a time."""
        end = None if seconds is None else time.monotonic() + seconds
        with self._turning:
            while not self._ended.is_set() and (end is None or time.monotonic() < end):
                self.tick(time.monotonic())
                self._ended.wait(0.05)

    def tick(self, now: float) -> None:
        """Do what was asked, look into the folder now and then."""
        while not self._todo.empty():
            try:
                self._todo.get()()
            except GWorldError as error:
                self.told.content = plain(str(error))
        if self.wish != "go" and now - self._renewed > RENEWED_EVERY:
            self._renewed = now
            self._write()
        if now - self._looked > (LOOKED_EVERY if self.server.get_clients() else IDLE_EVERY):
            self._looked = now
            self.look()

    def close(self) -> None:
        """Stop listening; a run that rests for us goes on."""
        self._ended.set()
        free = self._turning.acquire(timeout=10)
        try:
            if self.wish != "go":
                self.ask("go")
            with contextlib.redirect_stdout(io.StringIO()):
                self.server.stop()
        finally:
            if free:
                self._turning.release()

    def ask(self, wish: str) -> None:
        """Leave a wish for the run: `pause`, `go` or `step`."""
        self.wish, self.number = wish, self.number + 1
        self._write()
        self.pause.label = "Pause" if wish == "go" else "Go on"

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            write_wish(self.run_folder, self.wish, self.number)

    def look(self) -> None:
        """Take in what the run has told and saved since the last look."""
        self.live = read_live(self.run_folder)
        resting = "**resting**: " if self.live.resting else "**ended**: " if self.live.ended else ""
        asked = " It is asked to rest." if self.wish == "pause" and not self.live.resting else ""
        self.says.content = f"{resting}{plain(self.live.stage)}{asked}"
        self.bar.value = 100 * self.live.share
        self._show_figures()
        if not len(self.views):
            self._find_views()
        step = newest_step(self.run_folder)
        if step != self._step:
            self._step = step
            found = read_snapshot(self.run_folder, step)
            if found is not None:
                self._show(found)

    def _show_figures(self) -> None:
        metrics = read_metrics(self.run_folder)
        name = next((n for n in FIGURES if n in metrics and np.isfinite(metrics[n]).sum() > 1), None)
        last = {key: values[np.isfinite(values)][-1:] for key, values in metrics.items()}
        words = {"gaussians": "Gaussians", "psnr": "dB held out", "loss": "loss", "validation": "error held out"}
        kinds = {"gaussians": ",.0f", "psnr": ".2f"}
        parts = [
            f"{last[key][0]:{kinds.get(key, '.4g')}} {word}"
            for key, word in words.items()
            if key in last and len(last[key])
        ]
        if parts:
            seen = "" if self.snapshot is None else f"  \nshown: step {self.snapshot.step:,}"
            at = f"step {last['step'][0]:,.0f}: " if "step" in last else ""
            self.figures.content = at + ", ".join(parts) + seen
        if name is None:
            return
        kept = np.isfinite(metrics[name])
        data = (metrics["step"][kept], metrics[name][kept])
        if self.charted != name:
            self.charted = name
            if self.chart is not None:
                self.chart.remove()
            series = (
                viser.uplot.Series(label="step"),
                viser.uplot.Series(label=words[name], stroke="#2a6fb0", width=2),
            )
            scales = {"x": viser.uplot.Scale(time=False)}
            self.chart = self.server.gui.add_uplot(data, series, scales=scales, aspect=2.2)
        elif len(self.chart.data[0]) != len(data[0]):
            self.chart.data = data

    def _find_views(self) -> None:
        path = self.run_folder / "poses" / "transforms.json"
        if not path.is_file():
            return
        try:
            self.views = read_views(path)
        except (GWorldError, OSError):  # it may be half written
            return
        self.choice.options = tuple(_label(index, view) for index, view in enumerate(self.views.views))
        self.told.content = "Choose a view to see its picture beside the fit."
        if self.world is None:
            self.world = World(_nothing(), cameras=_frusta(self.views), metric=self.views.metric)

    def _show(self, snapshot: Snapshot) -> None:
        """Put the Gaussians of a checkpoint on the stage."""
        self.snapshot = snapshot
        base = self.world or World(_nothing())
        world = replace(base, gaussians=snapshot.gaussians)
        if self.stage is None:
            self.stage = Stage(self.server, world, self.options.splats)
            self.stage.on_enter(self.stage.enter)
            if world.cameras is not None:
                self.stage.begin_at(0)  # what is fitted where no camera looks hides the rest from elsewhere
            for client in self.server.get_clients().values():
                self.stage.greet(client)
        else:
            self.stage.update(world)
        self.compare()

    def _chosen(self) -> int | None:
        names = [_label(index, view) for index, view in enumerate(self.views.views)]
        return names.index(self.choice.value) if self.choice.value in names else None

    def compare(self) -> None:
        """Draw the chosen view beside its picture, and where they differ; only while somebody looks."""
        index = self._chosen()
        if index is None or self.snapshot is None or not self.server.get_clients():
            return
        view = self.views.views[index]
        truth = _picture(view)
        drawn = draw_view(self.snapshot.gaussians, view, truth.shape[1], truth.shape[0])
        difference = np.abs(drawn.astype(np.float32) - truth.astype(np.float32))
        error = np.clip(AMPLIFIED * difference, 0, 255).astype(np.uint8)
        strip = np.concatenate([truth, drawn, error], axis=0)
        decibels = -10 * np.log10(max(float(np.square(difference / 255).mean()), 1e-10))
        self.told.content = f"Picture, fit and four times their difference; {decibels:.1f} dB at step {self._step:,}."
        if self.strip is None:
            self.strip = self.server.gui.add_image(strip, label="Compared", format="jpeg", jpeg_quality=85)
        else:
            self.strip.image = strip


def draw_view(gaussians: Gaussians, view: View, width: int, height: int) -> UInt8[np.ndarray, "H W 3"]:
    """What a view sees of Gaussians, as a pinhole camera of another size."""
    pose = view.world_from_camera[None].float()
    camera = resize_cameras(Cameras(view.K[None].float(), pose, view.width, view.height), width, height)
    with torch.no_grad():
        rgb = render(gaussians, None, camera, outputs=("rgb",), options=RenderOptions()).rgb
    assert rgb is not None
    return as_uint8(rgb[0, 0].cpu())


def _picture(view: View) -> UInt8[np.ndarray, "H W 3"]:
    """A view's picture, small; grey where it cannot be read."""
    width = min(COMPARED, view.width)
    height = max(1, round(width * view.height / view.width))
    try:
        if view.image is None:
            raise OSError("no picture")
        with Image.open(view.image) as image:
            return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BOX))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return np.full((height, width, 3), 128, np.uint8)


def _frusta(views: Views) -> Cameras:
    """All views as cameras of the first one's size, to be drawn as frustums."""
    first = views.views[0]
    poses = torch.stack([view.world_from_camera.float() for view in views.views])
    K = torch.stack([view.K.float() * (first.height / view.height) for view in views.views])
    return Cameras(K, poses, first.width, first.height, names=tuple(view.name for view in views.views))


def _label(index: int, view: View) -> str:
    return f"{index} {Path(view.name).name}"[:60]


def _nothing() -> Gaussians:
    return Gaussians(
        torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 1, 3),
        torch.zeros(0, dtype=torch.int32),
    )  # fmt: skip
