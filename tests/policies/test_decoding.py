"""The token loop and its recordings. The recorder here replays by calling; a GPU's own is tested where there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from builders.policies import INSTRUCTIONS, make_observation, make_policy, sharpen
from vla_rl.config import LoraConfig
from vla_rl.policies import OpenVLAPolicy, kernels
from vla_rl.policies.openvla import decoding
from vla_rl.policies.openvla.decoding import Choice, TokenDecoder
from vla_rl.types import Observation


class Calls:
    """Replays by running the work again: on nothing but the memory that it was recorded with."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work: Callable[[], Choice], device: torch.device) -> Callable[[], Choice]:
        self.recorded += 1

        def replay() -> Choice:
            self.replayed += 1
            return work()

        return replay


def draws(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 8), dtype=np.float32)


def recording(policy: OpenVLAPolicy) -> Calls:
    """Give the policy a decoder that records."""
    recorder = Calls()
    policy.decoder = TokenDecoder(policy.model, policy.num_tokens, recorder)
    return recorder


def batch(seed: int, count: int = 5, texts: tuple[str, ...] = INSTRUCTIONS) -> Observation:
    return make_observation(count, seed, texts)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("texts", [INSTRUCTIONS, INSTRUCTIONS[:2]], ids=["unequal", "equal"])
def test_replays_give_what_the_plain_loop_gives(temperature: float, texts: tuple[str, ...]) -> None:
    """New images, prompts and uniforms in every call, all of one shape: one recording serves them all."""
    plain, replaying = sharpen(make_policy()), sharpen(make_policy())
    recorder = recording(replaying)
    for call in range(5):
        seen = batch(call, texts=texts[call % 2 :] + texts[: call % 2])
        one = plain.act(seen, temperature, draws(5, call))
        two = replaying.act(seen, temperature, draws(5, call))
        assert torch.equal(one.tokens, two.tokens)
        torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.values, two.values, atol=1e-5, rtol=0)
    # the first call is plain, the second records and checks itself, three replay
    assert (recorder.recorded, recorder.replayed) == (1, 4)


def test_results_are_not_overwritten_by_the_next_call() -> None:
    policy = sharpen(make_policy())
    recording(policy)
    outs = [policy.act(batch(seed), 1.0, draws(5, seed)) for seed in range(4)]
    again = [policy.act(batch(seed), 1.0, draws(5, seed)) for seed in range(4)]
    for one, two in zip(outs, again, strict=True):
        assert torch.equal(one.tokens, two.tokens)
    assert not torch.equal(outs[2].tokens, outs[3].tokens)


def test_recordings_see_trained_weights_and_forget_moved_or_switched_ones() -> None:
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    policy = sharpen(make_policy(lora=LoraConfig(rank=4)))
    recorder = recording(policy)

    def act() -> torch.Tensor:
        return policy.act(batch(0), 1.0, draws(5, 0)).log_probs

    act()
    before = act()
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    trained = act()
    assert (trained - before).abs().max() > 1e-3
    assert recorder.recorded == 1
    layers = [m for m in policy.model.modules() if hasattr(m, "enable_adapters")]
    for layer in layers:
        layer.enable_adapters(False)
    torch.testing.assert_close(act(), before, atol=1e-5, rtol=0)
    for layer in layers:
        layer.enable_adapters(True)
    torch.testing.assert_close(act(), trained, atol=1e-5, rtol=0)
    assert recorder.recorded == 3
    parameter = policy.policy_parameters()[0]
    parameter.data = parameter.data.clone()
    act()
    assert recorder.recorded == 4


def test_old_contents_of_the_cache_never_show() -> None:
    """A batch that turned everything to NaN leaves nothing behind for the next one of its shape."""
    policy = sharpen(make_policy())
    want = policy.act(batch(7), 1.0, draws(5, 7))
    recording(policy)
    policy.act(batch(1))
    policy.act(batch(1))
    with torch.inference_mode():
        for shape in policy.decoder._shapes.values():
            shape.cache.storage.fill_(torch.nan)
    got = policy.act(batch(7), 1.0, draws(5, 7))
    assert torch.equal(got.tokens, want.tokens)
    torch.testing.assert_close(got.log_probs, want.log_probs, atol=1e-5, rtol=0)


def wrong_tokens(work: Callable[[], Choice], device: torch.device) -> Callable[[], Choice]:
    def replay() -> Choice:
        tokens, log_probs = work()
        return (tokens + 1) % 32, log_probs

    return replay


def refusing(work: Callable[[], Choice], device: torch.device) -> Callable[[], Choice]:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("recorder", "reason"), [(wrong_tokens, "gave only 0%"), (refusing, "not permitted")]
)
def test_a_recording_that_fails_or_errs_is_never_used(
    recorder: decoding.Recorder, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain, policy = sharpen(make_policy()), sharpen(make_policy())
    policy.decoder = TokenDecoder(policy.model, policy.num_tokens, recorder)
    with caplog.at_level(logging.WARNING):
        for call in range(4):
            want = plain.act(batch(call), 1.0, draws(5, call))
            got = policy.act(batch(call), 1.0, draws(5, call))
            assert torch.equal(got.tokens, want.tokens)
    assert len(caplog.records) == 1
    assert reason in caplog.text


def test_few_shapes_are_recorded_and_frequent_ones_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_SHAPES", 2)
    policy = make_policy()
    recorder = recording(policy)
    for count in (1, 2, 3, 1, 2, 3, 1, 2, 3):
        policy.act(batch(0, count))
    assert recorder.recorded == 2
    assert {key[0] for key in policy.decoder._shapes} == {1, 2}
    for _ in range(3):  # 6 times now, twice as often as the others
        policy.act(batch(0, 3))
    assert recorder.recorded == 3
    assert 3 in {key[0] for key in policy.decoder._shapes}


def test_tables_that_a_recording_reads_are_kept() -> None:
    """Not copies of them: what the layers looked up while recording must stay alive."""
    policy = make_policy()
    recording(policy)
    policy.act(batch(0))
    policy.act(batch(0))
    (shape,) = policy.decoder._shapes.values()
    language = policy.model.config.language
    hits = kernels.rotary_tables.cache_info().hits
    found = kernels.rotary_tables(
        shape.cache.columns,
        language.hidden // language.heads,
        language.rope_theta,
        policy.device,
        policy.model.dtype,
    )
    assert kernels.rotary_tables.cache_info().hits == hits + 1
    assert any(found is table for table in shape.tables)


def test_without_a_recorder_nothing_is_kept() -> None:
    policy = make_policy()
    for _ in range(3):
        policy.act(batch(0))
    assert policy.decoder.recorder is None
    assert not policy.decoder._shapes


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_cuda_graphs_replay_the_plain_loop(temperature: float) -> None:
    plain, replaying = sharpen(make_policy()).cuda(), sharpen(make_policy()).cuda()
    replaying.decoder.recorder = decoding.record_cuda_graph
    for call in range(6):
        one = plain.act(batch(call), temperature, draws(5, call))
        two = replaying.act(batch(call), temperature, draws(5, call))
        assert torch.equal(one.tokens, two.tokens)
        torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-4, rtol=0)
    assert any(shape.replays for shape in replaying.decoder._shapes.values())
