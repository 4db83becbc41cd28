"""Draw the pictures of the README from the generated scene: python scripts/pictures.py (writes assets/demo.png)."""

from pathlib import Path

import numpy as np
from PIL import Image

from gworld.cli.panels import draw_panels
from gworld.cli.scenes import place_world, render_frames
from gworld.data.toys import poses_of, tabletop_world, waving_rollout
from gworld.render.api import RenderOptions
from gworld.render.paths import orbit, path_cameras

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Render one instant of the waving arms as colour, depth and owning link."""
    world = place_world(tabletop_world(0.008), "auto")
    poses = poses_of(waving_rollout(world))[45][None]
    cameras = path_cameras(orbit(world.gaussians.means.new_tensor([0.0, 0.1, 0.82]), 1.6, 0.85, 36), 720, 540, 0.75)[26]
    options = RenderOptions(background=(0.88, 0.91, 0.95))
    output = next(render_frames(world, poses, cameras, ("rgb", "depth", "link_id"), options, "auto"))
    picture = np.asarray(draw_panels(output, ("rgb", "depth", "link_id")))
    (ROOT / "assets").mkdir(exist_ok=True)
    Image.fromarray(picture).save(ROOT / "assets" / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
