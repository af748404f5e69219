"""Compare what engines decide for the same observations: `vla-rl certify CHECKPOINT`.

The measure of all is one teacher-forced pass of our own model: what the learner computes gradients from. An engine
passes if, for the tokens that it chose itself,

- greedily, each is the likeliest, or as good as the likeliest within the tolerance (a tie may fall either way);
- greedily and sampled, the log-probs that it reports are those of that pass within the tolerance.

`own` is our cached decoding, as `parallel.engine own` plays. `vllm` runs as a child in its own environment, as
`parallel.engine vllm` plays. `official` is OpenVLA's own code, greedily, as a child in an environment of its own; where
no such environment is named, its recorded answers, which come with recorded observations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from vla_rl import __version__
from vla_rl.config import ConfigError, PolicyConfig, UserError, nearest
from vla_rl.envs.registry import benchmark
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.processing import pixel_values
from vla_rl.policies.prompts import Prompts
from vla_rl.policies.registry import load_policy
from vla_rl.recipes.recorded import Recorded, read_recorded
from vla_rl.runtime.files import require_writable, write_json
from vla_rl.runtime.locate import locate_policy
from vla_rl.serving.backend import Question
from vla_rl.serving.hosting import HostedEngine
from vla_rl.serving.official import (
    PAGE,
    PYTHON_VARIABLE,
    OfficialAnswers,
    ask_official,
    find_official_code,
    find_official_python,
    require_official,
)
from vla_rl.serving.own import OwnBackend
from vla_rl.serving.process import engine_python as find_vllm_python
from vla_rl.serving.staging import require_served

ENGINES = ("own", "vllm", "official")
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of a log-prob. Measured in float32: 2e-5. In bfloat16 the order of sums alone moves it by some hundredths."""
OFFICIAL_IN_BFLOAT16 = 0.5
"""Two codes that both round on the way, each as far from float32 (by 0.035 on average, at most 0.32 with random
weights): 0.4 was measured between them. It says that nothing is badly wrong; float32 says that both are the same."""
TIMEOUT = 1800.0
DEFAULT_SUITE = "libero-spatial"
FORMAT = 1
SAID_VERSIONS = ("transformers", "timm", "torch")


@dataclass(frozen=True)
class Answers:
    """What one engine decided: tokens as bins, and its own log-probs."""

    tokens: Int64[Tensor, "N K"]
    log_probs: Float32[Tensor, "N K"]
    temperature: float
    """At which it sampled; 0 greedily, with log-probs of temperature 1."""


@dataclass(frozen=True)
class Environments:
    """Where the engines run that are not part of this process."""

    vllm: Path | None
    """vLLM's Python; None unless it is compared."""
    official: Path | None
    """The Python for OpenVLA's own code; None takes recorded answers."""
    code: Path | None
    """Folder with OpenVLA's own code; None takes what is installed there."""
    timeout: float
    """Seconds that one may take."""


def certify(
    checkpoint: Path,
    engines: str,
    observations: str,
    suite: str,
    temperature: float,
    tolerance: float,
    dtype: Literal["auto", "float32", "bfloat16"],
    unnorm_key: str,
    base: str,
    engine_python: str,
    seed: int,
    json: Path | None,
    official_python: str = "",
    official_code: Path | None = None,
    timeout: float = TIMEOUT,
) -> dict[str, Any]:
    """The comparison as JSON; "passed" says whether all engines are within the tolerance.

    Raises UserError for a policy that cannot be read or is not served, observations that do not fit, and an engine
    that is not there or does not answer.
    """
    names = _chosen(engines)
    _require_used(names, official_python, official_code)
    if json is not None:
        require_writable(json, "file", ".json")
    folder, env = locate_policy(checkpoint)
    policy = _load(
        folder, PolicyConfig(checkpoint=str(folder), base=base, unnorm_key=unnorm_key, dtype=dtype)
    )
    places = Environments(
        _vllm(policy, engine_python) if "vllm" in names else None,
        _official(policy, official_python) if "official" in names else None,
        find_official_code(official_code),
        timeout,
    )
    spoken = suite or (DEFAULT_SUITE if env is None else env.suite)
    seen = _observations(policy, observations, spoken, seed)
    if "official" in names and places.official is None and seen.tokens is None:
        raise _no_answers(observations)
    given, official = _all_answers(policy, seen, names, temperature, seed, places)
    result = {
        "format": FORMAT,
        "checkpoint": str(checkpoint),
        "observations": len(seen.images),
        **_computed_with(policy),
        **_verdict(policy, seen, given, tolerance, places),
        **({} if official is None else {"official": official}),
    }
    if json is not None:
        write_json(json, result)
    return result


