"""Run by an environment that has `lerobot`: opens a data set by it and prints what it found as JSON.

Its own video backend is used where there is one; where none works, frames come from PyAV at the very times that
lerobot asks for, and the report says so.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def frames_by_av(path, timestamps, tolerance_s, backend=None):
    """Frames nearest to the wanted times, as float [N, 3, H, W]; fails where none is within the tolerance."""
    import av
    import torch

    with av.open(str(path)) as container:
        found = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    times = np.array([time for time, _ in found])
    chosen = []
    for wanted in timestamps:
        nearest = int(np.abs(times - wanted).argmin())
        assert abs(times[nearest] - wanted) < tolerance_s, (times[nearest], wanted)
        chosen.append(torch.from_numpy(found[nearest][1]).permute(2, 0, 1) / 255.0)
    return torch.stack(chosen)


def main(root: str) -> None:
    from lerobot.datasets import lerobot_dataset

    def open_set():
        return lerobot_dataset.LeRobotDataset("local/check", root=root)

    backend = "its own"
    data = open_set()
    try:
        data[0]
    except (AttributeError, ImportError, RuntimeError, OSError) as error:
        backend = f"PyAV, for its own failed: {type(error).__name__}"
        lerobot_dataset.decode_video_frames = frames_by_av
        data = open_set()
    chosen = sorted({0, len(data) // 2, len(data) - 1})
    items = []
    for index in chosen:
        item = data[index]
        pictures = {key: float(value.mean()) for key, value in item.items() if key.startswith("observation.images")}
        items.append(
            {
                "index": index,
                "episode": int(item["episode_index"]),
                "time": float(item["timestamp"]),
                "task": item["task"],
                "action": item["action"].tolist(),
                "images": pictures,
            }
        )
    facts = {"frames": len(data), "episodes": data.num_episodes, "fps": data.fps, "items": items, "decoder": backend}
    print("REPORT " + json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
