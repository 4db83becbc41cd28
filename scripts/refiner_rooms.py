"""The refiner that comes with gworld, made again: pairs of random rooms, and a trained run cut to its weights.

python scripts/refiner_rooms.py pairs runs/rooms --rooms 10 --judge 9
gworld train refiner --refiner.pairs runs/rooms --refiner.base FIRST --refiner.steps 1700 --out runs/refiner
python scripts/refiner_rooms.py ship runs/refiner assets/refiner

FIRST is the refiner that was shipped before, learned in 720 steps from eight rooms. The run was told 3000 steps and
stopped after 1200, went on with room 10 and the weight of flicker at 0.5 instead of 0.2 until 1400, as if for 4000, and
then to 1700.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gworld.bench.refine_scene import room_pairs
from gworld.data.pairset import Pair, write_pairs
from gworld.refine.saved import load_refiner, save_refiner

JUDGED = 8
"""Frames of each film of a room that judges."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pairs = commands.add_parser("pairs", help="make pairs of rooms drawn at random")
    pairs.add_argument("out", type=Path)
    pairs.add_argument("--rooms", type=int, default=10, help="rooms of seeds 1 .. ROOMS")
    pairs.add_argument(
        "--judge", type=int, nargs="*", default=[9], help="rooms that judge instead of being learned from"
    )
    pairs.add_argument("--photos", type=int, default=18)
    pairs.add_argument("--size", type=int, nargs=2, default=(160, 120), metavar=("WIDTH", "HEIGHT"))
    ship = commands.add_parser("ship", help="write a run's refiner without its training state")
    ship.add_argument("run", type=Path)
    ship.add_argument("out", type=Path)
    told = parser.parse_args()
    if told.command == "ship":
        save_refiner(load_refiner(told.run), told.out, facts={"made": __doc__}, overwrite=True)
        return

    def rooms(folder: Path) -> Iterator[Pair]:
        for seed in range(1, told.rooms + 1):
            for pair in room_pairs([seed], told.photos, told.size[0], told.size[1], folder):
                print(f"{pair.scene} {pair.way}: {len(pair.clip)} frames", flush=True)
                if seed not in told.judge:
                    yield pair
                elif pair.way == "given":
                    yield replace(pair, clip=pair.clip[:JUDGED], split="held_out")

    with tempfile.TemporaryDirectory() as folder:
        write_pairs(rooms(Path(folder)), told.out)


if __name__ == "__main__":
    main()
