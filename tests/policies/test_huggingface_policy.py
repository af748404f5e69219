"""Image-text models of Hugging Face as policies: tiny random ones of several families, made here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.image_text_models import FAMILIES, write_image_text_model
from builders.policies import INSTRUCTIONS, make_observation
from vla_rl.config import ConfigError, CriticConfig, LoraConfig, PolicyConfig, UserError, VlmConfig
from vla_rl.policies import Policy, ValuePolicy, identity_statistics
from vla_rl.policies.huggingface.policy import HuggingFacePolicy
from vla_rl.policies.registry import POLICIES, load_policy
from vla_rl.types import Observation

pytest.importorskip("transformers", reason="needs the extra vla-rl[lora]")
pytest.importorskip("PIL", reason="needs the extra vla-rl[report]")

BINS, DIM, CHUNK = 16, 3, 2
K = DIM * CHUNK
FAMILY = "idefics3"
"""Where one is enough."""


def settings(critic: str = "separate", lora: int = 0, **more: Any) -> PolicyConfig:
    config = PolicyConfig(
        device="cpu",
        vlm=VlmConfig(bins=BINS, **more),
        critic=CriticConfig(kind=critic),  # type: ignore[arg-type]
    )
    return replace(config, lora=LoraConfig(rank=lora)) if lora else config


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_image_text_model(name, root / name) for name in FAMILIES}


def taught(folder: Path, config: PolicyConfig | None = None) -> HuggingFacePolicy:
    """As fine-tuning makes it of a model, and with decided opinions."""
    loaded = load_policy(folder, config or settings())
    policy = loaded.with_actions_of(identity_statistics("metaworld", DIM), CHUNK)
    assert isinstance(policy, HuggingFacePolicy)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(8)
    return policy


def seen(size: tuple[int, int] = (32, 32), wrist: bool = False) -> Observation:
    rng = np.random.default_rng(1)
    observation = make_observation(3)
    views = {"images": rng.integers(0, 256, (3, *size, 3), np.uint8)}
    if wrist:
        views["wrist"] = rng.integers(0, 256, (3, *size, 3), np.uint8)
    return replace(observation, instructions=INSTRUCTIONS, **views)


def close(found: torch.Tensor | None, wanted: torch.Tensor | None) -> None:
    assert found is not None
    assert wanted is not None
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_played_is_what_is_learned(
    models: dict[str, Path], family: str, critic: str
) -> None:
    policy = taught(models[family], settings(critic))
    for views in (seen(), seen((40, 64), wrist=True)):
        played = policy.act(views, temperature=0.8)
        learned = policy.evaluate(views, played.tokens, temperature=0.8)
        close(learned.log_probs, played.log_probs)
        close(learned.values, played.values)
        close(policy.values(views), played.values)
        # a row's numbers do not depend on the others, whose prompts are longer
        alone = policy.evaluate(views.select([0]), played.tokens[:1], temperature=0.8)
        close(alone.log_probs, learned.log_probs[:1])
        assert not torch.allclose(alone.entropy, torch.zeros(K), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_that_is_shown_counts(models: dict[str, Path], family: str) -> None:
    policy = taught(models[family])
    views = seen(wrist=True)
    assert views.wrist is not None
    tokens = torch.zeros(3, K, dtype=torch.int64)

    def log_probs(**changes: Any) -> torch.Tensor:
        with torch.no_grad():
            return policy.evaluate(replace(views, **changes), tokens).log_probs

    plain = log_probs()
    others = (
        log_probs(images=255 - views.images),
        log_probs(wrist=255 - views.wrist),
        log_probs(instructions=("close it",) * 3),
    )
    for changed in others:
        assert (changed - plain).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_generates_the_same_action_tokens(
    models: dict[str, Path], family: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    policy = taught(models[family])
    views = seen((40, 64), wrist=True)
    tokens = policy.act(views, temperature=0.0).tokens
    policy.save(tmp_path)
    again = load_policy(tmp_path, settings())
    assert again.fingerprint() == policy.fingerprint()
    assert torch.equal(again.act(views, temperature=0.0).tokens, tokens)
    assert isinstance(again, HuggingFacePolicy)
    ids = list(json.loads((tmp_path / "vla_rl.json").read_text())["action_ids"])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = again.conversation.inputs(views, torch.device("cpu"))
    answer = model.generate(
        **inputs, do_sample=False, max_new_tokens=K, prefix_allowed_tokens_fn=lambda *_: ids,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert torch.equal(answer.sequences[:, -K:], torch.tensor(ids)[tokens])
    log_probs = torch.stack(answer.logits, 1)[..., ids].log_softmax(-1)
    with torch.no_grad():
        ours = policy.evaluate(views, tokens).log_probs
    close(log_probs.gather(-1, tokens[..., None])[..., 0], ours)


def test_it_is_a_policy_with_values_of_the_family(models: dict[str, Path]) -> None:
    policy = taught(models[FAMILY])
    assert isinstance(policy, Policy)
    assert isinstance(policy, ValuePolicy)
    assert POLICIES[policy.kind].load == HuggingFacePolicy.from_checkpoint
    actions = np.random.default_rng(0).uniform(-1, 1, (4, CHUNK, DIM)).astype(np.float32)
    back = policy.decode_actions(policy.encode_actions(actions))
    np.testing.assert_allclose(back, actions, atol=1 / (BINS - 1) + 1e-6)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma"])
def test_candidates_are_what_act_gives(models: dict[str, Path], family: str) -> None:
    policy = taught(models[family])
    uniforms = np.random.default_rng(0).random((3, 2, K), np.float32)
    uniforms[:, 1] = np.nan
    proposed = policy.propose(seen(), 1.0, uniforms)
    for j in range(2):
        played = policy.act(seen(), 1.0, uniforms[:, j])
        assert torch.equal(proposed.tokens[:, j], played.tokens)
        close(proposed.log_probs[:, j], played.log_probs)
    assert torch.equal(proposed.tokens[:, 1], policy.act(seen(), temperature=0.0).tokens)
    close(proposed.values, policy.values(seen()))


def test_actions_are_the_last_ids_of_the_text(models: dict[str, Path]) -> None:
    policy = taught(models["paligemma"])
    # 256 bytes, then special tokens and 1152 places and segments
    assert policy.description.action_ids == tuple(range(255, 255 - BINS, -1))
    with pytest.raises(UserError, match=r"has 256 tokens, and 256 of them would be actions: set "):
        load_policy(models["paligemma"], PolicyConfig(device="cpu"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3"])
def test_added_tokens_have_rows_of_their_own(family: str, tied: bool, tmp_path: Path) -> None:
    write_image_text_model(family, tmp_path / "model", tied=tied)
    policy = taught(tmp_path / "model", settings(action_tokens="added"))
    ids = torch.tensor(policy.description.action_ids)
    embedding, head = policy.model.get_input_embeddings(), policy.model.get_output_embeddings()
    assert (embedding.weight is head.weight) == tied
    assert len(embedding.weight) == len(head.weight) > int(ids.max())
    assert policy.model.config.get_text_config().vocab_size == len(embedding.weight)
    assert len(torch.unique(embedding.weight[ids], dim=0)) == BINS
    played = policy.act(seen())
    evaluation = policy.evaluate(seen(), played.tokens)
    close(evaluation.log_probs, played.log_probs)
    evaluation.log_probs.sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[ids].abs().amax(1).max() > 0
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved", settings())
    assert again.fingerprint() == policy.fingerprint()
    assert torch.equal(again.act(seen(), temperature=0.0).tokens, policy.act(seen(), 0.0).tokens)
    assert isinstance(again, HuggingFacePolicy)
    tokenizer = again.conversation.tokenizer
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == [f"<action_{i}>" for i in range(BINS)]
    assert set(ids.tolist()) <= set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma"])
def test_adapters_alone_are_trained_and_saved(
    models: dict[str, Path], family: str, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    from transformers import AutoModelForImageTextToText

    loaded = load_policy(models[family], settings(lora=4))
    policy = loaded.with_actions_of(identity_statistics("metaworld", DIM), CHUNK)
    assert isinstance(policy, HuggingFacePolicy)
    named = dict(policy.model.named_parameters())
    assert {name for name, p in named.items() if p.requires_grad} == {
        name for name in named if ".lora_" in name
    }
    policy.keep_reference()
    tokens = policy.act(seen(), temperature=1.0).tokens
    before = policy.evaluate(seen(), tokens).log_probs.detach()
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    after = policy.evaluate(seen(), tokens).log_probs.detach()
    assert (after - before).abs().max() > 0.1
    close(policy.reference_log_probs(seen(), tokens), before)
    policy.save(tmp_path / "adapters")
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    again = load_policy(tmp_path / "adapters", settings(lora=4))
    assert again.fingerprint() == policy.fingerprint()
    close(again.evaluate(seen(), tokens).log_probs.detach(), after)
    # what peft makes of it
    base = AutoModelForImageTextToText.from_pretrained(models[family]).eval()
    other = peft.PeftModel.from_pretrained(base, tmp_path / "adapters").get_base_model()
    inputs = policy.conversation.inputs(seen(), torch.device("cpu"))
    with torch.no_grad():
        close(other(**inputs).logits[:, -1], policy.model(**inputs).logits[:, -1])
    # a reference of what was saved, as a run that goes on makes it
    again.keep_reference(tmp_path / "adapters")
    close(again.reference_log_probs(seen(), tokens), after)


def test_adapters_belong_to_their_model(models: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    shutil.copytree(models[FAMILY], tmp_path / "model")
    policy = load_policy(tmp_path / "model", settings(lora=4)).with_actions_of(
        identity_statistics("metaworld", DIM), CHUNK
    )
    policy.save(tmp_path / "adapters")
    write_image_text_model(FAMILY, tmp_path / "model", tied=True)
    with pytest.raises(UserError, match="adapters for another model than the one in"):
        load_policy(tmp_path / "adapters", settings())
    with pytest.raises(UserError, match="makes new rows of the embedding, which adapters leave"):
        load_policy(tmp_path / "model", settings(lora=4, action_tokens="added"))


def test_the_critic_comes_back(models: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("shared", "separate"):
        policy = taught(models[FAMILY], settings(kind))
        with torch.no_grad():
            for parameter in policy.critic_parameters():
                parameter.add_(0.1)
        policy.save(tmp_path / kind)
        again = load_policy(tmp_path / kind, settings(kind))
        assert isinstance(again, HuggingFacePolicy)
        assert again.critic_restored
        close(again.values(seen()).detach(), policy.values(seen()).detach())


def test_a_shared_critic_reaches_the_trunk_unless_detached(models: dict[str, Path]) -> None:
    policy = taught(models[FAMILY], settings("shared"))
    with torch.no_grad():  # a fresh head is zero, and passes nothing on
        for parameter in policy.critic_parameters():
            parameter.add_(0.1)
    for detached in (False, True):
        policy.detach_values = detached
        policy.zero_grad()
        policy.values(seen()).sum().backward()
        reached = [p for p in policy.policy_parameters() if p.grad is not None and p.grad.any()]
        assert bool(reached) != detached


# ------------------------------------------------------------------------------------------------
# What cannot be a policy


def test_a_model_that_has_not_learned_to_act_says_so(models: dict[str, Path]) -> None:
    policy = load_policy(models[FAMILY], settings())
    assert policy.action_dim == 0
    with pytest.raises(UserError, match="has not learned to act: fine-tune it on demonstrations"):
        policy.act(seen())


def test_other_models_and_their_code_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    def refused(kind: str, **more: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **more}))
        with pytest.raises(UserError) as caught:
            load_policy(tmp_path, settings())
        return str(caught.value)

    assert "is a model of type 'llama', expected" in refused("llama").replace('"', "'")
    own_code = {"auto_map": {"AutoModel": "modeling_own.Own", "AutoConfig": "modeling_own.Own"}}
    (tmp_path / "modeling_own.py").write_text("raise SystemExit('ran')")
    assert "code of a repository is never run" in refused("own_kind", **own_code)
    shutil.copytree(models[FAMILY], tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "modeling_own.py").write_text("raise SystemExit('ran')")
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | own_code))
    assert load_policy(tmp_path / "copy", settings()).kind == "huggingface"


def test_damaged_folders_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def broken(name: str) -> Path:
        return Path(shutil.copytree(models[FAMILY], tmp_path / name))

    def refused(folder: Path, words: str) -> None:
        with pytest.raises(UserError, match=words):
            load_policy(folder, settings())

    weights = load_file(models[FAMILY] / "model.safetensors")
    lost = dict(weights)
    del lost["model.text_model.layers.1.mlp.up_proj.weight"]
    folder = broken("lost")
    save_file(lost, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"1 of the model's weights are missing .*layers.1.mlp.up_proj")
    folder = broken("nan")
    weights["model.text_model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "holds NaN or infinite weights")
    folder = broken("pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pickle files can run any code and are not read")
    folder = broken("short")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    refused(folder, "model.safetensors")
    folder = broken("mute")
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    refused(folder, "has no chat template")
    folder = broken("blind")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}")
    refused(folder, "image")


def test_a_saved_policys_own_file_is_checked(models: dict[str, Path], tmp_path: Path) -> None:
    taught(models[FAMILY]).save(tmp_path)
    section = json.loads((tmp_path / "vla_rl.json").read_text())

    def refused(words: str, **changes: Any) -> None:
        (tmp_path / "vla_rl.json").write_text(json.dumps(section | changes))
        with pytest.raises(UserError, match=words):
            load_policy(tmp_path, settings())

    refused("asks for a history of 2 turns", history=2)
    refused("action id 999999 is beyond the model's", action_ids=[999999, 3])
    refused("at least two action ids, each once", action_ids=[3, 3])
    refused("action_dim", action_dim="seven")
    refused("have 3 dimensions, the policy 5", action_dim=5)


def test_a_prompt_without_the_task_is_refused_at_the_door() -> None:
    with pytest.raises(ConfigError, match=r"policy\.vlm\.prompt must hold \{instruction\}"):
        VlmConfig(prompt="do it")
