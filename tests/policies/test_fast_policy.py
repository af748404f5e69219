"""A policy whose turns have as many FAST tokens as they need, and an end token: play, learning, checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.fast import (
    HORIZON,
    SIZE,
    ending_draws,
    fast_tokens,
    make_fast_policy,
    smooth_moves,
)
from builders.policies import INSTRUCTIONS, make_observation
from builders.rollouts import window
from vla_rl.algorithms.advantages import Batch, compute_advantages
from vla_rl.algorithms.ppo import PPO
from vla_rl.algorithms.sft import SFT
from vla_rl.config import LoraConfig, OptimizerConfig, PolicyConfig, PPOConfig, SFTConfig, UserError
from vla_rl.config.policy import SuiteActions
from vla_rl.functional import clipped_surrogate
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.fast.actions import FastActions
from vla_rl.policies.openvla.decoding import TokenDecoder
from vla_rl.policies.openvla.exporting import export_adapter, export_merged
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.policy import decided, meant, tokens_of_turn
from vla_rl.types import Observation


@pytest.fixture(scope="module", params=["separate", "shared"])
def policy(request: pytest.FixtureRequest) -> OpenVLAPolicy:
    return make_fast_policy(request.param)


def looked_at(rows: int) -> Observation:
    return make_observation(rows, size=32)


def played(policy: OpenVLAPolicy) -> torch.Tensor:
    """Tokens of rows that end at token 0, 1, ... K - 1, and of two that never end."""
    rows = policy.num_tokens + 2
    return policy.act(looked_at(rows), 1.0, ending_draws(rows, policy.num_tokens)).tokens


# -- play


def test_rows_of_one_batch_end_at_different_tokens(policy: OpenVLAPolicy) -> None:
    count, end = policy.num_tokens, policy.turn_actions.end_token
    assert tokens_of_turn(policy) == count < HORIZON * SIZE + 1
    seen = looked_at(count + 2)
    output = policy.act(seen, 1.0, ending_draws(count + 2, count))
    for row, (tokens, log_probs) in enumerate(zip(output.tokens, output.log_probs, strict=True)):
        ended = (tokens == end).nonzero()
        if row >= count:
            assert not len(ended)
            continue
        first = int(ended[0])
        assert first == row
        assert (tokens[first:] == end).all()
        assert (log_probs[: first + 1] < 0).all()
        assert (log_probs[first + 1 :] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_played_is_what_is_learned_from(policy: OpenVLAPolicy, temperature: float) -> None:
    count = policy.num_tokens
    seen = looked_at(count + 2)
    output = policy.act(seen, temperature, ending_draws(count + 2, count))
    found = policy.evaluate(seen, output.tokens, temperature)
    torch.testing.assert_close(found.log_probs, output.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.values, output.values, atol=1e-5, rtol=0)
    assert found.mask is not None
    lengths = [*range(1, count + 1), count, count]
    assert found.mask.sum(1).tolist() == lengths
    assert decided(policy, output.tokens).sum(1).tolist() == lengths
    assert (found.entropy[~found.mask] == 0).all()
    assert (found.entropy[found.mask] > 0).all()
    reference = policy.reference_log_probs(seen, output.tokens, temperature)
    torch.testing.assert_close(reference, output.log_probs, atol=1e-5, rtol=0)


def test_a_row_does_not_depend_on_when_the_others_end(policy: OpenVLAPolicy) -> None:
    count = policy.num_tokens
    seen, draws = looked_at(4), ending_draws(count, count)[[0, 2, 5, 1]]
    together = policy.act(seen, 1.0, draws)
    for row in range(4):
        alone = policy.act(seen.select([row]), 1.0, draws[row : row + 1])
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], atol=1e-5, rtol=0)


def test_candidates_are_what_would_be_played(policy: OpenVLAPolicy) -> None:
    count = policy.num_tokens
    seen, draws = looked_at(2), ending_draws(6, count).reshape(2, 3, count)
    proposed = policy.propose(seen, 1.0, draws)
    for j in range(3):
        output = policy.act(seen, 1.0, draws[:, j])
        assert torch.equal(output.tokens, proposed.tokens[:, j])
        torch.testing.assert_close(output.log_probs, proposed.log_probs[:, j], atol=1e-5, rtol=0)


def test_a_recorded_loop_ends_rows_as_the_plain_one(policy: OpenVLAPolicy) -> None:
    """The recording that a GPU replays goes through all K steps."""
    seen, draws = looked_at(3), ending_draws(3, policy.num_tokens)
    plain = policy.act(seen, 1.0, draws)
    before = policy.decoder
    policy.decoder = TokenDecoder(
        policy.model, policy.num_tokens, lambda work, device: work, policy.turn_actions.end_token
    )
    try:
        for _ in range(3):
            again = policy.act(seen, 1.0, draws)
            assert torch.equal(again.tokens, plain.tokens)
            torch.testing.assert_close(again.log_probs, plain.log_probs, atol=1e-5, rtol=0)
        assert policy.decoder.recordings == 1
    finally:
        policy.decoder = before


# -- what tokens mean


def test_demonstrations_go_back_and_forth(policy: OpenVLAPolicy) -> None:
    moves = smooth_moves()[:40].astype(np.float32)
    tokens = policy.encode_actions(moves)
    assert tokens.shape == (40, policy.num_tokens)
    assert meant(policy, tokens).all()
    actions = policy.decode_actions(tokens)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    assert np.linalg.norm(actions - moves, axis=1).max() <= 0.5 / 5 * HORIZON**0.5 + 1e-6


def test_an_answer_that_means_nothing_leaves_the_robot_where_it_is(policy: OpenVLAPolicy) -> None:
    good = policy.encode_actions(smooth_moves()[:1].astype(np.float32))[0]
    end, length = policy.turn_actions.end_token, int(decided(policy, good[None]).sum())
    empty, short, endless, more = good.clone(), good.clone(), good.clone(), good.clone()
    empty[:] = end
    short[length - 2] = end
    endless[length - 1 :] = good[0]
    more[length - 1] = good[0]
    rows = torch.stack([good, empty, short, endless, more])
    assert meant(policy, rows).tolist() == [True, False, False, False, False]
    actions = policy.decode_actions(rows)
    assert np.abs(actions[0]).max() > 0
    assert (actions[1:] == 0).all()


def test_what_stands_behind_the_end_says_nothing(policy: OpenVLAPolicy) -> None:
    tokens = policy.encode_actions(smooth_moves()[:3].astype(np.float32))
    other = torch.where(torch.from_numpy(decided(policy, tokens)), tokens, torch.zeros_like(tokens))
    assert not torch.equal(tokens, other)
    np.testing.assert_array_equal(policy.decode_actions(tokens), policy.decode_actions(other))
    seen = looked_at(3)
    one, two = policy.evaluate(seen, tokens), policy.evaluate(seen, other)
    torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-6, rtol=0)
    assert torch.equal(one.mask, two.mask)


def test_turns_too_long_for_the_policy_are_refused(policy: OpenVLAPolicy) -> None:
    moves = smooth_moves()[:5].astype(np.float32)
    few = FastActions(fast_tokens()._replace(most=3), policy.statistics, "as-is")
    with pytest.raises(UserError, match=r"of 5 turns .* raise fast.max_tokens"):
        few.encode(moves)
    with pytest.raises(UserError, match="writes 4 actions of size 4"):
        policy.encode_actions(moves[:, :2])


def test_several_suites_are_refused_by_name(policy: OpenVLAPolicy) -> None:
    wanted = {INSTRUCTIONS[0]: SuiteActions("mt5", "sawyer", SIZE)}
    with pytest.raises(UserError, match="FAST tokens are fitted to one suite"):
        policy.play_suites(wanted)


# -- learning


def batch_of(policy: OpenVLAPolicy) -> Batch:
    """Three turns that end at different tokens, as they were played."""
    seen, count = looked_at(3), policy.num_tokens
    output = policy.act(seen, 1.0, ending_draws(count, count)[[0, 3, 6]])
    rollout = window(
        1, 3, images=seen.images[None], instructions=INSTRUCTIONS, tokens=output.tokens[None].numpy(),
        task_ids=np.array([[0, 1, 2]]), log_probs=output.log_probs[None].numpy(),
        rewards=np.array([[1, 0, 0]], np.float32), terminated=np.array([[True, False, False]]),
        next_images=seen.images, tasks=("one", "two", "three"),
    )  # fmt: skip
    return compute_advantages(rollout, np.zeros_like(rollout.rewards), PPOConfig())


def test_entropy_ratios_and_divergence_are_of_decisions_alone() -> None:
    """Turns of 1, 4 and 7 tokens. A mean over all K, or a mask one token off, gives other numbers."""
    policy = make_fast_policy()
    batch = batch_of(policy)
    decisions = torch.from_numpy(decided(policy, batch.tokens))
    assert decisions.sum(1).tolist() == [1, 4, 7]
    moved = torch.zeros_like(batch.log_probs)
    moved[:, 0] = -1.0  # each turn's first token has become likelier by e
    batch.log_probs.copy_(batch.log_probs + moved)
    settings = PPOConfig(
        kl_coef=0.1, self_imitation_coef=0.0, entropy_coef=0.01, clip_low=0.2, clip_high=0.2
    )
    learner = PPO(policy, settings, OptimizerConfig(), policy.config.critic, seed=0)
    loss, stats = learner.policy._loss(batch, torch.arange(3))
    found = policy.evaluate(batch.observation, batch.tokens)
    assert stats["losses/entropy"] == pytest.approx(found.entropy[decisions].mean().item())
    assert stats["losses/clip_fraction"] == pytest.approx(3 / 12)
    assert stats["losses/ratio_mean"] == pytest.approx((3 * np.e + 9) / 12, rel=1e-4)
    assert stats["losses/approx_kl_k1"] == pytest.approx(-1.0, abs=1e-4)
    assert stats["losses/kl_reference"] == pytest.approx(0.0, abs=1e-6)
    surrogate = sum(
        clipped_surrogate(
            found.log_probs[row : row + 1, :length],
            batch.log_probs[row : row + 1, :length],
            batch.advantages[row : row + 1],
        )
        / 3
        for row, length in enumerate([1, 4, 7])
    )
    expected = surrogate - 0.01 * found.entropy[decisions].sum() / 3
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_an_update_moves_the_policy_and_stays_finite() -> None:
    policy = make_fast_policy("shared")
    batch = batch_of(policy)
    before = policy.evaluate(batch.observation, batch.tokens).log_probs.sum(1)
    settings = PPOConfig(minibatch=3, epochs=4, critic_warmup=0, self_imitation_coef=0.0)
    learner = PPO(
        policy,
        settings,
        OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
        policy.config.critic,
        seed=0,
    )
    learner.update(batch, 0, 0.0)
    after = policy.evaluate(batch.observation, batch.tokens).log_probs.sum(1)
    assert after[0] - before[0] > (after[1:] - before[1:]).max()


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_fine_tuning_is_on_the_tokens_up_to_the_end(micro_batch: int) -> None:
    policy = make_fast_policy()
    tokens = policy.encode_actions(smooth_moves()[:5].astype(np.float32))
    seen = looked_at(5)
    learner = SFT(policy, SFTConfig(micro_batch=micro_batch, batch_size=5), 10)
    decisions = torch.from_numpy(decided(policy, tokens))
    assert (~decisions).sum() > 0
    log_probs = policy.evaluate(seen, tokens).log_probs
    expected = -log_probs[decisions].mean()
    policy.zero_grad()
    expected.backward()
    wanted = [p.grad.clone() for p in learner.parameters if p.grad is not None]
    assert learner.loss(seen, tokens) == pytest.approx(expected.item(), rel=1e-5)
    policy.zero_grad()
    assert learner._backward(seen, tokens) == pytest.approx(expected.item(), rel=1e-5)
    found = [p.grad for p in learner.parameters if p.grad is not None]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# -- checkpoints


def test_a_checkpoint_carries_its_action_tokenizer(tmp_path: Path) -> None:
    policy = make_fast_policy("shared")
    policy.save(tmp_path / "policy")
    again = OpenVLAPolicy.from_checkpoint(
        tmp_path / "policy", PolicyConfig(critic=policy.config.critic, device="cpu")
    )
    tokens = played(policy)
    assert torch.equal(played(again), tokens)
    np.testing.assert_array_equal(again.decode_actions(tokens), policy.decode_actions(tokens))
    assert again.fingerprint() == policy.fingerprint()
    again.save(tmp_path / "again")
    for name in ("config.json", "action_tokenizer/tokenizer.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "policy" / name).read_bytes()
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert config["model_type"] == "openvla-fast"  # official code reads no such model
    with pytest.raises(UserError, match="FAST tokens, each of which depends"):
        OpenVLAOFTPolicy.from_checkpoint(
            tmp_path / "policy", PolicyConfig(kind="openvla-oft", device="cpu")
        )


def test_the_fingerprint_knows_the_action_tokenizer(tmp_path: Path) -> None:
    policy = make_fast_policy()
    policy.save(tmp_path / "policy")
    file = tmp_path / "policy" / "action_tokenizer" / "processor_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "scale": 2 * said["scale"]}))
    again = OpenVLAPolicy.from_checkpoint(tmp_path / "policy", PolicyConfig(device="cpu"))
    assert again.fingerprint() != policy.fingerprint()


def test_adapters_and_merged_weights_are_exported_with_it(tmp_path: Path) -> None:
    base = make_fast_policy()
    base.save(tmp_path / "base")
    settings = PolicyConfig(lora=LoraConfig(rank=2, alpha=4), device="cpu")
    policy = OpenVLAPolicy.from_checkpoint(tmp_path / "base", settings)
    export_adapter(policy, tmp_path / "adapter")
    export_merged(policy, tmp_path / "merged")
    tokens = policy.encode_actions(smooth_moves()[:4].astype(np.float32))
    for name in ("adapter", "merged"):
        again = OpenVLAPolicy.from_checkpoint(tmp_path / name, PolicyConfig(device="cpu"))
        np.testing.assert_array_equal(again.decode_actions(tokens), policy.decode_actions(tokens))
        assert again.num_tokens == policy.num_tokens


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "action_tokenizer"), "action_tokenizer"),
        (lambda folder: rewrite(folder, max_tokens=1), "max_tokens must lie in"),
        (lambda folder: rewrite(folder, max_tokens="many"), "max_tokens"),
        (
            lambda folder: (folder / "action_tokenizer/tokenizer.json").write_text("{"),
            "tokenizer.json",
        ),
    ],
)
def test_a_damaged_action_tokenizer_is_refused(tmp_path: Path, damage, words: str) -> None:
    make_fast_policy().save(tmp_path / "policy")
    damage(tmp_path / "policy")
    with pytest.raises(UserError, match=words):
        OpenVLAPolicy.from_checkpoint(tmp_path / "policy", PolicyConfig(device="cpu"))


def rewrite(folder: Path, **fast: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vla_rl"]["fast"] = fast
    (folder / "config.json").write_text(json.dumps(config))
