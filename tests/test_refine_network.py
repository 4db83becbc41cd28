"""The refiner: no harm by construction, noise that sticks to surfaces, photos in any order, films of any length."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from gworld.errors import InputError
from gworld.refine.inputs import Inputs, follow, prepare, surface_noise, warp
from gworld.refine.network import Refiner, RefinerConfig, count_parameters, refiner_from, save_values
from gworld.refine.sample import Film, changed_share, film_clip, refine_clip, refine_frames, refine_views
from gworld.refine.saved import SavedRefiner, load_refiner, save_refiner
from gworld.refine.several import settle
from gworld.scene.clip import Clip, link_points, pixel_grid
from tests.test_scene_clip import plane_clip

SMALL = RefinerConfig(width=8, seed=3)


def shaken(config: RefinerConfig = SMALL) -> Refiner:
    """A network whose every weight is at work: fresh ones begin as the identity."""
    model = Refiner(config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return model.eval()


def film(frames: int = 4, confidence: float = 0.0) -> Clip:
    eyes = torch.stack([torch.tensor([0.05 * t, 0.02 * t, 2.0]) for t in range(frames)])
    clip = plane_clip(eyes)
    points = link_points(clip)
    rgb = 0.5 + 0.4 * torch.sin(9 * points[..., :1] + 7 * points[..., 1:2]) * torch.tensor([1.0, 0.6, -0.5])
    flow = torch.zeros_like(clip.flow)
    for t in range(1, frames):
        inward = torch.linalg.inv(clip.world_from_camera[t - 1])
        local = points[t] @ inward[:3, :3].T + inward[:3, 3]
        image = local @ clip.K[t - 1].T
        flow[t] = pixel_grid(*clip.depth.shape[1:]) - image[..., :2] / image[..., 2:]
    return replace(clip, rgb=rgb, flow=flow, confidence=torch.full_like(clip.confidence, confidence), truth=rgb)


def test_a_fresh_network_adds_nothing_and_stays_below_ten_million() -> None:
    clip = film(2)
    assert torch.equal(refine_views(Refiner(SMALL), clip), clip.rgb)
    assert torch.equal(refine_clip(Refiner(replace(SMALL, hold=0.0)), clip), clip.rgb)
    assert count_parameters(Refiner()) < 10_000_000


def test_where_confidence_is_one_the_render_stands_whatever_the_weights() -> None:
    clip = film(3)
    confidence = clip.confidence.clone()
    confidence[:, :, 10:] = 1.0
    clip = replace(clip, confidence=confidence)
    out = refine_clip(shaken(), clip, clip)
    assert torch.equal(out[:, :, 10:], clip.rgb[:, :, 10:])
    assert changed_share((out - clip.rgb).abs().amax(-1)[:, :, :10]) > 0.5
    loose = refine_clip(shaken(replace(SMALL, gate=False)), clip, clip)
    assert not torch.equal(loose[:, :, 10:], clip.rgb[:, :, 10:])


def test_films_are_refined_frame_by_frame_alike_and_by_seed() -> None:
    clip, model = film(4), shaken()
    whole = refine_clip(model, clip, clip)
    one = Film(model, clip)
    for t in range(4):
        assert torch.equal(one(clip[t]).picture, whole[t])
    again = [each.picture for each in refine_frames(model, (clip[t] for t in range(4)), clip, seed=5)]
    assert not torch.equal(torch.stack(again), whole)
    # What was shown matters: the second frame alone is another picture.
    assert not torch.equal(refine_clip(model, clip[1:], clip)[0], whole[1])
    still = shaken(replace(SMALL, previous=False, temporal=False))
    assert torch.equal(refine_clip(still, clip[1:], clip)[0], refine_clip(still, clip, clip)[1])


def test_what_was_shown_is_held_where_the_frame_before_shows_it_and_never_where_the_world_is_sure() -> None:
    clip = film(3)
    flashing = clip.rgb.clone()
    flashing[1] = (flashing[1] + 0.2).clamp(0, 1)
    confidence = clip.confidence.clone()
    confidence[:, :, :8] = 1.0
    clip = replace(clip, rgb=flashing, confidence=confidence)
    free, held = (refine_clip(Refiner(replace(SMALL, hold=part)), clip) for part in (0.0, 0.8))
    assert torch.equal(free, clip.rgb)  # fresh networks correct nothing
    inner = (slice(4, -4), slice(14, -6))
    assert (held[1] - held[0])[inner].abs().mean() < 0.5 * (free[1] - free[0])[inner].abs().mean()
    assert torch.equal(held[:, :, :8], clip.rgb[:, :, :8])


def test_fits_are_settled_by_their_median_and_trusted_where_they_agree() -> None:
    clip = film(1)
    low, high = clip.rgb - 0.2, clip.rgb + 0.1
    others = torch.cat([low, high])
    others[:, :, 20:] = clip.rgb[:, :, 20:]
    sure = clip.confidence.clone()
    sure[:, :, :4] = 1.0
    frame = replace(clip, rgb=clip.rgb + 0.3, confidence=sure)
    found = settle(frame, others)
    assert torch.equal(found.rgb[:, :, :4], frame.rgb[:, :, :4])
    torch.testing.assert_close(found.rgb[:, :, 4:20], high[:, :, 4:20])
    assert found.confidence[:, :, 4:].max() == 0 and settle(clip, others).confidence[:, :, 20:].min() == 1
    two = settle(replace(clip, rgb=high), low)
    torch.testing.assert_close(two.rgb, clip.rgb - 0.05)


def test_noise_sticks_to_the_surface() -> None:
    clip = film(2)
    points = link_points(clip)
    first, second = (surface_noise(points[t], clip[t], 0) for t in range(2))
    place, kept = follow(clip[1], clip[0], points[1:2])
    assert kept[4:-4, 6:-6].min() > 0.5
    there = warp(first[None], place.movedim(-1, 0)[None])[0]
    inner = (slice(None), slice(4, -4), slice(6, -6))
    correlation = torch.corrcoef(torch.stack([there[inner].flatten(), second[inner].flatten()]))[0, 1]
    assert correlation > 0.4  # cells are about a pixel: half of it is lost between pixels
    assert abs(float(first.mean())) < 0.06 and abs(float(first.std()) - 1) < 0.06
    assert torch.equal(first, surface_noise(points[0], clip[0], 0))
    assert not torch.equal(first, surface_noise(points[0], clip[0], 1))


def test_photos_have_no_order_and_frames_no_neighbours_in_a_batch() -> None:
    clip, model = film(3), shaken()
    inputs = prepare(clip[1], clip[0], clip, own=1)
    assert inputs.photos[0, :2, 6].mean() > 0.5 and inputs.photos[0, 2].abs().max() == 0
    plain, _ = model(inputs)
    turned, _ = model(replace(inputs, photos=inputs.photos.flip(1)))
    torch.testing.assert_close(plain, turned, atol=1e-5, rtol=0)
    both = Inputs(
        **{
            f.name: torch.cat([getattr(inputs, f.name), 0.5 * getattr(inputs, f.name)])
            for f in fields(Inputs)
            if getattr(inputs, f.name) is not None
        }
    )
    torch.testing.assert_close(model(both)[0][:1], plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["references", "previous", "temporal", "depth", "points", "links", "flow", "noise"])
def test_a_switch_takes_its_condition_away(name: str) -> None:
    clip = film(3)
    model = shaken(replace(SMALL, **{name: False}))
    inputs = prepare(clip[1], clip[0], clip, own=1)
    _, state = model(prepare(clip[0], None, clip))
    plain, _ = model(inputs, state)
    changes = {
        "references": {"photos": inputs.photos * 0.3},
        "depth": {"geometry": inputs.geometry * torch.tensor([0.1, 0.1, 1, 1, 1, 1])[:, None, None]},
        "points": {"points": inputs.points + 1},
        "links": {"geometry": inputs.geometry + torch.tensor([0.0, 0, 1, 1, 0, 0])[:, None, None]},
        "flow": {"geometry": inputs.geometry + torch.tensor([0.0, 0, 0, 0, 1, 1])[:, None, None]},
        "noise": {"noise": inputs.noise + 1},
    }
    if name in changes:
        assert torch.equal(model(replace(inputs, **changes[name]), state)[0], plain)
        assert not torch.equal(shaken()(replace(inputs, **changes[name]), state)[0], shaken()(inputs, state)[0])
    elif name == "previous":
        assert torch.equal(model(inputs, replace(state, output=state.output * 0.5))[0], plain)
    else:
        assert torch.equal(model(inputs, replace(state, bottleneck=state.bottleneck * 0.5))[0], plain)


def test_any_size_and_plain_film_without_a_world() -> None:
    model = shaken()
    for size in ((24, 32), (21, 35), (8, 9)):
        frame = film_clip(torch.rand(*size, 3, generator=torch.Generator().manual_seed(0)))
        out = refine_clip(model, frame)
        assert out.shape == (1, *size, 3) and bool(out.isfinite().all())
        assert not torch.equal(out, frame.rgb)
        assert torch.equal(refine_clip(model, replace(frame, confidence=frame.confidence + 1)), frame.rgb)


def test_a_refiner_is_saved_with_its_photos_and_damage_is_told(tmp_path) -> None:
    model, clip = shaken(), film(2)
    save_refiner(SavedRefiner(model, clip, "abc"), tmp_path / "refiner", facts={"made": "here"})
    back = load_refiner(tmp_path / "refiner")
    assert back.gaussians == "abc" and back.photos is not None and len(back.photos) == 2
    rounded = replace(back.photos, truth=None)
    assert torch.equal(refine_clip(back.model, rounded), refine_clip(model, rounded))
    with pytest.raises(InputError, match="no refiner"):
        load_refiner(tmp_path)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for values, parts, text in (
        ({}, tensors, "no refiner"),
        ({"refiner": {**save_values(model)["refiner"], "width": 6}}, tensors, "channels"),
        ({"refiner": {**save_values(model)["refiner"], "width": 12}}, tensors, "do not fit"),
        (save_values(model), {name: value * torch.nan for name, value in tensors.items()}, "not finite"),
    ):
        with pytest.raises(InputError, match=text):
            refiner_from(values, parts)
