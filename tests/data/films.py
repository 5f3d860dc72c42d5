"""Small real video files whose grey says which frame it is."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 8  # of grey from frame to frame: lossy codecs are off by less than half of it
CODECS = {
    ".mp4": ("libx264", "yuv420p", {"crf": "1"}),
    ".mkv": ("libx264", "yuv420p", {"crf": "1"}),
    ".webm": ("libvpx-vp9", "yuv420p", {"lossless": "1"}),
    ".avi": ("mpeg4", "yuv420p", {"qscale": "1", "b": "4M"}),
    ".gif": ("gif", "gray", {}),
}


def greys(count: int, height: int = 32, width: int = 32) -> list[np.ndarray]:
    """Frame i is grey of i * STEP."""
    return [np.full((height, width, 3), number * STEP, np.uint8) for number in range(count)]


def numbers(frames: np.ndarray) -> list[int]:
    """Which of `greys` each frame of (T, H, W, 3) is."""
    return [round(float(frame.mean()) / STEP) for frame in frames]


def write_video(
    fpath: Path,
    frames: list[np.ndarray],
    *,
    fps: int = 30,
    group: int | None = None,
    times_ms: list[int] | None = None,
    rotation: int | None = None,
    pixel_aspect: Fraction | None = None,
    pixel_format: str | None = None,
) -> Path:
    """Encode (H, W, 3) RGB frames, at `fps` or shown from `times_ms` on, in groups; the file's suffix decides how."""
    codec, usual_format, options = CODECS[fpath.suffix]
    options = options if group is None else options | {"g": str(group)}
    fpath.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(fpath), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format or usual_format
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 1000 if times_ms else fps)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, "rgb24")
            frame.pts = times_ms[number] if times_ms else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return fpath
