"""The WebSocket of one player: messages in, frames out, never more than two of them under way."""

import asyncio
import json
import logging
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from play import messages
from play.hall import Hall
from play.library import Entry, Loaded
from play.pacing import Pace
from play.player import Player, Shown
from play.recording import encode

MOST_STEPS = 100  # that one message may ask for
TRY_AGAIN_LATER, INTERNAL_ERROR, GOING_AWAY = 1013, 1011, 1001  # close codes of RFC 6455
log = logging.getLogger("play")


class Gone(Exception):
    """The player's machine does not take anything any more."""


class Connection:
    """From the handshake to the end; `serve` returns when the player has left, for whatever reason."""

    def __init__(self, websocket: WebSocket, hall: Hall):
        self._websocket, self._hall = websocket, hall
        self._player: Player | None = None
        self._loaded: Loaded | None = None
        self._action = 0
        self._is_playing, self._steps_wanted = False, 0
        self._pace = Pace()
        self._changed = asyncio.Event()  # something that the dream may wait for
        self._turn = asyncio.Lock()  # one thing at a time happens to the dream
        self._sending = asyncio.Lock()
        self._encoding: set[asyncio.Task] = set()
        self._last_input = time.monotonic()
        self._handlers = {
            "start": self._start,
            "action": self._act,
            "play": self._play,
            "pause": self._pause,
            "step": self._step,
            "rewind": self._rewind,
            "reset": self._reset,
            "settings": self._set,
            "record": self._record,
            "ack": self._acknowledge,
            "here": self._stay,
        }

    async def serve(self) -> None:
        hall = self._hall
        await self._websocket.accept()
        if hall.num_players >= hall.settings.max_sessions:
            await self._refuse()
            return
        hall.num_players += 1
        dreaming = asyncio.create_task(self._dream())
        try:
            await self._listen()
        except (Gone, WebSocketDisconnect):
            pass
        except Exception:
            await self._fail()
        finally:
            dreaming.cancel()
            for task in self._encoding:
                task.cancel()
            await asyncio.wait([dreaming])
            try:
                await self._end()
            finally:
                hall.num_players -= 1

    async def _refuse(self) -> None:
        hall = self._hall
        try:
            await self._send({"type": "busy", "sessions": hall.num_players, "max_sessions": hall.settings.max_sessions})
            await self._websocket.close(TRY_AGAIN_LATER)
        except (Gone, WebSocketDisconnect, RuntimeError):
            pass  # left by itself

    async def _fail(self) -> None:
        """Our own bug, or a device out of memory: the terminal gets all of it, the player one line."""
        log.exception("a dream ended by an error")
        try:
            await self._tell("something went wrong on the server; start again")
            await self._websocket.close(INTERNAL_ERROR)
        except (Gone, WebSocketDisconnect, RuntimeError):
            pass

    # ---------------------------------------------------------------------------------------------------- what comes

    async def _listen(self) -> None:
        """Take messages until the player leaves, or nobody seems to be there for too long."""
        idle = self._hall.settings.idle_seconds
        while True:
            try:
                async with asyncio.timeout(max(0.0, self._last_input + idle - time.monotonic())):
                    received = await self._websocket.receive()
            except TimeoutError:
                await self._send({"type": "idle", "seconds": idle})
                await self._websocket.close(GOING_AWAY)
                return
            if received["type"] == "websocket.disconnect":
                return
            try:
                await self._handle(received.get("text"))
            except ValueError as error:
                await self._tell(str(error))
            except OSError as error:  # a world that is no longer on the disk
                await self._tell(error.strerror or "the world cannot be read")

    async def _handle(self, text: str | None) -> None:
        if text is None:
            raise ValueError("a message must be text, a JSON object")
        message = messages.parse(text)
        handler = self._handlers.get(message["type"])
        if handler is None:
            raise messages.unknown(message["type"], self._handlers)
        try:
            await handler(message)
        finally:
            if handler != self._acknowledge:  # a page draws frames by itself
                self._last_input = time.monotonic()  # only now: who waits for a world to be loaded is there
        self._changed.set()

    async def _start(self, message: dict[str, Any]) -> None:
        hall = self._hall
        entry: Entry = hall.current if message.get("world") is None else hall.library.find(message["world"])
        wishes = hall.wishes(entry, message)
        with_reality = messages.yes(message, "reality", False)
        prompt = await hall.aside(hall.prompts.find, entry, message.get("prompt"))
        async with self._turn:
            await self._end()
            self._loaded = await hall.aside(hall.lend, entry)
            world = await hall.aside(hall.describe, entry)
            self._player = await hall.compute(hall.begin, self._loaded, prompt, wishes, with_reality)
            self._action = world["neutral"]
            self._pace.begin()
            shown = self._player.now
            await self._send(
                {
                    "type": "started",
                    "world": world,
                    "prompt": prompt.id,
                    "level": prompt.level,
                    "seed": wishes.seed,
                    "steps": wishes.steps,
                    "temperature": wishes.temperature,
                    "fps": wishes.fps,
                    "reality": shown.truth is not None,
                }
            )
            await self._show(shown)

    async def _act(self, message: dict[str, Any]) -> None:
        self._action = messages.whole(message, "action", None, 0, self._dreamer().loaded.entry.num_actions - 1)

    async def _play(self, message: dict[str, Any]) -> None:
        self._dreamer()
        self._is_playing, self._steps_wanted = True, 0
        self._pace.measure_anew()

    async def _pause(self, message: dict[str, Any]) -> None:
        self._dreamer()
        self._is_playing, self._steps_wanted = False, 0
        async with self._turn:  # the frame that is being computed is shown before
            await self._send({"type": "paused", "n": self._dreamer().now.number})

    async def _step(self, message: dict[str, Any]) -> None:
        self._dreamer()
        count = messages.whole(message, "count", 1, 1, MOST_STEPS)
        self._is_playing, self._steps_wanted = False, min(self._steps_wanted + count, MOST_STEPS)

    async def _rewind(self, message: dict[str, Any]) -> None:
        count = messages.whole(message, "count", 1, 1, 10**9)
        async with self._turn:
            await self._go_back(await self._hall.compute(self._dreamer().rewind, count))

    async def _reset(self, message: dict[str, Any]) -> None:
        async with self._turn:
            await self._go_back(await self._hall.compute(self._dreamer().reset))

    async def _go_back(self, shown: Shown) -> None:
        self._steps_wanted = 0
        self._pace.measure_anew()
        await self._send({"type": "rewound", "n": shown.number, "rewindable": self._dreamer().num_rewindable})
        await self._show(shown)

    async def _set(self, message: dict[str, Any]) -> None:
        player = self._dreamer()
        player.set(self._hall.wishes(player.loaded.entry, message, before=player.wishes))

    async def _record(self, message: dict[str, Any]) -> None:
        async with self._turn:
            if messages.yes(message, "on", True):
                self._dreamer().record()
            elif not self._dreamer().is_recording:
                raise ValueError("nothing is being recorded")
            elif self._encoding:
                raise ValueError("the recording before this one is not finished yet")
            else:
                self._finish_recording()

    async def _acknowledge(self, message: dict[str, Any]) -> None:
        self._pace.drawn(messages.whole(message, "n", None, 0, 2**53))

    async def _stay(self, message: dict[str, Any]) -> None:
        """Somebody is there and presses nothing new, as with a key that is held down."""

    def _dreamer(self) -> Player:
        if self._player is None:
            raise ValueError("start a dream first")
        return self._player

    # --------------------------------------------------------------------------------------------------- what is sent

    async def _dream(self) -> None:
        try:
            while True:
                if not self._may_step():
                    self._changed.clear()
                    await self._changed.wait()
                elif self._is_playing and (early := self._pace.seconds_left()) > 0:
                    await asyncio.sleep(early)
                else:
                    self._pace.set_out(self._dreamer().wishes.fps)
                    await self._next_frame()
        except Gone:
            pass
        except Exception:
            await self._fail()

    def _may_step(self) -> bool:
        wants = self._is_playing or self._steps_wanted > 0
        return wants and self._player is not None and self._pace.has_room

    async def _next_frame(self) -> None:
        async with self._turn:
            if not self._may_step():  # paused, or begun anew, while this waited for its turn
                return
            self._steps_wanted = max(0, self._steps_wanted - 1)
            player = self._dreamer()
            await self._show(await self._hall.compute(player.step, self._action))
            if player.film_is_full and not self._encoding:
                self._finish_recording()

    async def _show(self, shown: Shown) -> None:
        self._pace.sent(shown.number)
        await self._send(messages.pack(shown, self._pace.fps(), self._dreamer().num_rewindable))

    def _finish_recording(self) -> None:
        film, fps = self._dreamer().take_film(), self._dreamer().wishes.fps
        task = asyncio.create_task(self._encode(film, fps))
        self._encoding.add(task)
        task.add_done_callback(self._encoding.discard)

    async def _encode(self, film: list, fps: float) -> None:
        try:
            finished = await self._hall.aside(encode, film, fps)
            url = f"/api/recordings/{self._hall.recordings.add(finished)}"
            await self._send({"type": "recording", "gif": f"{url}.gif", "mp4": f"{url}.mp4", "frames": len(film)})
        except Gone:
            pass
        except Exception:
            await self._fail()

    async def _tell(self, line: str) -> None:
        await self._send({"type": "error", "message": " ".join(line.split())})

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        """Raises Gone where the player is, or takes nothing for too long."""
        try:
            async with asyncio.timeout(self._hall.settings.vanish_seconds), self._sending:
                if isinstance(message, bytes):
                    await self._websocket.send_bytes(message)
                else:
                    await self._websocket.send_text(json.dumps(message))
        except (TimeoutError, WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: closed already
            raise Gone from error

    async def _end(self) -> None:
        """Free the dream."""
        player, self._player = self._player, None
        loaded, self._loaded = self._loaded, None
        self._is_playing, self._steps_wanted = False, 0
        try:
            if player is not None:
                await self._hall.compute(player.close)
        finally:
            if loaded is not None:
                self._hall.library.release(loaded)
