"""Keys that drive vehicles: I and K ahead and back, J and L left and right, U and O sideways where that can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import viser
from viser import _messages

from gworld.scene.world import ActionSpec

LABEL = "Keys held"
KEYS = {"I": ("ahead", 1.0), "K": ("ahead", -1.0), "J": ("turn", 1.0), "L": ("turn", -1.0), "U": ("side", 1.0),
        "O": ("side", -1.0)}  # fmt: skip
ENDINGS = {"ahead": ("accelerate", "x/velocity"), "turn": ("steer", "yaw/velocity"), "side": ("y/velocity",)}
# The page knows which keys are down; it says so through a text field, which is how it may talk to us.
SCRIPT = """
if (!window.gworldKeys) {
  const held = window.gworldKeys = new Set(), keys = new Set("%s");
  const say = () => {
    const label = [...document.querySelectorAll("label")].find(e => e.textContent.trim() == "%s");
    let row = label;
    while (row && !row.querySelector("input")) row = row.parentElement;
    if (!row) return;
    const field = row.querySelector("input");
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, [...held].sort().join(""));
    field.dispatchEvent(new Event("input", {bubbles: true}));
  };
  const typed = e => e.target && (e.target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName));
  document.addEventListener("keydown", e => {
    const key = e.key.toUpperCase();
    if (!keys.has(key) || typed(e) || e.ctrlKey || e.metaKey || e.altKey || held.has(key)) return;
    held.add(key); say();
  });
  document.addEventListener("keyup", e => { if (held.delete(e.key.toUpperCase())) say(); });
  window.addEventListener("blur", () => { if (held.size) { held.clear(); say(); } });
}
""" % ("".join(KEYS), LABEL)  # noqa: UP031 - braces belong to the script


def wheel_of(spec: ActionSpec) -> dict[str, int]:
    """Which components of an action go ahead, turn and sidestep; empty for what is no vehicle.

    What slides in a plane without turning is moved sideways by the keys that turn others.
    """
    found = {}
    for axis, ends in ENDINGS.items():
        rows = [row for row, name in enumerate(spec.names) if any(f"/{name}".endswith(f"/{end}") for end in ends)]
        if rows:
            found[axis] = rows[0]
    if "ahead" not in found or len(found) < 2:
        return {}
    return {"turn": found.get("side", 0), **found}


def steer(spec: ActionSpec, wheel: dict[str, int], held: str) -> dict[int, float]:
    """What each component that keys move is told while some are held: a limit, or 0 (the nearest limit to it)."""
    told = {}
    for axis, row in wheel.items():
        sign = sum(KEYS[key][1] for key in set(held) & set(KEYS) if KEYS[key][0] == axis)
        value = spec.high[row] if sign > 0 else spec.low[row] if sign < 0 else 0.0
        if row not in told or sign:  # one component may have the keys of two axes
            told[row] = min(max(value, spec.low[row]), spec.high[row])
    return told


def listen(client: viser.ClientHandle, heard: Callable[[Any], None]) -> None:
    """Have a visitor's page tell which of the keys it holds down, as `event.target.value`."""
    field = client.gui.add_text(LABEL, "", hint="I K ahead and back, J L left and right, U O sideways: hold them down")
    field.on_update(heard)
    client.gui._websock_interface.queue_message(_messages.RunJavascriptMessage(SCRIPT))
