from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.realpush import rows, training_sets
from gworld.bench.realpush_data import Pushing, Track, lift, on_plane, outline_of, pushes_of, read_track, windows_of
from gworld.bench.realpush_network import (
    BLOCK,
    NAMES,
    open_stage,
    predict_windows,
    roll_blocks,
    settings_of,
    told_network,
)
from gworld.bench.realpush_planar import fit_settings, paths_from, push_blocks, read_offsets, settings_at_first
from gworld.bench.realpush_whatif import Trial, axis_of, overlap, sketch, still, unlike
from gworld.data.shapes import box, cylinder, plain
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.errors import InputError
from gworld.geometry import transform_from
from gworld.scene.gaussians import join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import Entity, World

GREY = plain(0.5, 0.5, 0.5)
STEPS, DT = 60, 0.04


def owned(gaussians, link):
    return replace(gaussians, links=torch.full_like(gaussians.links, link))


def block_shape():
    """A T: a bar across and a stem along +x."""
    bar = box((0.05, 0.2, 0.04), 0.01, GREY, (-0.06, 0, 0))
    stem = box((0.12, 0.05, 0.04), 0.01, GREY, (0.025, 0, 0))
    return join_gaussians([bar, stem])


@pytest.fixture(scope="module")
def given() -> Pushing:
    """A T at rest on a table and a stick that comes from behind, off the middle, as the quasi-static law has it."""
    stick = cylinder(0.0125, 0.15, 0.005, GREY, (0, 0, 0.075))
    links = (Link("world"), Link("block", (0, 0, 0.02, 1, 0, 0, 0), 0), Link("stick", (0, 0, 0, 1, 0, 0, 0), 0))
    entities = (Entity("scene", "static", (0,)), Entity("block", "object", (1,)), Entity("stick", "agent", (2,)))
    world = World(join_gaussians([owned(block_shape(), 1), owned(stick, 2)]), links, entities)
    poses = torch.eye(4, dtype=torch.float64).repeat(STEPS, 3, 1, 1)
    poses[:, 1, 2, 3] = 0.02
    poses[:, 2, 0, 3] = torch.linspace(-0.16, -0.04, STEPS, dtype=torch.float64)
    poses[:, 2, 1, 3] = 0.03
    times = DT * torch.arange(STEPS, dtype=torch.float64)
    track = Track(times, poses, ("world", "block", "stick"), (0, 0, 1, 0), ("a",), torch.eye(4)[None].double())
    still_ = on_plane(track, world, "block", "stick")
    told = settings_at_first(still_.outline)[None]
    moved = push_blocks(told, still_, still_.block[:1][None], still_.pusher[None, None])[0, 0]
    return replace(still_, block=moved)


def test_an_outline_is_the_shape_from_above_with_distances_that_grow_outward():
    outline, middle = outline_of(box((0.2, 0.1, 0.04), 0.008, GREY), torch.eye(4, dtype=torch.float64))
    assert middle.abs().max() < 1e-3
    gap, normal = outline.distance(torch.tensor([[0.12, 0.0], [0.0, 0.03], [0.5, 0.0]], dtype=torch.float64))
    assert gap.tolist() == pytest.approx([0.02, -0.02, 0.4], abs=0.006)  # Gaussians reach beyond their centres
    assert normal[0].tolist() == pytest.approx([1, 0], abs=1e-2)
    assert outline.spread == pytest.approx(0.0593, abs=0.005)  # mean distance in a 0.2 x 0.1 rectangle


def test_places_on_the_plane_lead_back_to_the_link(given):
    assert given.radius == pytest.approx(0.0125, abs=1e-3)
    assert given.height == pytest.approx(0.04, abs=2e-3)
    pose = given.links(given.block[:1])[0]
    assert torch.allclose(pose, transform_from(torch.eye(3), torch.tensor([0.0, 0.0, 0.02])).double(), atol=1e-9)


def test_the_law_pushes_without_overlap_turns_towards_the_side_and_rests_untouched(given):
    local = torch.linalg.inv(lift(given.block))
    stick = (local[:, :2, :2] @ given.pusher[..., None])[..., 0] + local[:, :2, 3]
    assert (given.radius - given.outline.distance(stick)[0]).max() < 1e-3
    assert given.block[-1, 0] - given.block[0, 0] > 0.02
    assert given.block[-1, 2] < -0.05  # pushed at +y along +x: clockwise
    assert torch.equal(given.block[8], given.block[0])
    mirrored = replace(given, pusher=given.pusher * torch.tensor([1.0, -1.0]))
    told = settings_at_first(given.outline)[None]
    other = push_blocks(told, given, given.block[:1][None], mirrored.pusher[None, None])[0, 0]
    assert unlike(given.block, other) < 0.03


def test_pushes_are_found_and_windows_belong_to_one(given):
    pushes = pushes_of(given)
    assert len(pushes) == 1 and 0.5 < pushes[0][0] < pushes[0][1] <= STEPS * DT
    starts, steps = windows_of(given, 0, pushes, 0.4)
    assert steps == 10 and len(starts) > 10
    assert (given.apart(given.block[starts], given.block[starts + steps]) >= 0.005).all()
    assert training_sets(given, pushes, 0) == []


