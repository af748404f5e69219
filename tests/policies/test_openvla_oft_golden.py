"""The class against the official code of OpenVLA-OFT: a small model in its format, float32 references.

References and tolerances: see fixtures/openvla_oft_a/README.md. Each prompt was run alone there.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders.policies import GOLDEN
from vla_rl.policies import ActionTokenizer, select_statistics
from vla_rl.policies.openvla.checkpoint import load_model
from vla_rl.policies.openvla.config_files import read_checkpoint_config
from vla_rl.policies.openvla.processing import pixel_values, raw_pixels
from vla_rl.policies.openvla_oft.decoding import ParallelDecoder
from vla_rl.policies.openvla_oft.model import STOP_TOKEN, OpenVLAOFT
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.prompts import Prompts

Golden = dict[str, np.ndarray]
FOLDER = GOLDEN.parent / "openvla_oft_a"
FEATURES, LOGITS, ALONE = 5e-5, 1e-4, 5e-5
TOKENS = 56
EVERY = [0, 1, 2, 3, 4]
CPU = torch.device("cpu")
UNNORM_KEYS = ("libero_spatial_no_noops", "bridge_orig")


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(FOLDER / "reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model() -> OpenVLAOFT:
    found = load_model(FOLDER, read_checkpoint_config(FOLDER).model, network=OpenVLAOFT)
    assert isinstance(found, OpenVLAOFT)
    return found


@pytest.fixture(scope="module")
def pixels(model: OpenVLAOFT, golden: Golden) -> torch.Tensor:
    return pixel_values(raw_pixels(golden["images_uint8"], CPU), model.config)


def prompts_of(golden: Golden, rows: list[int]) -> Prompts:
    """These prompts, padded to the longest among them."""
    lengths = golden["prompt_lengths"][rows]
    ids = np.full((len(rows), lengths.max()), 32000)
    for target, row in zip(ids, rows, strict=True):
        target[: lengths[rows.index(row)]] = golden[f"input_ids_{row}"]
    return Prompts(torch.from_numpy(ids), lengths)


def undecided(rows: int, count: int = TOKENS) -> torch.Tensor:
    return torch.zeros(rows, count, dtype=torch.int64)


def by_bin(action_logits: np.ndarray) -> torch.Tensor:
    """Reference columns are vocabulary ids 31744..31999; bins run the other way."""
    return torch.from_numpy(action_logits[..., ::-1].copy())


def bins_of(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(31999 - tokens)


@pytest.fixture(scope="module")
def logits(model: OpenVLAOFT, pixels: torch.Tensor, golden: Golden) -> torch.Tensor:
    """All five prompts in one padded batch."""
    with torch.no_grad():
        return model(pixels, prompts_of(golden, EVERY), undecided(5))[0]


@pytest.fixture(scope="module")
def hidden(model: OpenVLAOFT, pixels: torch.Tensor, golden: Golden) -> torch.Tensor:
    """Of all 57 columns, the one that predicts the stop token last."""
    with torch.no_grad():
        return model.hidden_states(pixels, prompts_of(golden, EVERY), TOKENS, TOKENS + 1)


@pytest.fixture(scope="module")
def full(model: OpenVLAOFT, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of the whole vocabulary, at all 57 columns."""
    with torch.no_grad():
        return model.language_model.logits(hidden, 0, 32064)


def test_vision_features_and_projection(
    model: OpenVLAOFT, pixels: torch.Tensor, golden: Golden
) -> None:
    with torch.no_grad():
        features = model.vision_backbone(pixels[:2])
        projected = model.projector(features)
    for got, name in ((features, "vision_features"), (projected, "projected")):
        want = torch.from_numpy(golden[name])
        torch.testing.assert_close(got, want, atol=FEATURES, rtol=0)


