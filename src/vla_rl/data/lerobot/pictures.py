"""Pictures to and from PNG bytes and mp4 files, through av."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import Float64, UInt8

from vla_rl.config.errors import UserError

PIXEL_FORMAT = "yuv420p"
REMEDY = "Fetch the dataset again, or leave the episode out."
# what av raises for damaged streams; a stream without pictures is an IndexError
DAMAGE = (av.error.FFmpegError, OSError, IndexError, ValueError, OverflowError, MemoryError)
GROUP_OF_PICTURES = 2
"""Frames from one key frame to the next; 2, as lerobot writes, makes single frames cheap to reach."""
ENCODERS: dict[str, dict[str, str]] = {
    "libsvtav1": {"crf": "30", "preset": "12", "g": str(GROUP_OF_PICTURES)},
    "libx264": {"crf": "18", "preset": "veryfast", "g": str(GROUP_OF_PICTURES)},
}
"""In order of preference: lerobot's default first, then what every wheel of av has."""


def encode_png(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """PNG bytes of an RGB picture (lossless)."""
    context: Any = av.CodecContext.create("png", "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt = "rgb24"
    context.time_base = Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def decode_image(data: bytes, name: str, shape: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """RGB picture of `shape` (height, width) from the bytes of a PNG or JPEG file.

    Raises UserError, calling the picture `name`, if they are damaged or of another size. Nothing larger is decoded: a
    few kilobytes can hold a picture that fills the memory.
    """
    codec = "png" if data[:4] == b"\x89PNG" else "mjpeg"
    context: Any = av.CodecContext.create(codec, "r")
    context.options = {"max_pixels": str(_most_pixels(shape))}
    try:
        frames = [frame for packet in (av.Packet(data), None) for frame in context.decode(packet)]
        pictures = [frame.to_ndarray(format="rgb24") for frame in frames]
    except DAMAGE as error:
        raise UserError(f"{name}: the stored picture is damaged ({error}). {REMEDY}") from error
    if not pictures:
        raise UserError(
            f"{name}: the stored picture is damaged: nothing could be decoded. {REMEDY}"
        )
    _check_shape(pictures[0], name, shape)
    return pictures[0]


def _check_shape(picture: np.ndarray, name: str, shape: tuple[int, int]) -> None:
    if picture.shape != (*shape, 3):
        raise UserError(
            f"{name}: expected a picture of {shape[0]} x {shape[1]} as meta/info.json says, got "
            f"{picture.shape[0]} x {picture.shape[1]}. {REMEDY}"
        )


def _most_pixels(shape: tuple[int, int]) -> int:
    # decoders count the padding of their blocks
    return (shape[0] + 128) * (shape[1] + 128)


class VideoWriter:
    """One mp4 file that takes the pictures of many episodes, one after the other."""

    def __init__(self, path: Path, height: int, width: int, fps: int) -> None:
        if height % 2 or width % 2:
            raise UserError(
                f"mp4 needs an even height and width, got {height} x {width}. Store the pictures as png instead."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.frames = 0
        self.bytes = 0
        self._fps = fps
        self._encoder = available_encoder()
        options = ENCODERS[self._encoder]
        with _quiet_encoder():
            self._container = av.open(str(path), "w")
            stream = self._container.add_stream(self._encoder, rate=fps, options=options)
            assert isinstance(stream, VideoStream)
            self._stream = stream
            self._stream.height, self._stream.width = height, width
            self._stream.pix_fmt = PIXEL_FORMAT
            self._stream.codec_context.open()

    @property
    def seconds(self) -> float:
        """Where the next picture will stand in the video."""
        return self.frames / self._fps

    def write(self, pictures: UInt8[np.ndarray, "L H W 3"]) -> None:
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = self.frames
            frame.time_base = Fraction(1, self._fps)
            self._mux(frame)
            self.frames += 1

    def close(self) -> None:
        self._mux(None)
        self._container.close()

    def abandon(self) -> None:
        """Let go of the encoder; the file is not wanted any more."""
        with suppress(av.error.FFmpegError, OSError):
            self.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self.bytes += packet.size
            self._container.mux(packet)

    def describe(self) -> dict[str, Any]:
        """The `info` of the feature in meta/info.json."""
        options = ENCODERS[self._encoder]
        return {
            "video.height": self._stream.height,
            "video.width": self._stream.width,
            "video.codec": self._stream.codec.canonical_name,
            "video.pix_fmt": PIXEL_FORMAT,
            "video.fps": self._fps,
            "video.channels": 3,
            "has_audio": False,
            "video.g": GROUP_OF_PICTURES,
            "video.crf": int(options["crf"]),
            "video.preset": int(options["preset"])
            if options["preset"].isdigit()
            else options["preset"],
            "video.fast_decode": 0,
            "video.video_backend": "pyav",
            "video.extra_options": {},
            "is_depth_map": False,
        }


def available_encoder() -> str:
    """The best encoder that this build of av has."""
    for name in ENCODERS:
        if name in av.codecs_available:
            return name
    raise UserError(
        f"this build of av has none of the encoders {', '.join(ENCODERS)}. Store the pictures as png instead."
    )


def decode_video(
    path: Path,
    seconds: Float64[np.ndarray, " L"],
    tolerance: float,
    shape: tuple[int, int],
) -> UInt8[np.ndarray, "L H W 3"]:
    """The pictures of `path` nearest to the given times (in s, ascending), each within `tolerance` seconds.

    Decodes from the key frame before the first time to the last time, and nothing else.
    Raises UserError if the file is missing or damaged, has no picture at one of the times, or pictures of another
    height and width than `shape`.
    """
    if not path.is_file():
        raise UserError(f"expected the video {path}, which is missing. {REMEDY}")
    pictures = np.empty((len(seconds), *shape, 3), np.uint8)
    missing = np.full(len(seconds), np.inf)
    try:
        # an mp4 and nothing else: playlists, which FFmpeg would recognise, can name files elsewhere
        with av.open(str(path.absolute()), format="mp4") as container:
            stream = container.streams.video[0]
            context: Any = stream.codec_context
            if context is None:
                raise ValueError("a codec that is not known")
            context.options = {"max_pixels": str(_most_pixels(shape))}
            unit = float(stream.time_base or Fraction(1, 1)) or 1.0
            container.seek(round(seconds[0] / unit) - 1, backward=True, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                time = frame.pts * unit
                nearer = np.abs(seconds - time) < missing
                nearer &= np.abs(seconds - time) <= tolerance
                if nearer.any():
                    picture = frame.to_ndarray(format="rgb24")
                    _check_shape(picture, str(path), shape)
                    pictures[nearer] = picture
                    missing[nearer] = np.abs(seconds - time)[nearer]
                if time > seconds[-1]:
                    break
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged: expected {len(seconds)} pictures from {seconds[0]:.3f} s to {seconds[-1]:.3f} s, "
            f"got {error}. {REMEDY}"
        ) from error
    if np.isinf(missing).any():
        first = seconds[np.flatnonzero(np.isinf(missing))[0]]
        raise UserError(
            f"{path} is damaged: expected {len(seconds)} pictures, got {int(np.isfinite(missing).sum())}; none within "
            f"{tolerance:.4f} s of {first:.3f} s. {REMEDY}"
        )
    return pictures


@contextmanager
def _quiet_encoder() -> Iterator[None]:
    """SVT-AV1 prints its settings to stderr unless the environment says otherwise when it opens."""
    before = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SVT_LOG"]
