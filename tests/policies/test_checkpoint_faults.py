"""What is wrong with a checkpoint is said by file and key, in loading and by the doctor alike."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from builders.checkpoints import CPU, edit, save_official, save_own, write
from vla_rl.config import Conventions, UserError
from vla_rl.diagnostics.checkpoint import examine_checkpoint
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.registry import load_policy
from vla_rl.policies.safetensors_files import INDEX_FILE, MODEL_FILE

HEAD = "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("originals")
    save_own(room / "own")
    save_official(room / "official")
    return room


@pytest.fixture
def own(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "own", tmp_path / "own"))


@pytest.fixture
def official(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "official", tmp_path / "official"))


def load(folder: Path, key: str | None = None) -> OpenVLAPolicy:
    policy = load_policy(folder, CPU, unnorm_key=key)
    assert isinstance(policy, OpenVLAPolicy)
    return policy


def refused(folder: Path, words: str, key: str | None = None) -> None:
    """Loading says `words`, and so does the doctor."""
    with pytest.raises(UserError, match=words) as told:
        load(folder, key)
    failures = [c.found for c in examine_checkpoint(str(folder)) if c.status == "fail"]
    assert str(told.value) in failures


def statistics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset_statistics.json").read_text())["kitchen"]


# --- statistics


def test_statistics_without_their_datasets_name(own: Path) -> None:
    write(own / "dataset_statistics.json", statistics_of(own))
    refused(own, r"dataset_statistics\.json: the dataset's name is missing .* Wrap them in an")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), r"kitchen\.action\.q01\[1\]: expected a finite number, got nan"),
        (None, r"kitchen\.action\.q01\[1\]: expected a number, got null"),
        (float("inf"), r"kitchen\.action\.q01\[1\]: expected a finite number, got inf"),
        (-1e38, r"kitchen\.action\.q01\[1\]: expected a number of at least"),
        (2.0, r"q01 at most q99, got q01 2 and q99 1 in dimension 1"),
    ],
)
def test_quantiles_must_be_finite_and_in_order(own: Path, value: object, words: str) -> None:
    edit(own / "dataset_statistics.json", "kitchen", "action", "q01", 1, value=value)
    refused(own, words)


def test_a_quantile_that_is_one_number(own: Path) -> None:
    edit(own / "dataset_statistics.json", "kitchen", "action", "q99", value=1.0)
    refused(own, r"kitchen\.action\.q99: expected a list, got 1\.0")


def doubled(statistics: dict[str, Any]) -> dict[str, Any]:
    return {"action": {name: 2 * values for name, values in statistics["action"].items()}}


def test_an_action_has_the_size_of_the_chosen_statistics(official: Path, own: Path) -> None:
    for folder in (official, own):
        four = statistics_of(folder)
        write(folder / "dataset_statistics.json", {"kitchen": four, "two_hands": doubled(four)})
        assert load(folder, "two_hands").action_dim == 8
        assert load(folder, "kitchen").action_dim == 4
        with pytest.raises(UserError, match="2 datasets: say which one to use"):
            load(folder)
        statistics = next(c for c in examine_checkpoint(str(folder)) if c.name == "statistics")
        assert "choose one with --policy.unnorm-key" in statistics.found


def test_statistics_of_another_size_than_our_checkpoint_says(own: Path) -> None:
    write(own / "dataset_statistics.json", {"two_hands": doubled(statistics_of(own))})
    refused(own, 'actions have 4 numbers, but the statistics of "two_hands" have 8')


def test_the_only_statistics_are_taken_where_the_benchmark_has_others(
    official: Path, caplog: pytest.LogCaptureFixture
) -> None:
    likely = Conventions(unnorm_key="libero_spatial")
    policy = load_policy(official, CPU, conventions=likely)
    assert isinstance(policy, OpenVLAPolicy)
    assert policy.unnorm_key == "kitchen"
    assert "'kitchen', the only dataset" in caplog.text
    with pytest.raises(UserError, match="No action statistics for dataset 'libero_spatial'"):
        load(official, "libero_spatial")  # the user's own word is no guess


# --- other formats


def test_a_folder_of_openvla_oft_is_named(official: Path, tmp_path: Path) -> None:
    (official / "lora_adapter").mkdir()
    (official / "lora_adapter" / "adapter_config.json").write_text("{}")
    refused(
        official,
        rf"OpenVLA-OFT \(lora_adapter/\).*--policy.kind openvla-oft.*give {official}/lora_adapter",
    )
    (official / "action_head--150000_checkpoint.pt").write_bytes(b"x")
    (official / "proprio_projector--150000_checkpoint.pt").write_bytes(b"x")
    refused(official, r"OpenVLA-OFT \(action_head--150000_checkpoint\.pt, proprio_proj")
    alone = tmp_path / "alone"
    shutil.copytree(official / "lora_adapter", alone / "lora_adapter")
    refused(alone, rf"OpenVLA-OFT .* give {alone}/lora_adapter")
    shutil.rmtree(official / "lora_adapter")
    refused(official, r"OpenVLA-OFT .*Take a checkpoint that was trained on action tokens")


def test_a_model_of_another_type(official: Path) -> None:
    edit(official / "config.json", "model_type", value="mistral")
    refused(
        official, 'of type "mistral", expected a policy of a known type, or an image-text model'
    )


def test_a_folder_that_calls_itself_an_image_text_model_is_told_what_it_lacks(
    official: Path,
) -> None:
    edit(official / "config.json", "model_type", value="llava")
    refused(official, r"expected a processor .*could not load it \(.{,300}\)\. Code")


def test_a_folder_hides_a_hub_id(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openvla").mkdir()
    words = "There is a folder 'openvla' here, so that openvla/openvla-7b is taken for a path in it"
    with pytest.raises(UserError, match=words):
        load_policy("openvla/openvla-7b", CPU)
    (check,) = examine_checkpoint("openvla/openvla-7b")
    assert words in check.found


# --- config.json


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["text_config"], None, "text_config: expected an object, got null"),
        (["image_sizes"], None, "image_sizes: expected a list, got null"),
        (["image_sizes"], [16, 24], "only square images"),
        (["n_action_bins"], None, "n_action_bins: expected a whole number, got null"),
        (["n_action_bins"], 10**6, "must fit in the text vocabulary"),
        (["pad_token_id"], None, "pad_token_id: expected a whole number, got null"),
        (["norm_stats"], 3, "norm_stats: expected an object"),
        (["text_config", "hidden_size"], None, "text_config.hidden_size: expected a whole number"),
        (["text_config", "hidden_size"], 6, "must divide into heads"),
        (["text_config", "num_attention_heads"], 0, "num_attention_heads: expected a number of at"),
        (["text_config", "num_hidden_layers"], 10**6, "num_hidden_layers: expected a number of at"),
        (["text_config", "rms_norm_eps"], float("nan"), "rms_norm_eps: expected a finite number"),
        (["text_config", "hidden_act"], "gelu", "hidden_act: expected 'silu'"),
        (["text_config", "rope_scaling"], {"type": "linear"}, "rope_scaling: expected null"),
        (["use_fused_vision_backbone"], False, "use_fused_vision_backbone: expected True"),
    ],
)
def test_an_official_config_says_which_key(
    official: Path, keys: list[str], value: object, words: str
) -> None:
    edit(official / "config.json", *keys, value=value)
    refused(official, rf"config\.json.*{words}")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["model", "language", "layers"], 10**6, "layers"),
        (["model", "language", "hidden"], None, "vla_rl.model.language.hidden"),
        (["model", "dino", "heads"], 3, "width 8 is no multiple of heads 3"),
        (["model", "dino", "std"], [0.0, 1.0, 1.0], "std"),
        (["model", "prompt"], "{instruction} {other}", "no other braces"),
        (["model", "final_prompt_token"], -1, "final_prompt_token"),
        (["action_dim"], 10**9, "action_dim must lie in 1..1024"),
        (["unnorm_key"], "nowhere", "No action statistics for dataset 'nowhere'"),
        (["format"], 2, "has format 2, this version reads format 1"),
    ],
)
def test_our_config_says_which_key(own: Path, keys: list[str], value: object, words: str) -> None:
    edit(own / "config.json", "vla_rl", *keys, value=value)
    refused(own, rf"config\.json.*{words}")


def test_the_processors_normalisation_is_taken(official: Path) -> None:
    """What OpenVLA's processor subtracts and divides by is written in its file."""
    assert load(official).description.model.dino.mean == (0.485, 0.456, 0.406)
    edit(official / "preprocessor_config.json", "means", 0, value=[0.1, 0.2, 0.3])
    assert load(official).description.model.dino.mean == (0.1, 0.2, 0.3)
    edit(official / "preprocessor_config.json", "stds", 1, 0, value=0.0)
    refused(official, r"preprocessor_config\.json: stds\[1\]\[0\]: expected a number above 0")


