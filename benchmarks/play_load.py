"""Many players at once: `python -m benchmarks.play_load [--weights=RUN] [--clients=32] [--seconds=60]`.

Starts the server of `--mode=play` as a process of its own, first with one player for a while, then with all of them:
most play as fast as they are served, `--slow` of them stop drawing after their first frames, and `--restless` of them
hang up without a word and come again every second. Frames per second in all, of the least and the best served of those
who just play, the time between two frames of one player, and the server's memory: at first, while the dreams fill
their caches, in the middle and at last.
"""

import argparse
import asyncio
import contextlib
import json
import re
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks import machine

ALONE_SECONDS = 8.0
SETTLE_SECONDS = 5.0  # until everybody plays; what comes before is not counted
RESTLESS_SECONDS = 1.0


@dataclass
class Player:
    """What one client saw."""

    kind: str  # steady, slow or restless
    times: list[float] = field(default_factory=list)  # at which frames came
    problems: list[str] = field(default_factory=list)
    visits: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="outputs/quickstart/checkpoints/genie_redux_guided/genie_redux_guided")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--slow", type=int, default=2)
    parser.add_argument("--restless", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--reality", action="store_true", help="the true game beside every dream")
    arguments, words = parser.parse_known_args()
    with served(arguments.weights, arguments.clients + 6 * arguments.restless, words) as (url, process):
        alone = asyncio.run(play(url, [Player("steady")], ALONE_SECONDS, arguments.reality, None))
        kinds = ["slow"] * arguments.slow + ["restless"] * arguments.restless
        kinds += ["steady"] * (arguments.clients - len(kinds))
        load = asyncio.run(play(url, [Player(kind) for kind in kinds], arguments.seconds, arguments.reality, process))
        has_survived = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    summary = result(arguments, alone, load, has_survived)
    report(summary)
    print(json.dumps(summary))


@contextlib.contextmanager
def served(weights: str, num_places: int, words: list[str]):
    """A server process with a place for everybody; its address and the process. Ended by Ctrl-C.

    A place is free again when its memory is, a turn or two after its player has hung up: hence the places to spare.
    """
    command = [sys.executable, "-m", "training.main", "--mode=play", f"--play.model_fpath={weights}", "--play.port=0"]
    command += [f"--play.max_sessions={num_places}", "--play.open_browser=false", "--play.max_fps=1000", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stdout.readline, "")
        url = next((found[1] for line in lines if (found := re.match(r"play at http://(\S+)/", line))), None)
        if url is None:
            raise SystemExit("the server did not start; its own line above says why")
        yield f"ws://{url}/ws", psutil.Process(process.pid)
    finally:
        process.send_signal(2)
        process.wait(30)


@dataclass
class Load:
    """What all clients saw between two moments, and the server's memory meanwhile."""

    players: list[Player]
    start: float
    end: float
    memory: list[int]  # bytes, once a second


async def play(url: str, players: list[Player], seconds: float, reality: bool, process: psutil.Process | None) -> Load:
    memory: list[int] = []
    end = time.monotonic() + SETTLE_SECONDS + seconds
    tasks = [asyncio.create_task(visit(url, number, player, end, reality)) for number, player in enumerate(players)]
    await asyncio.sleep(SETTLE_SECONDS)
    start = time.monotonic()
    while time.monotonic() < end:
        if process is not None:
            memory.append(process.memory_info().rss)
        await asyncio.sleep(min(1.0, max(0.0, end - time.monotonic())))
    await asyncio.gather(*tasks)
    return Load(players, start, end, memory)


async def visit(url: str, number: int, player: Player, end: float, reality: bool) -> None:
    """Play until the end; whatever goes wrong is noted, and the player comes again."""
    while time.monotonic() < end:
        player.visits += 1
        leave = min(end, time.monotonic() + RESTLESS_SECONDS) if player.kind == "restless" else end
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + leave - time.monotonic()):
                await one_visit(url, number, player, reality)
        except TimeoutError:
            continue
        except (ConnectionClosed, OSError) as error:
            player.problems.append(repr(error))
            await asyncio.sleep(0.2)


