"""The library's contact sweeps against their twin in torch: worlds with joints, bodies that lie, and both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gworld.dynamics import impulses, native
from gworld.dynamics.contact import Bodies, Contacts
from gworld.dynamics.impulses import Matter, Response, solve_contacts
from gworld.dynamics.linkage import Linkage
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, quat_from_rotvec

WORLDS, LINKS, VALUES, EACH = 3, 6, 4, 9

pytestmark = pytest.mark.skipif(native._library() is None, reason="the native library is not built")


def problem(
    dtype: torch.dtype, *, joints: bool, lies: bool, worlds: int = WORLDS
) -> tuple[Bodies, Matter, Contacts, Response]:
    """Worlds of links 0 and 1 (driven where there are joints, else fixed) and four bodies that touch somewhere."""
    draw = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(WORLDS, *shape, generator=draw, dtype=torch.float64)[:worlds].flatten(0, 1).to(dtype)

    count = worlds * LINKS
    first = torch.randint(0, LINKS, (WORLDS, EACH), generator=draw)[:worlds]
    second = (first + 1 + torch.randint(0, LINKS - 1, (WORLDS, EACH), generator=draw)[:worlds]) % LINKS
    offset = LINKS * torch.arange(worlds)[:, None]
    speed, spin, push = (random(LINKS, 3) for _ in range(3))
    bodies = Bodies(random(LINKS, 3), matrix_from_quat(quat_from_rotvec(random(LINKS, 3))), speed, spin, push)
    free = (torch.arange(count) % LINKS >= 2).to(dtype)
    half = random(LINKS, 3, 3)
    inertia = (half @ half.transpose(-1, -2) + 0.1 * torch.eye(3, dtype=dtype)) * free[:, None, None]
    up = torch.tensor([0.0, 0.0, 1.0], dtype=dtype).expand(count, 3)
    matter = Matter(random(LINKS).abs() * free, inertia)
    if lies:
        matter = replace(matter, lies=torch.arange(count) % LINKS >= 4, up=up, ease_up=free)
    if joints:
        reach = random(LINKS, 6, VALUES) * (1.0 - free)[:, None, None]
        group = torch.where(free > 0, torch.arange(count), torch.arange(count) // LINKS * LINKS)
        ease = random(1, VALUES).view(worlds, VALUES).abs()
        matter = replace(matter, linkage=Linkage(reach, ease, torch.ones_like(ease), group))
    normal = torch.nn.functional.normalize(random(EACH, 3), dim=-1)
    arms = [0.3 * random(EACH, 3) for _ in range(2)]
    rest = torch.zeros(worlds * EACH, dtype=dtype)
    a, b = (first + offset).flatten(), (second + offset).flatten()
    contacts = Contacts(a, b, normal, *arms, rest, rest, rest + 0.01)
    return bodies, matter, contacts, Response(rest + 0.3, rest + 0.4, rest + 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("joints", "lies"), [(False, False), (True, False), (False, True), (True, True)])
def test_sweeps_equal_those_of_torch(
    dtype: torch.dtype, joints: bool, lies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem(dtype, joints=joints, lies=lies)
    impulse, press = solve_contacts(*given, 20)
    assert float(press.max()) > 0.1
    monkeypatch.setattr(impulses, "can_sweep", lambda tensors: False)
    expected, expected_press = solve_contacts(*given, 20)
    near = 1e-11 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(impulse, expected, atol=near, rtol=near)
    torch.testing.assert_close(press, expected_press, atol=near, rtol=near)


def test_other_worlds_change_no_bit() -> None:
    impulse, press = solve_contacts(*problem(torch.float32, joints=True, lies=True), 20)
    alone, alone_press = solve_contacts(*problem(torch.float32, joints=True, lies=True, worlds=1), 20)
    assert torch.equal(impulse[:EACH], alone) and torch.equal(press[:EACH], alone_press)


def test_gradients_are_torch_s() -> None:
    bodies, matter, contacts, response = problem(torch.float64, joints=True, lies=True)
    speed = bodies.speed.clone().requires_grad_(True)
    impulse, _ = solve_contacts(replace(bodies, speed=speed), matter, contacts, response, 12)
    impulse.square().sum().backward()
    assert speed.grad is not None and float(speed.grad.abs().max()) > 0
    with torch.no_grad():
        swept, _ = solve_contacts(bodies, matter, contacts, response, 12)
    torch.testing.assert_close(swept, impulse.detach(), atol=1e-11, rtol=1e-11)


def test_bodies_that_are_not_there_are_refused() -> None:
    _, matter, contacts, response = problem(torch.float32, joints=False, lies=False)
    far = replace(contacts, a=contacts.a + 10**6)
    given = {"a": far.a, "b": far.b, "normal": far.normal, "arm_a": far.arm_a, "arm_b": far.arm_b}
    given |= {"rate": far.normal, "wanted": far.gap, "ease": far.gap, "slip": far.gap, "friction": response.friction}
    given |= {"gives": far.gap > 0, "inverse_mass": matter.inverse_mass, "inverse_inertia": matter.inverse_inertia}
    given |= dict.fromkeys(("lies", "up", "reach", "ease_joints"))
    with pytest.raises(InputError, match="do not fit"):
        native.sweep_contacts(given, 1, 4)
