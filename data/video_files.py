"""Video files and image sequences: their pictures, one after the other, and the times at which they are shown."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from PIL import Image

from data.importing import DamagedError
from data.pictures import Fit, open_image

LONGEST_HOLD = Fraction(60)  # seconds; a picture that seems to be shown for longer comes from a broken clock
CLOCK_ERROR = Fraction(1, 2000)  # seconds; many containers round times to milliseconds
ASSUMED_RATE = Fraction(25)  # frames per second where a file says nothing
SHARE_EXPECTED = Fraction(9, 10)  # of the duration that the header announces; a file with less was cut off
WORTH_THREADS = 1280 * 720  # pixels; starting threads takes longer than decoding a short video of fewer


class Shown(NamedTuple):
    """A picture and when it is shown, in seconds from the start of the first one."""

    picture: Any  # what `fitted` of its source takes
    start: Fraction
    end: Fraction


class Source(Protocol):
    """Where pictures come from. Its methods raise DamagedError where something cannot be read."""

    clock_error: Fraction  # how much too late a picture's start may be given, in seconds

    def expected(self, fps: Fraction | None) -> int:
        """Number of pictures, at `fps` where it is given, as far as can be told at once."""
        ...

    def count(self, fps: Fraction | None) -> int:
        """Number of pictures, at `fps` where it is given: all of the file is read, but nothing decoded."""
        ...

    def shown(self) -> Iterator[Shown]: ...

    def fitted(self, picture: Any, fit: Fit) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        ...


def at_rate(pictures: Iterable[Shown], fps: Fraction, clock_error: Fraction) -> Iterator[Any]:
    """The picture on screen at the times 0, 1/fps, 2/fps, … until the last one's end.

    Works for constant and variable rates, and repeats pictures where `fps` asks for more than there are. A picture
    counts as shown up to `clock_error` before its start: at 15 fps, the third picture of a 30 fps film is due at
    66.7 ms, but a clock of milliseconds says that it starts at 67.
    """
    tick, shown, end = 0, None, Fraction(0)
    for picture, start, stop in pictures:
        while shown is not None and tick / fps + clock_error < start:
            yield shown
            tick += 1
        shown, end = picture, stop
    while shown is not None and tick / fps + clock_error < end:
        yield shown
        tick += 1


@dataclass(frozen=True)
class VideoFile:
    """A file that FFmpeg decodes."""

    fpath: Path
    rate: Fraction  # frames per second, on average
    duration: Fraction | None  # seconds, as the header announces
    pixel_aspect: Fraction  # width over height of a pixel
    clock_error: Fraction

    @staticmethod
    def read(fpath: Path) -> "VideoFile":
        """Raises DamagedError where the file has no two frames that can be decoded."""
        with _opened(fpath) as (container, stream):
            video = VideoFile(
                fpath,
                stream.average_rate or ASSUMED_RATE,
                _announced(container, stream),
                stream.sample_aspect_ratio or Fraction(1),
                max(CLOCK_ERROR, stream.time_base / 2),
            )
            frames = container.decode(stream)
            for number in range(2):
                if _next_frame(frames, number) is None:
                    raise DamagedError(("it has no frames", "it has one frame only")[number])
            return video

    def expected(self, fps: Fraction | None) -> int:
        return self.count(fps) if self.duration is None else round(self.duration * (fps or self.rate))

    def count(self, fps: Fraction | None) -> int:
        with _opened(self.fpath) as (container, stream):
            times = [packet.pts for packet in container.demux(stream) if packet.size]
            known = [time for time in times if time is not None]
            if fps is None or not known:
                return len(times)
            return round(((max(known) - min(known)) * stream.time_base + 1 / self.rate) * fps)

    def shown(self) -> Iterator[Shown]:
        """Raises DamagedError at a frame that cannot be decoded, or at the end where the header announces more."""
        start, end, number, previous = Fraction(0), Fraction(0), 0, None
        with _opened(self.fpath) as (container, stream):
            frames = container.decode(stream)
            while (frame := _next_frame(frames, number)) is not None:
                if previous is not None:
                    start += _step(previous, frame) or 1 / self.rate
                length = Fraction(frame.duration or 0) * (frame.time_base or 0) or 1 / self.rate
                end = start + min(length, LONGEST_HOLD)
                yield Shown(frame, start, end)
                previous, number = frame, number + 1
        if self.duration is not None and end < SHARE_EXPECTED * self.duration:
            raise DamagedError(f"ends after {float(end):.2f} s of the {float(self.duration):.2f} s that it announces")

    def fitted(self, picture: av.VideoFrame, fit: Fit) -> np.ndarray:
        """The frame upright and in its shape; FFmpeg converts its colours by the matrix and range that it names."""
        frame = picture
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        height, width = (fit.width, fit.height) if turns % 2 else (fit.height, fit.width)
        has_alpha = any(component.is_alpha for component in frame.format.components)
        # FFmpeg averages while it converts colours, three times faster than converting all of a large frame.
        reduction = 1 if has_alpha else max(1, min(frame.width // (2 * width), frame.height // (2 * height)))
        array = frame.to_ndarray(
            format="rgba" if has_alpha else "rgb24",
            width=round(frame.width / reduction),
            height=round(frame.height / reduction),
            interpolation="AREA",
            threads=1,  # new threads for every frame take longer than the frame
        )
        aspect = Fraction(frame.width, frame.height) * self.pixel_aspect
        upright = np.ascontiguousarray(np.rot90(array, turns))
        return fit(Image.fromarray(upright), 1 / aspect if turns % 2 else aspect)


@contextmanager
def _opened(fpath: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        # What calls itself a video may name other files, on the network too: nothing but the file itself is read.
        options = {"protocol_whitelist": "file"}
        with av.open(f"file:{fpath}", metadata_errors="replace", options=options) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DamagedError("it has no pictures")
            if stream.codec_context.width * stream.codec_context.height >= WORTH_THREADS:
                stream.thread_type = "AUTO"
            else:
                stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise DamagedError(_reason(error)) from None


def _announced(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction | None:
    if stream.duration:
        return stream.duration * stream.time_base
    return Fraction(container.duration, av.time_base) if container.duration else None


def _next_frame(frames: Iterator[av.VideoFrame], number: int) -> av.VideoFrame | None:
    try:
        frame = next(frames, None)
    except av.FFmpegError as error:
        raise DamagedError(f"frame {number} cannot be decoded ({_reason(error)})") from None
    if frame is not None and frame.is_corrupt:
        raise DamagedError(f"frame {number} is corrupt")
    return frame


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or str(error)


def _step(previous: av.VideoFrame, frame: av.VideoFrame) -> Fraction | None:
    """Seconds from frame to frame; None where the file's clock says nothing or jumps."""
    if previous.pts is None or frame.pts is None:
        return None
    step = (frame.pts - previous.pts) * frame.time_base
    return step if 0 < step <= LONGEST_HOLD else None


@dataclass(frozen=True)
class ImageSequence:
    """Picture files of one folder, in the order of the numbers in their names."""

    fpaths: tuple[Path, ...]
    rate: Fraction | None  # pictures per second, where known
    clock_error: Fraction = Fraction(0)

    @staticmethod
    def read(fpaths: Iterable[Path], rate: Fraction | None) -> "ImageSequence":
        """Raises DamagedError where there are no two pictures or one of the first two cannot be decoded."""
        sequence = ImageSequence(tuple(fpaths), rate)
        if len(sequence.fpaths) < 2:
            raise DamagedError("it has one picture only")
        for fpath in sequence.fpaths[:2]:
            open_image(fpath)
        return sequence

    def expected(self, fps: Fraction | None) -> int:
        return self.count(fps)

    def count(self, fps: Fraction | None) -> int:
        return len(self.fpaths) if fps is None else round(len(self.fpaths) / self.rate * fps)

    def shown(self) -> Iterator[Shown]:
        rate = self.rate or ASSUMED_RATE
        for number, fpath in enumerate(self.fpaths):
            yield Shown(fpath, number / rate, (number + 1) / rate)

    def fitted(self, picture: Path, fit: Fit) -> np.ndarray:
        return fit(open_image(picture))
