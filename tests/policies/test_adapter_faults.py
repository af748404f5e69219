"""Adapters in PEFT's format: what changes weights in another way is refused, and how they are played is recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.checkpoints import (
    CPU,
    LORA,
    edit,
    save_adapted,
    save_exported,
    save_official,
    save_own,
)
from builders.policies import INSTRUCTIONS, make_observation
from vla_rl.config import Conventions, ExportConfig, ImagePreprocessing, PolicyConfig, UserError
from vla_rl.diagnostics.checkpoint import examine_checkpoint
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.openvla.exporting import export_adapter
from vla_rl.policies.registry import load_policy
from vla_rl.recipes.export import export

peft = pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")

ADAPTERS = "adapter_model.safetensors"
LIBERO = Conventions("openvla-libero", "openvla", "libero_spatial")
OBSERVATION = make_observation(2, texts=INSTRUCTIONS, size=16)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("originals")
    save_own(room / "base")
    save_exported(room / "base", room / "exported")
    return room


@pytest.fixture
def room(originals: Path, tmp_path: Path) -> Path:
    """A base, adapters on it as a run saves them (`exported-run`), and the same exported (`exported`)."""
    return Path(shutil.copytree(originals, tmp_path / "room"))


def load(folder: Path, **changes: object) -> OpenVLAPolicy:
    policy = load_policy(folder, replace(CPU, **changes))  # type: ignore[arg-type]
    assert isinstance(policy, OpenVLAPolicy)
    return policy


def refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        load(folder)
    assert str(told.value) in [
        c.found for c in examine_checkpoint(str(folder)) if c.status == "fail"
    ]


def resave(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    tensors = change(load_file(folder / ADAPTERS))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / ADAPTERS)


def named(tensors: dict[str, torch.Tensor], adapter: str) -> dict[str, torch.Tensor]:
    """Names as in the state dict of a model with this adapter."""
    return {n.replace(".weight", f".{adapter}.weight"): t for n, t in tensors.items()}


# --- files


def test_names_of_pefts_state_dict(room: Path) -> None:
    want = load(room / "exported").model.state_dict()
    resave(room / "exported", lambda tensors: named(tensors, "default"))
    got = load(room / "exported").model.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_several_adapters_in_one_file(room: Path) -> None:
    resave(room / "exported", lambda tensors: {**named(tensors, "a"), **named(tensors, "b")})
    refused(room / "exported", r'several adapters \("a", "b"\), expected one')


def test_a_tensor_under_two_names(room: Path) -> None:
    resave(
        room / "exported",
        lambda tensors: {
            **tensors, **{n.removeprefix("base_model.model."): t for n, t in tensors.items()},
        },
    )  # fmt: skip
    refused(room / "exported", "the same tensor under two names")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t * float("nan"), "holds NaN or infinite weights"),
        (lambda t: t.abs() * 1e25 + 1e20, "damaged, or the run that wrote them diverged"),
        (lambda t: t.to(torch.int32), "is of type"),
        (lambda t: t.sum(), "has shape"),
        (lambda t: t[None], "has shape"),
    ],
)
def test_factors_that_cannot_be_merged(
    room: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    resave(room / "exported", lambda tensors: {n: change(t) for n, t in tensors.items()})
    refused(room / "exported", words)


def test_adapters_of_a_run_are_weights_too(room: Path) -> None:
    resave(room / "exported-run", lambda ts: {n: t * float("inf") for n, t in ts.items()})
    refused(room / "exported-run", "holds NaN or infinite weights")


@pytest.mark.parametrize(
    "how", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "?"]
)
def test_adapters_that_began_by_changing_the_base(room: Path, how: str) -> None:
    edit(room / "exported" / "adapter_config.json", "init_lora_weights", value=how)
    refused(room / "exported", "init_lora_weights is .* whose weights were changed")


@pytest.mark.parametrize("how", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_adapters_that_began_beside_the_base(room: Path, how: object) -> None:
    edit(room / "exported" / "adapter_config.json", "init_lora_weights", value=how)
    load(room / "exported")


def test_the_known_starts_are_pefts_own() -> None:
    """A start that a later peft adds is refused until somebody has looked at it; these exist today."""
    known = str(peft.LoraConfig.__dataclass_fields__["init_lora_weights"].type)
    assert all(name in known for name in ("gaussian", "pissa", "olora", "eva"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True), ("use_dora", 1), ("lora_bias", True), ("layer_replication", [[0, 1]]),
        ("trainable_token_indices", [3]), ("target_parameters", ["x"]), ("use_qalora", True), ("bias", "all"),
        ("a_switch_of_a_later_version", True), ("a_table_of_a_later_version", {"layer": 3}),
    ],
)  # fmt: skip
def test_settings_that_change_weights_in_other_ways(room: Path, name: str, value: object) -> None:
    edit(room / "exported" / "adapter_config.json", name, value=value)
    refused(room / "exported", f"uses {name}, which is not supported")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_alpha", float("nan")), ("lora_alpha", None), ("lora_alpha", "8"), ("lora_alpha", -1),
        ("r", 0), ("r", 10**9), ("use_rslora", "yes"), ("base_model_name_or_path", 5),
    ],
)  # fmt: skip
def test_settings_out_of_range(room: Path, name: str, value: object) -> None:
    edit(room / "exported" / "adapter_config.json", name, value=value)
    refused(room / "exported", rf"adapter_config\.json: {name}: expected")


def test_defaults_of_the_installed_peft_are_read(room: Path) -> None:
    """Whatever a newer peft writes by default is no reason to refuse its adapters."""
    path = room / "exported" / "adapter_config.json"
    ours = json.loads(path.read_text())
    default = {k: v for k, v in peft.LoraConfig().to_dict().items() if not isinstance(v, set)}
    path.write_text(json.dumps({**default, **ours}))
    load(room / "exported")


# --- what it says of its base


def test_no_path_of_the_machine_is_written(room: Path) -> None:
    for folder in (room / "exported", room / "exported-run"):
        text = (folder / "adapter_config.json").read_text()
        assert str(room) not in text
        assert json.loads(text)["base_model_name_or_path"] == "../base"


def test_adapters_that_move_along_with_their_base_find_it(room: Path) -> None:
    config = json.loads((room / "exported-run" / "config.json").read_text())
    edit(room / "exported-run" / "config.json", "vla_rl", "base", value=f"{room}/nowhere/base")
    assert Path(config["vla_rl"]["base"]).is_absolute()
    found = load(room / "exported-run")
    assert found.description.base == str((room / "base").resolve())
    found.save(room / "again")
    assert load(room / "again").description.base == str((room / "base").resolve())
    load(room / "exported")


def test_a_hub_id_is_written_as_peft_does(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id, its revision apart; also where the base is a snapshot in the hub's cache."""

    def fetched(reference: str | Path) -> Path:
        return room / "base" if str(reference) == "owner/name@abc" else Path(reference)

    for module in ("policies.openvla.loading", "runtime.bases"):
        monkeypatch.setattr(f"vla_rl.{module}.checkpoint_folder", fetched)
    export_adapter(save_adapted(Path("owner/name@abc"), room / "run"), room / "by-id")
    snapshot = room / "hub" / "models--owner--name" / "snapshots" / "abc"
    shutil.copytree(room / "base", snapshot)
    export_adapter(save_adapted(snapshot, room / "run2"), room / "by-cache")
    for folder in (room / "by-id", room / "by-cache"):
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == "owner/name"
        assert settings["revision"] == "abc"
        load(folder)