@pytest.mark.parametrize("rows", [[0], [1], [4], EVERY, [3, 4], [2, 0]])
def test_logits_alone_and_in_padded_batches(
    model: OpenVLAOFT, pixels: torch.Tensor, golden: Golden, rows: list[int]
) -> None:
    with torch.no_grad():
        got, first = model(pixels[rows], prompts_of(golden, rows), undecided(len(rows)))
    want = by_bin(golden["action_logits"][rows])
    torch.testing.assert_close(got, want, atol=LOGITS, rtol=0)
    torch.testing.assert_close(model.action_logits(first), want[:, 0], atol=LOGITS, rtol=0)


def test_a_padded_batch_equals_its_rows_alone(
    model: OpenVLAOFT, pixels: torch.Tensor, golden: Golden, logits: torch.Tensor
) -> None:
    for row in (0, 1):  # the shortest, which is padded most, and the longest
        with torch.no_grad():
            alone, _ = model(pixels[[row]], prompts_of(golden, [row]), undecided(1))
        torch.testing.assert_close(logits[[row]], alone, atol=ALONE, rtol=0)


def test_attention_is_bidirectional_and_sees_the_stop_token(
    golden: Golden, logits: torch.Tensor
) -> None:
    """Causal attention is 8 away from the reference, a missing stop token 3: both would fail every test here."""
    for name in ("causal_action_logits", "rlinf_action_logits"):
        assert (logits - by_bin(golden[name])).abs().max() > 1.0
    differing = (31999 - logits.argmax(-1).numpy() != golden["rlinf_greedy_tokens"]).sum()
    assert differing == 23
    causal = by_bin(golden["causal_action_logits"]).argmax(-1)
    assert int((logits.argmax(-1) != causal).sum()) == 131


def test_the_whole_vocabulary_agrees(full: torch.Tensor, golden: Golden) -> None:
    first = torch.from_numpy(golden["first_position_full_logits"])
    torch.testing.assert_close(full[0, 0], first, atol=LOGITS, rtol=0)
    want = torch.from_numpy(golden["logsumexp_full"])
    torch.testing.assert_close(full[:, :TOKENS].logsumexp(-1), want, atol=LOGITS, rtol=0)
    np.testing.assert_array_equal(full[:, :TOKENS].argmax(-1), golden["greedy_full_ids"])


def test_greedy_tokens_and_actions_are_exact(logits: torch.Tensor, golden: Golden) -> None:
    bins = logits.argmax(-1).numpy()
    np.testing.assert_array_equal(31999 - bins, golden["greedy_tokens"])
    best = logits.topk(2, -1).values
    margin = torch.from_numpy(golden["greedy_margin"])
    torch.testing.assert_close(best[..., 0] - best[..., 1], margin, atol=LOGITS, rtol=0)
    normalised = ActionTokenizer(256).decode(bins).reshape(5, 8, 7)
    np.testing.assert_array_equal(normalised, golden["greedy_norm_action"])


@pytest.mark.parametrize("key", UNNORM_KEYS)
@pytest.mark.parametrize(
    ("ids", "action"),
    [
        ("greedy_tokens", "greedy_action"),
        ("sampled_tokens", "sampled_action"),
        ("greedy_full_ids", "moojink_action"),
    ],
)
def test_actions_are_un_normalised_with_the_official_margin(
    golden: Golden, key: str, ids: str, action: str
) -> None:
    tokenizer = ActionTokenizer(256)
    values = tokenizer.decode(tokenizer.from_vocabulary(golden[ids])).reshape(5, 8, 7)
    _, statistics = select_statistics(read_checkpoint_config(FOLDER).norm_stats, key)
    actions = statistics.unnormalize(values, OpenVLAOFTPolicy.span_margin)
    want = golden[f"{action}__{key}"]
    np.testing.assert_allclose(actions, want, rtol=0, atol=1e-12)
    plain = statistics.unnormalize(values)
    assert np.abs(plain - want).max() > 1e-9  # the margin shows


