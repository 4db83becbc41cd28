"""A picture of a scene for `gworld info --thumbnail`."""

from __future__ import annotations

import io
from pathlib import Path

from gworld.cli.scenes import load_scene, place_world, render_frames, world_means
from gworld.errors import UsageError
from gworld.files import atomic_write
from gworld.formats.table import Axes
from gworld.render.api import RenderOptions
from gworld.render.paths import fit_view
from gworld.render.video import as_uint8


def draw_thumbnail(path: Path, target: Path, size: int, axes: Axes | None = None) -> None:
    """Render a view that frames the bulk of a splat file or world to a PNG of `size` x 3/4 `size` pixels."""
    from PIL import Image

    if target.suffix.lower() != ".png":
        raise UsageError(f"`--thumbnail {target}` must end in .png.")
    if not 16 <= size <= 4096:
        raise UsageError(f"`--size {size}` is out of range; 16 to 4096 pixels are drawn.")
    world = place_world(load_scene(path, axes), "auto")
    poses = world.rest_poses()[None]
    camera = fit_view(world_means(world, poses[0]), size, max(1, size * 3 // 4))
    options = RenderOptions(background=world.background or (1.0, 1.0, 1.0))
    output = next(render_frames(world, poses, camera, ("rgb",), options, "auto"))
    assert output.rgb is not None
    buffer = io.BytesIO()
    Image.fromarray(as_uint8(output.rgb[0, 0])).save(buffer, "PNG")
    with atomic_write(target) as stream:
        stream.write(buffer.getvalue())
