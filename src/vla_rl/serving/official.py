"""OpenVLA's own code, asked in an environment of its own: what would it decide for these observations?

A child with another Python (official_program.py) reads a checkpoint, pictures and prompts from a folder, and writes
its answers there. What it writes is checked like any other file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import MaxLen
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from vla_rl.config.errors import ConfigError, UserError
from vla_rl.config.openvla import OPENVLA_7B, ModelConfig, VisionTowerConfig
from vla_rl.policies.openvla.exporting import export_merged
from vla_rl.policies.openvla.official_config import OFFICIAL_TOWERS
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.prompts import Prompts
from vla_rl.runtime.children import start_program
from vla_rl.runtime.external import Phrase, check_array, fault, printable, read_json
from vla_rl.runtime.signals import name_of
from vla_rl.serving.process import interpreter, last_words
from vla_rl.serving.staging import official_config, tower_parts

PYTHON_VARIABLE, CODE_VARIABLE = "VLA_RL_OFFICIAL_PYTHON", "VLA_RL_OFFICIAL_CODE"
PAGE = "docs/engines.md says how to make one"
_PROGRAM = (
    "import runpy, sys; sys.argv = {words!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
)
_Word = Annotated[str, MaxLen(4096)]


@dataclass(frozen=True)
class Request:
    """What the child is asked, beside pictures and prompts."""

    code: str
    """Folder with OpenVLA's code; empty takes what is installed there."""
    towers: dict[str, dict[str, float]]
    """Arguments of timm.create_model by its name, where a tower has other sizes than openvla-7b's."""
    dtype: str
    cuda: bool
    """Use a GPU, if that environment can."""
    count: int
    """Tokens of a row."""
    first_action: int
    end_action: int
    """The action ids, end excluded."""


@dataclass(frozen=True)
class Facts:
    """What answered."""

    versions: dict[str, _Word]
    code: _Word
    """Folder of the code."""
    device: _Word
    attention: _Word
    """How its language model computes attention, in transformers' words."""


@dataclass(frozen=True)
class _Refusal:
    fault: Literal["environment", "code", "checkpoint", "memory"]
    error: _Word


@dataclass(frozen=True)
class OfficialAnswers:
    """Greedy decisions of OpenVLA's own code."""

    ids: Int64[Tensor, "N K"]
    """Vocabulary ids."""
    log_probs: Float32[Tensor, "N K"]
    """At temperature 1, over the action ids alone."""
    not_actions: int
    """Tokens at which the likeliest id of the whole vocabulary is no action's."""
    resized: bool
    """Whether its vision towers were built in other sizes than its code knows."""
    facts: Facts


def find_official_python(given: str) -> Path | None:
    """The Python of OpenVLA's environment, from `given` or the variable; None where neither says one.

    Raises ConfigError where what they say is no Python.
    """
    wanted = given or os.environ.get(PYTHON_VARIABLE, "")
    if not wanted:
        return None
    python = interpreter(Path(wanted))
    if python is None:
        said = "--official-python" if given else PYTHON_VARIABLE
        raise ConfigError(
            f"{said} is {printable(wanted)}, which is no Python: give the Python of an environment with OpenVLA's "
            f"releases, or the environment's folder ({PAGE})"
        )
    return python


def find_official_code(given: Path | None) -> Path | None:
    """The folder with OpenVLA's code, `given` or the variable's; None takes what its environment has installed."""
    named = os.environ.get(CODE_VARIABLE, "")
    return given or (Path(named) if named else None)


def require_official(model: ModelConfig) -> None:
    """Raise UserError for a model that OpenVLA's own code cannot build."""
    for name, tower, known in (
        ("dino", model.dino, OPENVLA_7B.dino),
        ("siglip", model.siglip, OPENVLA_7B.siglip),
    ):
        reason = ""
        if tower.stem_channels:
            reason = f"its tower {name} begins with convolutions"
        elif tower_parts(tower) != tower_parts(known):
            reason = f"its tower {name} has other parts: {tower_parts(tower)} instead of {tower_parts(known)}"
        if reason:
            raise UserError(
                f"OpenVLA's own code cannot build the model {model.name!r}: {reason}. It builds OpenVLA's architecture "
                "alone (DINOv2 and SigLIP towers of 14 px patches, Llama): leave `official` out"
            )


def ask_official(
    policy: OpenVLAPolicy,
    python: Path,
    code: Path | None,
    images: UInt8[Tensor, "N 3 S S"],
    prompts: Prompts,
    count: int,
    timeout: float,
) -> OfficialAnswers:
    """Greedy decisions of OpenVLA's own code with the policy's present weights, each row alone.

    python: of its environment. code: folder with OpenVLA's code; None takes what is installed there. count: tokens
    of a row. timeout: seconds that it may take. Raises UserError where it does not answer, and says why.
    """
    model = policy.description.model
    require_official(model)
    text = model.language.text_vocab
    request = Request(
        code="" if code is None else str(code.absolute()),
        towers=_tower_sizes(model),
        dtype=str(policy.model.dtype).removeprefix("torch."),
        cuda=policy.device.type == "cuda",
        count=count,
        first_action=text - model.action_bins,
        end_action=text,
    )
    with tempfile.TemporaryDirectory(prefix="vla-rl-official-") as name:
        folder = Path(name).absolute()
        _write_request(folder, policy, request, images, prompts)
        _run(python, folder, timeout)
        facts = read_json(folder / "facts.json", Facts, inside=folder)
        ids, log_probs, elsewhere = _read_answers(
            folder / "answers.npz", (len(images), count), request
        )
    return OfficialAnswers(ids, log_probs, elsewhere, bool(request.towers), facts)


