"""`vla-rl certify --engines official`: OpenVLA's own code, started in an environment of its own.

Most of this runs a stand-in with the interface of OpenVLA's code that answers with our model; the last tests run that
code itself where VLA_RL_OFFICIAL_PYTHON names an environment for it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.engines import save_servable
from builders.policies import GOLDEN, INSTRUCTIONS
from vla_rl.cli import main
from vla_rl.config import OPENVLA_7B, UserError
from vla_rl.policies import build_tiny_tokenizer
from vla_rl.policies.openvla.config_files import read_checkpoint_config
from vla_rl.policies.openvla.official_config import OFFICIAL_TOWERS
from vla_rl.serving.official import (
    CODE_VARIABLE,
    PYTHON_VARIABLE,
    Request,
    _read_answers,
    _tower_sizes,
)

OFFICIAL, CODE = os.environ.get(PYTHON_VARIABLE, ""), os.environ.get(CODE_VARIABLE, "")
RELEASES = {"transformers": "4.40.1", "timm": "0.9.10", "tokenizers": "0.19.1"}
STAND_IN = '''
"""The interface of OpenVLA's code as far as it is used, answered by our own model."""
import json
import types
from pathlib import Path

import torch


class PrismaticImageProcessor:
    @classmethod
    def from_pretrained(cls, folder):
        assert Path(folder, "preprocessor_config.json").is_file()
        return cls()

    def preprocess(self, image, return_tensors):
        raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        raw = raw.view(1, *image.size, 3).permute(0, 3, 1, 2).float().contiguous()
        return {"pixel_values": raw}


class OpenVLAForActionPrediction:
    missing = []

    @classmethod
    def from_pretrained(cls, folder, torch_dtype, output_loading_info, local_files_only):
        from vla_rl.config import PolicyConfig
        from vla_rl.policies.registry import load_policy

        import timm

        name = "vit_so400m_patch14_siglip_224"
        sizes = timm.create_model(name, pretrained=False, img_size=224)
        assert sizes == (name, False, 224, 32, 2, 2, 64)
        self = cls()
        own = Path(SAVED)
        config = json.loads(Path(folder, "config.json").read_text())
        assert config["pad_to_multiple_of"] == 64
        assert config["timm_model_ids"][0].startswith("vit_large")
        settings = PolicyConfig(checkpoint=str(own), device="cpu")
        self.policy = load_policy(own, settings)
        self.config = types.SimpleNamespace(_attn_implementation="ours")
        keys = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        return self, {key: self.missing if key == "missing_keys" else [] for key in keys}

    def eval(self):
        return self

    def to(self, device):
        return self

    def generate(self, ids, attention_mask, pixel_values, max_new_tokens, prefix_allowed_tokens_fn, **rest):
        import numpy as np
        from vla_rl.policies.openvla.processing import pixel_values as normalised
        from vla_rl.policies.prompts import Prompts

        assert rest["output_logits"] and not rest["do_sample"]
        policy = self.policy
        model = policy.description.model
        vocabulary, bins = model.language.text_vocab, model.action_bins
        assert prefix_allowed_tokens_fn(0, ids[0]) == list(range(vocabulary - bins, vocabulary))
        prompts = Prompts(ids, np.array([ids.shape[1]]))
        tokens = torch.zeros(1, max_new_tokens, dtype=torch.int64)
        for step in range(max_new_tokens):
            logits, _ = policy.model(normalised(pixel_values, model), prompts, tokens)
            tokens[0, step] = logits[0, step].argmax()
        full = torch.full((max_new_tokens, model.language.padded_vocab), -50.0)
        full[:, vocabulary - bins : vocabulary] = logits[0].flip(-1)
        full[1, 3] = 50.0
        sequences = torch.cat([ids, vocabulary - 1 - tokens], 1)
        return types.SimpleNamespace(sequences=sequences, logits=[row[None] for row in full])
'''
TIMM = '''
"""timm's way of building a tower: what it is asked for, and the feed-forward width that it makes of a ratio."""


def create_model(name, pretrained, img_size, embed_dim, depth, num_heads, mlp_ratio):
    return name, pretrained, img_size, embed_dim, depth, num_heads, int(embed_dim * mlp_ratio)
