"""A class of policies is found by what its checkpoints say, and a new one is one entry."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.checkpoints import CPU, edit, save_exported, save_own
from vla_rl.config import PPOConfig, UserError
from vla_rl.diagnostics.checkpoint import examine_checkpoint
from vla_rl.diagnostics.machine import Check
from vla_rl.policies import OpenVLAPolicy, Policy, ValuePolicy
from vla_rl.policies.family import Finding, PolicyFamily
from vla_rl.policies.memory import GB, MemoryBudget
from vla_rl.policies.policy import has_critic
from vla_rl.policies.registry import POLICIES, family_of, load_policy, with_micro_batch
from vla_rl.runtime.bases import checkpoint_kind


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("registry")
    save_own(room / "base")
    (room / "other").mkdir()
    (room / "other" / "config.json").write_text(json.dumps({"model_type": "other"}))
    return room


def other_family(plays: Path, asked: dict[str, Any]) -> PolicyFamily:
    """A family whose checkpoints are all played by the policy in `plays`; `asked` is what its loader was asked for."""

    def load(folder: Path | str, config: Any = None, **more: Any) -> Any:
        asked.update(more, folder=folder)
        return OpenVLAPolicy.from_checkpoint(plays, config)

    def examine(reference: str) -> list[Finding]:
        return [Finding("checkpoint", "warn", f"seen {reference}", "look")]

    nothing: Any = lambda *args, **kwargs: None  # noqa: E731
    return PolicyFamily(load, nothing, nothing, examine)


def test_openvla_is_a_policy_with_values(room: Path) -> None:
    policy = load_policy(room / "base", CPU)
    assert isinstance(policy, Policy)
    assert isinstance(policy, ValuePolicy)
    assert has_critic(policy)
    assert POLICIES[policy.kind] is POLICIES["openvla"]


def test_a_new_family_is_one_entry(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r'of type "other", expected .* Known: openvla'):
        load_policy(room / "other", CPU)
    asked: dict[str, Any] = {}
    monkeypatch.setitem(POLICIES, "other", other_family(room / "base", asked))
    assert load_policy(room / "other", CPU, unnorm_key="kitchen", seed=3).action_dim == 4
    assert asked["folder"] == room / "other"
    assert (asked["unnorm_key"], asked["seed"]) == ("kitchen", 3)
    found = examine_checkpoint(str(room / "other"))
    assert found == [Check("checkpoint", "warn", f"seen {room / 'other'}", "look")]


def test_adapters_are_of_the_family_of_their_base(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    shutil.copytree(room / "base", tmp_path / "base")
    save_exported(tmp_path / "base", tmp_path / "exported")
    assert checkpoint_kind(tmp_path / "exported") == "openvla"
    edit(tmp_path / "base" / "config.json", "model_type", value="other")
    assert checkpoint_kind(tmp_path / "exported") == "other"
    assert checkpoint_kind(tmp_path / "exported", str(room / "base")) == "openvla"
    monkeypatch.setitem(POLICIES, "other", other_family(room / "base", {}))
    assert family_of(tmp_path / "exported") is POLICIES["other"]


def test_what_does_not_say_is_openvlas_to_complain_about(tmp_path: Path) -> None:
    assert checkpoint_kind(tmp_path / "nothing") == ""
    with pytest.raises(UserError, match="No checkpoint folder"):
        load_policy(tmp_path / "nothing", CPU)


def test_micro_batches_come_from_the_familys_budget(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(room / "base", CPU)

    def budget(policy: Any, rollout_batch: int) -> MemoryBudget:
        return MemoryBudget(0.0, 0.0, float(rollout_batch) * GB, 1.0 * GB, 0.0, present=2.0 * GB)

    monkeypatch.setitem(POLICIES, "openvla", replace(POLICIES["openvla"], memory_budget=budget))
    monkeypatch.setattr("vla_rl.policies.memory.free_memory", lambda device: 9 * GB)
    ppo = PPOConfig(minibatch=64, micro_batch=-1)
    # 11 GB in all, of which 5 % are lost and 4 GB are caches: 6 samples, so 4
    assert with_micro_batch(ppo, policy, 4).micro_batch == 4
