"""From a camera's frame to pixel values: each stage against OpenVLA's own code with TensorFlow, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.policies import INSTRUCTIONS
from vla_rl.config import (
    OPENVLA_7B,
    OPENVLA_LIBERO_IMAGES,
    ConfigError,
    ImagePreprocessing,
    PolicyConfig,
    UserError,
    tiny_model,
)
from vla_rl.config.openvla import IMAGE_PREPROCESSING
from vla_rl.policies import Processor, build_tiny_tokenizer
from vla_rl.policies.openvla.images import pipeline, resampling
from vla_rl.policies.openvla.images.jpeg import jpeg_round_trip
from vla_rl.policies.openvla.processing import pixel_values, raw_pixels, with_protocol

DATA = Path(__file__).parents[1] / "fixtures" / "pictures"
CPU = torch.device("cpu")
JPEG = ImagePreprocessing(jpeg=True)
SAMPLED = (Ellipsis, slice(None, None, 7), slice(None, None, 11))


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name) as file:
        return dict(file)


GOLDEN = load("openvla_libero.npz")
SIZES = load("jpeg_sizes.npz")


def planes(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().contiguous()


def golden(key: str) -> torch.Tensor:
    return planes(GOLDEN[key])


@pytest.fixture(params=["torch", "numba"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numba":
        pytest.importorskip("numba", reason="numba is not installed (LIBERO's simulator brings it)")
    monkeypatch.setattr(pipeline, "has_numba", lambda: request.param == "numba")
    return request.param


def random_images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Edges, flat areas and noise: what rounding and clipping have to deal with."""
    rng = np.random.default_rng(seed)
    count, height, width, _ = shape
    coarse = rng.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3))
    flat = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    noise = rng.integers(-20, 21, shape) * (np.arange(width) > width // 2)[:, None]
    return np.clip(flat + noise, 0, 255).astype(np.uint8)


# --- stage by stage


def test_rotation() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    turned = pipeline.rotate_180(image)
    assert turned.tolist() == [[[9, 10, 11], [6, 7, 8]], [[3, 4, 5], [0, 1, 2]]]
    batch = random_images((3, 16, 24, 3))
    np.testing.assert_array_equal(pipeline.rotate_180(batch)[1], pipeline.rotate_180(batch[1]))
    np.testing.assert_array_equal(pipeline.rotate_180(pipeline.rotate_180(batch)), batch)


def test_jpeg_is_tensorflows() -> None:
    rotated = pipeline.rotate_180(GOLDEN["f3_0_frame"])
    assert torch.equal(jpeg_round_trip(planes(rotated)), golden("f3_2_jpeg_decoded"))


@pytest.mark.parametrize("size", sorted(key[3:] for key in SIZES if key.startswith("in_")))
def test_jpeg_repeats_edges_as_libjpeg_does(size: str, implementation: str) -> None:
    """Heights and widths that are no multiple of a block, odd ones among them, in saturated colours."""
    image, want = SIZES[f"in_{size}"], SIZES[f"out_{size}"]
    if implementation == "torch":
        got = jpeg_round_trip(planes(image))
    else:
        from vla_rl.policies.openvla.images.compiled import _jpeg

        array = planes(image)[0].numpy()
        _jpeg(array)
        got = torch.from_numpy(array)[None]
    assert torch.equal(got, planes(want))


@pytest.mark.parametrize("size", [256, 480])
def test_lanczos_weights_are_tensorflows(size: int) -> None:
    taps = resampling.lanczos3_taps(size, 224)
    np.testing.assert_array_equal(taps.dense(size), GOLDEN[f"lanczos3_weights_{size}_to_224"])
    np.testing.assert_allclose(taps.weights.sum(1), 1, atol=1e-6)


def test_resize_is_tensorflows() -> None:
    source = golden("f3_2_jpeg_decoded")
    unrounded = resampling.resize_lanczos3_unrounded(source, 224)
    assert torch.equal(unrounded[SAMPLED], golden("f3_3_resized_float"))
    assert torch.equal(resampling.resize_lanczos3(source, 224), golden("f3_3_resized_uint8"))


def test_crop_is_tensorflows() -> None:
    source = golden("f3_3_resized_uint8")
    unrounded = resampling.center_crop_unrounded(source, 0.9)
    assert torch.equal(unrounded[SAMPLED], golden("f3_4_crop_float"))
    assert torch.equal(resampling.center_crop(source, 0.9), golden("f3_4_crop_uint8"))


@pytest.mark.parametrize("frame", ["f0", "f3"])
def test_normalisation_is_openvlas(frame: str) -> None:
    got = pixel_values(golden(f"{frame}_4_crop_uint8"), OPENVLA_7B)
    want = torch.from_numpy(GOLDEN[f"{frame}_5_pixel_values"])[None]
    assert torch.equal(got[SAMPLED], want)


def test_normalisation_of_channels_last_pixels_differs_by_rounding_alone() -> None:
    raw = raw_pixels(GOLDEN["f3_4_crop_uint8"][None], CPU)
    got = pixel_values(raw, OPENVLA_7B)
    torch.testing.assert_close(got, pixel_values(raw.contiguous(), OPENVLA_7B), atol=1e-6, rtol=0)


# --- the whole protocol


@pytest.mark.parametrize("frame", ["f0", "f3"])
def test_protocol_is_openvlas(frame: str, implementation: str) -> None:
    upright = pipeline.rotate_180(GOLDEN[f"{frame}_0_frame"])[None]
    got = pipeline.prepare(upright, OPENVLA_LIBERO_IMAGES, 224, CPU)
    assert torch.equal(got, golden(f"{frame}_4_crop_uint8"))
    values = pixel_values(got, OPENVLA_7B)[SAMPLED]
    assert torch.equal(values, torch.from_numpy(GOLDEN[f"{frame}_5_pixel_values"])[None])
    uncropped = pipeline.prepare(upright, IMAGE_PREPROCESSING["openvla-libero-uncropped"], 224, CPU)
    want = golden(f"{frame}_3_resized_uint8")
    assert torch.equal(uncropped[SAMPLED] if frame == "f0" else uncropped, want)


@pytest.mark.parametrize(
    ("shape", "size", "config"),
    [
        ((3, 480, 480, 3), 224, OPENVLA_LIBERO_IMAGES),
        ((2, 121, 163, 3), 56, OPENVLA_LIBERO_IMAGES),
        ((2, 40, 33, 3), 64, ImagePreprocessing(resize="lanczos3")),  # enlarged: no antialiasing
        ((2, 64, 64, 3), 64, JPEG),
        ((2, 64, 64, 3), 64, ImagePreprocessing(center_crop=0.5)),
        ((2, 64, 64, 3), 64, ImagePreprocessing()),
    ],
    ids=["480", "odd", "enlarge", "jpeg", "crop", "nothing"],
)
def test_compiled_stages_equal_torch(
    shape: tuple[int, ...], size: int, config: ImagePreprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="numba is not installed (LIBERO's simulator brings it)")
    images = random_images(shape)
    compiled = pipeline.prepare(images, config, size, CPU)
    monkeypatch.setattr(pipeline, "has_numba", lambda: False)
    assert torch.equal(compiled, pipeline.prepare(images, config, size, CPU))


def test_batch_equals_singles(implementation: str) -> None:
    images = random_images((5, 64, 64, 3))
    config = replace(OPENVLA_LIBERO_IMAGES, center_crop=0.8)
    together = pipeline.prepare(images, config, 56, CPU)
    for image, row in zip(images, together, strict=True):
        assert torch.equal(pipeline.prepare(image[None], config, 56, CPU)[0], row)
    assert pipeline.prepare(images[:0], config, 56, CPU).shape == (0, 3, 56, 56)


def test_any_memory_layout_will_do(implementation: str) -> None:
    images = random_images((2, 64, 64, 3))
    want = pipeline.prepare(images, JPEG, 64, CPU)
    frozen = images.copy()
    frozen.setflags(write=False)
    fortran = np.asfortranarray(images)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])[:, :, ::-1]
    for same in (frozen, fortran, mirrored):
        assert torch.equal(pipeline.prepare(same, JPEG, 64, CPU), want)


