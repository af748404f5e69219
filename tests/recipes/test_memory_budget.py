"""The memory estimate against what autograd keeps, and the choices made from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from builders.policies import tiny_policy
from vla_rl.config import (
    OPENVLA_7B,
    LoraConfig,
    ModelConfig,
    PolicyConfig,
    PPOConfig,
    UserError,
    tiny_model,
)
from vla_rl.distributed import SingleProcess
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies import memory as memory_budget
from vla_rl.policies.openvla.memory import (
    PROMPT_TOKENS,
    activation_elements,
    cache_bytes,
    columns_of,
    count_weights,
    inference_budget,
    memory_table,
    sharded_budget,
    training_budget,
    units,
    window_bytes,
)
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla_oft.memory import policy_budget as oft_budget
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.registry import with_micro_batch
from vla_rl.policies.shapes import shapes_alone
from vla_rl.types import Observation

LORA = LoraConfig(rank=4)
GB = 1e9
# long sequences, as OpenVLA's: 256 patches, so that attention takes the fused kernel
MODEL = replace(
    tiny_model(224),
    dino=replace(
        OPENVLA_7B.dino,
        width=48,
        depth=3,
        heads=4,
        mlp_width=192,
        class_token=True,
        register_tokens=4,
    ),
    siglip=replace(
        OPENVLA_7B.siglip, width=72, depth=4, heads=4, mlp_width=288, attention_pool=False
    ),
    language=replace(tiny_model().language, hidden=128, layers=6, mlp_width=344, max_positions=512),
)


def policy_of(lora: LoraConfig | None, checkpointing: bool = False) -> OpenVLAPolicy:
    config = PolicyConfig(device="cpu", lora=lora, activation_checkpointing=checkpointing)
    policy = tiny_policy(["open the drawer"], MODEL, config, action_dim=7, action_chunk=1)
    policy.critic.requires_grad_(False)  # its own activations are small beside a large model's
    return policy


def kept_bytes(policy: OpenVLAPolicy, batch: int) -> int:
    """What one forward pass leaves for the backward pass, weights and tables aside."""
    rng = np.random.default_rng(0)
    size = MODEL.image_size
    observation = Observation(
        rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        ("open the drawer",) * batch,
        np.zeros((batch, 4), np.float32),
        np.zeros(batch, np.float32),
    )
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.evaluate(observation, torch.zeros((batch, policy.num_tokens), dtype=torch.int64))
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def columns(policy: OpenVLAPolicy) -> int:
    return 256 + len(policy.processor.prompt_ids("open the drawer")) + 7 - 1


@pytest.mark.parametrize("lora", [LORA, replace(LORA, vision=True)], ids=["language", "vision"])
def test_activations_are_what_autograd_keeps(lora: LoraConfig) -> None:
    """Per sample, in float32: within 5 % of the measured bytes."""
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    policy = policy_of(lora)
    measured = (kept_bytes(policy, 3) - kept_bytes(policy, 1)) / 2
    expected = 4 * activation_elements(MODEL, columns(policy), False, lora.vision)
    assert expected == pytest.approx(measured, rel=0.05)


def test_checkpointed_layers_keep_their_input_alone() -> None:
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    policy = policy_of(LORA, checkpointing=True)
    measured = (kept_bytes(policy, 3) - kept_bytes(policy, 1)) / 2
    # the layer that is computed again is not there yet when the forward pass ends
    layer = columns(policy) * (8 * 128 + 4 * 344)
    expected = 4 * (activation_elements(MODEL, columns(policy), True, False) - layer)
    assert expected == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_parallel_decoding_keeps_what_is_counted(checkpointing: bool) -> None:
    """Its last layer has as many columns as there are action tokens, here 56."""
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    config = PolicyConfig(device="cpu", lora=LORA, activation_checkpointing=checkpointing)
    policy = tiny_policy(
        ["open the drawer"], MODEL, config, action_dim=7, action_chunk=8, kind=OpenVLAOFTPolicy
    )
    policy.critic.requires_grad_(False)
    assert isinstance(policy, OpenVLAOFTPolicy)
    measured = (kept_bytes(policy, 3) - kept_bytes(policy, 1)) / 2
    language = MODEL.language
    prompt = len(policy.processor.prompt_ids("open the drawer"))
    whole = 8 * language.hidden + 4 * language.mlp_width
    passing = columns_of(MODEL, 56) * (3 * language.mlp_width + 4 * language.hidden)
    # the estimate supposes a long prompt
    spare = (PROMPT_TOKENS - prompt) * (language.hidden if checkpointing else whole)
    spare *= language.layers if checkpointing else language.layers - 1
    if checkpointing:
        spare += (
            256 + PROMPT_TOKENS + 57
        ) * whole  # the layer that is computed again is not there yet
    expected = oft_budget(policy, 10).per_sample - 4 * (passing + spare)
    assert expected == pytest.approx(measured, rel=0.06)
    assert oft_budget(policy, 10).caches == 0


def test_weights_of_openvla_7b() -> None:
    """7,541,237,184 weights; adapters of rank 32 on its 224 language layers: 79,953,920."""
    assert count_weights(OPENVLA_7B) == (7_541_237_184, 7_541_237_184)
    assert count_weights(OPENVLA_7B, LoraConfig(rank=32)) == (7_541_237_184, 79_953_920)
    total = inference_budget(OPENVLA_7B)
    assert total.weights == 2 * 7_541_237_184


def test_adapters_counted_are_adapters_made() -> None:
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    for lora in (LORA, replace(LORA, vision=True)):
        policy = policy_of(lora)
        made = sum(p.numel() for p in policy.policy_parameters())
        assert count_weights(MODEL, lora)[1] == made


def test_the_cache_is_the_one_that_decoding_allocates() -> None:
    from vla_rl.policies.openvla.language import KeyValueCache

    columns_ = columns_of(MODEL, 7)
    cache = KeyValueCache(MODEL.language, 1, columns_, torch.device("cpu"), torch.float32)
    assert cache_bytes(MODEL, 7, 4) == cache.storage.nbytes
    assert columns_ == 256 + PROMPT_TOKENS + 6


def test_more_memory_more_samples_and_the_total_is_never_above_it() -> None:
    budget = training_budget(OPENVLA_7B, LoraConfig(), checkpointing=True, rollout_batch=10)
    assert budget.most_samples(10 * GB) == 0
    counts = [budget.most_samples(size * GB) for size in (24, 40, 80, 141)]
    assert counts == sorted(counts)
    for size, count in zip((24, 40, 80, 141), counts, strict=True):
        assert budget.total(count) <= size * GB < budget.total(count + 1)
    plain = training_budget(OPENVLA_7B, LoraConfig(), rollout_batch=10)
    assert budget.per_sample < 0.15 * plain.per_sample


def test_a_rank_holds_its_part_and_the_layers_that_compute() -> None:
    layers = ".layers.", ".blocks."
    with shapes_alone():
        network = OpenVLA(MODEL)
    root = sum(
        p.numel() for n, p in network.named_parameters() if not any(part in n for part in layers)
    )
    layer = sum(p.numel() for p in network.language_model.model.layers[0].parameters())
    block = sum(p.numel() for p in network.vision_backbone.fused_featurizer.blocks[0].parameters())
    assert units(MODEL) == (root, max(layer, block))
    whole = training_budget(MODEL, LORA, torch.float32, checkpointing=True)
    part = sharded_budget(MODEL, LORA, 4, torch.float32)
    assert (part.weights, part.trained) == (whole.weights / 4, whole.trained / 4)
    assert part.once - whole.once == 4 * (root + 2 * max(layer, block))
    trained, full = sharded_budget(MODEL, None, 4, torch.float32), training_budget(MODEL, None)
    assert (trained.weights, trained.trained) == (0, full.trained / 4)
    assert trained.once - part.once == 8 * (root + max(layer, block))
    more = window_bytes(MODEL, LORA, 4, torch.float32, 3) - part.weights - part.trained
    assert more == inference_budget(MODEL, torch.float32).total(3)


def with_free(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(memory_budget, "free_memory", lambda device: free)


def test_the_micro_batch_is_sized_from_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(None)
    budget = training_budget(MODEL, None, torch.float32, rollout_batch=4)
    present = 4 * count_weights(MODEL)[0]
    chosen = {}
    for samples in (1, 3, 40, 1000):
        with_free(monkeypatch, budget.total(samples) - present + 1)
        ppo = PPOConfig(minibatch=64, micro_batch=-1)
        chosen[samples] = with_micro_batch(ppo, policy, rollout_batch=4).micro_batch
    assert chosen == {1: 1, 3: 2, 40: 32, 1000: 0}  # powers of two; 0 is the whole minibatch
    with_free(monkeypatch, 0.5 * budget.total(1))
    with pytest.raises(UserError, match=r"set policy\.activation_checkpointing"):
        with_micro_batch(PPOConfig(micro_batch=-1), policy, 4)


def test_ranks_take_the_micro_batch_that_all_have_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With sharded weights a rank needs room for its part; the others may have less than this one."""
    policy = policy_of(None)
    policy.sharding = Mock(world=SingleProcess(0, 4), compute=torch.float32)
    budget = sharded_budget(MODEL, None, 4, torch.float32, checkpointing=False, rollout_batch=4)
    present = count_weights(MODEL)[0]  # a quarter of four bytes
    with_free(monkeypatch, budget.total(40) - present + 1)
    ppo = PPOConfig(minibatch=64, micro_batch=-1)
    assert with_micro_batch(ppo, policy, 4).micro_batch == 32
    crowded = Mock(spec=SingleProcess)
    crowded.gather = lambda own: [own, 8]
    assert with_micro_batch(ppo, policy, 4, crowded).micro_batch == 8


def test_a_micro_batch_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 0.0)
    for size in (0, 5):
        ppo = PPOConfig(micro_batch=size)
        assert with_micro_batch(ppo, policy_of(None), 4) is ppo
    with pytest.raises(UserError, match="micro_batch: expected a whole number of at least -1"):
        PPOConfig(micro_batch=-2)


def test_the_table_of_the_documents_is_the_programs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    assert memory_table() in page


def test_vision_adapters_keep_the_towers_activations() -> None:
    model: ModelConfig = OPENVLA_7B
    length = columns_of(model, 7)
    frozen = activation_elements(model, length, False, False)
    trained = activation_elements(model, length, False, True)
    assert 1.2 * frozen < trained < 2 * frozen
