"""What a browser may tell the server: a closed list of messages, their fields and their sizes."""

from __future__ import annotations

import math
from typing import Any

MAX_TEXT = 256
MAX_PICTURE = 24 << 20
"""Bytes of a picture that a browser sends when it is asked for a screenshot."""

# A number is 0, n numbers in a row are n, -2 is a position on the screen or several, a text is str.
FIELDS: dict[str, dict[str, Any]] = {
    "ViewerCameraMessage": {
        "wxyz": 4, "position": 3, "fov": 0, "near": 0, "far": 0, "image_height": 0, "image_width": 0, "look_at": 3,
        "up_direction": 3,
    },
    "GuiUpdateMessage": {"uuid": str, "updates": "value"},
    "SceneNodeClickMessage": {
        "name": str, "instance_index": "index", "ray_origin": 3, "ray_direction": 3, "screen_pos": 2,
        "modifier": "word", "owner": str,
    },
    "ScenePointerMessage": {
        "event_type": "word", "ray_origin": "place", "ray_direction": "place", "screen_pos": "places",
        "modifier": "word",
    },
    "TransformControlsUpdateMessage": {"name": str, "wxyz": 4, "position": 3, "owner": str},
    "TransformControlsDragStartMessage": {"name": str, "owner": str},
    "TransformControlsDragEndMessage": {"name": str, "owner": str},
    "GetRenderResponseMessage": {"payload": bytes},
}  # fmt: skip
OPTIONAL = ("owner", "modifier", "instance_index")


def is_well_formed(mapping: Any) -> bool:
    """Whether a decoded message is one of those that a browser has reason to send, with sound values."""
    if not isinstance(mapping, dict):
        return False
    kind = mapping.get("type")
    wanted = FIELDS.get(kind) if isinstance(kind, str) else None
    if wanted is None or not set(mapping) - {"type"} <= set(wanted):
        return False
    if not all(name in mapping or name in OPTIONAL for name in wanted):
        return False
    return all(_fits(value, wanted[name]) for name, value in mapping.items() if name != "type")


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is str:
        return isinstance(value, str) and len(value) <= MAX_TEXT
    if wanted is bytes:
        return isinstance(value, bytes) and len(value) <= MAX_PICTURE
    if wanted == "value":  # of a control: nothing but its value may be set
        return isinstance(value, dict) and set(value) == {"value"} and _is_value(value["value"])
    if wanted == "index":
        return value is None or (isinstance(value, int) and 0 <= value < 1 << 31)
    if wanted == "place":
        return value is None or _fits(value, 3)
    if wanted == "places":
        return isinstance(value, list) and 1 <= len(value) <= 2 and all(_fits(part, 2) for part in value)
    if wanted == "word":
        return value is None or (isinstance(value, str) and len(value) <= 32)
    if wanted == 0:
        return _is_number(value)
    return isinstance(value, list) and len(value) == wanted and all(_is_number(part) for part in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e9


def _is_value(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, list):
        return len(value) <= 8 and all(_is_number(part) for part in value)
    return isinstance(value, bool) or _is_number(value)