def test_settings_that_made_a_motion_are_found_again(given):
    starts, steps = windows_of(given, 0, pushes_of(given), 0.8)
    starts = starts[::6]
    truth = settings_at_first(given.outline)
    begin = truth.clone()
    begin[1] += 0.004

    def residuals(tries):
        moved = push_blocks(tries, given, given.block[starts][None], paths_from(given, starts, steps))
        return (moved[:, :, -1] - given.block[starts + steps])[..., :2]

    found = fit_settings(begin, (0.02, 0.02, 0.1, 0.1, 0.001, 0.001, 0.001), residuals, 8)
    assert found.after < 0.2 * found.before
    offset = read_offsets(truth, given, starts)
    assert offset.abs().max() < 1e-3  # nothing is off


def test_the_network_moves_the_block_only_when_touched_and_worlds_do_not_mix(given):
    model = told_network(Dynamics(NetworkConfig(support=True, residual=False, length=0.1, substeps=2)))
    with torch.no_grad():
        model.support.brake.fill_(3.5)
    stage = open_stage(given)
    assert stage.scene.free.nonzero()[:, 0].tolist() == [BLOCK]
    values = settings_of(model)[None].repeat(2, 1)
    values[1, NAMES.index("pressure y")] = 0.01
    start = given.block[:1].repeat(2, 1)
    zero = torch.zeros(2, 3, dtype=torch.float64)
    path = torch.stack([given.pusher[:40], given.pusher[:40] + torch.tensor([0.0, 0.3])])
    moved = roll_blocks(model, stage, values, start, zero, {"pusher": path})
    assert moved.shape == (2, 2, 40, 3)
    assert torch.allclose(moved[:, 1], start[None, :1].expand(2, 40, 3), atol=1e-5)
    alone = roll_blocks(model, stage, values[1:], start[:1], zero[:1], {"pusher": path[:1]})
    assert torch.allclose(alone[0, 0], moved[1, 0], atol=1e-6)
    trial = Trial({"pusher": path[0]}, moved[0, 0])
    assert overlap(given.outline, trial, given.radius).max() < 3e-3
    assert given.apart(moved[0, 0, -1], start[0]) > 0.01
    early, whole = still(given, trial, given.radius)
    assert early < 1e-4 < whole
    starts = torch.tensor([20, 30])
    own = predict_windows(model, stage, values[:1], given, starts, 4, torch.zeros(2, 2, dtype=torch.float64))
    assert own.shape == (1, 2, 5, 3) and torch.isfinite(own).all()


def test_the_axis_of_symmetry_runs_along_the_stem_and_a_sketch_shows_block_and_stick(given):
    assert np.cos(axis_of(given.outline)) > 0.99
    picture = sketch(given.outline, Trial({"a": given.pusher}, given.block), given.radius, 50)
    assert picture.shape[2] == 3 and len(np.unique(picture.reshape(-1, 3), axis=0)) == 4


@pytest.mark.parametrize("broken", ["nothing", "shape", "nan"])
def test_a_file_that_is_no_track_is_refused(tmp_path: Path, broken: str):
    held = {
        "times": np.arange(4.0), "world_from_link": np.tile(np.eye(4), (4, 2, 1, 1)), "plane": np.array([0, 0, 1.0, 0]),
        "link_names": np.array(["world", "block"]), "camera_names": np.array(["a"]),
        "world_from_camera": np.eye(4)[None],
    }  # fmt: skip
    path = tmp_path / "track.npz"
    np.savez(path, **held)
    assert read_track(path).link_names == ("world", "block")
    if broken == "nothing":
        path.write_bytes(b"PK\x03\x04nothing")
    else:
        held["times" if broken == "shape" else "plane"] = np.arange(3.0) if broken == "shape" else np.full(4, np.nan)
        np.savez(path, **held)
    with pytest.raises(InputError, match="track"):
        read_track(path)


def test_without_the_recording_one_row_says_so(tmp_path: Path):
    found = list(rows(BenchInput(data=tmp_path)))
    assert len(found) == 1 and "skipped" in found[0].note


def test_the_recorded_block_and_pusher_have_their_sizes(real_data):
    from gworld.bench.track_real import HOME, _world

    if not (real_data / HOME).is_dir():
        pytest.skip("the recording `embodied_gaussians` is not in the folder of real data")
    world, _ = _world(real_data / HOME, real_data / "embodied_gaussians/robot/panda.urdf")
    poses = world.rest_poses().double().expand(6, -1, 4, 4)
    names = tuple(link.name for link in world.links)
    track = Track(torch.arange(6.0).double(), poses, names, (0, 0, 1, 0), ("a",), torch.eye(4)[None].double())
    found = on_plane(track, world, "tblock", "panda/panda_pusher")
    assert pushes_of(found) == []
    assert 0.03 < found.height < 0.05 and 0.007 < found.radius < 0.014
    area = int((found.outline.sd < 0).sum()) * 1e-6
    assert 0.015 < area < 0.025  # two bars of 20 x 5 and 15 x 5 cm, Gaussians' width on every side


def test_a_report_holds_figures_sheets_and_times(tmp_path: Path):
    import runpy

    from PIL import Image

    page = runpy.run_path(str(Path(__file__).parents[1] / "scripts/examples/05_real_push.py"))
    Image.new("RGB", (60, 10)).save(tmp_path / "whatif-left.png")
    row = {"name": "block after 1 s, ours", "value": 5.3, "unit": "mm", "baseline": 19.9, "goal": "<= 9.9", "ok": True,
           "note": "147 windows"}  # fmt: skip
    facts = {"rows": [row], "version": "0", "machine": "here"}
    page["report"](facts, tmp_path, [("track", 100.0, 90.0)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "block after 1 s, ours" in text and "data:image/jpeg" in text and '<td class="n">90</td>' in text
