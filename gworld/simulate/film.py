"""An episode filmed in its world: one video per camera and, beside it, depth and the link behind every pixel."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from gworld.data.truth import write_truth
from gworld.dynamics.state import still_motion
from gworld.errors import InputError, UsageError
from gworld.render.api import RenderOptions
from gworld.render.video import open_video
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.episode import Video
from gworld.scene.world import World
from gworld.simulate.files import camera_name
from gworld.simulate.observe import Observer, pick_cameras

QUALITY = 16


def film_poses(
    world: World,
    poses: Float[Tensor, "T L 4 4"],
    times: Float[Tensor, " T"],
    folder: Path,
    cameras: Cameras,
    labels: bool = False,
) -> tuple[Video, ...]:
    """Film poses with every camera into `folder`; with `labels`, depth and masks lie beside each video, lossless.

    Cameras mounted on links ride along. Raises what `render` raises.
    """
    names = [camera_name(cameras, index) for index in range(len(cameras))]
    background = getattr(world, "background", None) or (0.0, 0.0, 0.0)
    outputs = ("rgb", "depth", "link_id") if labels else ("rgb",)
    observer = Observer(world, cameras, outputs, options=RenderOptions(background=background))
    rate = (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else 30.0
    sides = {
        name: {kind: folder / f"{index}-{name}-{kind}.mkv" for kind in ("depth", "masks")} if labels else {}
        for index, name in enumerate(names)
    }
    paths = {name: folder / f"{index}-{name}.mp4" for index, name in enumerate(names)}
    with contextlib.ExitStack() as stack:
        adds = [stack.enter_context(open_video(paths[name], rate, quality=QUALITY)) for name in names]
        truths = [stack.enter_context(write_truth(times.numpy(), sides[name])) for name in names]
        for row, time in enumerate(times.tolist()):
            frame = observer(replace(still_motion(poses[row : row + 1]), time=time))
            assert frame.rgb is not None
            for index in range(len(names)):
                adds[index](frame.rgb[0, index])
                if frame.depth is not None and frame.link_id is not None:
                    truths[index](depth=frame.depth[0, index].numpy(), masks=frame.link_id[0, index].numpy())
    return tuple(
        Video(name, paths[name], times, masks=sides[name].get("masks"), depth=sides[name].get("depth"))
        for name in names
    )


def film_cameras(world: World, names: tuple[str, ...] = (), width: int = 160) -> Cameras:
    """The world's cameras by name (all when empty), without distortion, at that width.

    Raises `InputError` when the world has none, `UsageError` for a name that it has not.
    """
    cameras = world.cameras
    if cameras is None:
        raise InputError("the world holds no cameras to film with; leave the video out, or give it some.")
    own = cameras.names or tuple(f"camera{index}" for index in range(len(cameras)))
    missing = [name for name in names if name not in own]
    if missing:
        raise UsageError(f"there is no camera `{missing[0]}`; there are {', '.join(own)}.")
    plain = replace(cameras, names=own, model="pinhole", distortion=None)
    chosen = pick_cameras(plain, [own.index(name) for name in names or own])
    sizes = [max(2, 2 * round(size / 2)) for size in (width, cameras.height * width / cameras.width)]
    return resize_cameras(chosen, *sizes)
