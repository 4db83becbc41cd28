"""Reports: one well-formed page that needs nothing but itself, escapes all text, and says what was measured."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.errors import InputError
from gworld.evaluate import html
from gworld.evaluate.charts import Line, bar_chart, line_chart, nice_length, number, scaled_colors, ticks
from gworld.evaluate.plans import CameraPlan, draw_plan
from gworld.evaluate.report import (
    Baseline,
    HeldOutView,
    Limit,
    ReconstructionFacts,
    chosen_views,
    closing_lines,
    error_map,
    headline,
    reconstruction_page,
    write_reconstruction_report,
)
from gworld.render.paths import orbit

EVIL = "<script>alert('x')</script>&\"quoted\""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(HTMLParser):
    """Tags balance; collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    for tag, attributes in checker.tags:
        assert tag not in ("script", "iframe", "link", "object", "embed", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "action", "xlink:href"):
                assert (value or "").startswith(("data:image/", "data:video/mp4;base64,")), value
    assert "http://" not in page and "https://" not in page and "@import" not in page
    return checker


def picture(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).random((*size, 3)).astype(np.float32)


def plan(count: int = 40, **given) -> CameraPlan:
    poses = orbit(torch.tensor([0.0, 0.0, 0.5]), 2.0, 0.5, count).numpy()
    points = np.random.default_rng(0).normal(0, 0.3, (5000, 3))
    colors = np.full((5000, 3), 120, np.uint8)
    held = np.arange(count) % 8 == 0
    return CameraPlan(poses, np.full((count, 2), 0.4), np.zeros(count, int), held, points, colors, **given)


@pytest.fixture
def facts() -> ReconstructionFacts:
    views = [
        HeldOutView(f"view-{index}", 20.0 + index, 0.8 + 0.01 * index, picture(index), picture(index + 50))
        for index in range(5)
    ]
    rows = [
        {"step": 100.0 * i, "seconds": 3.0 * i, "psnr": 18 + i, "gaussians": 1000 * i, "loss": 1 / i}
        for i in range(1, 9)
    ]
    return ReconstructionFacts(
        title=f"kitchen {EVIL}",
        source=f"clip {EVIL}.mp4",
        shots=62,
        registered=60,
        command=f"gworld reconstruct --video '{EVIL}'",
        config=f"capture: {EVIL}",
        version="0.1.0",
        how_posed=EVIL,
        metric=True,
        gaussians=51_234,
        steps=8000,
        seconds=312.0,
        peak_mb=1432.0,
        floater_score=0.013,
        held_out=views,
        baseline=Baseline(f"nearest view {EVIL}", 17.3),
        plan=plan(metric=True),
        gate=[Limit(EVIL, "97 %", "60 %", True), Limit("parallax", "1.9", "2.5", False), Limit("moving", "-", "0.25")],
        history=rows,
        stages={f"poses {EVIL}": 52.0, "fit": 231.0},
        coverage={"seen": 0.71, "extrapolated": 0.18, "invented": 0.11},
        masks=[picture(90 + index) for index in range(11)],
        warnings=[f"one {EVIL}", "two"],
        files={f"world {EVIL}": "the world"},
        machine="two cores",
    )


def test_the_page_is_whole_and_says_what_was_measured(facts, tmp_path):
    write_reconstruction_report(tmp_path / "report.html", facts)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    said = " ".join(checked(page).said)
    for words in (
        EVIL, "22.00 dB", "0.820", "97 %", "51.2k", "1.3 %", "71 %", "18 % extrapolated", "metric", "5 min", "1432 MB",
        "worst: view-0, 20.00 dB", "median: view-2", "best: view-4", "4.70 dB above", "✓ kept", "✗ broken",
        "not judged", "PSNR, dB", "Gaussians", "fit", "two cores", "gworld 0.1.0",
    ):  # fmt: skip
        assert words in said, words
    assert "<script" not in page and EVIL not in page
    assert page.count("<img") == 9 + 8 and page.count("<svg") >= 7
    assert "prefers-color-scheme:dark" in page and "@media print" in page and "Content-Security-Policy" in page


