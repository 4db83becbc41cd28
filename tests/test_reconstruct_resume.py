"""A fit that was killed and taken up again is the same fit, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gworld.bench.fit_scene import tabletop_views
from gworld.errors import InputError
from gworld.reconstruct import loop as loop_module
from gworld.reconstruct.appearance import AppearanceOptions
from gworld.reconstruct.fit import Fit, fit_views
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.schedule import FILE
from gworld.scene.views import Views

OPTIONS = FitOptions(
    steps=130,
    gaussians=1500,
    refine_every=20,
    save_every=0.3,
    sh_degree=2,
    hold_out=4,
    longest=64,
    background="learned",
    device="cpu",
    appearance=AppearanceOptions(exposure=True, poses=True, distortion_px=1.0),
)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    return tabletop_views(tmp_path_factory.mktemp("table"), 10, 64, 48, spacing=0.05)


def same(one: Fit, two: Fit) -> bool:
    names = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh")
    return all(torch.equal(getattr(one.gaussians, name), getattr(two.gaussians, name)) for name in names)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("density", ["mcmc", "classic"])
def test_stopped_anywhere_and_resumed_is_the_same_run(
    views: Views, tmp_path: Path, density: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, density=density)
    whole = fit_views(views, options, tmp_path / "whole")
    assert whole.steps == 130 and whole.skipped == 0
    original, calls = loop_module.take_step, [0]

    def failing(*given: object) -> float:
        calls[0] += 1
        if calls[0] in (38, 38 + 45):
            raise _StopError
        return original(*given)

    monkeypatch.setattr(loop_module, "take_step", failing)
    for attempt in range(3):
        try:
            parts = fit_views(views, options, tmp_path / "parts", resume=attempt > 0)
        except _StopError:
            continue
    assert same(whole, parts)
    assert [row["step"] for row in whole.history] == [row["step"] for row in parts.history]
    assert whole.score is not None and parts.score is not None and whole.score.psnr == parts.score.psnr
    assert torch.equal(whole.world_from_camera, parts.world_from_camera)


def test_a_budgeted_run_repeats_the_plan_that_was_written_down(
    views: Views, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, budget="2s", save_every=1e9)
    whole = fit_views(views, options, tmp_path / "run")
    plan = (tmp_path / "run" / FILE).read_text()
    # Only the first checkpoint is left, as if the process had been killed before the second; the clock has changed.
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        if folder.name != "step-0":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    original = loop_module.take_step

    def slow(*given: object) -> float:
        time.sleep(0.002)
        return original(*given)

    monkeypatch.setattr(loop_module, "take_step", slow)
    again = fit_views(views, options, tmp_path / "run", resume=True)
    shared = (tmp_path / "run" / FILE).read_text()
    assert shared.startswith(plan.rstrip().rstrip("]").rstrip())
    if shared == plan:
        assert same(whole, again) and whole.steps == again.steps


def test_killed_with_no_warning(views: Views, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.test_reconstruct_resume import OPTIONS;"
        "from gworld.bench.fit_scene import tabletop_views; from gworld.reconstruct.fit import fit_views;"
        "root = Path(sys.argv[1]);"
        "fit_views(tabletop_views(root / 'table', 10, 64, 48, spacing=0.05), OPTIONS, root / 'run')"
    )
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=root, env=environment)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if checkpoints.is_dir() and any(int(p.name.split("-")[1]) > 0 for p in checkpoints.glob("step-*")):
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    again = tabletop_views(tmp_path / "table", 10, 64, 48, spacing=0.05)
    whole = fit_views(again, OPTIONS, tmp_path / "whole")
    assert same(whole, fit_views(again, OPTIONS, tmp_path / "run", resume=True))


def test_other_settings_are_refused(views: Views, tmp_path: Path) -> None:
    short = replace(OPTIONS, steps=3)
    fit_views(views, short, tmp_path / "run")
    with pytest.raises(InputError, match=r"other settings \(.*ssim_weight"):
        fit_views(views, replace(short, ssim_weight=0.5), tmp_path / "run", resume=True)
    assert fit_views(views, short, tmp_path / "run", resume=True).steps == 3
