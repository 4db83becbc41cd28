"""`gworld backdrop`: a static world out of what standing cameras see, to bind robots and objects into."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gworld.cli.options import print_json, say
from gworld.cli.track_footage import loose_episode, open_film, some_cameras
from gworld.errors import UsageError
from gworld.files import refuse_existing
from gworld.reconstruct.motion_options import PlaneOptions
from gworld.reconstruct.motion_rig import RigOptions


@dataclass(frozen=True)
class Options:
    """Which footage, and the plane it happens on."""

    video: tuple[Path, ...] = ()
    """Videos of standing cameras that started together."""
    times: tuple[Path, ...] = ()
    """Seconds of each frame where a video's own clock is wrong, one file per --video: a number per line, or JSON."""
    cameras: Path | None = None
    """Calibration of --video in metres, cameras named like the files."""
    out: Path = Path("runs/backdrop")
    """The world folder."""
    refine_cameras: bool = False
    """Bring the cameras to agree on the plane, from each one's first picture."""
    rig: RigOptions = field(default_factory=RigOptions)
    """The static plane (a table, a floor), and how far cameras may be off."""
    scene: PlaneOptions = field(default_factory=PlaneOptions)
    """How the pictures are laid on the plane."""
    overwrite: bool = False
    """Replace what stands at --out."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Lay what the cameras see most of the time on the plane; raises `UsageError`, `InputError` as `gworld track`."""
    from gworld.formats.world import save_world
    from gworld.reconstruct.motion_film import first_plates
    from gworld.reconstruct.motion_lens import straightened
    from gworld.reconstruct.motion_rig import refine_rig
    from gworld.reconstruct.motion_scene import plane_gaussians
    from gworld.scene.world import World

    if not options.video or options.cameras is None:
        raise UsageError("`gworld backdrop` needs --video, standing cameras' films, and --cameras, their calibration.")
    refuse_existing(options.out, overwrite=options.overwrite)
    episode = loose_episode(options.video, options.times, options.cameras, None)
    cameras = episode.cameras
    assert cameras is not None
    facts: dict[str, object] = {"world": str(options.out), "cameras": list(cameras.names)}
    with tempfile.TemporaryDirectory() as folder:
        films = [open_film(video, Path(folder) / f"{row}.raw") for row, video in enumerate(episode.videos)]
        if options.refine_cameras:
            first = np.stack([film.pictures[0] for film in films]).astype(np.float32) / 255
            rig = refine_rig(first, cameras, options.rig)
            films = straightened(films, cameras, rig.lenses) if options.rig.lens else films
            cameras = rig.cameras
            facts |= {"rig_matches": rig.matches, "rig_before_px": rig.before, "rig_after_px": rig.after}
        plates = first_plates(films, np.zeros((0, 3)))
    bare = some_cameras(cameras, range(len(cameras)))
    gaussians = plane_gaussians(plates, bare, options.rig.plane, options.scene)
    save_world(World(gaussians, cameras=replace(bare, names=cameras.names), metric=True), options.out,
               overwrite=options.overwrite)  # fmt: skip
    facts["gaussians"] = len(gaussians)
    if options.json:
        print_json(facts)
        return
    if options.refine_cameras:
        say(f"cameras disagreed by {facts['rig_before_px']:.1f} pixels on the plane, now {facts['rig_after_px']:.1f}")
    say(f"{options.out}: {len(gaussians):,} Gaussians on the plane, {len(cameras)} cameras; metres")
    say(f"next: gworld bind {options.out} --robot arm.urdf --name arm; then gworld track {options.out}")