def _verdict(
    policy: OpenVLAPolicy,
    seen: Recorded,
    given: dict[str, list[Answers]],
    tolerance: float,
    places: Environments,
) -> dict[str, Any]:
    """How each engine's answers compare, and whether all are within the tolerance; 0 takes each engine's own."""
    allowed = {name: tolerance or _tolerance(name, policy.model.dtype, places) for name in given}
    results = {
        name: [_judged(policy, seen, row, allowed[name]) for row in rows]
        for name, rows in given.items()
    }
    return {
        "tolerance": tolerance or TOLERANCES[policy.model.dtype],
        "engines": results,
        "passed": all(row["passed"] for rows in results.values() for row in rows),
    }


def format_result(result: dict[str, Any]) -> str:
    """The result as a table."""
    head = (
        f"{'engine':<10}{'at T':>6}{'tokens':>8}{'likeliest':>11}{'ties':>6}{'max difference':>16}"
        f"{'tolerance':>11}   within"
    )
    lines = [
        f"{result['observations']} observations, {result['dtype']} on {result['device']}; log-probs against our own "
        "model's",
        head,
    ]
    for name, rows in result["engines"].items():
        for row in rows:
            greedy = row["temperature"] == 0
            likeliest = str(row["likeliest"]) if greedy else "-"
            ties = str(row["ties"]) if greedy else "-"
            difference = f"{row['max_difference']:.1e}"
            lines.append(
                f"{name:<10}{row['temperature']:>6g}{row['tokens']:>8}{likeliest:>11}{ties:>6}{difference:>16}{row['tolerance']:>11g}"
                f"   {'yes' if row['passed'] else 'NO'}"
            )
    lines += _official_lines(result.get("official"))
    return "\n".join([*lines, "passed" if result["passed"] else "NOT passed"])


def _tolerance(engine: str, dtype: torch.dtype, places: Environments) -> float:
    live = engine == "official" and places.official is not None
    if live and dtype == torch.bfloat16:
        return OFFICIAL_IN_BFLOAT16
    return TOLERANCES[dtype]


def _official_lines(found: dict[str, Any] | None) -> list[str]:
    """Which answers of OpenVLA's own code were compared."""
    if found is None:
        return []
    if "recorded" in found:
        return [f"official: recorded answers, in {found['recorded']}"]
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in SAID_VERSIONS)
    lines = [
        f"official: {found['code']} with {versions}, on {found['device']}, attention {found['attention']}"
    ]
    if found["resized_towers"]:
        lines.append(
            "official: its vision towers were built in this checkpoint's sizes; by itself it knows openvla-7b's alone"
        )
    if found["dtype"] == "bfloat16":
        lines.append(
            "official: in bfloat16 either code rounds on its own way; --dtype float32 compares closely"
        )
    if found["not_actions"]:
        lines.append(
            f"official: at {found['not_actions']} tokens the likeliest id of all is no action's; the likeliest action "
            "was taken, as all engines here do"
        )
    return lines


