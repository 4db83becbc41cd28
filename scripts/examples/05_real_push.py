"""A real push from raw files to a report: tracked, learned, foretold, drawn, refined, and pushes that were never made.

python scripts/examples/05_real_push.py DATA OUT [--tracked] [--no-droid] [--quick]

DATA is that of 04_track_recording.py, which is run first (a camera is held out; --tracked takes what an earlier run
left in OUT). Then a second arm is bound across the table, the wrist cameras of DATA/droid are scanned and its outer
cameras looked for there, `gworld bench realpush` measures, and OUT/report.html shows. The seconds of every stage are
printed, on the wall and of the processor.
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

from gworld.bench.realpush_droid import WRISTS, hand_log
from gworld.data.store import open_episodes, read_episode
from gworld.evaluate import html
from gworld.formats.world import load_world
from gworld.geometry import transform_from_pose

GWORLD = [sys.executable, "-m", "gworld"]
HELD = "220422302296"
MODEL = "embodied_gaussians/robot/panda.urdf"
ACROSS = ("1.0", "0.35", "0.0", "0", "0", "0", "1")
"""The second arm's base: a metre across the table, facing the first."""
PLANE = "embodied_gaussians/examples/embodied_environments/pusht_embodied/environment/ground_plane.json"


def stage(name: str, command: list[str], out: Path | None = None, log: Path | None = None) -> tuple[str, float, float]:
    """Run a command; its name, wall seconds and processor seconds. What it prints goes to `out` if given; one with a
    `log` of what it tells may fail."""
    print(name, *command[1:], flush=True)
    wall, used = time.monotonic(), _used()
    if log is not None:
        with log.open("wb") as stream:
            subprocess.run(command, check=False, stderr=stream)
    elif out is None:
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


def track_file(store: Path, world: Path, plane: Path, out: Path) -> Path:
    """The track of the newest episode, as the bench takes it."""
    episodes = open_episodes(store)
    episode = read_episode(episodes, len(episodes) - 1)
    assert episode.link_poses is not None and episode.cameras is not None
    lensed, straight = episode.cameras, load_world(world).cameras
    assert straight is not None
    lenses = np.zeros((len(lensed), 7))  # k1 k2 dx dy k3 p1 p2
    if lensed.distortion is not None:
        lenses[:, [0, 1, 5, 6, 4]] = lensed.distortion[:, :5].numpy()
        lenses[:, 2:4] = (lensed.K - straight.K)[:, :2, 2].numpy()
    np.savez(
        out,
        times=episode.times.numpy(),
        world_from_link=transform_from_pose(episode.link_poses.double()).numpy(),
        link_names=np.array(episode.link_names),
        plane=np.array(json.loads(plane.read_text(encoding="utf-8"))["plane"]),
        camera_names=np.array(episode.cameras.names or [video.name for video in episode.videos]),
        world_from_camera=episode.cameras.world_from_camera.double().numpy(),
        held=np.array([HELD]),
        lenses=lenses,
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
    sheets = [
        html.figure(html.image(np.asarray(Image.open(sheet).convert("RGB")), sheet.stem, longest=1560), sheet.stem)
        for sheet in sorted(folder.glob("whatif-*.png"))
    ]
    taken = html.table(
        ("stage", "wall s", "processor s"), [(name, f"{a:.0f}", f"{b:.0f}") for name, a, b in stages], (1, 2)
    )
    page = html.page(
        "A real push",
        html.section("A real push: footage of the held-out camera beside the simulated push", *films(folder, "push")),
        html.section("Footage, simulated, refined, at half the pace", *films(folder, "refined")),
        html.section("Pushes that nobody made, by one arm and by two, at a third of the pace", *films(folder, "acted")),
        html.section("The same from above, six instants of each; grey: where the block stood", *sheets),
        html.section("Figures", html.table(heads, rows, (1, 2))),
        html.section("Time", taken),
        footer=f"gworld {facts['version']}, {facts['machine']}",
    )
    html.write_page(path, page)


def films(folder: Path, kind: str) -> list[html.Fragment]:
    """All films of a kind, in the page."""
    return [
        html.figure(html.film(film.read_bytes(), film.stem), film.stem) for film in sorted(folder.glob(f"{kind}-*.mp4"))
    ]


def scans(data: Path, out: Path) -> list[tuple[str, float, float]]:
    """The wrist cameras of DROID scanned, its outer cameras looked for in the scans: one folder and one log each."""
    taken = []
    for number in WRISTS:
        videos, log = data / "droid" / "videos" / str(number), out / f"droid-{number}.csv"
        hand_log(data / "droid" / "annotation" / f"{number}.json", log)
        outer = [str(videos / f"{camera}.mp4") for camera in (0, 1)]
        command = [*GWORLD, "reconstruct", "--video", str(videos / "2.mp4"), "--hand-log", str(log), "--fixed", *outer,
                   "--budget", "15s", "--out", str(out / f"droid-{number}"), "--overwrite"]  # fmt: skip
        taken.append(stage(f"DROID, wrist camera {number}", command, log=out / f"droid-{number}.log"))
    return taken


def run(data: Path, out: Path, tracked: bool = False, droid: bool = True, quick: bool = False) -> None:
    """All stages."""
    out.mkdir(parents=True, exist_ok=True)
    out, data, stages = out.resolve(), data.resolve(), []
    if not tracked:
        script = str(Path(__file__).with_name("04_track_recording.py"))
        command = [sys.executable, script, str(data), str(out), "--hold-out", HELD]
        stages.append(stage("raw files to world and track", command))
    track = track_file(out / "episodes", out / "world", data / PLANE, out / "track.npz")
    second = [*GWORLD, "bind", str(out / "world"), "--robot", str(data / MODEL), "--name", "other", "--base", *ACROSS,
              "--control", "hand_step", "--hand", "panda_pusher", "--skin.per-square-metre", "6000",
              "--out", str(out / "pair"), "--overwrite"]  # fmt: skip
    stages.append(stage("second arm", second))
    if droid and (data / "droid").is_dir():
        stages += scans(data, out)
    rows = out / "realpush.json"
    bench = [*GWORLD, "bench", "realpush", "--data", str(data), "--track", str(track), "--json"]
    stages.append(stage("learn, foretell, draw, refine", [*bench, *(["--quick"] if quick else [])], rows))
    report(json.loads(rows.read_text(encoding="utf-8")), out / "runs" / "realpush", stages, out / "report.html")
    print(f"report: {os.path.relpath(out / 'report.html')}; {sum(one[1] for one in stages) / 60:.1f} minutes in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tracked", action="store_true")
    parser.add_argument("--no-droid", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if not (given.data / "embodied_gaussians").is_dir():
        parser.error(f"`{given.data}` holds no folder `embodied_gaussians`")
    run(given.data, given.out, given.tracked, not given.no_droid, given.quick)