async def one_visit(url: str, number: int, player: Player, reality: bool) -> None:
    socket = await connect(url, proxy=None, ping_timeout=None, close_timeout=0.1).__aenter__()
    try:
        start = {"type": "start", "prompt": f"g{number % 24}", "seed": number, "fps": 1000, "reality": reality}
        for message in (start, {"type": "play"}, {"type": "action", "action": 1 + number % 6}):
            await socket.send(json.dumps(message))
        async for received in socket:
            if isinstance(received, str):
                if (message := json.loads(received))["type"] in ("error", "busy", "idle"):
                    player.problems.append(str(message))
                continue
            player.times.append(time.monotonic())
            length = struct.unpack_from("<I", received)[0]
            if player.kind != "slow":
                await socket.send(json.dumps({"type": "ack", "n": json.loads(received[4 : 4 + length])["n"]}))
    finally:
        socket.transport.abort()  # without a word


# -------------------------------------------------------------------------------------------------------------- showing


def result(arguments: argparse.Namespace, alone: Load, load: Load, has_survived: bool) -> dict:
    steady = [player for player in load.players if player.kind == "steady"]
    counts = [sum(load.start <= moment <= load.end for moment in player.times) for player in steady]
    gaps = np.concatenate([np.diff([moment for moment in player.times if moment >= load.start]) for player in steady])
    seconds = load.end - load.start
    all_frames = sum(sum(load.start <= moment <= load.end for moment in player.times) for player in load.players)
    alone_rate = sum(moment >= alone.start for moment in alone.players[0].times) / (alone.end - alone.start)
    memory = np.array(load.memory) / 2**20
    tenth = max(1, len(memory) // 10)
    return {
        "name": "play_load",
        "model": arguments.weights,
        "value": round(all_frames / seconds, 2),
        "unit": "frames/s",
        "reference": round(alone_rate, 2),
        "ratio": round(all_frames / seconds / alone_rate, 3),
        "clients": arguments.clients,
        "slow": arguments.slow,
        "restless": arguments.restless,
        "reality": arguments.reality,
        "seconds": round(seconds, 1),
        "frames_least": min(counts),
        "frames_most": max(counts),
        "fairness": round(min(counts) / max(counts), 4),
        "gap_ms_p50": round(1e3 * float(np.percentile(gaps, 50)), 1),
        "gap_ms_p99": round(1e3 * float(np.percentile(gaps, 99)), 1),
        "memory_mib_first": round(float(memory[:tenth].mean()), 1),
        "memory_mib_middle": round(float(memory[len(memory) // 2 :][:tenth].mean()), 1),
        "memory_mib_last": round(float(memory[-tenth:].mean()), 1),
        "memory_mib_most": round(float(memory.max()), 1),
        "restless_visits": sum(player.visits for player in load.players if player.kind == "restless"),
        "frames_of_slow": max((len(player.times) for player in load.players if player.kind == "slow"), default=0),
        "problems": sorted({problem for player in load.players for problem in player.problems}),
        "survived": has_survived,
        "machine": machine.describe(),
    }


def report(summary: dict) -> None:
    rows = {
        "one player alone": f"{summary['reference']:.1f} frames/s",
        f"{summary['clients']} players": f"{summary['value']:.1f} frames/s in all ({summary['ratio']:.0%})",
        "of those who just play": f"{summary['frames_least']} to {summary['frames_most']} frames each "
        f"({summary['fairness']:.0%})",
        "between two frames": f"{summary['gap_ms_p50']:.0f} ms, 99th percentile {summary['gap_ms_p99']:.0f} ms",
        "memory of the server": f"{summary['memory_mib_first']:.0f} MiB at first, {summary['memory_mib_middle']:.0f} "
        f"in the middle, {summary['memory_mib_last']:.0f} at last, {summary['memory_mib_most']:.0f} at most",
        "who stop drawing": f"{summary['slow']}, at most {summary['frames_of_slow']} frames",
        "who hang up and come again": f"{summary['restless']}, {summary['restless_visits']} visits",
        "problems": "; ".join(summary["problems"]) or "none",
    }
    for name, value in rows.items():
        print(f"{name:28}{value}")


if __name__ == "__main__":
    main()