def _chosen(engines: str) -> list[str]:
    names = [name.strip() for name in engines.split(",") if name.strip()]
    for name in names:
        if name not in ENGINES:
            raise ConfigError(
                f"--engines: there is no engine {name!r}, expected some of {', '.join(ENGINES)}."
                f"{nearest(name, ENGINES)}"
            )
    if not names:
        raise ConfigError(f"--engines is empty: expected some of {', '.join(ENGINES)}")
    return list(dict.fromkeys(names))


def _require_used(names: list[str], official_python: str, official_code: Path | None) -> None:
    """Raise ConfigError for options of an engine that is not asked for."""
    if "official" not in names and (official_python or official_code is not None):
        raise ConfigError(
            f"--official-python and --official-code are for the engine `official`, and --engines is {','.join(names)}: "
            f"write --engines {','.join(names)},official, or leave them out"
        )


def _computed_with(policy: OpenVLAPolicy) -> dict[str, Any]:
    return {
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "device": str(policy.device),
        "versions": {"vla-rl": __version__, "torch": torch.__version__},
    }


def _load(folder: Path, settings: PolicyConfig) -> OpenVLAPolicy:
    policy = load_policy(folder, settings)
    if not isinstance(policy, OpenVLAPolicy) or policy.kind != OpenVLA.kind:
        raise UserError(
            f"{folder} is a policy of type {policy.kind!r}; engines serve OpenVLA's class alone"
        )
    if policy.turn_actions.end_token is not None:
        raise UserError(
            f"{folder} writes FAST tokens, turns of which end where they may; engines decide a fixed number of tokens"
        )
    return policy


def _vllm(policy: OpenVLAPolicy, given: str) -> Path:
    require_served(policy.description.model)
    return find_vllm_python(given)


def _official(policy: OpenVLAPolicy, given: str) -> Path | None:
    """The Python for OpenVLA's own code; None takes recorded answers."""
    python = find_official_python(given)
    if python is not None:
        require_official(policy.description.model)
    return python


def _no_answers(observations: str) -> UserError:
    """For `official` with neither a Python for OpenVLA's own code nor a recorded answer."""
    what = "a picture of noise has" if observations.isdecimal() else f"{observations} holds"
    return UserError(
        f"{what} no answers of OpenVLA's own code: give the Python of an environment that runs it, as "
        f"--official-python or in {PYTHON_VARIABLE} ({PAGE}), or give their file as --observations FILE.npz, or leave "
        "`official` out"
    )


def _observations(policy: OpenVLAPolicy, wanted: str, suite: str, seed: int) -> Recorded:
    """Recorded observations from a file, or as many pictures of noise with a suite's instructions."""
    model = policy.description.model
    if not wanted.isdecimal():
        return read_recorded(Path(wanted), model)
    count = int(wanted)
    if not 1 <= count <= 4096:
        raise ConfigError(
            f"--observations: expected 1 to 4096 of them, or an .npz file, got {wanted}"
        )
    instructions = benchmark(suite).instructions(suite)
    rng = np.random.default_rng(seed)
    size = model.image_size
    images: UInt8[np.ndarray, "N S S 3"] = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    texts = [instructions[i % len(instructions)] for i in range(count)]
    prompts = policy.processor.prompts(texts, torch.device("cpu"))
    return Recorded(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), prompts)


