"""Multiplications that an OpenVLA-class model cannot avoid, from its configuration; twice as many make its FLOPs.

Biases, norms, activations, softmax and rotations are left out, and so is whatever a program computes twice
(activation checkpointing) or in vain (masked scores): dividing these numbers by time and by the matrix-multiply peak
gives the share of the machine that does useful work.
"""

from __future__ import annotations

import itertools

from vla_rl.config import LanguageConfig, ModelConfig
from vla_rl.config.openvla import VisionTowerConfig


def tower_products(tower: VisionTowerConfig, image_size: int) -> int:
    """Multiplications of one image through one tower, up to the second-to-last block."""
    patches = (image_size // tower.patch_size) ** 2
    if tower.stem_channels:
        channels, side, total = (3, *tower.stem_channels, tower.width), image_size, 0
        for into, out in itertools.pairwise(channels):
            side //= 2
            total += side * side * into * out * 9
    else:
        total = patches * tower.patch_size**2 * 3 * tower.width
    tokens = patches + int(tower.class_token) + tower.register_tokens
    block = 4 * tower.width**2 + 2 * tower.width * tower.mlp_width + 2 * tokens * tower.width
    return total + (tower.depth - 1) * tokens * block


def embedding_products(config: ModelConfig) -> int:
    """Both towers and the projector, for one image."""
    d, patches = config.language.hidden, (config.image_size // config.dino.patch_size) ** 2
    vision = config.dino.width + config.siglip.width
    towers = sum(tower_products(tower, config.image_size) for tower in (config.dino, config.siglip))
    return towers + patches * (4 * vision * vision + 4 * vision * d + d * d)


def layer_products(language: LanguageConfig) -> int:
    """The linear layers of one language layer, for one column."""
    return 4 * language.hidden**2 + 3 * language.hidden * language.mlp_width


def act_products(config: ModelConfig, prompt: int, tokens: int) -> int:
    """`act` for one observation with a prompt of so many ids and K action tokens.

    One prefill over patches and prompt, then K - 1 single columns. The last layer makes keys and values for every
    column, and everything else only for the K columns whose answer is read.
    """
    language = config.language
    d, patches = language.hidden, (config.image_size // config.dino.patch_size) ** 2
    prefill, steps = patches + prompt, tokens - 1
    whole = layer_products(language)
    seen = prefill * (prefill + 1) // 2 + steps * prefill + steps * (steps + 1) // 2
    seen_last = tokens * prefill + steps * (steps + 1) // 2
    total = embedding_products(config)
    total += (language.layers - 1) * ((prefill + steps) * whole + 2 * seen * d)
    total += (prefill + steps) * 2 * d * d + tokens * (whole - 2 * d * d) + 2 * seen_last * d
    return total + tokens * config.action_bins * d


def learner_products(config: ModelConfig, prompt: int, tokens: int, rank: int) -> int:
    """Forward and backward pass of one sample with adapters of so many ranks on a frozen base.

    The teacher-forced pass has the columns of `act`. Backward, the vision towers and the projector need nothing,
    frozen linear layers only the gradient of their input (as much as forward; the first layer's q, k and v not even
    that), attention twice its forward products, adapters twice theirs.
    """
    language = config.language
    d, m = language.hidden, language.mlp_width
    columns = (config.image_size // config.dino.patch_size) ** 2 + prompt + tokens - 1
    frozen = act_products(config, prompt, tokens) - embedding_products(config)
    seen = columns * (columns + 1) // 2
    seen_last = sum(range(columns - tokens + 1, columns + 1))
    attention = 2 * d * ((language.layers - 1) * seen + seen_last)
    adapter = rank * (4 * 2 * d + 3 * (d + m))  # per column of a whole layer
    key_value = rank * 2 * 2 * d
    adapters = (language.layers - 1) * columns * adapter
    adapters += columns * key_value + tokens * (adapter - key_value)
    backward = frozen + attention - columns * 3 * d * d + 2 * adapters
    return embedding_products(config) + frozen + adapters + backward