# --- weights


def resave(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(folder / MODEL_FILE)
    save_file({**weights, HEAD: change(weights[HEAD]).contiguous()}, folder / MODEL_FILE)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_weights_that_are_no_numbers_with_a_point(own: Path, kind: torch.dtype) -> None:
    resave(own, lambda weight: weight.to(kind))
    refused(own, rf'"?{HEAD}"? is of type .*quantised weights are not supported')


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_weight_that_is_not_finite(own: Path, dtype: torch.dtype, value: float) -> None:
    def damage(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.to(dtype)
        weight[-1, -1] = value
        return weight

    resave(own, damage)
    refused(own, rf"{HEAD} holds NaN or infinite weights")


def test_all_floating_types_are_read(own: Path) -> None:
    want = load(own).model.state_dict()[HEAD]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        resave(own, lambda weight, dtype=dtype: weight.to(dtype))
        got = load(own).model.state_dict()[HEAD]
        torch.testing.assert_close(got, want, atol=0.01, rtol=0.01)


def test_critics_are_weights_too(own: Path) -> None:
    critic = load_file(own / "critic.safetensors")
    broken = {**critic, "fc1.bias": critic["fc1.bias"] * float("nan")}
    save_file(broken, own / "critic.safetensors")
    refused(own, r"critic\.safetensors: fc1\.bias holds NaN")


def test_two_sets_of_weights_in_one_folder(own: Path) -> None:
    write(own / INDEX_FILE, {"weight_map": {HEAD: "model-00001-of-00002.safetensors"}})
    refused(own, r"two sets of weights, model\.safetensors and the shards of .*: remove the one")
    write(own / INDEX_FILE, {"weight_map": dict.fromkeys(load_file(own / MODEL_FILE), MODEL_FILE)})
    load(own)  # an index of that one file


def header_of(count: int) -> bytes:
    entries = (f'"{i}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' for i in range(count))
    text = ("{" + ",".join(entries) + "}").encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def test_headers_are_bounded(own: Path) -> None:
    (own / MODEL_FILE).write_bytes(header_of(400_000))
    refused(own, r"cannot be read \(a header of \d+ bytes, expected 16777216 at most\)")
    (own / MODEL_FILE).write_bytes(header_of(2))
    refused(own, '"?1"? does not begin where "?0"? ends')


def test_bytes_behind_the_last_tensor(own: Path) -> None:
    with (own / MODEL_FILE).open("ab") as file:
        file.write(b"more")
    refused(own, "4 bytes behind the last tensor")


# --- nothing outside of the folder is opened


@pytest.mark.parametrize("name", ["../own2/model.safetensors", "/etc/passwd", "..", "C:\\x", ""])
def test_shards_lie_in_the_folder(own: Path, name: str) -> None:
    weights = load_file(own / MODEL_FILE)
    (own / MODEL_FILE).rename(own.parent / "model.safetensors")
    write(own / INDEX_FILE, {"weight_map": dict.fromkeys(weights, name)})
    refused(own, r"index\.json: weight_map: expected a path inside its folder")


@pytest.mark.parametrize(
    "name", [MODEL_FILE, "config.json", "tokenizer.json", "critic.safetensors"]
)
def test_links_that_lead_out_of_the_folder(own: Path, name: str) -> None:
    (own / name).rename(own.parent / name)
    (own / name).symlink_to(own.parent / name)
    refused(own, f"got a link that leads out of it: {name}")


def test_links_of_the_hubs_cache_are_followed(official: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(official.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    policy = load(snapshot)
    assert policy.description.model.name == "owner/name"
    secret = tmp_path / "secret"
    (snapshot / MODEL_FILE).resolve().rename(secret)
    (snapshot / MODEL_FILE).unlink()
    (snapshot / MODEL_FILE).symlink_to(os.path.relpath(secret, snapshot))
    refused(snapshot, "got a link that leads out of it")


# --- tokenizer


def test_truncation_and_padding_of_other_programs_are_switched_off(own: Path) -> None:
    text = "zap the drawer, twice, with all that is at hand"
    want = load(own).processor.prompt_ids(text)
    tokenizer = Tokenizer.from_file(str(own / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=99, pad_id=7)
    tokenizer.save(str(own / "tokenizer.json"))
    assert load(own).processor.prompt_ids(text) == want


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "dataset_statistics.json"])
def test_deep_nesting(own: Path, name: str) -> None:
    (own / name).write_text("[" * 100_000)
    refused(own, rf"{name}: expected at most 64 levels of nesting")


def test_a_tokenizer_of_another_model(own: Path) -> None:
    edit(own / "config.json", "vla_rl", "model", "language", "text_vocab", value=29875)
    edit(own / "config.json", "vla_rl", "model", "final_prompt_token", value=29860)
    vocabulary = json.loads((own / "tokenizer.json").read_text())
    pieces = vocabulary["model"]["vocab"]
    filler = [[f"filler{i}", -50.0] for i in range(29890 - len(pieces))]
    vocabulary["model"]["vocab"] = [*pieces[:259], *filler, *pieces[259:]]
    write(own / "tokenizer.json", vocabulary)
    refused(own, r"tokenizer\.json: The tokenizer gives id .* belongs to another model")
