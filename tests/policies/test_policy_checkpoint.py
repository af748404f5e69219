"""Saving and loading, and what happens when a checkpoint is damaged or belongs to something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.policies import GOLDEN, INSTRUCTIONS, make_observation, make_policy
from vla_rl.config import CriticConfig, PolicyConfig, UserError, tiny_model
from vla_rl.policies import OpenVLAPolicy, build_tiny_tokenizer
from vla_rl.policies.openvla.checkpoint import load_model
from vla_rl.policies.openvla.config_files import read_checkpoint_config

CPU = PolicyConfig(device="cpu")
OBSERVATION = make_observation(6)
Copy = Callable[[str], Path]


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_policy_comes_back_to_the_bit(tmp_path: Path) -> None:
    for kind in ("separate", "shared"):
        policy = make_policy(kind, seed=5)
        with torch.no_grad():
            for parameter in policy.critic_parameters():
                parameter.add_(0.1)
        policy.save(tmp_path / kind)
        back = OpenVLAPolicy.from_checkpoint(tmp_path / kind, policy.config)
        assert back.critic_restored
        assert (back.action_dim, back.action_chunk) == (4, 2)
        draws = np.random.default_rng(0).random((6, 8), dtype=np.float32)
        one, two = policy.act(OBSERVATION, 1.0, draws), back.act(OBSERVATION, 1.0, draws)
        assert torch.equal(one.tokens, two.tokens)
        assert torch.equal(one.log_probs, two.log_probs)
        assert torch.equal(one.values, two.values)
        assert np.array_equal(policy.decode_actions(one.tokens), back.decode_actions(two.tokens))


def test_saving_twice_gives_the_same_files(saved: Path, tmp_path: Path) -> None:
    OpenVLAPolicy.from_checkpoint(saved, CPU).save(tmp_path / "again")
    for file in saved.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_layout_is_the_official_one(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "openvla"
    assert config["text_config"]["hidden_size"] == 128
    assert config["text_config"]["vocab_size"] - config["pad_to_multiple_of"] == 512
    assert set(config["norm_stats"]) == {"mt5"}
    names = load_file(saved / "model.safetensors")
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert "vision_backbone.fused_featurizer.blocks.1.attn.qkv.weight" in names
    for name in ("dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"):
        assert (saved / name).is_file()


def test_an_official_checkpoint_loads_and_saves_back(tmp_path: Path) -> None:
    """The official format without a section of ours; a tokenizer for its vocabulary is put beside it."""
    folder = tmp_path / "official"
    folder.mkdir()
    for name in ("config.json", "vision.json", "model.safetensors"):
        (folder / name).write_bytes((GOLDEN / name).read_bytes())
    model = read_checkpoint_config(folder).model
    build_tiny_tokenizer(INSTRUCTIONS, model).save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="bridge_orig"):
        OpenVLAPolicy.from_checkpoint(folder, CPU)
    policy = OpenVLAPolicy.from_checkpoint(folder, CPU, unnorm_key="libero_spatial")
    assert (policy.action_dim, policy.action_chunk) == (7, 1)
    assert policy.unnorm_key == "libero_spatial_no_noops"
    assert not policy.critic_restored
    assert policy.processor.prompt_ids("open the drawer")[-1] == 29871
    policy.save(tmp_path / "ours")
    again = OpenVLAPolicy.from_checkpoint(tmp_path / "ours", CPU)
    observation = make_observation(1, size=224)
    one, two = policy.act(observation, 0.0), again.act(observation, 0.0)
    assert torch.equal(one.tokens, two.tokens)
    assert one.tokens.shape == (1, 7)


def test_sharded_weights_load(saved: Path, copied: Copy) -> None:
    folder = copied("sharded")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "model.safetensors").unlink()
    model = load_model(folder, tiny_model())
    want = load_model(saved, tiny_model()).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-2.safetensors is missing"):
        load_model(folder, tiny_model())


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "critic.safetensors"],
)
def test_missing_files_are_named(copied: Copy, name: str) -> None:
    folder = copied("missing")
    (folder / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        OpenVLAPolicy.from_checkpoint(folder, CPU)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "critic.safetensors"]
)
def test_truncated_files_are_named(copied: Copy, name: str) -> None:
    folder = copied("truncated")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        OpenVLAPolicy.from_checkpoint(folder, CPU)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No checkpoint folder"):
        OpenVLAPolicy.from_checkpoint(tmp_path / "nowhere", CPU)
    with pytest.raises(UserError, match="not a policy checkpoint"):
        OpenVLAPolicy.from_checkpoint(tmp_path, CPU)


def test_weights_of_another_configuration(copied: Copy) -> None:
    folder = copied("other")
    tensors = load_file(folder / "model.safetensors")
    name = "projector.fc1.weight"
    odd = {**tensors, name: tensors[name][:-1].clone()}
    save_file(odd, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"wrong shape: projector\.fc1\.weight \(511, 128\)"):
        OpenVLAPolicy.from_checkpoint(folder, CPU)
    odd = {k: v for k, v in tensors.items() if k != name}
    save_file({**odd, "extra.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: projector\.fc1\.weight; unknown: extra\.weight"):
        OpenVLAPolicy.from_checkpoint(folder, CPU)


def test_unknown_fields_and_formats(copied: Copy) -> None:
    folder = copied("fields")
    path = folder / "config.json"
    section = json.loads(path.read_text())["vla_rl"]
    edit_json(path, vla_rl={**section, "acton_dim": 3})
    with pytest.raises(UserError, match="Did you mean 'action_dim'"):
        OpenVLAPolicy.from_checkpoint(folder, CPU)
    edit_json(path, vla_rl={**section, "format": 99})
    with pytest.raises(UserError, match="format 99"):
        OpenVLAPolicy.from_checkpoint(folder, CPU)
    edit_json(path, vla_rl={**section, "model": {**section["model"], "action_bins": 1}})
    with pytest.raises(UserError, match="action_bins"):
        OpenVLAPolicy.from_checkpoint(folder, CPU)


def test_models_we_cannot_run_are_refused(tmp_path: Path) -> None:
    official = json.loads((GOLDEN / "config.json").read_text())

    def write(**changes: object) -> Path:
        (tmp_path / "config.json").write_text(json.dumps({**official, **changes}))
        return tmp_path

    with pytest.raises(UserError, match='"llava"'):
        read_checkpoint_config(write(model_type="llava"))
    with pytest.raises(UserError, match="vision towers"):
        read_checkpoint_config(write(timm_model_ids=["resnet50"]))
    text = {**official["text_config"], "num_key_value_heads": 2}
    with pytest.raises(UserError, match="grouped-query"):
        read_checkpoint_config(write(text_config=text))


def test_another_critic_starts_afresh_and_says_so(saved: Path) -> None:
    policy = OpenVLAPolicy.from_checkpoint(
        saved, PolicyConfig(device="cpu", critic=CriticConfig(kind="shared"))
    )
    assert not policy.critic_restored
    assert policy.critic.fc2.weight.abs().sum() == 0


def test_the_reference_can_come_from_a_checkpoint(saved: Path) -> None:
    """Resuming a run: weights have moved on, the reference is still the initial checkpoint's."""
    policy = OpenVLAPolicy.from_checkpoint(saved, CPU)
    tokens = policy.act(OBSERVATION).tokens
    before = policy.evaluate(OBSERVATION, tokens).log_probs.detach()
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.mul_(1.5)
    policy.keep_reference(saved)
    reference = policy.reference_log_probs(OBSERVATION, tokens)
    torch.testing.assert_close(reference, before, atol=1e-5, rtol=0)


def test_an_unknown_device_is_a_user_error(saved: Path) -> None:
    with pytest.raises(UserError, match="device 'tpu9'"):
        OpenVLAPolicy.from_checkpoint(saved, PolicyConfig(device="tpu9"))
