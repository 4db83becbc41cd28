"""Driving a page of the viewer: where each body's colour is seen, fields and buttons, pictures kept for the docs."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1100, "height": 600}
DOCS = Path(__file__).resolve().parent.parent / "docs"
COLOURS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "left": lambda r, g, b: (r > g + 50) & (g > b + 15) & (r > 120),
    "right": lambda r, g, b: (b > r + 60) & (b > g + 40),
    "cart": lambda r, g, b: (g > r + 40) & (g > b + 25),
    "ball": lambda r, g, b: (r > b + 80) & (g > b + 60) & (abs(r - g) < 60),
}


def open_page(browser: Any, address: str, asked: list[str], size: dict[str, int] = SIZE) -> Any:
    page = browser.new_page(viewport=size)
    page.set_default_timeout(180_000)  # software WebGL on a machine that is busy elsewhere
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(f"error: {error}"))
    page.goto(address)
    return page


def seen(page: Any) -> np.ndarray:
    """What a page looks like now [H,W,3], 0 .. 255."""
    return np.asarray(Image.open(BytesIO(page.screenshot())).convert("RGB")).astype(int)


def spots(page: Any) -> dict[str, np.ndarray]:
    """Pixels [M,2] of each body's colour, left of the panels and right of viser's notice about software WebGL."""
    picture = seen(page)[:, :700]
    picture[:160, :320] = 255
    return {name: np.argwhere(kind(*np.moveaxis(picture, -1, 0)))[:, ::-1] for name, kind in COLOURS.items()}


def until(fact: Callable[[], Any], seconds: float = 180.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := fact()) and time.monotonic() < end:
        time.sleep(0.1)
    assert found
    return found


def settled(page: Any) -> dict[str, np.ndarray]:
    """Each body's pixels, once the picture no longer changes: a loaded browser draws late."""
    time.sleep(0.5)
    last: list[dict[str, np.ndarray]] = [spots(page)]

    def stands() -> bool:
        time.sleep(0.5)
        last.append(spots(page))
        return all(len(rows) for rows in last[-1].values()) and max(moved(last[-2], last[-1]).values()) < 0.5

    until(stands)
    return last[-1]


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the middle of each body's pixels moved."""
    return {
        name: float(np.abs(after[name].mean(0) - before[name].mean(0)).max()) if len(after[name]) else 999.0
        for name in before
    }


FIELD = """label => {
    const all = [...document.querySelectorAll("label, div, span, p")];
    const found = all.filter(e => e.textContent.trim() == label).at(-1);
    found.scrollIntoView({block: "center"});
    const near = found.getBoundingClientRect();
    const row = [...document.querySelectorAll("input")].map(e => e.getBoundingClientRect())
        .filter(r => r.width > 0 && Math.abs(r.y + r.height / 2 - near.y - near.height / 2) < 14);
    return [row.at(-1).x + row.at(-1).width / 3, row.at(-1).y + row.at(-1).height / 2];
}"""


def type_into(page: Any, label: str, value: str) -> None:
    """Give a slider a number through its field; by mouse and keys, for waiting for idle frames is slow here."""
    page.mouse.click(*page.evaluate(FIELD, label))
    page.keyboard.press("Control+A")
    page.keyboard.type(value)
    page.keyboard.press("Enter")


def red(page: Any) -> int:
    """Pixels of what is least sure."""
    r, g, b = np.moveaxis(seen(page), -1, 0)
    return int(((r > g + 70) & (abs(g - b) < 40))[160:, :700].sum())


def pale(page: Any) -> int:
    """Pixels of a ghost's colour."""
    r, g, b = np.moveaxis(seen(page), -1, 0)
    return int(((r > g + 25) & (b > g + 35))[160:, :700].sum())


def open_folder(page: Any, label: str) -> None:
    page.get_by_text(label, exact=True).first.evaluate("folder => folder.click()")
    time.sleep(0.5)


PRESS = 'label => [...document.querySelectorAll("button, label")].find(b => b.textContent.trim() == label).click()'


def press(page: Any, label: str) -> None:
    """Click on a button, wherever the panel has been scrolled to."""
    page.evaluate(PRESS, label)


def save(page: Any, name: str) -> None:
    """Keep a screenshot for the docs, without notices and hints."""
    page.mouse.move(300, 560)
    page.locator(".mantine-Notification-closeButton").first.evaluate_all("found => found.forEach(e => e.click())")
    time.sleep(1.0)
    Image.open(BytesIO(page.screenshot())).convert("RGB").save(DOCS / name, quality=85)
