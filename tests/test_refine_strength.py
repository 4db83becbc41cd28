"""Strengths of refinement: found again where the truth asks for them, link by link, and kept to when films are made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gworld.data.pairset import Pair
from gworld.errors import InputError
from gworld.refine.inputs import Inputs
from gworld.refine.network import Refiner, State
from gworld.refine.sample import Film
from gworld.refine.strength import measure_strengths, photo_pairs
from gworld.scene.clip import Clip, join_clips
from tests.test_refine_network import film


class _Brighter(Refiner):
    """A network whose change is known: a tenth more everywhere."""

    def forward(
        self, inputs: Inputs, state: State | None = None, sigma: float | None = None
    ) -> tuple[torch.Tensor, State]:
        output = inputs.rgb + 0.1
        return output, State(output, torch.zeros(1, 1, 1, 1))


def halves(frames: int = 4) -> Clip:
    """A film whose left half is link 0 and whose right half is link 1."""
    clip = film(frames)
    link = torch.zeros_like(clip.link_id)
    link[:, :, link.shape[2] // 2 :] = 1
    poses = torch.eye(4).expand(frames, 2, 4, 4)
    rgb = 0.2 + 0.5 * clip.rgb
    return replace(clip, rgb=rgb, truth=rgb, link_id=link, world_from_link=poses)


@pytest.mark.parametrize(("wanted", "strength"), [(0.1, 1.0), (0.05, 0.5), (-0.05, 0.0)])
def test_each_link_gets_what_its_truth_asks_for(wanted: float, strength: float) -> None:
    clip = halves()
    truth = clip.rgb + torch.where(clip.link_id == 0, wanted, -0.1)[..., None]
    pair = Pair(replace(clip, truth=truth), None, "given", "toy")
    assert measure_strengths(_Brighter(), [pair]) == {0: strength, 1: 0.0}
    still = replace(pair.clip, world_from_camera=clip.world_from_camera[:1].expand(len(clip), 4, 4))
    assert measure_strengths(_Brighter(), [replace(pair, clip=still)]) == {0: 0.0, 1: 0.0}  # one place is no evidence


def test_gains_that_differ_by_more_than_they_are_count_for_nothing() -> None:
    clip = halves()
    pairs = [
        Pair(replace(clip[row], truth=clip[row].rgb + wanted), None, "given", "toy")
        for row, wanted in enumerate((0.1, -0.1, 0.1, -0.04))
    ]
    assert measure_strengths(_Brighter(), pairs[::2]) == {0: 1.0, 1: 1.0}
    assert measure_strengths(_Brighter(), pairs[:2]) == {0: 0.0, 1: 0.0}
    assert measure_strengths(_Brighter(), pairs) == {0: 0.0, 1: 0.0}
    with pytest.raises(InputError, match="no frame shows"):
        measure_strengths(
            _Brighter(), [Pair(replace(clip, confidence=torch.ones_like(clip.alpha)), None, "given", "toy")]
        )
    with pytest.raises(InputError, match="no true pictures"):
        measure_strengths(_Brighter(), [Pair(replace(clip, truth=None), None, "given", "toy")])


def test_a_film_changes_each_link_by_its_strength() -> None:
    clip = halves(1)
    picture = Film(_Brighter(), strengths={0: 0.0, 1: 0.5})(clip).picture
    left = clip.link_id[0] == 0
    assert torch.equal(picture[left], clip.rgb[0][left])
    torch.testing.assert_close(picture[~left], clip.rgb[0][~left] + 0.05)


def test_a_photo_is_refined_without_those_from_its_own_place() -> None:
    clip = halves(2)
    twice = join_clips([clip[row] for row in (0, 1, 0, 1)])
    pairs = list(photo_pairs(twice))
    assert len(pairs) == 4
    for row, pair in enumerate(pairs):
        assert pair.references is not None and len(pair.references) == 2
        assert pair.clip.truth is not None and torch.equal(pair.clip.world_from_camera[0], twice.world_from_camera[row])
        apart = (pair.references.world_from_camera - pair.clip.world_from_camera).abs().amax((1, 2))
        assert bool((apart > 1e-3).all())
    assert list(photo_pairs(join_clips([clip[0], clip[0]]))) == []