# --- how it is played


def protocol(policy: OpenVLAPolicy) -> tuple[ImagePreprocessing, str, str, int, int]:
    model = policy.description.model
    return model.images, model.gripper, policy.unnorm_key, policy.action_dim, policy.action_chunk


def test_an_exported_adapter_is_played_as_its_run_was(room: Path, tmp_path: Path) -> None:
    """On LIBERO, where published checkpoints are played in OpenVLA's way, and this run was trained in its own."""
    for folder in ("exported", "exported-run"):
        policy = load_policy(room / folder, CPU, conventions=LIBERO)
        assert isinstance(policy, OpenVLAPolicy)
        assert protocol(policy) == (ImagePreprocessing(), "as-is", "kitchen", 4, 1)


def test_a_run_on_an_official_base_records_what_the_base_does_not_say(room: Path) -> None:
    save_official(room / "official")
    settings = PolicyConfig(device="cpu", images="openvla-libero-uncropped", gripper="as-is")
    start = load_policy(room / "official", replace(settings, lora=LORA))
    policy = start.with_actions_of({"lab": kitchen(room)}, 3)
    assert isinstance(policy, OpenVLAPolicy)
    policy.save(room / "run" / "policy")
    export(ExportConfig(str(room / "run" / "policy"), str(room / "out"), adapter=True))
    back = load_policy(room / "out", CPU, conventions=LIBERO)
    assert isinstance(back, OpenVLAPolicy)
    assert protocol(back) == protocol(policy)
    assert protocol(back)[2:] == ("lab", 4, 3)
    tokens = policy.act(OBSERVATION, 0.0).tokens
    np.testing.assert_allclose(back.decode_actions(tokens), policy.decode_actions(tokens))