def test_log_probs_and_entropies_are_restricted_and_tempered(
    logits: torch.Tensor, golden: Golden
) -> None:
    for i, temperature in enumerate(golden["temperatures"]):
        log_probs = torch.log_softmax(logits / temperature, -1)
        for name in ("greedy", "sampled"):
            tokens = bins_of(golden[f"{name}_tokens"])
            got = log_probs.gather(-1, tokens[..., None])[..., 0]
            want = torch.from_numpy(golden[f"{name}_logprob_action256"][..., i])
            torch.testing.assert_close(got, want, atol=LOGITS, rtol=0)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        want = torch.from_numpy(golden["entropy_action256"][..., i])
        torch.testing.assert_close(entropy, want, atol=LOGITS, rtol=0)


def test_log_probs_over_the_whole_vocabulary(full: torch.Tensor, golden: Golden) -> None:
    for i, temperature in enumerate(golden["temperatures"]):
        log_probs = torch.log_softmax(full[:, :TOKENS] / temperature, -1)
        for name in ("greedy", "sampled"):
            ids = torch.from_numpy(golden[f"{name}_tokens"])
            got = log_probs.gather(-1, ids[..., None])[..., 0]
            want = torch.from_numpy(golden[f"{name}_logprob_full"][..., i])
            torch.testing.assert_close(got, want, atol=LOGITS, rtol=0)


def test_the_official_supervised_loss(full: torch.Tensor, golden: Golden) -> None:
    """The stop token among the labels: the last placeholder's column predicts it."""
    stop = np.full((5, 1), STOP_TOKEN)
    labels = torch.from_numpy(np.concatenate([golden["sampled_tokens"], stop], 1))
    got = torch.log_softmax(full, -1).gather(-1, labels[..., None])[..., 0]
    want = torch.from_numpy(golden["sft_label_logprob"])
    torch.testing.assert_close(got, want, atol=LOGITS, rtol=0)
    assert float(-got.mean()) == pytest.approx(float(golden["sft_loss_batch"]), abs=LOGITS)


def test_torch_draws_the_official_tokens_from_these_logits(
    logits: torch.Tensor, golden: Golden
) -> None:
    """The reference sampled in the order of vocabulary ids, with torch's generator at 123."""
    probabilities = torch.softmax(logits[0].flip(-1) / 1.6, -1)
    drawn = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(123))
    want = golden["svla_seed123_sampled_tokens_prompt0"]
    np.testing.assert_array_equal(drawn[:, 0].numpy()[None] + 31744, want)


def test_two_images_stand_one_after_the_other(
    model: OpenVLAOFT, pixels: torch.Tensor, golden: Golden
) -> None:
    both = torch.cat([pixels[:1], pixels[1:2]], 1)
    with torch.no_grad():
        got, _ = model(both, prompts_of(golden, [0]), undecided(1))
    want = by_bin(golden["two_images_action_logits"])
    torch.testing.assert_close(got[0], want, atol=LOGITS, rtol=0)
    np.testing.assert_array_equal(
        31999 - got[0].argmax(-1).numpy(), golden["two_images_greedy_tokens"]
    )
    with torch.no_grad():  # unequal prompts, whose padding comes after both images' patches
        padded, _ = model(both.repeat(2, 1, 1, 1), prompts_of(golden, [0, 1]), undecided(2))
    torch.testing.assert_close(padded[0], got[0], atol=ALONE, rtol=0)


def test_the_decoder_takes_the_greedy_tokens(
    model: OpenVLAOFT, pixels: torch.Tensor, golden: Golden
) -> None:
    decoder = ParallelDecoder(model, TOKENS)
    with torch.inference_mode():
        hidden, state = decoder.prefill(pixels[:2], prompts_of(golden, [0, 1]))
        tokens, log_probs = decoder.choose(hidden, state, None, 0.0)
    np.testing.assert_array_equal(31999 - tokens.numpy(), golden["greedy_tokens"][:2])
    assert not log_probs.any()


def test_a_token_loop_is_refused(model: OpenVLAOFT, pixels: torch.Tensor, golden: Golden) -> None:
    with pytest.raises(TypeError, match="one pass"):
        model.prefill(pixels[:1], prompts_of(golden, [0]), TOKENS)
