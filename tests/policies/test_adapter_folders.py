"""Adapters in PEFT's format: peft reads ours, we read what OpenVLA's fine-tuning writes, merging is peft's merging."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.policies import make_observation, make_policy, sharpen
from vla_rl.config import LoraConfig, PolicyConfig, UserError, tiny_model
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.openvla.checkpoint import load_model
from vla_rl.policies.openvla.exporting import export_adapter, export_merged
from vla_rl.policies.openvla.model import OpenVLA

peft = pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")

LORA = LoraConfig(rank=4, alpha=8)
OBSERVATION = make_observation(4)
TOKENS = torch.randint(0, 32, (4, 8), generator=torch.Generator().manual_seed(1))
# what target_modules="all-linear" comes to in OpenVLA's fine-tuning script: head, projector and, as its name ends
# in proj too, the patch embedding
OFFICIAL_TARGETS = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    *("qkv", "proj", "fc1", "fc2", "fc3"),
]


def settings(lora: LoraConfig | None = None, **changes: object) -> PolicyConfig:
    return PolicyConfig(device="cpu", lora=lora, **changes)  # type: ignore[arg-type]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    sharpen(make_policy(seed=1)).save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def trained(base: Path) -> OpenVLAPolicy:
    """A policy whose adapters say something."""
    policy = OpenVLAPolicy.from_checkpoint(base, settings(LORA))
    shake(policy.model)
    return policy


def shake(model: torch.nn.Module, std: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, std, generator=generator)


def log_probs(policy: OpenVLAPolicy) -> torch.Tensor:
    with torch.no_grad():
        return policy.evaluate(OBSERVATION, TOKENS).log_probs


def official_adapter(base: Path, folder: Path, targets: list[str]) -> dict[str, torch.Tensor]:
    """Adapters as peft saves them for these layers; returns the merged weights by peft's own merging."""
    model = load_model(base, tiny_model_of(base))
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=targets, init_lora_weights="gaussian", lora_dropout=0.0
    )
    wrapped = peft.get_peft_model(model, config)
    shake(wrapped, 0.3)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().state_dict()


def tiny_model_of(base: Path):
    from vla_rl.policies.openvla.config_files import read_checkpoint_config

    return read_checkpoint_config(base).model


def test_peft_loads_what_a_run_saves_and_what_is_exported(
    trained: OpenVLAPolicy, base: Path, tmp_path: Path
) -> None:
    trained.save(tmp_path / "run")
    export_adapter(trained, tmp_path / "exported")
    for folder in (tmp_path / "run", tmp_path / "exported"):
        plain = load_model(base, tiny_model())
        loaded = peft.PeftModel.from_pretrained(plain, folder)
        inner = loaded.base_model.model
        assert isinstance(inner, OpenVLA)
        names = {n.replace(".default", "") for n, _ in inner.named_parameters() if ".lora_" in n}
        assert len(names) == 2 * 2 * 7
        policy = OpenVLAPolicy.from_checkpoint(base, settings())
        before = log_probs(policy)
        policy.model = inner
        torch.testing.assert_close(log_probs(policy), log_probs(trained), atol=1e-5, rtol=0)
        assert (log_probs(trained) - before).abs().max() > 0.1
    assert not (tmp_path / "exported" / "model.safetensors").exists()


def test_merged_weights_play_as_the_adapters_do(trained: OpenVLAPolicy, tmp_path: Path) -> None:
    export_merged(trained, tmp_path / "merged")
    merged = OpenVLAPolicy.from_checkpoint(tmp_path / "merged", settings())
    assert merged.description.lora is None
    torch.testing.assert_close(log_probs(merged), log_probs(trained), atol=1e-5, rtol=0)
    assert not list((tmp_path / "merged").glob("adapter*"))
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    want = trained.model.get_submodule("language_model.model.layers.1.self_attn.q_proj")
    theirs = want.base_layer.weight + want.get_delta_weight("default")
    name = "language_model.model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(ours[name], theirs, atol=1e-6, rtol=0)


