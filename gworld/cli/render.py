"""`gworld render`: a world or splat file along a camera path, to video or pictures."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from gworld.cli.options import print_json, say
from gworld.cli.panels import draw_panels, video_frame
from gworld.cli.scenes import load_scene, place_world, render_frames, world_means
from gworld.errors import InputError, UsageError
from gworld.files import refuse_existing
from gworld.formats.registry import read_views
from gworld.formats.table import Axes
from gworld.render.api import BackendName, RenderOptions
from gworld.render.paths import bulk, orbit, path_cameras, read_camera_path, spline
from gworld.render.select import choose_backend
from gworld.render.video import write_pngs, write_video
from gworld.runlog import track
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.views import cameras_of
from gworld.scene.world import World

MAX_VIDEO, MAX_PICTURE = 8192, 16384  # pixels a side: what H.264 players take; what PNG readers take
Panel = Literal["rgb", "depth", "alpha", "link_id", "flow"]


@dataclass(frozen=True)
class Options:
    """What to render, from where, and into what."""

    source: Annotated[Path, tyro.conf.Positional]
    """A world folder or any splat file."""
    source_axes: Axes | None = None
    """How the source's numbers are meant, where the file does not say (y down by habit): RDF, RUB or RFU."""
    out: Path = Path("render.mp4")
    """An .mp4 file, or a folder for a PNG sequence."""
    path: str = "orbit"
    """`orbit`, `cameras` (the world's own, joined by a smooth curve), a nerfstudio camera-path JSON, a COLMAP folder or
    a transforms.json (every view in order)."""
    seconds: float = 4.0
    """Length of an orbit or curve."""
    fps: float = 30.0
    """Frames per second; a camera-path file brings its own."""
    width: int = 640
    """Width in pixels; views and path files keep their aspect ratio."""
    height: int = 480
    """Height in pixels of an orbit."""
    fov: float = 45.0
    """Vertical field of view of an orbit, in degrees."""
    outputs: tuple[Panel, ...] = ("rgb",)
    """What to show, side by side."""
    background: tuple[float, float, float] | None = None
    """Background colour, 0 to 1; the world's own, or white, when not given."""
    antialiased: bool = False
    """Compensate the opacity of Gaussians smaller than a pixel."""
    backend: BackendName = "auto"
    """Which renderer draws; auto takes the fastest that is here."""
    overwrite: bool = False
    """Replace the output if it exists."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Render.

    Raises `UsageError` for an output that exists and `InputError` for a source or path that cannot be read.
    """
    _check(options)
    # A path file is in the frame of the file it was made for, so only gworld's own paths turn the scene upright.
    world = load_scene(options.source, options.source_axes, upright=options.path in ("orbit", "cameras"))
    cameras, fps = choose_path(world, options)
    world = place_world(world, options.backend)
    backend = choose_backend(world.gaussians, options.outputs, options.backend)
    start = time.monotonic()
    count = _write(world, cameras, fps, options)
    seconds = time.monotonic() - start
    facts = {
        "out": str(options.out),
        "frames": count,
        "fps": fps,
        "width": cameras.width * len(options.outputs),
        "height": cameras.height,
        "gaussians": len(world.gaussians),
        "backend": backend,
        "seconds": round(seconds, 3),
    }
    if options.json:
        print_json(facts)
        return
    say(f"rendered {count} frames of {len(world.gaussians):,} Gaussians to {options.out}")
    say(f"{count / seconds:.1f} frames per second with encoding, by {backend}")
    say(f"next: watch it, or try `gworld render {shlex.quote(str(options.source))} --outputs rgb depth link_id`")


def _check(options: Options) -> None:
    """Refuse what cannot be rendered before anything is loaded."""
    refuse_existing(options.out, overwrite=options.overwrite)
    if options.out.suffix.lower() not in (".mp4", ""):
        raise UsageError(f"`--out {options.out}` is neither an .mp4 file nor a folder for PNGs.")
    if not options.outputs:
        raise UsageError("`--outputs` is empty; name at least one of rgb, depth, alpha, link_id, flow.")
    if not (0 < options.seconds <= 3600 and 0 < options.fps <= 1000):
        raise UsageError(f"{options.seconds} s at {options.fps} fps cannot be rendered; up to 3600 s and 1000 fps can.")
    if not 1 <= options.fov <= 170:
        raise UsageError(f"`--fov {options.fov}` cannot be rendered; 1 to 170 degrees can.")
    wide = options.width * (len(options.outputs) if options.out.suffix else 1)
    limit = MAX_VIDEO if options.out.suffix else MAX_PICTURE
    if not (options.width >= 1 and wide <= limit and 1 <= options.height <= limit):
        raise UsageError(f"a picture of {wide} x {options.height} pixels cannot be written; 1 to {limit} can.")


def choose_path(world: World, options: Options) -> tuple[Cameras, float]:
    """The cameras of every frame and the frame rate that the options ask for."""
    count = max(1, round(options.seconds * options.fps))
    if options.path == "orbit":
        center, radius = bulk(world_means(world, world.rest_poses()))
        fov = float(np.radians(options.fov))
        distance = radius / float(np.sin(min(fov, 2 * np.arctan(np.tan(fov / 2) * options.width / options.height)) / 2))
        poses = orbit(center, 0.85 * distance, 0.5 * distance, count)
        return path_cameras(poses, options.width, options.height, fov), options.fps
    if options.path == "cameras":
        if world.cameras is None:
            raise InputError(f"`{options.source}` holds no cameras. Use `--path orbit` or a camera-path file.")
        _say_undistorted(world.cameras)
        cameras = replace(world.cameras, distortion=None, model="pinhole", names=())
        own = _fit_width(cameras, options.width)
        return (spline(own, count, closed=True) if len(own) > 1 and not any(own.links) else own), options.fps
    target = Path(options.path)
    if target.is_dir() or target.name == "transforms.json":
        views = cameras_of(read_views(target))
        _say_undistorted(views)
        return _fit_width(replace(views, distortion=None, model="pinhole", names=()), options.width), options.fps
    cameras, fps = read_camera_path(target)
    return _fit_width(cameras, options.width), fps


def _say_undistorted(cameras: Cameras) -> None:
    if cameras.model != "pinhole":
        say(f"the cameras are {cameras.model}; they are rendered as pinhole cameras, without their distortion")


def _fit_width(cameras: Cameras, width: int) -> Cameras:
    return resize_cameras(cameras, width, max(1, round(cameras.height * width / cameras.width)))


def _write(world: World, cameras: Cameras, fps: float, options: Options) -> int:
    background = options.background or world.background or (1.0, 1.0, 1.0)
    render_options = RenderOptions(background=background, antialiased=options.antialiased)
    poses = world.rest_poses()[None]
    outputs = render_frames(world, poses, cameras, options.outputs, render_options, options.backend)

    stream = track(outputs, "frames", total=len(cameras))
    if options.out.suffix:
        return write_video((video_frame(output, options.outputs) for output in stream), options.out, fps)
    pictures = (draw_panels(output, options.outputs) for output in stream)
    return write_pngs(pictures, options.out, overwrite=options.overwrite)
