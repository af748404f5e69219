"""The class against OpenVLA's own code: a small model in the official format, float32 references.

References and tolerances: openvla/openvla@c8f03f4 run unmodified, float32, each prompt alone.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from builders.policies import GOLDEN
from vla_rl.config import OPENVLA_7B
from vla_rl.policies import ActionTokenizer, OpenVLA, select_statistics
from vla_rl.policies.openvla.checkpoint import load_model
from vla_rl.policies.openvla.config_files import read_checkpoint_config
from vla_rl.policies.openvla.processing import pixel_values, raw_pixels
from vla_rl.policies.prompts import Prompts

Golden = dict[str, np.ndarray]
FEATURES = 5e-5
LOGITS = 1e-4
FIRST_ACTION = 31744
CPU = torch.device("cpu")
LAYOUT_7B = GOLDEN.parent / "openvla_7b_layout"


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    return load_model(GOLDEN, read_checkpoint_config(GOLDEN).model)


@pytest.fixture(scope="module")
def pixels(model: OpenVLA, golden: Golden) -> torch.Tensor:
    return pixel_values(raw_pixels(golden["images_uint8"], CPU), model.config)


def prompts_of(golden: Golden, rows: list[int]) -> Prompts:
    """These prompts, padded to the longest among them."""
    lengths = golden["prompt_lengths"][rows]
    ids = golden["input_ids_padded"][rows, : lengths.max()]
    return Prompts(torch.from_numpy(ids), lengths)


def bins_of(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(31999 - tokens)


def by_bin(action_logits: np.ndarray) -> torch.Tensor:
    """Reference columns are vocabulary ids 31744..31999; bins run the other way."""
    return torch.from_numpy(action_logits[..., ::-1].copy())


def greedy(model: OpenVLA, pixels: torch.Tensor, prompts: Prompts) -> torch.Tensor:
    with torch.inference_mode():
        hidden, state = model.prefill(pixels, prompts, 7)
        tokens = [model.action_logits(hidden).argmax(-1)]
        for _ in range(6):
            tokens.append(model.action_logits(model.decode(state, tokens[-1])).argmax(-1))
    return torch.stack(tokens, 1)


def test_pixel_values(pixels: torch.Tensor, golden: Golden) -> None:
    want = torch.from_numpy(golden["pixel_values_sampled"])
    torch.testing.assert_close(pixels[:, :, ::7, ::11], want, atol=1e-6, rtol=0)


def test_vision_features_and_projection(
    model: OpenVLA, pixels: torch.Tensor, golden: Golden
) -> None:
    with torch.no_grad():
        features = model.vision_backbone(pixels)
        projected = model.projector(features)
    for got, name in ((features, "vision_features"), (projected, "projected")):
        want = torch.from_numpy(golden[name])
        torch.testing.assert_close(got, want, atol=FEATURES, rtol=0)


@pytest.mark.parametrize("rows", [[0], [1], [2], [3], [0, 1, 2, 3], [2, 0]])
def test_teacher_forced_logits_alone_and_in_padded_batches(
    model: OpenVLA, pixels: torch.Tensor, golden: Golden, rows: list[int]
) -> None:
    with torch.no_grad():
        logits, first = model(
            pixels[rows], prompts_of(golden, rows), bins_of(golden["forced_tokens"][rows])
        )
        at_prompt_end = model.action_logits(first)
    want = by_bin(golden["tf_action_logits"][rows])
    torch.testing.assert_close(logits, want, atol=LOGITS, rtol=0)
    want = by_bin(golden["last_action_logits"][rows])
    torch.testing.assert_close(at_prompt_end, want, atol=LOGITS, rtol=0)


def test_the_whole_vocabulary_agrees(model: OpenVLA, pixels: torch.Tensor, golden: Golden) -> None:
    """The log-sum over all 32064 ids at the last position: rows outside the action slice are right as well."""
    with torch.no_grad():
        hidden = model.first_hidden(pixels, prompts_of(golden, [0, 1, 2, 3]))
        everything = model.language_model.logits(hidden, 0, 32064).logsumexp(-1)
    want = torch.from_numpy(golden["tf_logsumexp"][:, 0])
    torch.testing.assert_close(everything, want, atol=LOGITS, rtol=0)


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3], [3, 2]])
def test_greedy_tokens_and_actions_are_exact(
    model: OpenVLA, pixels: torch.Tensor, golden: Golden, rows: list[int]
) -> None:
    bins = greedy(model, pixels[rows], prompts_of(golden, rows))
    np.testing.assert_array_equal(31999 - bins.numpy(), golden["greedy_tokens"][rows])
    normalised = ActionTokenizer(256).decode(bins.numpy())
    np.testing.assert_array_equal(normalised, golden["greedy_norm_action"][rows])
    stats = read_checkpoint_config(GOLDEN).norm_stats
    for key in golden["unnorm_keys"]:
        actions = select_statistics(stats, str(key))[1].unnormalize(normalised)
        np.testing.assert_allclose(actions, golden[f"greedy_action__{key}"][rows], rtol=1e-12)


def test_log_probs_are_restricted_to_the_action_ids_and_tempered(
    model: OpenVLA, pixels: torch.Tensor, golden: Golden
) -> None:
    tokens = bins_of(golden["greedy_tokens"])
    with torch.no_grad():
        logits, _ = model(pixels, prompts_of(golden, [0, 1, 2, 3]), tokens)
    for i, temperature in enumerate(golden["temperatures"]):
        got = torch.log_softmax(logits / temperature, -1).gather(-1, tokens[..., None])[..., 0]
        want = torch.from_numpy(golden["greedy_logprob_action256"][..., i])
        torch.testing.assert_close(got, want, atol=LOGITS, rtol=0)


def test_images_matter(model: OpenVLA, pixels: torch.Tensor, golden: Golden) -> None:
    """Swapped images move the logits by about 13 in the reference; a model blind to them would pass nothing."""
    prompts = prompts_of(golden, [0, 1, 2, 3])
    tokens = bins_of(golden["forced_tokens"])
    with torch.no_grad():
        change = (
            model(pixels, prompts, tokens)[0] - model(pixels.flip(0), prompts, tokens)[0]
        ).abs()
    assert change.amax(dim=(1, 2)).min() > 1.0


def test_openvla_7b_has_the_official_982_tensors() -> None:
    want = json.loads((LAYOUT_7B / "state_dict_shapes.json").read_text())
    with torch.device("meta"):
        model = OpenVLA(OPENVLA_7B)
    got = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(got) == 982
    assert got == want
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_541_237_184


def test_official_7b_config_is_read_with_llama_defaults() -> None:
    read = read_checkpoint_config(LAYOUT_7B).model
    assert read.language == OPENVLA_7B.language
    assert read.language.rms_norm_eps == 1e-6
    assert (read.dino, read.siglip) == (OPENVLA_7B.dino, OPENVLA_7B.siglip)
    assert (read.image_size, read.action_bins) == (224, 256)