def test_the_least_that_can_be_said():
    bare = ReconstructionFacts("t", "s", 0, 0)
    said = " ".join(checked(reconstruction_page(bare)).said)
    assert "nothing is known of new views" in said and "nan" not in said.lower()
    assert "New views" not in said and "Camera poses" not in said and "Course of the fit" not in said
    odd = replace(bare, held_out=[HeldOutView("a", math.inf, math.nan), HeldOutView("b", math.nan, math.nan)])
    checked(reconstruction_page(odd))
    checked(reconstruction_page(replace(bare, held_out=[HeldOutView("a", 21.0, math.nan)], history=[{"step": 1.0}])))


def test_pictures_survive(facts):
    page = reconstruction_page(facts)
    images = re.findall(r'src="data:image/(png|jpeg);base64,([^"]+)"', page)
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[0][1]))))
    assert np.abs(first.astype(float) / 255 - picture(0)).mean() < 0.03
    error = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[2][1]))).convert("RGB"))
    np.testing.assert_array_equal(error, error_map(facts.held_out[0]))
    big = html.image(np.zeros((2000, 1000, 3), np.uint8), "x")
    assert 'width="320" height="640"' in big and len(big) < 20_000


def test_error_maps_are_dark_where_equal_bright_where_not_grey_where_masked():
    truth = np.zeros((4, 6, 3), np.uint8)
    render = truth.copy()
    render[:, 3:] = 255
    mask = np.ones((4, 6), bool)
    mask[0] = False
    found = error_map(HeldOutView("a", 10.0, 0.5, truth, render, mask))
    assert found[1, 0].tolist() == [0, 0, 4] and found[1, 5].tolist() == [252, 255, 164]
    assert (found[0] == 128).all()


def test_worst_median_best():
    views = [HeldOutView(str(value), value, 0.5, picture(0), picture(1)) for value in (30.0, 10.0, 20.0, 25.0, 15.0)]
    assert [(name, view.psnr) for name, view in chosen_views(views)] == [
        ("worst", 10.0),
        ("median", 20.0),
        ("best", 30.0),
    ]
    assert [name for name, _ in chosen_views(views[:2])] == ["worst", "best"]
    assert [name for name, _ in chosen_views(views[:1])] == ["only"]
    assert chosen_views([replace(views[0], truth=None)]) == []


def test_three_closing_lines(facts):
    world, quality, following = closing_lines(facts, "runs/kitchen")
    assert "runs/kitchen" in world and "51.2k Gaussians, metric" in world
    assert quality.startswith("Quality: held out: 22.00 dB, SSIM 0.820 over 5 views (nearest view")
    assert "60 of 62 pictures posed" in quality and "1.3 % of the light" in quality
    assert following.startswith("Next: gworld render runs/kitchen")
    assert all("\n" not in line for line in (world, quality, following))
    assert headline(replace(facts, baseline=Baseline("b", 25.0))).startswith(
        "Views that the fit never saw are rendered"
    )
    assert "3.00 dB below b" in headline(replace(facts, baseline=Baseline("b", 25.0)))


