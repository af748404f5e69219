"""The smallest checkpoints of every kind, made by the code that writes them: for tests that load them many times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from builders.policies import INSTRUCTIONS
from vla_rl.config import (
    OPENVLA_7B,
    LanguageConfig,
    LoraConfig,
    ModelConfig,
    PolicyConfig,
)
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.policies.openvla.exporting import export_adapter, save_policy
from vla_rl.policies.registry import load_policy

CPU = PolicyConfig(device="cpu")
LORA = LoraConfig(rank=2, alpha=4)
IMAGE_SIZE = 16


def small_model(layers: int = 1) -> ModelConfig:
    """An OpenVLA with official towers and vocabulary, a few numbers wide: what official files can describe."""
    tower = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 8, "patch_size": 8}
    return replace(
        OPENVLA_7B,
        name="small",
        image_size=IMAGE_SIZE,
        dino=replace(OPENVLA_7B.dino, **tower),
        siglip=replace(OPENVLA_7B.siglip, **tower),
        language=LanguageConfig(
            hidden=8, layers=layers, heads=2, mlp_width=8, text_vocab=29920, padded_vocab=29952,
            max_positions=256, pad_token=29930,
        ),
        action_bins=8,
    )  # fmt: skip


def save_own(folder: Path, shards: bool = False, layers: int = 1) -> OpenVLAPolicy:
    """A checkpoint of ours, whole, with a critic; in shards if asked for."""
    policy = OpenVLAPolicy.create(
        small_model(layers), INSTRUCTIONS, identity_statistics("kitchen", 4), 4, 1, CPU
    )
    save_policy(policy, folder, 1_000_000 if shards else 10**9)
    return policy


def save_official(folder: Path, shards: bool = False, layers: int = 1) -> None:
    """The same in OpenVLA's format: no section of ours, sizes of the towers in vision.json, two datasets."""
    save_own(folder, shards, layers)
    (folder / "critic.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["vla_rl"]
    write(folder / "config.json", config)
    names = {
        "embed_dim": "width", "depth": "depth", "num_heads": "heads", "mlp_hidden": "mlp_width",
        "patch_size": "patch_size", "class_token": "class_token", "reg_tokens": "register_tokens",
        "layer_scale": "layer_scale",
    }  # fmt: skip
    model = small_model()
    towers = {"featurizer": model.dino, "fused_featurizer": model.siglip}
    sizes = {
        key: {name: getattr(tower, field) for name, field in names.items()}
        for key, tower in towers.items()
    }
    write(folder / "vision.json", sizes)


def save_adapted(base: Path, folder: Path) -> OpenVLAPolicy:
    """Adapters that say something, on the checkpoint `base`, as a run saves them."""
    policy = load_policy(base, replace(CPU, lora=LORA))
    assert isinstance(policy, OpenVLAPolicy)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1, generator=generator)
    policy.save(folder)
    return policy


def save_exported(base: Path, folder: Path) -> OpenVLAPolicy:
    """The same adapters alone, as `vla-rl export --adapter` writes them."""
    policy = save_adapted(base, folder.parent / f"{folder.name}-run")
    export_adapter(policy, folder)
    return policy


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def edit(path: Path, *keys: str | int, value: object) -> None:
    """Set the value at a path of keys in a JSON file."""
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    write(path, content)