def test_nothing_to_do_leaves_images_alone(implementation: str) -> None:
    images = random_images((2, 32, 32, 3))
    got = pipeline.prepare(images, ImagePreprocessing(), 32, CPU)
    np.testing.assert_array_equal(got.permute(0, 2, 3, 1).numpy(), images)


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_flat_images_stay_flat(level: int, implementation: str) -> None:
    images = np.full((1, 48, 48, 3), level, np.uint8)
    config = ImagePreprocessing(resize="lanczos3", center_crop=0.9)
    assert torch.equal(
        pipeline.prepare(images, config, 32, CPU), torch.full((1, 3, 32, 32), float(level))
    )
    lossy = pipeline.prepare(images, JPEG, 48, CPU)
    assert lossy.min() == lossy.max()
    assert abs(lossy[0, 0, 0, 0].item() - level) <= 1  # the fast transform rounds down


def test_crop_keeps_the_middle() -> None:
    """A quarter of the area: the image's middle half fills it, and mirrored images give mirrored results."""
    image = torch.zeros(1, 3, 33, 33)
    image[..., 8:25, 8:25] = 255
    cropped = resampling.center_crop(image, 0.25)
    assert cropped[..., 1:-1, 1:-1].min() == 255
    image[..., 16, 16] = 0  # the very middle stays where it is
    assert (resampling.center_crop(image, 0.25)[..., 16, 16] == 0).all()