def _write_request(
    folder: Path,
    policy: OpenVLAPolicy,
    request: Request,
    images: UInt8[Tensor, "N 3 S S"],
    prompts: Prompts,
) -> None:
    checkpoint = folder / "checkpoint"
    export_merged(policy, checkpoint, policy.model.dtype)
    # a checkpoint of ours says no more than we need to read it; Hugging Face's classes want it in their words
    config = _config(policy.description.model, request.dtype)
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    np.savez(
        folder / "pictures.npz",
        images=images.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        ids=prompts.ids.cpu().numpy(),
        lengths=np.asarray(prompts.lengths),
    )
    (folder / "request.json").write_text(json.dumps(asdict(request)), encoding="utf-8")


def _config(model: ModelConfig, dtype: str) -> dict[str, Any]:
    language = model.language
    return {
        **official_config(model, language.hidden // language.heads),
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "pad_to_multiple_of": language.padded_vocab - language.text_vocab,
        "pad_token_id": language.pad_token,
        "torch_dtype": dtype,
        "norm_stats": {},
    }


def _tower_sizes(model: ModelConfig) -> dict[str, dict[str, float]]:
    """Arguments of timm.create_model for towers of other sizes than openvla-7b's."""

    def sizes(tower: VisionTowerConfig) -> dict[str, float]:
        return {
            "embed_dim": tower.width,
            "depth": tower.depth,
            "num_heads": tower.heads,
            # timm takes the whole part of width times ratio
            "mlp_ratio": (tower.mlp_width + 0.5) / tower.width,
        }

    pairs = ((model.dino, OPENVLA_7B.dino), (model.siglip, OPENVLA_7B.siglip))
    return {
        name: sizes(tower)
        for name, (tower, known) in zip(OFFICIAL_TOWERS, pairs, strict=True)
        if sizes(tower) != sizes(known)
    }


def _run(python: Path, folder: Path, timeout: float) -> None:
    """Run the child to its end. Raises UserError where there are no answers then."""
    log = folder / "log"
    code = _wait(python, folder, log, timeout)
    if (folder / "error.json").is_file():
        refusal = read_json(folder / "error.json", _Refusal, inside=folder)
        raise UserError(
            f"OpenVLA's own code ({python}) gave no answers: {printable(refusal.error)}. {_REMEDIES[refusal.fault]}"
        )
    if code == 0 and (folder / "facts.json").is_file():
        return
    how = f"it ended with exit code {code}"
    if code < 0:
        how = f"it was ended by {name_of(-code)}"
        if code == -signal.SIGKILL:
            how += ", as a machine without memory left does"
    raise UserError(f"OpenVLA's own code ({python}) gave no answers: {how}. {last_words(log)}")


_REMEDIES = {
    "environment": f"--official-python names the Python of an environment with OpenVLA's releases; {PAGE}",
    "code": "--official-code names a folder with OpenVLA's code; docs/engines.md says which",
    "checkpoint": "Leave `official` out",
    "memory": "--dtype bfloat16 halves what it needs",
}


def _wait(python: Path, folder: Path, log: Path, timeout: float) -> int:
    # its own view of the world: neither our paths nor the hub, and what it leaves goes with the folder
    environment: Mapping[str, str] = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "TMPDIR": str(folder),
    }
    words = [str(Path(__file__).resolve().with_name("official_program.py")), str(folder)]
    try:
        with log.open("wb") as out:
            process = start_program(
                _PROGRAM.format(words=words),
                options=("-E",),
                python=python,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=folder,
                env=dict(environment),
            )
    except OSError as error:
        raise ConfigError(f"{python} cannot be started: {error.strerror}") from error
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"OpenVLA's own code ({python}) did not answer within {timeout:g} s: give it more with --timeout, or "
            "fewer --observations"
        ) from error
    finally:
        with suppress(ProcessLookupError, PermissionError):  # it leads a group of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_answers(
    path: Path, shape: tuple[int, int], request: Request
) -> tuple[Tensor, Tensor, int]:
    """Ids, log-probs and how often the likeliest was no action. Raises UserError for other answers than asked for."""
    source, todo = "the answers of OpenVLA's own code", "Run it again."
    names = ("ids", "log_probs", "elsewhere")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise fault(
            source, "", f"arrays {', '.join(names)}", Phrase(f"none ({error})"), todo
        ) from error
    ids, log_probs, elsewhere = (
        check_array(arrays[name], source=source, key=name, shape=shape, kinds=kinds, remedy=todo)
        for name, kinds in zip(names, ("iu", "f", "b"), strict=True)
    )
    if ids.min() < request.first_action or ids.max() >= request.end_action:
        wanted = f"ids of actions, {request.first_action} to {request.end_action - 1}"
        raise fault(source, "ids", wanted, Phrase("others"), todo)
    return (
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(log_probs.astype(np.float32)),
        int(elsewhere.sum()),
    )
