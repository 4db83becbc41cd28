"""A generated room on disk: as a folder of footage (pictures, masks, depth, `footage.json`) or as a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from gworld.data.rooms import Room
from gworld.files import atomic_write, write_json

FORMAT = "gworld footage 1"
DEPTH_UNIT = 0.0005  # metres: 16 bits reach 32 m


def write_room(
    room: Room, folder: str | Path, *, masks: bool = False, depth: bool = False, focal: bool = False
) -> None:
    """Write `images/*.png` and `footage.json` into a folder, where asked with exact masks, depth and intrinsics.

    Masks are 255 where the scene is static; depth is 16-bit in units of 0.5 mm.
    """
    from PIL import Image

    root = Path(folder)
    height, width = room.pictures.shape[1:3]
    for name in ("images", *["masks"] * masks, *["depth"] * depth):
        (root / name).mkdir(parents=True, exist_ok=True)
    shots = []
    for index, picture in enumerate(room.pictures):
        name = f"room-{index:06d}"
        layers = {"image": ("images", picture)}
        if masks:
            layers["mask"] = ("masks", np.where(room.moving[index], 0, 255).astype(np.uint8))
        if depth:
            levels = np.rint(np.minimum(room.depth[index] / DEPTH_UNIT, 65535))
            layers["depth"] = ("depth", levels.astype(np.uint16))
        for place, values in layers.values():
            Image.fromarray(values).save(root / place / f"{name}.png", compress_level=3)
        files = {key: f"{place}/{name}.png" for key, (place, _) in layers.items()}
        shots.append({"name": name, "camera": 0, "index": index, "time": index / room.fps, **files})
    K = [room.K[0, 0], room.K[1, 1], room.K[0, 2], room.K[1, 2]] if focal else []
    camera = {"name": "room", "width": width, "height": height, "K": K, "fps": room.fps}
    write_json(
        root / "footage.json", {"format": FORMAT, "depth_scale": DEPTH_UNIT, "cameras": [camera], "shots": shots}
    )


def write_room_video(room: Room, path: str | Path, quality: int = 12) -> None:
    """Write the pictures as an MP4 (H.264, `quality` its CRF), sizes even."""
    import av

    with atomic_write(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(room.fps).limit_denominator(1000))
        stream.height, stream.width = room.pictures.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(quality), "preset": "veryfast"}
        for picture in room.pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
