"""Checkpoints in OpenVLA's format: read in any precision, written back to the byte, refused with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders.policies import GOLDEN, INSTRUCTIONS, make_observation
from vla_rl.config import ConfigError, LoraConfig, PolicyConfig, UserError
from vla_rl.policies import OpenVLAPolicy, build_tiny_tokenizer
from vla_rl.policies.openvla.checkpoint import load_model
from vla_rl.policies.openvla.config_files import read_checkpoint_config
from vla_rl.policies.openvla.exporting import save_policy
from vla_rl.policies.openvla.loading import choose_dtype
from vla_rl.policies.safetensors_files import INDEX_FILE, MODEL_FILE, TensorEntry, model_entries

KEY = "libero_spatial"
OBSERVATION = make_observation(3, size=224)


def settings(**changes: object) -> PolicyConfig:
    return PolicyConfig(device="cpu", **{"unnorm_key": KEY, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as OpenVLA's code writes it, with a tokenizer for its vocabulary and a field from a later version."""
    folder = tmp_path_factory.mktemp("checkpoints") / "official"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.npz", "actions*", "*.md"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_prismatic.OpenVLAConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"pad_token_id": 32000}\n')
    model = read_checkpoint_config(folder).model
    build_tiny_tokenizer(INSTRUCTIONS, model).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def copied(official: Path, tmp_path: Path) -> Callable[[], Path]:
    return lambda: Path(shutil.copytree(official, tmp_path / "copy"))


def same_bytes(one: Path, two: Path) -> None:
    """All tensors have the same names, types, shapes and bits."""
    ours, theirs = load_file(one), load_file(two)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_trip_gives_the_same_bytes(official: Path, tmp_path: Path, dtype: str) -> None:
    policy = OpenVLAPolicy.from_checkpoint(official, settings(dtype=dtype))
    assert policy.model.dtype == getattr(torch, dtype)
    policy.save(tmp_path / "saved")
    same_bytes(tmp_path / "saved" / MODEL_FILE, official / MODEL_FILE)
    before = json.loads((official / "config.json").read_text())
    after = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {key: after[key] for key in before} == before
    for name in ("dataset_statistics.json", "preprocessor_config.json", "generation_config.json"):
        kept = json.loads((tmp_path / "saved" / name).read_text())
        assert kept == json.loads((official / name).read_text()), name


def test_trained_weights_are_saved_in_float32_and_the_others_as_they_were(
    official: Path, tmp_path: Path
) -> None:
    policy = OpenVLAPolicy.from_checkpoint(official, settings())
    with torch.no_grad():
        policy.model.projector.fc3.bias.add_(1e-6)
    policy.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / MODEL_FILE)
    assert saved["projector.fc3.bias"].dtype == torch.float32
    assert torch.equal(saved["projector.fc3.bias"], policy.model.projector.fc3.bias)
    assert {t.dtype for n, t in saved.items() if n != "projector.fc3.bias"} == {torch.bfloat16}


def test_shards_keep_to_their_limit_and_come_back(official: Path, tmp_path: Path) -> None:
    limit = 5_000_000
    policy = OpenVLAPolicy.from_checkpoint(official, settings())
    save_policy(policy, tmp_path, limit)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert [f.name for f in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert not (tmp_path / MODEL_FILE).exists()
    held = {file.name: load_file(file) for file in files}
    assert {n: f for f, tensors in held.items() for n in tensors} == index["weight_map"]
    sizes = {f: sum(t.nbytes for t in tensors.values()) for f, tensors in held.items()}
    assert max(sizes.values()) <= limit
    assert index["metadata"]["total_size"] == sum(sizes.values())
    again = OpenVLAPolicy.from_checkpoint(tmp_path, settings())
    for one, two in zip(policy.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_an_index_that_names_a_tensor_no_shard_holds(official: Path, tmp_path: Path) -> None:
    save_policy(OpenVLAPolicy.from_checkpoint(official, settings()), tmp_path, 5_000_000)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    index["weight_map"]["projector.fc4.weight"] = "model-00001-of-00003.safetensors"
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"projector\.fc4\.weight is in model-00001"):
        OpenVLAPolicy.from_checkpoint(tmp_path, settings())
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"00003-of-00003.safetensors is missing \(1 of 3"):
        OpenVLAPolicy.from_checkpoint(tmp_path, settings())