'''


def environment(folder: Path, releases: dict[str, str]) -> Path:
    """An environment in which these releases are said to be there; our own packages are, by a path."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name, release in releases.items():
        said = site / f"{name}-{release}.dist-info"
        said.mkdir()
        (said / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
    return folder


def packages(folder: Path) -> None:
    """Let an environment find what this Python has, behind what it says itself, and this package."""
    site = next(folder.glob("lib/python*/site-packages"))
    ours = Path(importlib.import_module("vla_rl").__file__ or "").parents[1]
    (site / "timm.py").write_text(TIMM)
    (site / "ours.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{ours}\n")


def stand_in(folder: Path, saved: Path, extra: str = "") -> Path:
    """OpenVLA's repository with our stand-in; `extra` stands in its place, or where it begins with ... at its end."""
    code = folder / "prismatic" / "extern" / "hf"
    code.mkdir(parents=True)
    text = STAND_IN.replace("SAVED", repr(str(saved)))
    modeling = text + extra.removeprefix("...") if extra.startswith("...") else extra or text
    (code / "modeling_prismatic.py").write_text(modeling)
    (code / "processing_prismatic.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official") / "policy"
    save_servable(folder)
    return folder


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which the stand-in runs."""
    folder = environment(tmp_path_factory.mktemp("official") / "env", RELEASES)
    packages(folder)
    return folder


@pytest.fixture(autouse=True)
def no_official_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (PYTHON_VARIABLE, CODE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def certify(policy: Path, *words: object) -> int:
    given = ("--engines", "official", "--observations", 2, "--suite", "toy")
    return main(["certify", str(policy), *map(str, (*given, *words))])


def test_answers_of_another_python_are_compared(
    policy: Path, ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, file = stand_in(tmp_path / "openvla", policy), tmp_path / "certificate.json"
    words = ("--engines", "own,official", "--official-code", code, "--json", file)
    assert certify(policy, "--official-python", ready, *words) == 0
    result = json.loads(file.read_text())
    greedy = result["engines"]["official"][0]
    assert greedy["likeliest"] + greedy["ties"] == greedy["tokens"]
    assert greedy["tokens"] == result["engines"]["own"][0]["tokens"] > 0
    found = result["official"]
    assert found["versions"]["transformers"] == "4.40.1"
    assert (found["not_actions"], found["resized_towers"], found["attention"]) == (2, True, "ours")
    said = capsys.readouterr().out
    assert "transformers 4.40.1, timm 0.9.10" in said
    assert "built in this checkpoint's sizes" in said
    assert "at 2 tokens the likeliest id of all is no action's" in said


@pytest.mark.parametrize(("width", "mlp_width"), [(112, 976), (176, 240), (64, 128)])
def test_timm_makes_the_same_widths_of_our_ratio(width: int, mlp_width: int) -> None:
    """It takes the whole part of width times ratio; 976 / 112 * 112 is a little less than 976."""
    tower = replace(OPENVLA_7B.siglip, width=width, mlp_width=mlp_width)
    sizes = _tower_sizes(replace(OPENVLA_7B, siglip=tower))
    assert list(sizes) == [OFFICIAL_TOWERS[1]]  # the other has the size that OpenVLA's code knows
    assert int(width * sizes[OFFICIAL_TOWERS[1]]["mlp_ratio"]) == mlp_width


LOST = "...\nOpenVLAForActionPrediction.missing = ['projector.fc1.bias']\n"


@pytest.mark.parametrize(
    ("extra", "words", "said"),
    [
        (LOST, (), "does not take this checkpoint: missing keys projector.fc1.bias"),
        ("import flash_attn_of_nowhere\n", (), "it does not load in its environment"),
        ("raise MemoryError('8 GB')\n", (), "ran out of memory (MemoryError: 8 GB)"),
        ("raise KeyError('no such layer')\n", (), "KeyError: 'no such layer'"),
        ("import os; print('so long'); os._exit(7)\n", (), "ended with exit code 7"),
        ("import os; os.kill(os.getpid(), 9)\n", (), "SIGKILL, as a machine without memory"),
        ("import time; time.sleep(600)\n", ("--timeout", 0.5), "did not answer within 0.5 s"),
    ],
    ids=["weights", "import", "memory", "fault", "death", "killed", "time"],
)  # fmt: skip
def test_why_there_are_no_answers(
    extra: str,
    words: tuple[object, ...],
    said: str,
    policy: Path,
    ready: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = stand_in(tmp_path / "openvla", policy, extra)
    given = ("--official-python", ready / "bin" / "python", "--official-code", code, *words)
    assert certify(policy, *given) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not list(tmp_path.glob("vla-rl-official-*"))


def test_the_environment_is_looked_at_first(
    policy: Path,
    ready: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without what OpenVLA's code needs, or in other releases, its own words would be long and puzzling."""
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    assert certify(policy) == 2
    present = importlib.metadata.version("transformers")
    assert f"transformers {present} (4.40.1 is wanted)" in capsys.readouterr().err
    bare = environment(tmp_path / "bare", {"transformers": "4.40.1", "timm": "1.0.9"})
    assert certify(policy, "--official-python", bare) == 2  # before the variable
    error = capsys.readouterr().err
    assert "no torch, no numpy, no tokenizers, timm 1.0.9 (0.9.10 or 0.9.11" in error
    assert "no transformers" not in error
    assert certify(policy, "--official-python", ready) == 2
    assert "the package prismatic is not installed" in capsys.readouterr().err
    monkeypatch.setenv(CODE_VARIABLE, str(tmp_path / "nowhere"))
    assert certify(policy, "--official-python", ready) == 2
    assert "there is no modeling_prismatic.py in" in capsys.readouterr().err


def test_its_options_are_not_passed_over(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--official-python", "--official-code"):
        assert certify(policy, "--engines", "own", option, tmp_path) == 2
        assert "write --engines own,official" in capsys.readouterr().err


def test_no_python(
    policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert certify(policy, "--official-python", tmp_path / "nowhere") == 2
    assert "--official-python is" in capsys.readouterr().err
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path))
    assert certify(policy) == 2
    assert f"{PYTHON_VARIABLE} is" in capsys.readouterr().err
    text = tmp_path / "text"
    text.write_text("hello")
    text.chmod(0o755)
    assert certify(policy, "--official-python", text) == 2
    assert "cannot be started: Exec format error" in capsys.readouterr().err


def one_row_less(arrays: dict[str, np.ndarray]) -> None:
    arrays["ids"] = arrays["ids"][1:]


def no_action(arrays: dict[str, np.ndarray]) -> None:
    arrays["ids"][0, 1] = 3


def no_number(arrays: dict[str, np.ndarray]) -> None:
    arrays["log_probs"][1, 2] = np.nan


def no_log_probs(arrays: dict[str, np.ndarray]) -> None:
    del arrays["log_probs"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (one_row_less, "expected an array of shape (2, 3)"),
        (no_action, "ids of actions, 504 to 511"),
        (no_number, "log_probs: expected finite numbers"),
        (no_log_probs, "expected arrays ids, log_probs"),
    ],
)
def test_other_answers_than_asked_for(
    spoil: Callable[[dict[str, np.ndarray]], None], said: str, tmp_path: Path
) -> None:
    shape = (2, 3)
    arrays = {
        "ids": np.full(shape, 505),
        "log_probs": np.full(shape, -1.0, np.float32),
        "elsewhere": np.zeros(shape, bool),
    }
    request = Request("", {}, "float32", False, 3, 504, 512)
    np.savez(tmp_path / "answers.npz", **arrays)
    assert _read_answers(tmp_path / "answers.npz", shape, request)[2] == 0
    spoil(arrays)
    np.savez(tmp_path / "answers.npz", **arrays)
    with pytest.raises(UserError, match="the answers of OpenVLA's own code") as fault:
        _read_answers(tmp_path / "answers.npz", shape, request)
    assert said in str(fault.value)


@pytest.mark.official
@pytest.mark.parametrize("observations", [GOLDEN / "reference.npz", 2])
def test_the_official_code_itself(
    observations: object,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, OFFICIAL)
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.npz", "actions*", "*.md"))
    model = read_checkpoint_config(folder).model
    build_tiny_tokenizer(INSTRUCTIONS, model).save(str(folder / "tokenizer.json"))
    monkeypatch.setenv(CODE_VARIABLE, CODE)
    file = tmp_path / "certificate.json"
    given = (
        "--engines",
        "own,official",
        "--unnorm-key",
        "bridge_orig",
        "--suite",
        "libero-spatial",
    )
    assert certify(folder, *given, "--observations", observations, "--json", file) == 0
    result = json.loads(file.read_text())
    greedy = result["engines"]["official"][0]
    assert greedy["likeliest"] + greedy["ties"] == greedy["tokens"] == 7 * result["observations"]
    assert greedy["max_difference"] < 1e-4
    assert result["official"]["resized_towers"]
    assert "recorded" not in capsys.readouterr().out
