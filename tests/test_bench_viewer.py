"""The viewer's bench on a small world: the process as users start it, and guests that speak WebSocket by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from gworld.bench import viewer_fit
from gworld.bench.catalogue import BenchInput
from gworld.bench.viewer import (
    Server,
    big_world,
    latency_rows,
    malformed_rows,
    serve,
    served,
    serving_rows,
    stranger_rows,
)
from gworld.bench.viewer_client import CAMERA, Guest, RefusedError, fetch
from gworld.bench.viewer_fit import FitRun
from gworld.formats.world import save_world

pytest.importorskip("viser", reason="the viewer needs viser")


def test_a_small_world_is_served_to_guests_and_strangers_stay_out(tmp_path: Path) -> None:
    save_world(big_world(3000, 0), tmp_path / "world")
    with serve([str(tmp_path / "world"), "--clients", "4"]) as server:
        rows = {row.name: row for row in serving_rows(server, 3000, 4)}
        assert rows["4 guests served, the last one"].value < 60 and rows["server with 4 guests"].value > 50
        with served(server, 3000, 2) as seconds:
            assert len(seconds) == 2
        check_manners(server)
        found = list(latency_rows(server, 3))
        assert 0 < found[0].value < 10_000 and len(found) == 2
    assert server.process.poll() is not None


def check_manners(server: Server) -> None:
    assert next(malformed_rows(server, 150)).ok
    assert all(row.ok for row in stranger_rows(server))
    assert fetch(server.port)[0] == 200 and fetch(server.port, "/nothing")[0] == 404
    with pytest.raises(RefusedError) as error:
        Guest(server.port, origin="http://evil.example")
    assert error.value.status == 403
    with Guest(server.port) as guest:
        guest.say(CAMERA)
        told = guest.hear_until(lambda message: message["type"] == "GuiSliderMessage", 20)
        assert any(message["type"] == "GaussianSplatsMessage" or message["type"] == "FrameMessage" for message in told)


def test_a_watched_fit_is_judged_beside_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_fit, "posed_pictures", lambda folder, count: folder)
    monkeypatch.setattr(
        viewer_fit,
        "run_fit",
        lambda data, out, steps, guests: FitRun(10.4, 20.8, 8_000_000) if guests else FitRun(10.0, 20.0, 0),
    )
    rows = list(viewer_fit.fit_rows(tmp_path, BenchInput(quick=True)))
    assert [round(row.value, 3) for row in rows] == [10.0, 15.0, 4.0, 4.0]
    assert rows[2].note == "each guest got 2 MB"