def numbers(svg: str, tag: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<{tag}[^>]* {name}="([-\d.]+)"', svg)]


@pytest.mark.parametrize("side", [False, True])
def test_plans_stand_in_their_frame(side):
    drawn = plan(metric=True)
    svg = draw_plan(drawn, side=side)
    checked(html.page("p", svg))
    x, y = np.array(numbers(svg, "circle", "cx")), np.array(numbers(svg, "circle", "cy"))
    assert len(x) == 40
    width, height = (float(value) for value in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    assert x.min() >= 0 and x.max() <= width and y.min() >= 0 and y.max() <= height
    eyes = drawn.world_from_camera[:, :3, 3][:, [0, 2] if side else [0, 1]]
    scale = np.ptp(x) / np.ptp(eyes[:, 0])
    np.testing.assert_allclose(x - x[0], scale * (eyes[:, 0] - eyes[0, 0]), atol=0.15)
    np.testing.assert_allclose(y - y[0], -scale * (eyes[:, 1] - eyes[0, 1]), atol=0.15)
    bar = re.search(r'<line x1="12" x2="([\d.]+)".*?<text[^>]*>([\d.]+) m<', svg)
    assert abs((float(bar.group(1)) - 12) / scale - float(bar.group(2))) < 0.02 * float(bar.group(2))
    assert svg.count('fill="none" fill-opacity="0.3" stroke="var(--s2)"') == 5  # the held-out ones


def test_odd_plans():
    nothing = plan(1)
    empty = CameraPlan(np.zeros((0, 4, 4)), np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, bool))
    assert draw_plan(empty) == ""
    assert "units (no metric scale)" in draw_plan(replace(nothing, upright=False))
    many = draw_plan(plan(1000))
    assert many.count("<polygon") == 160 and len(many) < 200_000
    # Cameras on a tilted ring: the least spread is up, so that the ring is seen as a circle.
    tilt = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    tilt *= np.sign(np.linalg.det(tilt))
    turned = plan(40, upright=False)
    poses = turned.world_from_camera.copy()
    poses[:, :3] = tilt @ poses[:, :3]
    svg = draw_plan(replace(turned, world_from_camera=poses, points=turned.points @ tilt.T))
    x, y = np.array(numbers(svg, "circle", "cx")), np.array(numbers(svg, "circle", "cy"))
    radius = np.hypot(x - x.mean(), y - y.mean())
    assert radius.std() < 0.02 * radius.mean()


def test_lines_stand_where_their_numbers_are():
    svg = line_chart([Line("a", [0, 10], [0, 5]), Line("b", [0, 5, 10], [1, math.nan, 3], dashed=True)], "s", "dB")
    checked(html.page("c", svg))
    first, second = (
        [tuple(map(float, pair.split(","))) for pair in points.split()]
        for points in re.findall(r'polyline points="([^"]+)"', svg)
    )
    assert len(second) == 2
    scale = (first[0][1] - first[1][1]) / 5
    assert abs((second[0][1] - second[1][1]) - 2 * scale) < 0.2 and first[0][0] == second[0][0]
    assert line_chart([Line("a", [], []), Line("b", [1.0], [math.nan])], "s", "dB") == ""
    assert "<circle" in line_chart([Line("a", [1.0], [2.0])], "s", "dB")
    long = line_chart([Line("a", list(range(100_000)), list(range(100_000)))], "s", "dB")
    assert len(long) < 12_000


def test_bars_numbers_and_ticks():
    svg = bar_chart(["a", EVIL, "c"], [1.0, 4.0, math.nan], "s", marked=[1])
    checked(html.page("b", svg))
    widths = numbers(svg, "rect", "width")
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.5) and widths[2] == 0
    assert bar_chart([], [], "s") == ""
    assert [number(value) for value in (0.01234, 3.14159, 250.4, 12_345, 2.5e6, math.nan, 7.0)] == [
        "0.0123", "3.14", "250", "12.3k", "2.5M", "-", "7",
    ]  # fmt: skip
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and len(ticks(3.0, 3.0)) > 2
    assert ticks(17.2, 26.9)[0] <= 17.2 and ticks(17.2, 26.9)[-1] >= 26.9
    assert [nice_length(value) for value in (0.9, 1.0, 1.1, 3.0, 70.0)] == [1.0, 1.0, 2.0, 5.0, 100.0]
    assert scaled_colors(np.array([0.0, 1.0, math.nan, 9.0])).tolist()[2:] == [[0, 0, 4], [252, 255, 164]]


def test_fragments_refuse_what_they_cannot_show():
    with pytest.raises(InputError, match="rows of other lengths"):
        html.table(("a", "b"), [(1,)])
    with pytest.raises(InputError, match="a picture of a page has shape"):
        html.image(np.zeros((4, 4), np.uint8), "x")
    assert html.table(("a",), []) == "" and html.section("t", html.Fragment("")) == "" and html.tiles([]) == ""
    assert EVIL not in html.table((EVIL,), [(EVIL,)]) and EVIL not in html.code(EVIL)
