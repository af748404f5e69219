"""Episodes as images that a browser shows: an mp4 to play, a filmstrip to read at a glance."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vla_rl.config.errors import UserError
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import whole_file

_CODECS = ("libx264", "libopenh264")  # the second one is what LGPL builds of FFmpeg carry
_BT709 = 1  # ITU-T H.273: colour primaries, transfer and matrix of HD video
_LIMITED_RANGE = 1  # luma in 16..235, what browsers expect of yuv420p
_GAP_PIXELS = 2
_GAP_GREY = 128


def write_video(path: Path, frames: Sequence[UInt8[np.ndarray, "H W 3"]], fps: float) -> None:
    """Write `frames` (RGB, all of one size) as an H.264 mp4 in yuv420p, which every browser plays.

    H.264 with halved chroma needs even sizes: an odd height or width is padded by repeating its
    last row or column. Colours are tagged as BT.709, so that players do not have to guess.
    Raises UserError where PyAV is missing or has no H.264 encoder and where the file cannot be written,
    ValueError on no frames, on a frame of another shape, or on `fps` that is not positive.
    """
    if not len(frames):
        raise ValueError("a video needs at least one frame, got none")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    shape = frames[0].shape
    for number, frame in enumerate(frames):
        if frame.shape != shape or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame {number}: expected shape {(*shape[:2], 3)}, got {frame.shape}")
        if frame.dtype != np.uint8:
            raise ValueError(f"frame {number}: expected uint8 in 0..255, got {frame.dtype}")
    av = _import_av()
    padding = ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0))
    with (
        whole_file(path) as aside,
        av.open(str(aside), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream(
            _encoder(av), rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"}
        )
        stream.height, stream.width = shape[0] + padding[0][1], shape[1] + padding[1][1]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        for frame in frames:
            image = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(np.pad(frame, padding, mode="edge")), format="rgb24"
            )
            container.mux(stream.encode(image.reformat(format="yuv420p", dst_colorspace=_BT709)))
        container.mux(stream.encode(None))


def read_video(path: Path) -> list[UInt8[np.ndarray, "H W 3"]]:
    """All frames of a video file as RGB. Raises UserError where there are none."""
    av = _import_av()
    try:
        with av.open(str(path)) as container:
            frames = [
                frame.reformat(format="rgb24", src_colorspace=_BT709).to_ndarray()
                for frame in container.decode(video=0)
            ]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path.name}: expected a video, could not decode it ({error}).") from error
    if not frames:
        raise UserError(f"{path.name}: expected a video, found no frames in it.")
    return frames


def filmstrip(
    frames: Sequence[UInt8[np.ndarray, "H W 3"]], columns: int
) -> UInt8[np.ndarray, "H L 3"]:
    """At most `columns` frames side by side, evenly spaced in time, the first and last among them.

    L = n * W + (n - 1) * 2 for n = min(columns, len(frames)): a grey line of 2 pixels between frames.
    """
    if not len(frames) or columns < 1:
        raise ValueError(f"expected a frame and a column or more, got {len(frames)} and {columns}")
    chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
    height = frames[0].shape[0]
    gap = np.full((height, _GAP_PIXELS, 3), _GAP_GREY, dtype=np.uint8)
    parts = [part for i in chosen for part in (gap, np.asarray(frames[i], dtype=np.uint8))]
    return np.concatenate(parts[1:], axis=1)


def jpeg(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """An RGB image as a JPEG file. Raises UserError where Pillow is missing."""
    need("PIL", purpose="a still image")
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _import_av() -> Any:
    need("av", purpose="a video")
    import av

    return av


def _encoder(av: Any) -> str:
    for name in _CODECS:
        if name in av.codecs_available:
            return name
    raise UserError(f"This build of PyAV has no H.264 encoder (looked for {', '.join(_CODECS)}).")
