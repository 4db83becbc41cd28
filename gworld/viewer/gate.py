"""Who may look in: a viser server behind checks of address, page of origin, token, number and manners of visitors.

viser itself listens on all addresses, takes WebSockets from pages of any site and deserialises whatever comes. Here
every connection passes the gate first: bound to this machine unless asked otherwise, then a token is needed; the Host
must be ours and the Origin the page that we served; messages must be of the few kinds that a browser has reason to
send.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import http
import io
import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import viser
import websockets.asyncio.server
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from gworld.errors import MissingBackendError, UsageError
from gworld.viewer.allocator import give_back
from gworld.viewer.messages import MAX_PICTURE, is_well_formed

PORTS = 20
"""Ports tried, from the one asked for on."""
RATE, BURST = 400.0, 2000.0
"""Messages per second of one visitor, and how many at once; more of them wait."""
MAX_MALFORMED = 100
"""Malformed messages after which a visitor is shown out."""
TIDIED_AFTER = 0.5
"""Seconds after a visitor left until the memory of all who left meanwhile is given back."""
PATIENCE = 20.0
"""Seconds in which a visitor answers a ping; one who stalls longer is let go."""
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob: "
    "data:; style-src 'self' 'unsafe-inline' data:; connect-src 'self' ws: wss: data: blob:; frame-ancestors 'none'; "
    "form-action 'none'; base-uri 'none'"
)
_STARTING = threading.Lock()


@dataclass
class Gate:
    """What is asked of visitors, and how many are in.

    `token` is None where none is needed; `inside` counts open WebSockets, `malformed` messages thrown away.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    clients: int = 16
    inside: int = 0
    malformed: int = 0
    standing: bool = False
    tidying: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        name = "localhost" if self.host == "127.0.0.1" else self.host.strip("[]")
        name = socket.gethostname() if is_any(name) else name
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.port}/" + (f"?token={self.token}" if self.token else "")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and nothing else."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host.lower() == "localhost"


def is_any(host: str) -> bool:
    """Whether a host stands for all addresses of this machine."""
    return host in ("0.0.0.0", "::")


def open_gate(host: str, port: int, clients: int, token: str | None = None) -> tuple[Gate, socket.socket]:
    """A gate and the socket it stands at: `port`, or the next free one (any where 0).

    A host that others can reach gets a random token unless one is given. Raises `UsageError` for a host that is none
    of this machine's and for ports that are all taken.
    """
    if not 1 <= clients <= 1024:
        raise UsageError(f"{clients} clients were asked for; 1 to 1024 are possible.")
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} was asked for; 0 to 65535 are possible.")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    name = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
    try:
        family, _, _, _, place = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"`--host {host}` is no address of this machine ({error.strerror}).") from error
    for attempt in range(1 if port == 0 else PORTS):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place[0], port + attempt, *place[2:]))
        except OverflowError:  # ports end at 65535
            listener.close()
            break
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise UsageError(f"`{host}` cannot be listened on: {error.strerror}. Choose another host.") from error
            continue
        listener.listen(128)
        return Gate(host, listener.getsockname()[1], token, clients), listener
    raise UsageError(f"ports {port} to {port + PORTS - 1} are taken. Name a free one with `--port`.")


def refusal(gate: Gate, request: Request) -> tuple[http.HTTPStatus, str] | None:
    """Why a request is not let in, or None: wrong Host, foreign page, no token, too many visitors."""
    headers = request.headers
    hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
    if len(hosts) != 1 or len(origins) > 1 or not _is_ours(gate, hosts[0]):
        return http.HTTPStatus.FORBIDDEN, "This viewer answers to its own address only.\n"
    if origins and _place(urlsplit(origins[0]).netloc) != _place(hosts[0]):
        return http.HTTPStatus.FORBIDDEN, "Pages of other sites may not talk to this viewer.\n"
    if gate.token is not None and not _has_token(gate, request):
        return http.HTTPStatus.UNAUTHORIZED, "This viewer needs its token: open the whole address that it printed.\n"
    if not is_upgrade(request):
        return None
    if f"viser-v{viser.__version__}" not in ",".join(headers.get_all("Sec-WebSocket-Protocol")).replace(" ", ""):
        return http.HTTPStatus.BAD_REQUEST, "The page is of another version than the server; reload it.\n"
    if gate.inside >= gate.clients:
        return http.HTTPStatus.SERVICE_UNAVAILABLE, f"All {gate.clients} places in this viewer are taken.\n"
    return None


def is_upgrade(request: Request) -> bool:
    """Whether a request asks for a WebSocket."""
    return any(value.strip().lower() == "websocket" for value in request.headers.get_all("Upgrade"))


def open_server(gate: Gate, listener: socket.socket, label: str) -> viser.ViserServer:
    """A viser server behind the gate. Raises `MissingBackendError` for a viser whose door cannot be guarded."""
    with _STARTING, _guarded(gate, listener), contextlib.redirect_stdout(io.StringIO()):
        # The host and port named here are never bound: the listener is handed over in their place.
        server = viser.ViserServer(host="127.0.0.1", port=0, label=label, verbose=False)
    if not gate.standing:
        server.stop()
        listener.close()
        raise MissingBackendError(
            f"viser {viser.__version__} starts its server in an unknown way, so visitors could not be checked. "
            "Run `pip install 'viser>=1.1,<2'`."
        )
    server.get_event_loop().set_exception_handler(lambda _, context: _note(gate, context))
    return server


