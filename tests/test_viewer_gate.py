"""Who gets into the viewer: origins, hosts, tokens, places, paths, and what visitors may say."""

from __future__ import annotations

import contextlib
import gc
import http.client
import io
import os
import socket
import time
import weakref
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import viser
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from gworld.errors import UsageError
from gworld.viewer.gate import Gate, _Visitor, is_loopback, open_gate, open_server
from gworld.viewer.messages import is_well_formed

VERSION = f"viser-v{viser.__version__}"
CAMERA = {
    "type": "ViewerCameraMessage", "wxyz": [1.0, 0, 0, 0], "position": [0.0, -2.0, 1.0], "fov": 0.9, "near": 0.01,
    "far": 100.0, "image_height": 300, "image_width": 400, "look_at": [0.0, 0, 0], "up_direction": [0.0, 0, 1.0],
}  # fmt: skip


@contextlib.contextmanager
def opened(**settings: Any) -> Iterator[tuple[Gate, viser.ViserServer]]:
    gate, listener = open_gate(**{"host": "127.0.0.1", "port": 0, "clients": 4, **settings})
    server = open_server(gate, listener, "test")
    try:
        yield gate, server
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


@pytest.fixture(scope="module")
def plain() -> Iterator[tuple[Gate, viser.ViserServer]]:
    with opened() as found:
        yield found


@pytest.fixture(scope="module")
def secret() -> Iterator[tuple[Gate, viser.ViserServer]]:
    with opened(token="open sesame") as found:
        yield found