def _all_answers(
    policy: OpenVLAPolicy,
    seen: Recorded,
    names: Sequence[str],
    temperature: float,
    seed: int,
    places: Environments,
) -> tuple[dict[str, list[Answers]], dict[str, Any] | None]:
    """What each engine decides, greedily and sampled; and what `official` was."""
    prompts = [
        row[:length].tolist()
        for row, length in zip(seen.prompts.ids, seen.prompts.lengths.tolist(), strict=True)
    ]
    seeds = np.random.default_rng(seed).integers(0, 2**62, len(prompts)).tolist()
    count = policy.num_tokens if seen.tokens is None else seen.tokens.shape[1]
    questions = [
        Question(seen.images, prompts, seeds, count, degree) for degree in (0.0, temperature)
    ]
    vocabulary = policy.description.model.language.text_vocab

    def as_answers(ids: Tensor, log_probs: Tensor, degree: float) -> Answers:
        return Answers(vocabulary - 1 - ids, log_probs, degree)

    found: dict[str, list[Answers]] = {}
    official: dict[str, Any] | None = None
    for name in names:
        if name == "official":
            ids, log_probs, official = _official_answers(policy, seen, count, places)
            found[name] = [as_answers(ids, log_probs, 0.0)]
            continue
        if name == "own":
            own = OwnBackend(policy)
            answers = [own.act(question) for question in questions]
        else:
            answers = _vllm_answers(policy, seen, questions, places)
        found[name] = [
            as_answers(*answer, question.temperature)
            for question, answer in zip(questions, answers, strict=True)
        ]
    return found, official


def _official_answers(
    policy: OpenVLAPolicy, seen: Recorded, count: int, places: Environments
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Ids and log-probs of OpenVLA's own code, asked now or recorded; and which."""
    if places.official is None:
        assert seen.tokens is not None
        assert seen.log_probs is not None
        return seen.tokens, seen.log_probs, {"recorded": str(seen.source)}
    told = ask_official(
        policy, places.official, places.code, seen.images, seen.prompts, count, places.timeout
    )
    return told.ids, told.log_probs, _as_json(told, str(policy.model.dtype).removeprefix("torch."))


def _as_json(told: OfficialAnswers, dtype: str) -> dict[str, Any]:
    return {
        **asdict(told.facts),
        "dtype": dtype,
        "resized_towers": told.resized,
        "not_actions": told.not_actions,
    }


def _vllm_answers(
    policy: OpenVLAPolicy, seen: Recorded, questions: Sequence[Question], places: Environments
) -> list[tuple[Tensor, Tensor]]:
    assert places.vllm is not None
    lengths = torch.from_numpy(seen.prompts.lengths)
    with (
        tempfile.TemporaryDirectory(prefix="vla-rl-engine-") as folder,
        HostedEngine(policy, places.vllm, Path(folder), places.timeout) as engine,
    ):
        return [
            engine.client.act(
                q.images, seen.prompts.ids, lengths, torch.tensor(q.seeds), q.count, q.temperature
            )
            for q in questions
        ]


@torch.no_grad()
def _judged(
    policy: OpenVLAPolicy, seen: Recorded, answers: Answers, tolerance: float
) -> dict[str, Any]:
    """One engine's answers beside our model's teacher-forced pass on the tokens that it chose."""
    device, rows = policy.device, len(answers.tokens)
    best = torch.empty(answers.tokens.shape)
    told = torch.empty(answers.tokens.shape)
    for row in range(rows):  # alone, as nothing else in a batch should matter
        length = int(seen.prompts.lengths[row])
        ids = seen.prompts.ids[row : row + 1, :length].to(device)
        raw = seen.images[row : row + 1].to(device).float().contiguous()
        pixels = pixel_values(raw, policy.description.model)
        tokens = answers.tokens[row : row + 1].to(device)
        logits, _ = policy.model(pixels, Prompts(ids, np.array([length])), tokens)
        log_probs = torch.log_softmax(logits.float() / (answers.temperature or 1.0), -1)
        best[row] = log_probs.amax(-1)[0].cpu()
        told[row] = log_probs.gather(-1, tokens[..., None])[0, :, 0].cpu()
    behind = best - told
    difference = (answers.log_probs - told).abs()
    agrees = bool((difference <= tolerance).all())
    greedy = answers.temperature == 0
    return {
        "temperature": answers.temperature,
        "tolerance": tolerance,
        "tokens": answers.tokens.numel(),
        "likeliest": int((behind == 0).sum()),
        "ties": int(((behind > 0) & (behind <= tolerance)).sum()),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "passed": agrees and (not greedy or bool((behind <= tolerance).all())),
    }
