"""Folders of `annotation/*.json` beside `videos/`: the layouts in which DROID, Bridge, RT-1 and Language-Table are
handed on for video prediction.

DROID: states and actions at 15 Hz (`observation.state.*`, `action.*`) and videos at a third of that; Bridge and RT-1:
`state` per frame and `action` between frames; Language-Table: `actions` between frames. Times come from the videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gworld.data.clips import Clip, probe_clip
from gworld.data.source import ROBOT, Source, numbers, padded, same_count, whole_video
from gworld.errors import InputError
from gworld.files import read_json, safe_join
from gworld.scene.episode import Episode

STATE, ACTION = "observation.state.", "action."
MAX_BYTES = 64 << 20
HAND = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
PUSHER = ("x", "y")


def is_annotated(path: Path) -> bool:
    """Whether a folder holds `annotation/` and `videos/`."""
    return (path / "annotation").is_dir() and (path / "videos").is_dir()


def open_annotated(path: str | Path) -> Source:
    """Episodes named by their annotation files; raises `InputError` when there is none."""
    root = Path(path)
    files = sorted((root / "annotation").rglob("*.json"), key=lambda file: (len(file.name), str(file)))
    if not files:
        raise InputError(f"`{root / 'annotation'}` holds no JSON file; one per episode is needed.")
    names = tuple(str(file.relative_to(root / "annotation").with_suffix("")) for file in files)

    def read(index: int, scratch: Path) -> Episode:
        return _read(root, files[index])

    return Source("annotated videos", root, names, read)


def _read(root: Path, file: Path) -> Episode:
    data = read_json(file, MAX_BYTES)
    try:
        videos = data["videos"] if "videos" in data else [{"video_path": data["video_path"]}]
        clips = [probe_clip(_video_path(root, str(video["video_path"]))) for video in videos]
        for clip in clips[1:]:
            same_count(file, f"`{clips[0].path.name}`, in frames,", len(clips[0]), f"`{clip.path.name}`", len(clip))
        droid = any(key.startswith(STATE) for key in data)
        fields = (_droid if droid else _stepwise)(data, clips[0], file)
        names = _camera_names(clips, droid)
        text = data.get("texts") or [""]
        success = data.get("success")
        return Episode(
            **fields,
            videos=tuple(whole_video(clip, name) for clip, name in zip(clips, names, strict=True)),
            success=bool(success) if success in (0, 1, True, False) else None,
            source=f"{root.name} {file.relative_to(root / 'annotation').with_suffix('')}",
            task=str(text[0])[:1000],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, OSError) as error:
        raise InputError(
            f"`{file}` is no annotation that is known ({str(error)[:150]!r}). Download it again."
        ) from error


def _video_path(root: Path, name: str) -> Path:
    """The video's place; a `train/` or `val/` in the annotation may be missing on disk."""
    place = safe_join(root, name)
    parts = [part for part in Path(name).parts if part not in ("train", "val", "test")]
    short = safe_join(root, "/".join(parts))
    return short if not place.is_file() and short.is_file() else place


def _camera_names(clips: list[Clip], droid: bool) -> tuple[str, ...]:
    """DROID's three cameras are two beside the robot and the one on its wrist, in this order."""
    if droid and len(clips) == 3:
        return "exterior_1", "exterior_2", "wrist"
    return tuple(clip.path.stem for clip in clips) if len(clips) > 1 else ("camera",)


def _droid(data: Mapping[str, Any], clip: Clip, file: Path) -> dict[str, Any]:
    """States several times per frame: frame k shows step k * ratio."""
    raw, frames = data["raw_length"], data["video_length"]
    if type(raw) is not int or type(frames) is not int or frames < 2 or not clip.fps > 0:
        raise InputError(f"`{file}` gives the lengths {str(raw)[:20]} and {str(frames)[:20]}; counts are needed.")
    same_count(file, "the annotation, in frames,", frames, f"the video `{clip.path.name}`", len(clip))
    ratio = max(1, round(raw / frames))
    same_count(file, f"one of {ratio} states", -(-raw // ratio), "the video, in frames,", frames)
    tables = {key: numbers(values, key, file, raw) for key, values in data.items() if key.startswith((STATE, ACTION))}

    def joined(prefix: str) -> Tensor | None:
        parts = [tables.pop(f"{prefix}{part}", None) for part in ("joint_position", "gripper_position")]
        there = [part for part in parts if part is not None]
        return torch.cat(there, dim=1) if there else None

    joints, actions = joined(STATE), joined(ACTION)
    names = (*(f"joint_{index}" for index in range(1, 8)), "gripper")
    times = torch.arange(raw, dtype=torch.float64) / (clip.fps * ratio)
    given = {"joints": joints, "actions": actions}
    return {
        "times": times,
        **{kind: {} if table is None else {ROBOT: table} for kind, table in given.items()},
        "signals": {key.removeprefix("observation."): table for key, table in tables.items()},
        "names": {
            f"{kind}/{ROBOT}": names for kind, table in given.items() if table is not None and table.shape[1] == 8
        },
    }


def _stepwise(data: Mapping[str, Any], clip: Clip, file: Path) -> dict[str, Any]:
    """One state per frame and an action from each frame to the next."""
    times = torch.from_numpy(clip.times)
    actions = numbers(data["action"] if "action" in data else data["actions"], "action", file)
    if len(actions) not in (len(clip) - 1, len(clip)):
        same_count(file, "the actions", len(actions), "the steps between frames of the video", len(clip) - 1)
    signals = {}
    for key in ("state", "continuous_gripper_state"):
        if key in data:
            same_count(file, key, len(data[key]), f"the video `{clip.path.name}`, in frames,", len(clip))
            signals[key] = numbers(data[key], key, file, len(clip))
    labels = {7: HAND, 2: PUSHER}.get(actions.shape[1], ())
    names = {f"actions/{ROBOT}": labels} if labels else {}
    if "state" in signals and signals["state"].shape[1] == 7:
        names["signals/state"] = HAND
    return {"times": times, "actions": {ROBOT: padded(actions, len(clip))}, "signals": signals, "names": names}