def fetch(gate: Gate, path: str = "/", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in {"Host": f"localhost:{gate.port}", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def visit(gate: Gate, path: str = "/", origin: str | None = None, **headers: str) -> Any:
    return connect(
        f"ws://localhost:{gate.port}{path}", origin=origin, subprotocols=[VERSION],  # type: ignore[arg-type, list-item]  # plain strings will do
        additional_headers=headers, compression=None, open_timeout=10, close_timeout=1, max_size=None,
    )  # fmt: skip


def refused(gate: Gate, status: int, **how: Any) -> None:
    with pytest.raises(InvalidStatus) as error, visit(gate, **how):
        pass
    assert error.value.response.status_code == status


def arrives(server: viser.ViserServer, count: int) -> None:
    end = time.monotonic() + 10
    while len(server.get_clients()) != count and time.monotonic() < end:
        time.sleep(0.02)
    assert len(server.get_clients()) == count


def test_only_this_machine_is_listened_on(plain: tuple[Gate, viser.ViserServer]) -> None:
    gate, _ = plain
    with open("/proc/net/tcp") as table:
        rows = [line.split()[1] for line in table if f":{gate.port:04X} " in line.split("rem_address")[0]]
    bound = {row.split(":")[0] for row in rows if row.endswith(f":{gate.port:04X}")}
    assert bound == {"0100007F"}
    assert gate.token is None and gate.address == f"http://localhost:{gate.port}/"


def test_pages_of_other_sites_are_refused(plain: tuple[Gate, viser.ViserServer]) -> None:
    gate, server = plain
    for origin in (
        "http://evil.example",
        f"http://localhost:{gate.port + 1}",
        "null",
        f"http://u@localhost:{gate.port}",
    ):
        refused(gate, 403, origin=origin)
    with visit(gate, origin=f"http://localhost:{gate.port}") as socket_:
        socket_.send(msgspec.msgpack.encode(CAMERA))
        arrives(server, 1)
    arrives(server, 0)


def test_names_that_only_point_here_are_refused(plain: tuple[Gate, viser.ViserServer]) -> None:
    gate, _ = plain
    for host in ("evil.example", f"evil.example:{gate.port}", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert fetch(gate, Host=host)[0] == 403, host
    for host in ("localhost", "LOCALHOST:9", f"127.0.0.1:{gate.port}", "[::1]:80"):  # tunnels may end at any port
        assert fetch(gate, Host=host)[0] == 200, host


def test_the_page_is_served_and_contacts_nobody(plain: tuple[Gate, viser.ViserServer]) -> None:
    status, headers, body = fetch(plain[0])
    assert status == 200 and b"<html" in body
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "http" not in headers["Content-Security-Policy"]
    assert headers["X-Frame-Options"] == "DENY" and headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cetc/passwd", "//etc/passwd", "/assets"]
)
def test_paths_out_of_the_page_are_refused(plain: tuple[Gate, viser.ViserServer], path: str) -> None:
    status, _, body = fetch(plain[0], path)
    assert status == 404 and b"root:" not in body


def test_a_token_is_needed_for_page_and_socket(secret: tuple[Gate, viser.ViserServer]) -> None:
    gate, server = secret
    assert fetch(gate)[0] == fetch(gate, "/?token=wrong")[0] == fetch(gate, Cookie=f"gworld-{gate.port}=x")[0] == 401
    refused(gate, 401)
    refused(gate, 401, path="/?token=")
    status, headers, _ = fetch(gate, "/?token=open%20sesame", Host="robots.example")
    assert status == 303 and headers["Location"] == "/"
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert fetch(gate, Cookie=f"other=1; {cookie.split(';')[0]}")[0] == 200
    refused(gate, 403, origin="http://evil.example", Cookie=cookie.split(";")[0])
    for how in ({"path": "/?token=open%20sesame"}, {"Cookie": cookie.split(";")[0]}):
        with visit(gate, **how) as socket_:
            socket_.send(msgspec.msgpack.encode(CAMERA))
            arrives(server, 1)
        arrives(server, 0)


def test_others_need_a_token_without_being_asked() -> None:
    gate, listener = open_gate("0.0.0.0", 0, 4)
    listener.close()
    assert gate.token is not None and len(gate.token) >= 32 and gate.token in gate.address
    again, listener = open_gate("0.0.0.0", 0, 4)
    listener.close()
    assert again.token != gate.token
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_addresses_can_be_opened_as_they_are_printed() -> None:
    found = [Gate(host, 80).address for host in ("127.0.0.1", "localhost", "::1", "[::1]", "10.0.0.1")]
    assert found == [f"http://{name}:80/" for name in ("localhost", "localhost", "[::1]", "[::1]", "10.0.0.1")]
    assert Gate("::", 80, "t").address == f"http://{socket.gethostname()}:80/?token=t"


def test_a_taken_port_leads_to_the_next_and_a_strange_host_to_a_sentence() -> None:
    gate, listener = open_gate("127.0.0.1", 0, 4)
    other, second = open_gate("127.0.0.1", gate.port, 4)
    assert gate.port < other.port <= gate.port + 20
    listener.close()
    second.close()
    for host in ("203.0.113.7", "no such host"):
        with pytest.raises(UsageError, match="host"):
            open_gate(host, 0, 4)
    with pytest.raises(UsageError, match="clients"):
        open_gate("127.0.0.1", 0, 0)


def test_places_are_limited_and_freed() -> None:
    with opened(clients=2) as (gate, _), contextlib.ExitStack() as stack:
        first = stack.enter_context(visit(gate))
        stack.enter_context(visit(gate))
        end = time.monotonic() + 5
        while gate.inside < 2 and time.monotonic() < end:
            time.sleep(0.02)
        refused(gate, 503)
        first.close()
        while gate.inside > 1 and time.monotonic() < end:
            time.sleep(0.02)
        stack.enter_context(visit(gate))


def test_another_version_of_the_page_is_refused(plain: tuple[Gate, viser.ViserServer]) -> None:
    with pytest.raises(InvalidStatus) as error:
        connect(f"ws://localhost:{plain[0].port}/", subprotocols=["viser-v0.0.1"])  # type: ignore[list-item]  # a plain string will do
    assert error.value.response.status_code == 400


def test_nonsense_is_thrown_away_and_whoever_goes_on_is_shown_out(plain: tuple[Gate, viser.ViserServer]) -> None:
    gate, server = plain
    before, slider = gate.malformed, server.gui.add_slider("s", 0.0, 1.0, 0.1, 0.5)
    uuid = slider._impl.uuid
    nonsense = [
        b"", os.urandom(64), b"\xc1", msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({"type": "ShareUrlRequest"}),
        msgspec.msgpack.encode({**CAMERA, "fov": "wide"}), msgspec.msgpack.encode({**CAMERA, "position": [0.0] * 2}),
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": uuid, "updates": {"update_cb": []}}),
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": uuid, "updates": {"value": float("nan")}}),
        b"\x91" * 4000,
    ]  # fmt: skip
    with visit(gate) as visitor:
        visitor.send(msgspec.msgpack.encode(CAMERA))
        arrives(server, 1)
        visitor.send("text")
        for message in nonsense:
            visitor.send(message)
        visitor.send(msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": uuid, "updates": {"value": 0.7}}))
        end = time.monotonic() + 5
        while slider.value != 0.7 and time.monotonic() < end:
            time.sleep(0.02)
        assert slider.value == 0.7 and gate.malformed == before + len(nonsense) + 1
        with pytest.raises(ConnectionClosed):
            for _ in range(1000):
                visitor.send(b"nonsense")
            while True:
                visitor.recv(timeout=10)
    arrives(server, 0)
    with visit(gate) as visitor:  # the server lives
        visitor.send(msgspec.msgpack.encode(CAMERA))
        arrives(server, 1)
    arrives(server, 0)


def test_ten_thousand_malformed_messages_leave_the_server_alive(plain: tuple[Gate, viser.ViserServer]) -> None:
    gate, server = plain
    for _ in range(100):
        with contextlib.suppress(ConnectionClosed), visit(gate) as visitor:
            for _ in range(100):
                visitor.send(b"\x00")
    with visit(gate) as visitor:
        visitor.send(msgspec.msgpack.encode(CAMERA))
        arrives(server, 1)
    arrives(server, 0)


def test_nothing_is_kept_of_visitors_who_left(monkeypatch: pytest.MonkeyPatch) -> None:
    held: weakref.WeakSet[_Visitor] = weakref.WeakSet()  # to look for them among all objects would hold them itself
    begin = _Visitor.__init__

    def told(self: _Visitor, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        held.add(self)

    monkeypatch.setattr(_Visitor, "__init__", told)
    gc.disable()  # what goes on by itself now and then must not be waited for
    try:
        with opened() as (gate, server):
            for _ in range(3):
                with visit(gate) as visitor:
                    visitor.send(msgspec.msgpack.encode(CAMERA))
                    arrives(server, 1)
                    assert len(held) >= 1
                arrives(server, 0)
            end = time.monotonic() + 20
            while len(held) and time.monotonic() < end:
                time.sleep(0.1)
            assert len(held) == 0
    finally:
        gc.enable()


def test_a_visitor_who_does_not_read_holds_up_nobody(plain: tuple[Gate, viser.ViserServer]) -> None:
    gate, server = plain
    stalled = socket.create_connection(("127.0.0.1", gate.port))
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.sendall(
        f"GET / HTTP/1.1\r\nHost: localhost:{gate.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {VERSION}\r\n\r\n".encode()
    )
    frame = server.scene.add_frame("/moving")
    server.scene.add_image("/big", memory_noise(), 1.0, 1.0)
    with visit(gate) as visitor:
        visitor.send(msgspec.msgpack.encode(CAMERA))
        arrives(server, 1)
        for step in range(200):
            frame.position = (step, 0.0, 0.0)
        begin = time.monotonic()
        while time.monotonic() < begin + 10 and b"SetPosition" not in visitor_bytes(visitor):
            pass
        assert time.monotonic() < begin + 10
    stalled.close()
    server.scene.remove_by_name("/big")
    arrives(server, 0)


def memory_noise() -> Any:
    import numpy as np

    return np.frombuffer(os.urandom(3 * 600 * 600), np.uint8).reshape(600, 600, 3)


def visitor_bytes(visitor: Any) -> bytes:
    import zstandard

    raw = visitor.recv(timeout=10)
    packed = int.from_bytes(raw[8:16], "little")
    return zstandard.ZstdDecompressor().decompress(raw[16 : 16 + packed], max_output_size=1 << 26)


def test_messages_are_of_a_closed_list() -> None:
    assert is_well_formed(CAMERA)
    assert is_well_formed({"type": "GuiUpdateMessage", "uuid": "a", "updates": {"value": [1, 2.5]}})
    click = {
        "type": "ScenePointerMessage", "event_type": "click", "ray_origin": [0.0, 1, 2], "ray_direction": [1.0, 0, 0],
        "screen_pos": [[0.5, 0.5]], "modifier": None,
    }  # fmt: skip
    assert is_well_formed(click) and is_well_formed({**click, "ray_origin": None})
    assert not is_well_formed({**click, "screen_pos": []}) and not is_well_formed({**click, "screen_pos": [[1.0]] * 2})
    assert not is_well_formed({**click, "ray_origin": [0.0, float("nan"), 1.0]})
    for wrong in ({}, [], None, {"type": 3}, {"type": ["a"]}, {**CAMERA, "more": 1}, {**CAMERA, "fov": True},
                  {**CAMERA, "fov": float("inf")}, {k: v for k, v in CAMERA.items() if k != "near"},
                  {"type": "GuiUpdateMessage", "uuid": "a", "updates": {"value": {"a": 1}}},
                  {"type": "GuiUpdateMessage", "uuid": "a" * 999, "updates": {"value": 1}}):  # fmt: skip
        assert not is_well_formed(wrong), wrong
