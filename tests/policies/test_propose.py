"""Candidates from one prefill: each equals `act` with its own uniforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders.policies import INSTRUCTIONS, UNKNOWN, make_observation, make_policy, sharpen
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.openvla.decoding import TokenDecoder

EQUAL = INSTRUCTIONS[:2]


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return sharpen(make_policy("shared"))


def uniforms(count: int, candidates: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, candidates, 8), dtype=np.float32)


@pytest.mark.parametrize(
    "texts", [(*INSTRUCTIONS, UNKNOWN), EQUAL], ids=["unequal", "equal prompts"]
)
@pytest.mark.parametrize("candidates", [1, 3, 6])
def test_candidates_equal_separate_calls(policy: OpenVLAPolicy, texts, candidates: int) -> None:
    seen, draws = make_observation(4, 1, texts), uniforms(4, candidates)
    proposed = policy.propose(seen, 1.3, draws)
    assert proposed.tokens.shape == proposed.log_probs.shape == (4, candidates, 8)
    for j in range(candidates):
        alone = policy.act(seen, 1.3, draws[:, j])
        assert torch.equal(proposed.tokens[:, j], alone.tokens)
        torch.testing.assert_close(proposed.log_probs[:, j], alone.log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(proposed.values, alone.values, atol=1e-5, rtol=0)


def test_candidates_differ_and_the_same_uniforms_give_the_same_tokens(
    policy: OpenVLAPolicy,
) -> None:
    seen, draws = make_observation(3, 2), uniforms(3, 4)
    draws[:, 3] = draws[:, 1]
    tokens = policy.propose(seen, 1.0, draws).tokens
    assert torch.equal(tokens[:, 3], tokens[:, 1])
    assert not torch.equal(tokens[:, 0], tokens[:, 1])


def test_log_probs_are_those_the_learner_computes(policy: OpenVLAPolicy) -> None:
    seen, draws = make_observation(3, 3), uniforms(3, 2)
    proposed = policy.propose(seen, 1.5, draws)
    for j in range(2):
        with torch.no_grad():
            learned = policy.evaluate(seen, proposed.tokens[:, j], 1.5).log_probs
        torch.testing.assert_close(proposed.log_probs[:, j], learned, atol=1e-5, rtol=0)


def test_a_candidate_of_nans_is_the_greedy_one(policy: OpenVLAPolicy) -> None:
    seen, draws = make_observation(4, 4), uniforms(4, 3)
    draws[:, 1] = np.nan
    proposed = policy.propose(seen, 1.0, draws)
    assert torch.equal(proposed.tokens[:, 1], policy.act(seen, 0.0).tokens)
    assert torch.equal(proposed.tokens[:, 2], policy.act(seen, 1.0, draws[:, 2]).tokens)
    with torch.no_grad():
        learned = policy.evaluate(seen, proposed.tokens[:, 1], 1.0).log_probs
    torch.testing.assert_close(proposed.log_probs[:, 1], learned, atol=1e-5, rtol=0)


def test_images_are_looked_at_once(policy: OpenVLAPolicy) -> None:
    """The vision towers and the prompt's columns run over N rows, whatever the number of candidates."""
    rows: list[int] = []
    hook = policy.model.projector.register_forward_hook(lambda m, i, out: rows.append(len(out)))
    policy.propose(make_observation(3, 5), 1.0, uniforms(3, 16))
    hook.remove()
    assert rows == [3]


def test_recorded_decoding_proposes_the_same() -> None:
    plain, recording = sharpen(make_policy()), sharpen(make_policy())
    recording.decoder = TokenDecoder(
        recording.model, recording.num_tokens, lambda work, device: work
    )
    for call in range(4):
        seen, draws = make_observation(3, call), uniforms(3, 4, call)
        one, two = (p.propose(seen, 1.0, draws) for p in (plain, recording))
        assert torch.equal(one.tokens, two.tokens)
        acted = recording.act(seen, 1.0, draws[:, 0])  # shares the recorded shape's cache
        assert torch.equal(acted.tokens, two.tokens[:, 0])
    assert recording.decoder.recordings == 1


def test_wrong_requests_are_refused(policy: OpenVLAPolicy) -> None:
    seen = make_observation(2)
    with pytest.raises(ValueError, match="must be positive"):
        policy.propose(seen, 0.0, uniforms(2, 2))
    for bad in (uniforms(3, 2), uniforms(2, 0), uniforms(2, 2)[:, :, :7]):
        with pytest.raises(ValueError, match=r"\(2, J, 8\)"):
            policy.propose(seen, 1.0, bad)
