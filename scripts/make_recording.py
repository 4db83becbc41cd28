"""Make `assets/recording`, the two-agent push recording that `gworld demo` begins with: needs MuJoCo and its OpenGL.

    python scripts/make_recording.py assets/recording

It holds an episode store (three filmed scans, states to learn from, two filmed episodes held out), the robots' models
and the objects' meshes. Everything in it is of our own making.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from gworld.data.simulated import film_trace, simulate_episode, trace_episode
from gworld.data.simulators import open_scene
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_push import OBJECT_HEIGHT
from gworld.data.simulators_world import write_models
from gworld.data.store import EpisodeWriter
from gworld.simulate.observe import pick_cameras

SCANS = (0, 1, 2)
LEARN = range(100, 124)
HELD_OUT = ((5003, "expert"), (5010, "adversarial"))
WATCHED = (0, 4, 8)


def make(folder: Path) -> None:
    """Record, film and write."""
    simulation = open_scene("push", SceneOptions(fps=20.0, cameras=12, width=240, height=180))
    cameras = simulation.cameras
    assert cameras is not None
    names = list(simulation.agents)
    numbers: dict[str, list[int]] = {"scan": [], "learn": [], "held_out": []}
    jobs = [("scan", seed, "random", 1.0) for seed in SCANS] + [("learn", seed, "mixed", 5.0) for seed in LEARN]
    jobs += [("held_out", seed, kind, 5.0) for seed, kind in HELD_OUT]
    with EpisodeWriter(folder / "episodes") as writer:
        for use, seed, kind, seconds in jobs:
            trace, kinds = simulate_episode(simulation, dict.fromkeys(names, kind), seed, seconds)
            simulation.cameras = cameras if use == "scan" else pick_cameras(cameras, WATCHED)
            videos = () if use == "learn" else film_trace(simulation, trace, writer.scratch(), truth=False)
            episode = trace_episode(simulation, trace, kinds, videos)
            kept = {} if use == "learn" else {n: v for n, v in episode.signals.items() if n != "contacts"}
            labels = {n: v for n, v in episode.names.items() if not n.startswith("signals/")}
            numbers[use].append(writer.add(replace(episode, signals=kept, names=labels)))
    write_models(simulation, folder)
    for name, outline in outlines().items():
        (folder / f"{name}.obj").write_text(prism(outline, OBJECT_HEIGHT), encoding="utf-8")
    (folder / "recording.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")


def outlines() -> dict[str, list[tuple[float, float]]]:
    """The objects seen from above, counterclockwise, in metres about their centres of mass."""
    import math

    disc = [(0.065 * math.cos(a), 0.065 * math.sin(a)) for a in (2 * math.pi * k / 48 for k in range(48))]
    x, y = 0.07, 0.0475
    bar, stem, thick = 0.20, 0.13, 0.05
    middle = thick / 2 * bar / (bar + stem) - stem / 2 * stem / (bar + stem)
    low, high, top = -stem - middle, -middle, thick - middle
    tee = [
        (-0.025, low),
        (0.025, low),
        (0.025, high),
        (0.1, high),
        (0.1, top),
        (-0.1, top),
        (-0.1, high),
        (-0.025, high),
    ]
    return {"disc0": disc, "box1": [(-x, -y), (x, -y), (x, y), (-x, y)], "tee2": tee}


def prism(outline: list[tuple[float, float]], height: float) -> str:
    """A standing prism as OBJ: its sides, and both ends cut into triangles ear by ear."""
    count = len(outline)
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for z in (-height / 2, height / 2) for x, y in outline]
    for a in range(count):
        b = (a + 1) % count
        lines.append(f"f {a + 1} {b + 1} {b + count + 1} {a + count + 1}")
    for a, b, c in ears(outline):
        lines += [f"f {c + 1} {b + 1} {a + 1}", f"f {a + count + 1} {b + count + 1} {c + count + 1}"]
    return "\n".join(lines) + "\n"


def ears(outline: list[tuple[float, float]]) -> list[tuple[int, int, int]]:
    """A simple polygon as triangles."""

    def side(a: int, b: int, c: int) -> float:
        (ax, ay), (bx, by), (cx, cy) = outline[a], outline[b], outline[c]
        return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)

    left, found = list(range(len(outline))), []
    while len(left) > 2:
        for index, b in enumerate(left):
            a, c = left[index - 1], left[(index + 1) % len(left)]
            inside = [p for p in left if p not in (a, b, c)]
            free = all(min(side(a, b, p), side(b, c, p), side(c, a, p)) < 0 for p in inside)
            if side(a, b, c) > 0 and free:
                found.append((a, b, c))
                left.pop(index)
                break
    return found


if __name__ == "__main__":
    make(Path(sys.argv[1]))