def test_merging_rounds_once_and_to_what_is_asked(trained: OpenVLAPolicy, tmp_path: Path) -> None:
    export_merged(trained, tmp_path / "float32")
    export_merged(trained, tmp_path / "bfloat16", torch.bfloat16)
    fine = load_file(tmp_path / "float32" / "model.safetensors")
    coarse = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert {t.dtype for t in coarse.values()} == {torch.bfloat16}
    assert all(torch.equal(coarse[name], tensor.bfloat16()) for name, tensor in fine.items())
    config = json.loads((tmp_path / "bfloat16" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.filterwarnings("ignore:.*embedding layer")
@pytest.mark.parametrize("targets", [OFFICIAL_TARGETS, ["q_proj", "v_proj"]], ids=["all", "some"])
def test_official_adapters_are_merged_as_peft_merges_them(
    base: Path, tmp_path: Path, targets: list[str]
) -> None:
    want = official_adapter(base, tmp_path / "adapter", targets)
    policy = OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())
    got = policy.model.state_dict()
    assert set(got) == set(want)
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    plain = OpenVLAPolicy.from_checkpoint(base, settings())
    moved = [n for n, t in plain.model.state_dict().items() if not torch.equal(t, got[n])]
    assert all(n.endswith(tuple(f"{t}.weight" for t in targets)) for n in moved)
    # the projector (3) and head of "all", in two language layers and both towers' blocks
    assert len(moved) == (3 + 1 + 2 * 7 + 2 * 2 * 4 if len(targets) > 2 else 4)


@pytest.mark.filterwarnings("ignore:.*embedding layer")
def test_embeddings_that_peft_stores_whole_are_taken(base: Path, tmp_path: Path) -> None:
    """With an adapter on the output head, peft stores head and embedding of a transformers model along with it."""
    want = official_adapter(base, tmp_path / "adapter", OFFICIAL_TARGETS)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    plain = load_file(base / "model.safetensors")
    head, words = "language_model.lm_head", "language_model.model.embed_tokens"
    stored = {
        f"base_model.model.{head}.base_layer.weight": plain[f"{head}.weight"] + 1,
        f"base_model.model.{words}.weight": plain[f"{words}.weight"] + 2,
    }
    save_file({**load_file(file), **stored}, file)
    policy = OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())
    got = policy.model.state_dict()
    for name, shift in ((head, 1), (words, 2)):
        torch.testing.assert_close(
            got[f"{name}.weight"], want[f"{name}.weight"] + shift, atol=1e-5, rtol=0
        )


@pytest.mark.filterwarnings("ignore:.*embedding layer")
def test_new_adapters_on_merged_ones_refer_to_the_fine_tuned_policy(
    base: Path, tmp_path: Path
) -> None:
    """What KL compares with is the model that practice began with, not the one before fine-tuning."""
    official_adapter(base, tmp_path / "adapter", OFFICIAL_TARGETS)
    start = OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())
    policy = OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings(LORA))
    torch.testing.assert_close(log_probs(policy), log_probs(start), atol=1e-5, rtol=0)
    policy.keep_reference()
    shake(policy.model)
    assert (log_probs(policy) - log_probs(start)).abs().max() > 0.1
    reference = policy.reference_log_probs(OBSERVATION, TOKENS)
    torch.testing.assert_close(reference, log_probs(start), atol=1e-5, rtol=0)
    policy.save(tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    back = OpenVLAPolicy.from_checkpoint(tmp_path / "run", settings(LORA))
    assert torch.equal(log_probs(back), log_probs(policy))
    back.keep_reference(tmp_path / "adapter")  # as a resumed run does
    reference = back.reference_log_probs(OBSERVATION, TOKENS)
    torch.testing.assert_close(reference, log_probs(start), atol=1e-5, rtol=0)


def test_a_base_that_has_moved_is_given(base: Path, tmp_path: Path, trained: OpenVLAPolicy) -> None:
    trained.save(tmp_path / "run")
    export_adapter(trained, tmp_path / "exported")
    official_adapter(base, tmp_path / "adapter", ["q_proj"])
    on_top = OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings(LORA))
    on_top.save(tmp_path / "second")
    want = dict.fromkeys(("run", "exported", "adapter", "second"))
    for name in want:
        want[name] = log_probs(OpenVLAPolicy.from_checkpoint(tmp_path / name, settings()))
    base.rename(tmp_path / "elsewhere")
    for name in want:
        with pytest.raises(UserError, match=r"policy\.base"):
            OpenVLAPolicy.from_checkpoint(tmp_path / name, settings())
        moved = settings(base=str(tmp_path / "elsewhere"))
        got = OpenVLAPolicy.from_checkpoint(tmp_path / name, moved)
        torch.testing.assert_close(log_probs(got), want[name], atol=1e-5, rtol=0)


