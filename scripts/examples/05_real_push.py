"""A real push from raw files to a report: tracked, learned, foretold, drawn, and pushes that were never made.

python scripts/examples/05_real_push.py DATA OUT [--episodes STORE]

DATA is that of 04_track_recording.py, which is run first (a camera is held out;
--episodes takes what an earlier run of it left). Then come `gworld bench realpush` and OUT/report.html. The seconds of
every stage are printed, on the wall and of the processor.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gworld.data.store import open_episodes, read_episode
from gworld.evaluate import html
from gworld.geometry import transform_from_pose

HELD = "220422302296"
PLANE = "embodied_gaussians/examples/embodied_environments/pusht_embodied/environment/ground_plane.json"


def stage(name: str, command: list[str], out: Path | None = None) -> tuple[str, float, float]:
    """Run a command; its name, wall seconds and processor seconds. What it prints goes to `out` if given."""
    print(name, *command[1:], flush=True)
    wall, used = time.monotonic(), _used()
    if out is None:
        subprocess.run(command, check=True)
    else:
        with out.open("wb") as stream:
            subprocess.run(command, check=True, stdout=stream, cwd=out.parent)
    taken = (name, time.monotonic() - wall, _used() - used)
    print(f"{name}: {taken[1]:.0f} s, {taken[2]:.0f} s of the processor", flush=True)
    return taken


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def track_file(store: Path, plane: Path, out: Path) -> Path:
    """The track of the newest episode, as the bench takes it."""
    episodes = open_episodes(store)
    episode = read_episode(episodes, len(episodes) - 1)
    assert episode.link_poses is not None and episode.cameras is not None
    np.savez(
        out,
        times=episode.times.numpy(),
        world_from_link=transform_from_pose(episode.link_poses.double()).numpy(),
        link_names=np.array(episode.link_names),
        plane=np.array(json.loads(plane.read_text(encoding="utf-8"))["plane"]),
        camera_names=np.array(episode.cameras.names or [video.name for video in episode.videos]),
        world_from_camera=episode.cameras.world_from_camera.double().numpy(),
        held=np.array([HELD]),
    )
    return out


def report(facts: dict, folder: Path, stages: list[tuple[str, float, float]], path: Path) -> None:
    """One page: figures, films, pushes never made, what it took."""
    rows = [
        (row["name"], f"{row['value']:.4g} {row['unit']}", "" if row["baseline"] is None else f"{row['baseline']:.4g}",
         row["goal"], html.verdict(row["ok"]), row["note"])
        for row in facts["rows"]
    ]  # fmt: skip
    heads = ("figure", "value", "baseline", "goal", "met", "note")
    films = [
        html.figure(html.film(film.read_bytes(), film.stem), film.stem) for film in sorted(folder.glob("push-*.mp4"))
    ]
    sheets = [
        html.figure(html.image(np.asarray(Image.open(sheet).convert("RGB")), sheet.stem, longest=1560), sheet.stem)
        for sheet in sorted(folder.glob("whatif-*.png"))
    ]
    taken = html.table(
        ("stage", "wall s", "processor s"), [(name, f"{a:.0f}", f"{b:.0f}") for name, a, b in stages], (1, 2)
    )
    page = html.page(
        "A real push",
        html.section("A real push: footage of the held-out camera beside the simulated push", *films),
        html.section("Pushes that were never made, from above; grey: where the block stood", *sheets),
        html.section("Figures", html.table(heads, rows, (1, 2))),
        html.section("Time", taken),
        footer=f"gworld {facts['version']}, {facts['machine']}",
    )
    html.write_page(path, page)


def run(data: Path, out: Path, episodes: Path | None) -> None:
    """All stages."""
    out.mkdir(parents=True, exist_ok=True)
    out, data, stages = out.resolve(), data.resolve(), []
    if episodes is None:
        script = str(Path(__file__).with_name("04_track_recording.py"))
        stages.append(
            stage("raw files to world and track", [sys.executable, script, str(data), str(out), "--hold-out", HELD])
        )
        episodes = out / "episodes"
    track = track_file(episodes, data / PLANE, out / "track.npz")
    rows = out / "realpush.json"
    bench = [sys.executable, "-m", "gworld", "bench", "realpush", "--data", str(data), "--track", str(track), "--json"]
    stages.append(stage("learn, foretell, draw", bench, rows))
    report(json.loads(rows.read_text(encoding="utf-8")), out / "runs" / "realpush", stages, out / "report.html")
    print(f"report: {os.path.relpath(out / 'report.html')}; {sum(one[1] for one in stages) / 60:.1f} minutes in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=Path)
    given = parser.parse_args()
    if not (given.data / "embodied_gaussians").is_dir():
        parser.error(f"`{given.data}` holds no folder `embodied_gaussians`")
    run(given.data, given.out, given.episodes)
