"""`gworld demo`: a tour: a scene made, written in every format, rendered moving; a filmed table reconstructed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gworld.capture.keyframes import KeyframeOptions
from gworld.cli import reconstruct
from gworld.cli.options import print_json, say
from gworld.cli.panels import draw_panels
from gworld.cli.scenes import place_world, render_frames
from gworld.data.toys import poses_of, tabletop_world, waving_rollout
from gworld.errors import InputError, UsageError
from gworld.files import atomic_folder
from gworld.formats.convert import table_from_gaussians
from gworld.formats.gltf_write import write_gltf
from gworld.formats.registry import read_table, write_table
from gworld.formats.world import save_world
from gworld.render.api import RenderOptions
from gworld.render.paths import orbit, path_cameras
from gworld.render.video import write_video
from gworld.runlog import track

CLIP = "tabletop.mp4"
PICTURES = 40
"""Taken out of the clip: enough for its short arc, and quickly matched."""
FORMATS = ("scene.ply", "scene.compressed.ply", "scene.spz", "scene.sog", "scene.splat", "scene.glb")


@dataclass(frozen=True)
class Options:
    """Where the tour goes and how long it is."""

    out: Path = Path("out/demo")
    """Folder for everything the tour makes."""
    seconds: float = 4.0
    """Length of the rendered video."""
    budget: str = "35s"
    """Wall time for fitting the filmed table; empty leaves the reconstruction out."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Make the tour; raises `UsageError` when the folder exists and may not be replaced."""
    if not 0.1 <= options.seconds <= 600:
        raise UsageError(f"`--seconds {options.seconds}` is out of range; 0.1 to 600 can be rendered.")
    start = time.monotonic()
    with atomic_folder(
        options.out, own=(*FORMATS, "world", "demo.mp4", "tabletop"), overwrite=options.overwrite
    ) as folder:
        facts = _tour(folder, options.seconds)
    if options.budget:
        request = reconstruct.Options(
            video=(find_clip(),),
            out=options.out / "tabletop",
            budget=options.budget,
            capture=KeyframeOptions(count=PICTURES),
        )
        facts["reconstruction"] = reconstruct.make(request)
    facts["seconds"] = round(time.monotonic() - start, 2)
    facts["out"] = str(options.out)
    if options.json:
        print_json(facts)
        return
    say(f"made {options.out}: world/, {len(FORMATS)} splat files, demo.mp4 ({facts['frames']} frames)")
    say(f"rendered {facts['render_fps']:.1f} frames per second at 640x480, everything in {facts['seconds']:.1f} s")
    if options.budget:
        say(f"reconstructed the clip of a table: look at {options.out}/tabletop/report.html and orbit.mp4")
    world = shlex.quote(f"{options.out}/{'tabletop/' * bool(options.budget)}world")
    say(f"next: gworld info {world} --thumbnail world.png; gworld render {world} --path cameras")


def find_clip() -> Path:
    """The self-made clip that comes with gworld; raises `InputError` where the installation lacks it."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "assets", package.parent / "assets"):
        if (folder / CLIP).is_file():
            return folder / CLIP
    raise InputError(f"this installation has no `{CLIP}`. Run `gworld demo --budget ''`, or install gworld again.")


def _tour(folder: Path, seconds: float) -> dict[str, object]:
    world = tabletop_world()
    say(f"a generated table with two robots: {len(world.gaussians):,} Gaussians on {len(world.links)} links")
    save_world(world, folder / "world")
    rollout = waving_rollout(world, seconds)
    table = replace(table_from_gaussians(world.gaussians), link_table=world.links, metric=True)
    sizes = {}
    for name in FORMATS:
        if name.endswith(".glb"):  # the one format here that moves
            write_gltf(table, folder / name, rollout.times.numpy(), rollout.link_poses.numpy())
        else:
            write_table(table, folder / name)
        sizes[name] = (folder / name).stat().st_size
        count = len(read_table(folder / name))
        say(f"  {name:<22} {sizes[name] / 1e6:6.2f} MB, {count:,} Gaussians read back")
    center = world.gaussians.means.new_tensor([0.0, 0.1, 0.8])
    poses = poses_of(rollout)
    cameras = path_cameras(orbit(center, 1.7, 0.9, 2 * len(poses))[len(poses) :], 640, 480, 0.75)
    world = place_world(world, "auto")
    panels = ("rgb", "depth", "link_id")
    outputs = render_frames(world, poses, cameras, panels, RenderOptions(background=(0.88, 0.91, 0.95)), "auto")

    def frames() -> Iterator[np.ndarray]:
        for output in track(outputs, "frames", total=len(poses)):
            yield draw_panels(output, panels)

    start = time.monotonic()
    count = write_video(frames(), folder / "demo.mp4", 30.0)
    rate = count / (time.monotonic() - start)
    return {"frames": count, "gaussians": len(world.gaussians), "bytes": sizes, "render_fps": round(rate, 2)}