def test_an_exported_adapter_gives_the_policy_back(trained: OpenVLAPolicy, tmp_path: Path) -> None:
    export_adapter(trained, tmp_path / "exported")
    back = OpenVLAPolicy.from_checkpoint(tmp_path / "exported", settings())
    torch.testing.assert_close(log_probs(back), log_probs(trained), atol=1e-5, rtol=0)
    assert back.unnorm_key == trained.unnorm_key
    assert (back.action_dim, back.action_chunk) == (4, 2)


def test_checkpoints_of_the_first_version_still_load(
    trained: OpenVLAPolicy, tmp_path: Path
) -> None:
    """It wrote adapters without peft's prefix and without its configuration."""
    trained.save(tmp_path / "run")
    file = tmp_path / "run" / "adapter_model.safetensors"
    tensors = {n.removeprefix("base_model.model."): t for n, t in load_file(file).items()}
    save_file(tensors, file)
    (tmp_path / "run" / "adapter_config.json").unlink()
    back = OpenVLAPolicy.from_checkpoint(tmp_path / "run", settings())
    assert torch.equal(log_probs(back), log_probs(trained))


def edited(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora, which is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, 'type "IA3", expected'),
        ({"r": 8}, "expected rank 8"),
        ({"r": None}, "r: expected a whole number, got null"),
        ({"base_model_name_or_path": None}, "does not say of which model"),
        ({"base_model_name_or_path": "a/b/c"}, '"a/b/c", which is no folder here'),
    ],
)
def test_adapters_that_cannot_be_merged(
    base: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    official_adapter(base, tmp_path / "adapter", ["q_proj"])
    edited(tmp_path / "adapter", **changes)
    with pytest.raises(UserError, match=message):
        OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())


def test_adapters_of_another_model(base: Path, tmp_path: Path) -> None:
    official_adapter(base, tmp_path / "adapter", ["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, first: tensors[first][:, :-1].clone()}, file)
    with pytest.raises(
        UserError, match=r"a weight of shape \(128, 127\), the base's has \(128, 128\)"
    ):
        OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())
    renamed = {name.replace("layers.0", "layers.7"): tensor for name, tensor in tensors.items()}
    save_file(renamed, file)
    with pytest.raises(UserError, match=r"layers\.7\.self_attn\.q_proj, which its base does not"):
        OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())
    odd = {name: tensor for name, tensor in tensors.items() if name != first}
    save_file(odd, file)
    with pytest.raises(UserError, match="expected pairs of lora_A and lora_B"):
        OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle file"):
        OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())


def test_rank_stabilised_adapters_are_scaled_by_the_root(base: Path, tmp_path: Path) -> None:
    official_adapter(base, tmp_path / "adapter", ["q_proj"])
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    plain = load_file(base / "model.safetensors")[name]

    def delta() -> torch.Tensor:
        policy = OpenVLAPolicy.from_checkpoint(tmp_path / "adapter", settings())
        return policy.model.state_dict()[name] - plain

    usual = delta()
    edited(tmp_path / "adapter", use_rslora=True)
    torch.testing.assert_close(delta(), usual * 2, atol=1e-5, rtol=1e-5)  # sqrt(rank 4)


def test_only_adapted_policies_export_adapters(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no adapters"):
        export_adapter(OpenVLAPolicy.from_checkpoint(base, settings()), tmp_path / "out")
