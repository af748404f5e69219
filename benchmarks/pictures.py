"""Frames per second of OpenVLA's image protocol for LIBERO on one core: ours against Pillow, image by image.

Both sides start from a batch of 256 px frames as the simulator draws them and end with float32 pixel values
[N, 6, 224, 224] in memory: rotation by 180 degrees, JPEG round trip (quality 95, 4:2:0), lanczos resize to 224, centre
crop of 0.9 of the area, both normalisations. The peers:

    Pillow         each stage by Pillow, then (x / 255 - mean) / std with numpy on the image as Pillow gives it
    Pillow, planes the same, but normalised plane by plane, which numpy does several times faster

Pillow's images are not the model's: its JPEG decoder and its resampling differ from TensorFlow's (last column: mean
difference from the protocol in grey levels, before normalisation). Ours are equal to the bit, with numba and without.
All sides alternate within one run, with freed memory kept as in the product's programs (it helps all of them);
ratios are medians of paired ratios. The last two rows leave the JPEG out.

    python benchmarks/images.py --batch 16 --rounds 15
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from vla_rl.config import OPENVLA_7B, OPENVLA_LIBERO_IMAGES
from vla_rl.policies.openvla.images import pipeline
from vla_rl.policies.openvla.processing import pixel_values
from vla_rl.runtime.memory import keep_freed_memory

SIZE = OPENVLA_7B.image_size
CPU = torch.device("cpu")
MEANS, STDS = (
    np.array([getattr(tower, name) for tower in (OPENVLA_7B.dino, OPENVLA_7B.siglip)], np.float32)
    for name in ("mean", "std")
)
Side = Callable[[np.ndarray], torch.Tensor]


def frames(count: int, seed: int = 0) -> np.ndarray:
    """Upside-down scenes: a shaded table, coloured boxes with edges, a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:256, 0:256] / 256
    scenes = np.empty((count, 256, 256, 3), np.uint8)
    for scene in scenes:
        image = 90 + 80 * (rng.random(3) * x[..., None] + rng.random(3) * y[..., None])
        for _ in range(12):
            top, left = rng.integers(0, 220, 2)
            height, width = rng.integers(8, 70, 2)
            image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
        scene[:] = np.clip(image + rng.normal(0, 3, image.shape), 0, 255)
    return scenes


def pillow_image(frame: np.ndarray, jpeg: bool) -> Image.Image:
    """All stages up to the image that is normalised."""
    image = Image.fromarray(np.ascontiguousarray(frame[::-1, ::-1]))
    if jpeg:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95, subsampling=2)
        image = Image.open(file)
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    edge = SIZE * (1 - OPENVLA_LIBERO_IMAGES.center_crop**0.5) / 2
    box = (edge, edge, SIZE - edge, SIZE - edge)
    return image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)


def with_pillow(batch: np.ndarray, jpeg: bool = True) -> torch.Tensor:
    rows = []
    for frame in batch:
        x = np.asarray(pillow_image(frame, jpeg), dtype=np.float32) / 255
        towers = [(x - mean) / std for mean, std in zip(MEANS, STDS, strict=True)]
        rows.append(np.concatenate(towers, -1).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(rows))


def with_pillow_planes(batch: np.ndarray, jpeg: bool = True) -> torch.Tensor:
    out = np.empty((len(batch), 2, 3, SIZE, SIZE), np.float32)
    for row, frame in zip(out, batch, strict=True):
        x = np.asarray(pillow_image(frame, jpeg)).transpose(2, 0, 1).astype(np.float32, order="C")
        np.divide(x, 255, out=x)
        np.subtract(x, MEANS[..., None, None], out=row)
        np.divide(row, STDS[..., None, None], out=row)
    return torch.from_numpy(out.reshape(len(batch), 6, SIZE, SIZE))


def with_ours(batch: np.ndarray, jpeg: bool = True) -> torch.Tensor:
    config = replace(OPENVLA_LIBERO_IMAGES, jpeg=jpeg)
    upright = pipeline.rotate_180(batch)
    return pixel_values(pipeline.prepare(upright, config, SIZE, CPU), OPENVLA_7B)


def without_numba(batch: np.ndarray, jpeg: bool = True) -> torch.Tensor:
    compiled = pipeline.has_numba
    pipeline.has_numba = lambda: False
    try:
        return with_ours(batch, jpeg)
    finally:
        pipeline.has_numba = compiled


def grey_levels(values: torch.Tensor) -> torch.Tensor:
    """Pixel values back to 0..255, from SigLIP's normalisation."""
    return (values[:, 3:] + 1) * 127.5


def measure(sides: dict[str, Side], batch: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds per image of each side, in rounds of all sides."""
    for side in sides.values():
        side(batch)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side(batch)
            times[name].append((time.perf_counter() - start) / len(batch))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if not pipeline.has_numba():
        parser.error("this measures the compiled stages too: install numba")
    batch = frames(arguments.batch)
    sides: dict[str, Side] = {
        "Pillow": with_pillow,
        "Pillow, planes": with_pillow_planes,
        "ours": with_ours,
        "ours without numba": without_numba,
        "Pillow, no JPEG": lambda x: with_pillow(x, jpeg=False),
        "ours, no JPEG": lambda x: with_ours(x, jpeg=False),
    }
    times = measure(sides, batch, arguments.rounds)
    exact = grey_levels(with_ours(batch))
    table = Table(title=f"{arguments.batch} frames of 256 x 256 to pixel values, one core")
    for column in (
        "",
        "frames/s",
        "ms per frame",
        "times Pillow",
        "times Pillow, planes",
        "off by",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for name, side in sides.items():
        peers = ("Pillow, no JPEG",) if "no JPEG" in name else ("Pillow", "Pillow, planes")
        ratios = [
            f"{statistics.median(b / a for a, b in zip(times[name], times[peer], strict=True)):.1f}"
            for peer in peers
        ]
        median = statistics.median(times[name])
        off = (grey_levels(side(batch)) - exact).abs().mean().item()
        ratios += [""] * (2 - len(ratios))
        table.add_row(name, f"{1 / median:,.0f}", f"{1e3 * median:.2f}", *ratios, f"{off:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
