"""The page to play in: `bash run.sh --mode=play` serves it, and the WebSocket on which its dreams come."""

import asyncio
import contextlib
import ipaddress
import mimetypes
import os
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from omegaconf import DictConfig
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from play import latent_actions, messages
from play.connection import Connection
from play.hall import Hall
from play.prompts import decode, to_png
from training.settings import PlaySettings

STATIC = Path(__file__).resolve().parent / "static"
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
LARGEST_MESSAGE = 16_384  # bytes of one WebSocket message, or of a list of names
UPLOADS_AT_ONCE = 4
UPLOAD_SECONDS = 30.0
LINGER_SECONDS = 1.0
SHUTDOWN_SECONDS = 3


def run(cfg: DictConfig) -> None:
    """Serve until Ctrl-C. Raises ValueError or OSError, in one line, for what keeps the page from being served."""
    settings = PlaySettings.from_config(cfg.play)
    listener = listen(settings)
    try:
        hall = Hall(settings)
        tell(hall, listener)
        if settings.open_browser and has_display():
            threading.Thread(target=webbrowser.open, args=(url_of(listener),), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            make_server(hall).run(sockets=[listener])
        hall.close()
    finally:
        listener.close()


def make_server(hall: Hall) -> uvicorn.Server:
    settings = hall.settings
    config = uvicorn.Config(
        make_app(hall),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws_max_size=LARGEST_MESSAGE,
        ws_per_message_deflate=False,  # pictures hardly shrink, and packed messages could unfold to anything
        ws_ping_interval=settings.vanish_seconds / 2,
        ws_ping_timeout=settings.vanish_seconds / 2,
        limit_concurrency=64 + 8 * settings.max_sessions,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def make_app(hall: Hall) -> Starlette:
    mimetypes.add_type("text/javascript", ".js")  # some systems say text/plain, which browsers do not run
    pages = Pages(hall)

    async def play(websocket: WebSocket) -> None:
        await Connection(websocket, hall).serve()

    return Starlette(
        routes=[
            Route("/", pages.index),
            Route("/api/info", pages.info),
            Route("/api/prompts/{name}.png", pages.prompt),
            Route("/api/prompts", pages.upload, methods=["POST"]),
            Route("/api/names", pages.name, methods=["POST"]),
            Route("/api/recordings/{name}.{kind}", pages.recording),
            WebSocketRoute("/ws", play),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, hosts=hosts_of(hall.settings))],
        exception_handlers={HTTPException: _as_line, ValueError: _as_line, Exception: _as_line},
    )


def _as_line(request: Request, error: Exception) -> Response:
    """Errors as one line; what went wrong inside is for the terminal alone."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, ValueError):
        return JSONResponse({"error": " ".join(str(error).split())}, 400)
    return JSONResponse({"error": "something went wrong on the server"}, 500)


class Pages:
    """What is asked for by HTTP."""

    def __init__(self, hall: Hall):
        self._hall = hall
        self._uploading = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def index(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def info(self, request: Request) -> Response:
        return JSONResponse(await self._hall.aside(self._hall.overview, request.query_params.get("world")))

    async def prompt(self, request: Request) -> Response:
        hall = self._hall
        world = request.query_params.get("world")
        try:
            entry = hall.current if world is None else hall.library.find(world)
            prompt = await hall.aside(hall.prompts.find, entry, request.path_params["name"])
        except ValueError as error:
            raise HTTPException(404, str(error)) from None
        return Response(await hall.aside(to_png, prompt.picture), media_type="image/png")

    async def upload(self, request: Request) -> Response:
        hall = self._hall
        async with self._uploading:
            data = await read_body(request, hall.settings.upload_bytes)
            name = hall.prompts.uploads.add(await hall.aside(decode, data, hall.settings.upload_pixels))
        return JSONResponse({"id": name, "url": f"/api/prompts/{name}.png"})

    async def name(self, request: Request) -> Response:
        hall = self._hall
        message = messages.parse_object(await read_body(request, LARGEST_MESSAGE))
        entry = hall.library.find(message.get("world"))
        if not entry.is_latent:
            raise ValueError("only latent actions can be named; this world's have names")
        names = latent_actions.checked_names(message.get("names"), entry.num_actions)
        saved = await hall.aside(hall.rename, entry, names)
        return JSONResponse({"saved": saved, "world": hall.describe(entry)})

    async def recording(self, request: Request) -> Response:
        film = self._hall.recordings.get(request.path_params["name"])
        kind = request.path_params["kind"]
        if film is None or kind not in ("gif", "mp4"):
            raise HTTPException(404, "this recording is not known, or no more")
        data, media_type = (film.gif, "image/gif") if kind == "gif" else (film.mp4, "video/mp4")
        disposition = {"content-disposition": f'attachment; filename="dream.{kind}"'}
        return Response(data, media_type=media_type, headers=disposition)


async def read_body(request: Request, most_bytes: int) -> bytes:
    """A request's body, kept no further than the limit: what it says of its own length is not trusted.

    What is too long is taken and dropped for a moment more: a browser whose upload breaks off never reads why.
    """
    declared = request.headers.get("content-length", "")
    is_too_long = declared.isdigit() and int(declared) > most_bytes
    data = bytearray()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS if is_too_long else UPLOAD_SECONDS) as patience:
            async for chunk in request.stream():
                if is_too_long:
                    continue
                data += chunk
                if len(data) > most_bytes:
                    is_too_long = True
                    data.clear()
                    patience.reschedule(asyncio.get_running_loop().time() + LINGER_SECONDS)
            if not is_too_long:
                return bytes(data)
    hang_up = {"connection": "close"}  # else the server would read on to the end of what comes
    if is_too_long:
        raise HTTPException(413, f"too large: at most {most_bytes} bytes are taken", hang_up)
    raise HTTPException(408, f"it did not come within {UPLOAD_SECONDS:g} seconds", hang_up)


class Guard:
    """Lets browsers in only from this page, and under names that are this machine's.

    A page elsewhere may open WebSockets and send forms to 127.0.0.1; it cannot forge Origin. And where it makes a name
    of its own point here, Origin and Host agree, but the name is foreign. Addresses cannot be made to.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._problem(headers.get("host", ""), headers.get("origin"))
        if problem is not None:
            await JSONResponse({"error": problem}, 403)(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_guarded)

    def _problem(self, host: str, origin: str | None) -> str | None:
        if not self._is_ours(host):
            return "opened under a name that is not this machine's; set --play.allowed_hosts=[NAME]"
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return "asked for by another page"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            ipaddress.ip_address(name)
        except ValueError:
            return host.rpartition(":")[0].lower() in self._hosts or host.lower() in self._hosts
        return True


def hosts_of(settings: PlaySettings) -> frozenset[str]:
    names = ("localhost", settings.host, socket.gethostname(), *settings.allowed_hosts)
    return frozenset(name.lower() for name in names if name)


def listen(settings: PlaySettings) -> socket.socket:
    """A socket that waits for players. Raises ValueError that names the port or host where there can be none."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ValueError(f"play.host={settings.host} is no address of this machine ({error.strerror})") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            reason = "needs more rights; set --play.port to 1024 or above"
        else:
            reason = f"cannot be used ({error.strerror}); set --play.port=0 for any free one, or another --play.host"
        raise ValueError(f"play.port={settings.port} on play.host={settings.host} {reason}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def tell(hall: Hall, listener: socket.socket) -> None:
    """What the terminal shows before the first player comes."""
    settings, entry = hall.settings, hall.current
    size = hall.num_bytes_per_player() / 1e6
    print(f"{len(hall.library.entries)} worlds; first {entry.name}, on {hall.device}")
    print(f"up to {settings.max_sessions} players of at most {size:.0f} MB each: {size * settings.max_sessions:.0f} MB")
    missing = hall.prompts.gallery(entry).missing
    if missing is not None:
        print(f"warning: no pictures to start from but those that players bring: {missing}", file=sys.stderr)
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        print(f"warning: play.host={settings.host}: everybody who reaches this machine can play", file=sys.stderr)
    print(f"play at {url_of(listener)} (Ctrl-C ends)", flush=True)


def has_display() -> bool:
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return "SSH_CONNECTION" not in os.environ
