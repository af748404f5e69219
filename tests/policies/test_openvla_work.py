"""The FLOP formulas against literal numbers, and against what torch counts while the model runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vla_rl.config import OPENVLA_7B, LoraConfig, ModelConfig, tiny_model
from vla_rl.policies import OpenVLA
from vla_rl.policies.openvla import lora
from vla_rl.policies.openvla.decoding import choose_tokens
from vla_rl.policies.openvla.work import (
    act_products,
    embedding_products,
    layer_products,
    learner_products,
)
from vla_rl.policies.prompts import Prompts

META = torch.device("meta")
PATCHED = replace(
    tiny_model(),
    language=replace(tiny_model().language, layers=3),
    dino=replace(tiny_model().dino, stem_channels=(), class_token=True, register_tokens=4),
)

# as wide as OpenVLA-7B, with few of its layers: how many there are is only a factor
WIDE = replace(
    OPENVLA_7B,
    dino=replace(OPENVLA_7B.dino, depth=3),
    siglip=replace(OPENVLA_7B.siglip, depth=3),
    language=replace(OPENVLA_7B.language, layers=3),
)


def on_meta(config: ModelConfig) -> OpenVLA:
    with META:
        return OpenVLA(config)


def inputs(config: ModelConfig, prompt: int, tokens: int) -> tuple[torch.Tensor, Prompts]:
    pixels = torch.empty(1, 6, config.image_size, config.image_size, device=META)
    ids = torch.zeros(1, prompt, dtype=torch.int64, device=META)
    return pixels, Prompts(ids, np.array([prompt]))


def test_an_action_of_the_7b_model_takes_about_four_tflop() -> None:
    flops = 2 * act_products(OPENVLA_7B, prompt=35, tokens=7)
    assert flops == pytest.approx(4.1e12, rel=0.02)
    # 32 layers of 202 million weights, 297 columns, two FLOPs a weight: nearly all of it
    assert layer_products(OPENVLA_7B.language) == 202_375_168
    assert 2 * embedding_products(OPENVLA_7B) == pytest.approx(0.41e12, rel=0.05)
    # decoding is a small part: one prefill and one token need 2 % less
    assert 2 * act_products(OPENVLA_7B, 35, 1) / flops == pytest.approx(0.98, abs=0.005)


@pytest.mark.parametrize("config", [tiny_model(), PATCHED, WIDE], ids=["tiny", "vit", "wide"])
def test_act_needs_what_torch_counts(config: ModelConfig) -> None:
    """torch counts masked scores too: the shares of attention that nobody may see are 1 to 6 %."""
    model, (pixels, prompts) = on_meta(config), inputs(config, 20, 7)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        hidden, state = model.prefill(pixels, prompts, 7)
        choose_tokens(model, hidden, state, None, 0.0, 7)
    counted = counter.get_total_flops()
    ours = 2 * act_products(config, 20, 7)
    assert ours <= counted < 1.06 * ours


@pytest.mark.parametrize("config", [tiny_model(), WIDE], ids=["tiny", "wide"])
def test_learning_needs_what_torch_counts(config: ModelConfig) -> None:
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    model, (pixels, prompts) = on_meta(config), inputs(config, 20, 7)
    rank = 8
    lora.add_adapters(model, LoraConfig(rank=rank))
    model.to(META)
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(pixels, prompts, torch.zeros(1, 7, dtype=torch.int64, device=META))
        logits.sum().backward()
    counted = counter.get_total_flops()
    ours = 2 * learner_products(config, 20, 7, rank)
    assert ours <= counted < 1.12 * ours


def test_products_grow_as_they_should() -> None:
    config = tiny_model()
    one, two = act_products(config, 10, 7), act_products(config, 11, 7)
    language = config.language
    # a column more in the prompt: its layers, its keys and values in the last one, and its scores
    columns = 16 + 10 + 6
    scores = 2 * 128 * ((language.layers - 1) * (columns + 1) + 7)
    assert two - one == (language.layers - 1) * layer_products(language) + 2 * 128**2 + scores
    assert learner_products(config, 10, 7, 8) - one > one - embedding_products(config)
    doubled = learner_products(config, 10, 7, 16) - learner_products(config, 10, 7, 8)
    assert doubled == learner_products(config, 10, 7, 24) - learner_products(config, 10, 7, 16)
