"""Make the README's first picture of what `gworld demo` made: python scripts/pictures.py out/demo (assets/demo.png)."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gworld.render.video import read_video

ROOT = Path(__file__).resolve().parent.parent
INSTANTS = (0.0, 0.35, 0.65, 1.0)
"""Shares of the film that stand side by side."""
WIDTH, GAP = 360, 6


def main(demo: Path) -> None:
    """The first camera's footage above its simulation, at a few instants."""
    frames = list(read_video(demo / "demo.mp4"))
    height, width = frames[0].shape[0] // 2, (frames[0].shape[1] - 2 * 2) // 3
    tall = round(WIDTH * height / width)
    sheet = Image.new("RGB", (len(INSTANTS) * (WIDTH + GAP) - GAP, 2 * tall + GAP), (255, 255, 255))
    for column, share in enumerate(INSTANTS):
        frame = frames[round(share * (len(frames) - 1))]
        for line in range(2):
            part = Image.fromarray(np.ascontiguousarray(frame[line * height : (line + 1) * height, :width]))
            sheet.paste(
                part.resize((WIDTH, tall), Image.Resampling.LANCZOS), (column * (WIDTH + GAP), line * (tall + GAP))
            )
        seconds = share * (len(frames) - 1) / 20
        draw = ImageDraw.Draw(sheet)
        draw.text((column * (WIDTH + GAP) + WIDTH - 8, 6), f"{seconds:.1f} s", (255, 255, 255),
                  ImageFont.load_default(18), "ra")  # fmt: skip
    sheet.save(ROOT / "assets" / "demo.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
