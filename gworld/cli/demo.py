"""`gworld demo`: two agents that push things about, from their films to a judged simulation of what they did next."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gworld.cli.options import print_json, say
from gworld.errors import UsageError
from gworld.files import atomic_folder

OWN = ("README.txt", "world", "dynamics", "fit", "demo.mp4", "demo.parquet", "demo-*", "refined.mp4", "report.html")
ABOUT = """world/ the scene as Gaussians, learned from 12 cameras' films, with two robots and three things bound to it
dynamics/ how pushed things move, learned from 24 recordings
demo.mp4 a recording that nothing was learned from: truth above, its simulation from the same actions below
refined.mp4 the simulation from one camera, as rendered and refined where the world is unsure; not without a refiner
report.html how good that is; demo.parquet the motion, demo-errors.csv its errors
"""


@dataclass(frozen=True)
class Options:
    """Where the demonstration goes and how much it learns."""

    out: Path = Path("out/demo")
    """Folder for everything that is made."""
    seconds: float = 4.5
    """How much of the held-out recording is simulated."""
    train: int = 40
    """Steps of training the dynamics."""
    effort: float = 1.0
    """Part of the usual fitting that is done."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Make the demonstration; raises `UsageError` when the folder exists and may not be replaced."""
    if not (0.1 <= options.seconds <= 4.8 and 1 <= options.train <= 10_000 and 0.01 <= options.effort <= 100):
        asked = f"--seconds {options.seconds} --train {options.train} --effort {options.effort}"
        raise UsageError(f"`{asked}` does not fit; 0.1 to 4.8, 1 to 10000 and 0.01 to 100 do.")
    facts: dict[str, Any] = {}
    from gworld.cli.demo_steps import find_recording, learn_motion, reconstruct_scene, refine_film, simulate_held_out

    recording, out = find_recording(), options.out
    with atomic_folder(out, own=OWN, overwrite=options.overwrite) as folder:
        (folder / "README.txt").write_text(ABOUT, encoding="utf-8")
    steps = (
        ("reconstruct", "reconstructing the table from 12 cameras, robots and things bound to it",
         lambda: reconstruct_scene(recording, out, options.effort)),
        ("train", f"learning how things are pushed from {len(recording.learn)} recordings",
         lambda: learn_motion(recording, out, options.train, options.effort)),
        ("simulate", "simulating a recording that nothing was learned from, under its own actions",
         lambda: simulate_held_out(recording, out, options.seconds)),
        ("refine", "refining the film where the world is unsure of itself", lambda: refine_film(out)),
    )  # fmt: skip
    seconds = {}
    for number, (name, about, step) in enumerate(steps, 1):
        say(f"{number}/{len(steps)} {about}")
        start = time.monotonic()
        facts[name] = step()
        seconds[name] = round(time.monotonic() - start, 1)
        say(f"  {seconds[name]:.0f} s")
    facts |= {"seconds": seconds, "out": str(options.out)}
    _close(options, facts)


def _close(options: Options, facts: dict[str, Any]) -> None:
    found = facts["simulate"]
    found |= {"report": str(options.out / "report.html")}
    if options.json:
        print_json(facts)
        return
    out = shlex.quote(str(options.out))
    refined = "refined.mp4, " if facts["refine"] else ""
    say(f"made {options.out}: world/, dynamics/, demo.mp4 (truth above prediction), {refined}report.html")
    say(f"result: {found['headline']} In {sum(facts['seconds'].values()):.0f} s.")
    say(f"next: gworld simulate --world {out}/world --dynamics {out}/dynamics --rate 20 --policy random")