def kitchen(room: Path) -> object:
    return json.loads((room / "base" / "dataset_statistics.json").read_text())["kitchen"]


def test_adapters_without_a_record_ask_their_base(room: Path) -> None:
    """As earlier versions exported them: a base of ours says how it is played, an official one does not."""
    edit(room / "base" / "config.json", "vla_rl", "model", "gripper", value="openvla")
    (room / "exported" / "vla_rl.json").unlink()
    policy = load_policy(room / "exported", CPU, conventions=Conventions())
    assert isinstance(policy, OpenVLAPolicy)
    assert policy.description.model.gripper == "openvla"
    save_official(room / "official")
    edit(room / "exported" / "adapter_config.json", "base_model_name_or_path", value="../official")
    policy = load_policy(room / "exported", CPU, conventions=LIBERO)
    assert isinstance(policy, OpenVLAPolicy)
    assert protocol(policy)[1:3] == ("openvla", "kitchen")
    assert policy.resizes_images


def test_statistics_of_the_adapters_give_the_size_of_actions(room: Path) -> None:
    (room / "exported" / "vla_rl.json").unlink()
    statistics = kitchen(room)
    assert isinstance(statistics, dict)
    double = {"action": {name: 2 * values for name, values in statistics["action"].items()}}
    (room / "exported" / "dataset_statistics.json").write_text(json.dumps({"two": double}))
    assert load(room / "exported").action_dim == 8


def test_a_record_of_another_size_than_the_statistics(room: Path) -> None:
    edit(room / "exported" / "vla_rl.json", "action_dim", value=7)
    refused(room / "exported", r"vla_rl\.json says that actions have 7 numbers, but .* have 4")


@pytest.mark.parametrize("folder", ["exported", "exported-run"])
def test_other_weights_in_the_bases_place(
    room: Path, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A path says where the base was, not that it is still the same."""
    for file in ("config.json", "model.safetensors"):
        (room / "base" / file).replace(room / file)
    edit(room / "exported-run" / "config.json", "vla_rl", "base", value=str(room / "base"))
    weights = load_file(room / "model.safetensors")
    save_file({n: t + 0.01 for n, t in weights.items()}, room / "base" / "model.safetensors")
    shutil.copy(room / "config.json", room / "base")
    refused(
        room / folder, rf"weights in {room}/base are not those that the adapters in .* policy\.base"
    )
    load(room / folder, base=str(room / "base"))  # the user's own word
    assert "are not those" in caplog.text
    # the same values in another precision are the same weights
    save_file({n: t.double() for n, t in weights.items()}, room / "base" / "model.safetensors")
    load(room / folder)
