"""What watching a fit costs it: the same fit alone and with four guests at its viewer, in turns."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_most
from gworld.bench.viewer_client import CAMERA, Guest, RefusedError
from gworld.data.toys import tabletop_world
from gworld.formats.transforms import write_transforms
from gworld.render.paths import orbit, path_cameras
from gworld.render.select import render
from gworld.render.video import as_uint8
from gworld.scene.views import View, Views

GUESTS = 4
SIZE = (480, 360)


def fit_rows(place: Path, given: BenchInput) -> Iterator[Row]:
    """What a fit takes, watched over alone: processor time, which other work on the machine hardly moves, and time."""
    data = posed_pictures(place / "posed", 12 if given.quick else 40)
    steps, pairs = (300, 1) if given.quick else (2000, 2)
    alone, watched = [], []
    for pair in range(pairs):
        alone.append(run_fit(data, place / f"alone-{pair}", steps, guests=0))
        watched.append(run_fit(data, place / f"watched-{pair}", steps, guests=GUESTS))
    yield Row(f"fit of {steps} steps, alone", sum(run.seconds for run in alone) / pairs, "s")
    rate = steps * pairs / sum(run.used for run in alone)
    yield Row("the same, steps per second of one processor", rate, "1/s", note="all of the command counted")
    note = f"each guest got {sum(run.taken for run in watched) / pairs / GUESTS / 1e6:.0f} MB"
    more = 100 * (sum(run.used for run in watched) / sum(run.used for run in alone) - 1)
    yield at_most(f"with {GUESTS} guests watching: processor time of run and viewer", more, "% more", 5.0, note=note)
    slower = 100 * (sum(run.seconds for run in watched) / sum(run.seconds for run in alone) - 1)
    yield at_most(f"with {GUESTS} guests watching: time of the fit", slower, "% more", 5.0)


def posed_pictures(folder: Path, count: int) -> Path:
    """Pictures of the generated table with exact poses."""
    width, height = SIZE
    world = tabletop_world(0.02)
    cameras = path_cameras(orbit(torch.tensor([0.0, 0.1, 0.8]), 1.7, 0.9, count), width, height, 0.75)
    folder.mkdir()
    views = []
    for index in range(count):
        drawn = render(world.gaussians, world.rest_poses(), cameras[index], outputs=("rgb",)).rgb
        assert drawn is not None
        file = folder / f"{index:03d}.png"
        Image.fromarray(as_uint8(drawn[0, 0])).save(file)
        views.append(View(file.name, width, height, cameras.K[index], cameras.world_from_camera[index], image=file))
    write_transforms(Views(tuple(views), world.gaussians.means[::20].double(), metric=True), folder / "transforms.json")
    return folder


@dataclass(frozen=True)
class FitRun:
    """Seconds of the fit's stage by the run's own book, processor seconds of run and viewer, bytes sent to guests."""

    seconds: float
    used: float
    taken: int


def run_fit(data: Path, out: Path, steps: int, guests: int) -> FitRun:
    """Run a fit in a process of its own, with guests from when its viewer listens."""
    command = [sys.executable, "-m", "gworld", "reconstruct", "--data", str(data), "--out", str(out)]
    command += ["--fit.steps", str(steps), "--fit.gaussians", "40000", "--fit.save-every", "20"]
    command += ["--view"] if guests else []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    taken = [0] * guests
    ended = threading.Event()
    threads: list[threading.Thread] = []
    assert process.stderr is not None
    for line in process.stderr:
        address = re.search(r"http://localhost:(\d+)/", line)
        if address and not threads:
            port = int(address[1])
            threads = [threading.Thread(target=_watch, args=(port, taken, row, ended)) for row in range(guests)]
            for thread in threads:
                thread.start()
    used = os.wait4(process.pid, 0)[2]
    process.returncode = 0  # it was waited for already
    process.stderr.close()
    ended.set()
    for thread in threads:
        thread.join()
    stages = json.loads((out / "stages.json").read_text(encoding="utf-8"))
    return FitRun(float(stages["fit"]["seconds"]), used.ru_utime + used.ru_stime, sum(taken))


def _watch(port: int, taken: list[int], row: int, ended: threading.Event) -> None:
    time.sleep(0.1 * row)
    with contextlib.suppress(OSError, RefusedError), Guest(port, timeout=5.0) as guest:
        guest.say(CAMERA)
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                guest.hear()
            taken[row] = guest.taken
