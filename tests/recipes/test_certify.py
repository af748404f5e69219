"""`vla-rl certify` against recorded answers of OpenVLA's own code; with vLLM itself in tests/vllm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders.engines import save_servable
from builders.policies import GOLDEN, INSTRUCTIONS
from vla_rl.cli import main
from vla_rl.policies import build_tiny_tokenizer
from vla_rl.policies.openvla.config_files import read_checkpoint_config

REFERENCE = GOLDEN / "reference.npz"
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certify") / "official"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.npz", "actions*", "*.md"))
    model = read_checkpoint_config(folder).model
    build_tiny_tokenizer(INSTRUCTIONS, model).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(autouse=True)
def no_official_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """`official` are recorded answers here; the code itself runs in test_official_code."""
    monkeypatch.delenv("VLA_RL_OFFICIAL_PYTHON", raising=False)


def certify(folder: Path, *words: object) -> int:
    key = ("--unnorm-key", "bridge_orig") if folder.name == "official" else ()
    return main(["certify", str(folder), *map(str, (*key, *words))])


def test_recorded_answers_of_the_official_code(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certificate.json"
    words = ("--engines", "own,official", "--observations", REFERENCE, "--json", file)
    assert certify(official, *words) == 0
    result = json.loads(file.read_text())
    assert result["passed"]
    assert (result["observations"], result["tolerance"], result["dtype"]) == (4, 1e-4, "float32")
    for name in ("own", "official"):
        greedy = result["engines"][name][0]
        assert greedy["likeliest"] + greedy["ties"] == greedy["tokens"] == 28
        assert greedy["max_difference"] < 1e-4
    assert result["engines"]["own"][1]["temperature"] == 1.0
    assert "passed" in capsys.readouterr().out


def other_token(arrays: Arrays) -> None:
    arrays["greedy_tokens"][2, 3] += 1


def other_log_prob(arrays: Arrays) -> None:
    arrays["greedy_logprob_action256"][1, 0] += 1e-3


def other_image(arrays: Arrays) -> None:
    arrays["images_uint8"][0] = arrays["images_uint8"][1]


@pytest.mark.parametrize("spoil", [other_token, other_log_prob, other_image])
def test_what_differs_is_found(
    spoil: Callable[[Arrays], None],
    official: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = dict(np.load(REFERENCE))
    spoil(arrays)
    np.savez(tmp_path / "spoilt.npz", **arrays)
    words = ("--engines", "official", "--observations", tmp_path / "spoilt.npz")
    assert certify(official, *words) == 1
    assert "NOT passed" in capsys.readouterr().out


def test_pictures_of_noise_with_a_suites_instructions(tmp_path: Path) -> None:
    save_servable(tmp_path / "policy")
    words = ("--engines", "own", "--observations", 3, "--suite", "toy", "--temperature", 2)
    assert certify(tmp_path / "policy", *words) == 0
    assert certify(tmp_path / "policy", *words, "--tolerance", 1e-12) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engines", "vlm"), "there is no engine 'vlm'"),
        (("--engines", ","), "--engines is empty"),
        (("--engines", "official"), "--official-python or in VLA_RL_OFFICIAL_PYTHON"),
        (("--engines", "own", "--observations", "0"), "expected 1 to 4096"),
        (("--engines", "own", "--observations", "nowhere.npz"), "there is no file nowhere.npz"),
        (("--engines", "own", "--observations", GOLDEN / "config.json"), "expected an .npz file"),
        (("--engines", "own", "--observations", GOLDEN / "actions.npz"), "images_uint8"),
        (("--engines", "own", "--suite", "tyo"), "unknown suite 'tyo'"),
        (("--engines", "vllm", "--engine-python", "nowhere"), "make setup-vllm"),
    ],
)
def test_refused_in_one_line(
    words: tuple[object, ...], said: str, official: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certify(official, *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda a: a | {"images_uint8": a["images_uint8"][:, 1:]},
            "images_uint8: expected an array",
        ),
        (lambda a: a | {"prompt_lengths": a["prompt_lengths"] + 99}, "prompt_lengths"),
        (lambda a: a | {"input_ids_padded": a["input_ids_padded"] + 31999}, "ids of text"),
        (lambda a: a | {"greedy_tokens": a["greedy_tokens"] - 300}, "ids of actions"),
        (lambda a: a | {"temperatures": a["temperatures"] + 1}, "one of them 1"),
        (
            lambda a: a | {"greedy_logprob_action256": a["greedy_logprob_action256"] * np.nan},
            "finite",
        ),
        (lambda a: {k: v for k, v in a.items() if k != "greedy_tokens"}, "leave `official` out"),
    ],
)
def test_recorded_files_are_checked(
    spoil: Callable[[Arrays], Arrays],
    said: str,
    official: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(tmp_path / "spoilt.npz", **spoil(dict(np.load(REFERENCE))))
    words = ("--engines", "own,official", "--observations", tmp_path / "spoilt.npz")
    assert certify(official, *words) == 2
    assert said in capsys.readouterr().err