@contextlib.contextmanager
def _guarded(gate: Gate, listener: socket.socket) -> Iterator[None]:
    """While this lasts, a WebSocket server that is started listens at our socket and asks our gate."""
    module: Any = websockets.asyncio.server
    real = module.serve

    def serve(handler: Callable[..., Any], _host: str, _port: int, *, process_request: Any, **options: Any) -> Any:
        gate.standing = True
        stricter = {
            "max_size": MAX_PICTURE + 4096,
            "max_queue": 64,
            "ping_interval": PATIENCE,
            "ping_timeout": PATIENCE,
            "open_timeout": PATIENCE,
            "close_timeout": 2.0,
            "create_connection": lambda *given, **named: _Visitor(gate, *given, **named),
        }
        return real(
            lambda connection: _welcome(gate, handler, connection),
            sock=listener,
            process_request=lambda connection, request: _answer(gate, connection, request, process_request),
            **{**options, **stricter},
        )

    module.serve = serve
    try:
        yield
    finally:
        module.serve = real


class _Visitor(websockets.asyncio.server.ServerConnection):
    """A connection that passes on well-formed messages only, no faster than one can click."""

    def __init__(self, gate: Gate, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._gate, self._bad, self._left, self._seen = gate, 0, BURST, time.monotonic()

    async def recv(self, decode: bool | None = None) -> Any:
        """The next sound message."""
        while True:
            raw = await super().recv(decode)
            now = time.monotonic()
            self._left, self._seen = min(BURST, self._left + RATE * (now - self._seen)) - 1, now
            if self._left < 0:
                await asyncio.sleep(-self._left / RATE)
            if _is_sound(raw):
                return raw
            self._gate.malformed += 1
            self._bad += 1
            if self._bad >= MAX_MALFORMED:
                await self.close(1008, "too many malformed messages")


def _is_sound(raw: Any) -> bool:
    if not isinstance(raw, bytes):
        return False
    try:
        return is_well_formed(msgspec.msgpack.decode(raw))
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
        return False


async def _welcome(gate: Gate, handler: Callable[..., Any], connection: Any) -> None:
    """Let a visitor in, and count it out again."""
    if gate.inside >= gate.clients:  # several may have asked at once while one place was free
        await connection.close(1013, "all places are taken")
        return
    gate.inside += 1
    try:
        await handler(connection)
    except ConnectionClosed:
        pass
    finally:
        gate.inside -= 1
        if not gate.tidying:
            gate.tidying = True
            asyncio.get_running_loop().call_later(TIDIED_AFTER, _tidy, gate)


def _tidy(gate: Gate) -> None:
    """Let go of what was kept for visitors who have left: tasks and frames in circles, some 150 kB each."""
    gate.tidying = False
    give_back()


def _answer(gate: Gate, connection: Any, request: Request, process_request: Callable[..., Any]) -> Response | None:
    """Refuse, trade a token in the address for a cookie, or go on."""
    refused = refusal(gate, request)
    if refused is not None:
        response: Response | None = connection.respond(*refused)
    elif not is_upgrade(request) and gate.token is not None and "token" in parse_qs(urlsplit(request.path).query):
        response = Response(http.HTTPStatus.SEE_OTHER, "See Other", Headers({"Location": "/", "Content-Length": "0"}))
        cookie = f"{_cookie_name(gate)}={gate.token}; HttpOnly; SameSite=Strict; Path=/"
        response.headers["Set-Cookie"] = cookie
    else:
        response = process_request(connection, request)
    if response is not None:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Cache-Control"] = "no-store"
    return response


def _has_token(gate: Gate, request: Request) -> bool:
    """Whether the token stands in the address or in the cookie that was given for it."""
    given = parse_qs(urlsplit(request.path).query).get("token", [])
    for header in request.headers.get_all("Cookie"):
        for part in header.split(";"):
            name, _, value = part.strip().partition("=")
            given += [value] if name == _cookie_name(gate) else []
    return any(hmac.compare_digest(one.encode(), (gate.token or "").encode()) for one in given)


def _cookie_name(gate: Gate) -> str:
    return f"gworld-{gate.port}"  # cookies of one host are shared by its ports


def _is_ours(gate: Gate, host: str) -> bool:
    """Whether a Host header is an address of ours: a name that a stranger's DNS points here is not.

    Any port will do, for tunnels may end at another. With a token, which a stranger's page never has, any name will.
    """
    name = _place(host).rpartition(":")[0]
    return bool(name) and (gate.token is not None or is_loopback(name) or name == gate.host.lower())


def _place(netloc: str) -> str:
    """`host:port` in lower case, with the port that http implies; empty where it is none."""
    try:
        parts = urlsplit(f"//{netloc}")
        port = parts.port or 80
    except ValueError:
        return ""
    return f"{parts.hostname}:{port}" if parts.hostname and parts.username is None else ""


def _note(gate: Gate, context: dict[str, Any]) -> None:
    """Keep the last few problems of the server's loop: a visitor's nonsense fills no terminal."""
    gate.problems[:] = [*gate.problems[-9:], f"{context.get('message', '')}: {context.get('exception')!r}"]