@pytest.mark.gpu
def test_gpu_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    images = random_images((5, 256, 256, 3))
    on_cpu = pipeline.prepare(images, OPENVLA_LIBERO_IMAGES, 224, CPU)
    on_gpu = pipeline.prepare(images, OPENVLA_LIBERO_IMAGES, 224, torch.device("cuda"))
    assert torch.equal(on_gpu.cpu(), on_cpu)
    assert torch.equal(pixel_values(on_gpu, OPENVLA_7B).cpu(), pixel_values(on_cpu, OPENVLA_7B))


# --- settings


def test_images_of_the_wrong_size_are_refused() -> None:
    images = random_images((1, 64, 48, 3))
    with pytest.raises(UserError, match=r"64 x 64, got 64 x 48.*lanczos3"):
        pipeline.prepare(images, JPEG, 64, CPU)
    with pytest.raises(UserError, match="at least 16 x 16"):
        pipeline.prepare(images[:, :, :15], OPENVLA_LIBERO_IMAGES, 64, CPU)


def test_settings_are_checked() -> None:
    for area in (0.0, 1.1, -1.0):
        with pytest.raises(ConfigError, match="center_crop"):
            ImagePreprocessing(center_crop=area)
    with pytest.raises(ConfigError, match="resize"):
        ImagePreprocessing(resize="bicubic")  # type: ignore[arg-type]


def make_processor(**changes: object) -> Processor:
    model = tiny_model(**changes)  # type: ignore[arg-type]
    return Processor(model, build_tiny_tokenizer(INSTRUCTIONS, model))


def test_processor_takes_frames_of_any_size_once_it_resizes() -> None:
    images = random_images((2, 96, 128, 3))
    with pytest.raises(UserError, match=r"set env\.image_size to 64"):
        make_processor().raw(images, CPU)
    processor = make_processor(images=OPENVLA_LIBERO_IMAGES)
    raw = processor.raw(images, CPU)
    assert torch.equal(raw, pipeline.prepare(images, OPENVLA_LIBERO_IMAGES, 64, CPU))
    assert torch.equal(processor.pixels(images, CPU), pixel_values(raw, processor.config))


def test_processor_leaves_images_alone_by_default() -> None:
    images = random_images((2, 64, 64, 3))
    assert torch.equal(make_processor().raw(images, CPU), raw_pixels(images, CPU))


def test_the_policys_settings_go_before_the_checkpoints() -> None:
    stored = tiny_model(images=OPENVLA_LIBERO_IMAGES, gripper="openvla")
    assert with_protocol(stored, PolicyConfig()) == stored
    plain = with_protocol(stored, PolicyConfig(images="as-is", gripper="as-is"))
    assert plain == tiny_model()
    chosen = PolicyConfig(images="openvla-libero", gripper="openvla")
    assert with_protocol(tiny_model(), chosen) == stored