def test_nothing_is_read_from_a_checkpoint_that_does_not_fit(
    copied: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong shape is found from headers alone, before gigabytes have been read."""
    folder = copied()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 184
    (folder / "config.json").write_text(json.dumps(config))

    def never(entries: dict[str, TensorEntry]) -> None:
        raise AssertionError("tensors were read")

    monkeypatch.setattr("vla_rl.policies.openvla.checkpoint.stream_tensors", never)
    with pytest.raises(UserError, match=r"gate_proj.weight \(176, 64\) instead of \(184, 64\)"):
        OpenVLAPolicy.from_checkpoint(folder, settings())


@pytest.mark.parametrize("cut", [4, 100, 20_000, 9_000_000])
def test_a_truncated_file_is_named_wherever_it_was_cut(
    copied: Callable[[], Path], cut: int
) -> None:
    file = copied() / MODEL_FILE
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        model_entries(file.parent)


def test_pickled_weights_are_refused(copied: Callable[[], Path]) -> None:
    folder = copied()
    (folder / MODEL_FILE).unlink()
    with pytest.raises(UserError, match="No model weights"):
        OpenVLAPolicy.from_checkpoint(folder, settings())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin: pickle files can run any code"):
        OpenVLAPolicy.from_checkpoint(folder, settings())


def test_statistics_of_fine_tuning_take_the_place_of_the_configs(
    copied: Callable[[], Path], tmp_path: Path
) -> None:
    """As in OpenVLA's evaluation: dataset_statistics.json, where there is one, is all that counts."""
    folder = copied()
    stats = json.loads((folder / "dataset_statistics.json").read_text())
    (folder / "dataset_statistics.json").write_text(json.dumps({"own": stats["bridge_orig"]}))
    policy = OpenVLAPolicy.from_checkpoint(folder, settings(unnorm_key=""))
    assert policy.unnorm_key == "own"
    with pytest.raises(UserError, match="No action statistics for dataset 'libero_spatial'"):
        OpenVLAPolicy.from_checkpoint(folder, settings())
    policy.save(tmp_path / "saved")
    named = json.loads((tmp_path / "saved" / "config.json").read_text())["norm_stats"]
    assert set(named) == {"own", "bridge_orig", "libero_spatial_no_noops"}
    assert read_checkpoint_config(tmp_path / "saved").norm_stats.keys() == {"own"}


def test_the_key_is_the_suites_name_with_or_without_no_noops(official: Path) -> None:
    for key in ("libero_spatial", "libero-spatial", "libero_spatial_no_noops"):
        policy = OpenVLAPolicy.from_checkpoint(official, settings(unnorm_key=key))
        assert policy.unnorm_key == "libero_spatial_no_noops"
    with pytest.raises(UserError, match="Did you mean 'libero_spatial_no_noops'"):
        OpenVLAPolicy.from_checkpoint(official, settings(unnorm_key="libero_spatail_no_noops"))


def test_bfloat16_weights_are_for_adapters(official: Path) -> None:
    policy = OpenVLAPolicy.from_checkpoint(official, settings(dtype="bfloat16"))
    with pytest.raises(UserError, match="bfloat16 and cannot be trained"):
        policy.policy_parameters()
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    adapted = OpenVLAPolicy.from_checkpoint(
        official, settings(dtype="bfloat16", lora=LoraConfig(4))
    )
    assert {p.dtype for p in adapted.policy_parameters()} == {torch.float32}
    assert {p.dtype for p in adapted.critic_parameters()} == {torch.float32}
    frozen = [p for p in adapted.model.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}


def test_auto_takes_bfloat16_for_large_models_on_a_gpu_alone() -> None:
    large = [TensorEntry(Path("x"), torch.bfloat16, (1_000_000, 1_000), 0)]
    small = [TensorEntry(Path("x"), torch.bfloat16, (1_000_000, 999), 0)]
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose_dtype("auto", large, cuda) == torch.bfloat16
    assert choose_dtype("auto", small, cuda) == torch.float32
    assert choose_dtype("auto", large, cpu) == torch.float32
    assert choose_dtype("bfloat16", small, cpu) == torch.bfloat16
    assert choose_dtype("float32", large, cuda) == torch.float32


@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_log_probs_and_values_are_float32_on_a_bfloat16_model(official: Path, kind: str) -> None:
    """Sampler and learner agree in bfloat16 as well, to its rounding (measured: see docs/parity.md)."""
    config = settings(dtype="bfloat16")
    config = PolicyConfig(**{**vars(config), "critic": type(config.critic)(kind=kind)})  # type: ignore[arg-type]
    policy = OpenVLAPolicy.from_checkpoint(official, config)
    torch.manual_seed(0)
    out = policy.act(OBSERVATION, 1.0)
    again = policy.evaluate(OBSERVATION, out.tokens, 1.0)
    for one, two in ((out.log_probs, again.log_probs), (out.values, again.values)):
        assert one.dtype == two.dtype == torch.float32
    assert again.entropy.dtype == torch.float32
    assert (out.log_probs - again.log_probs).abs().max() < 0.25
    assert (out.log_probs - again.log_probs).abs().mean() < 0.03


def test_a_whole_model_needs_no_base(official: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.base is 'x/y', but"):
        OpenVLAPolicy.from_checkpoint(official, settings(base="x/y", checkpoint=str(official)))


def test_a_model_is_never_held_twice(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are read one at a time: when one is asked for, the one before it is in its place already."""
    from vla_rl.policies.openvla import checkpoint as files

    model = read_checkpoint_config(official).model
    held: list[int] = []
    assigned: list[str] = []
    stream, assign = files.stream_tensors, files._assign

    def counting(entries: dict[str, TensorEntry]):
        for name, tensor in stream(entries):
            held.append(len(assigned))
            yield name, tensor

    monkeypatch.setattr(files, "stream_tensors", counting)
    monkeypatch.setattr(files, "_assign", lambda m, n, t: (assigned.append(n), assign(m, n, t)))
    load_model(official, model)
    assert held == list(range(len(held)))
    assert len(held) == 151
