"""A FAST action tokenizer on disk, in the layout of the published processor physical-intelligence/fast.

    tokenizer.json          the byte-pair codes, as the library tokenizers writes them
    processor_config.json   scale, min_token, vocab_size, time_horizon, action_dim
    tokenizer_config.json   for transformers; not read

Published folders load; their Python file is not read, and nothing is run. What is in such a file decides what a robot
does, so that whatever could change a text on its way (a normaliser, tokens outside the codes, dropout) is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from tokenizers import Tokenizer

from vla_rl.config.errors import UserError
from vla_rl.policies.fast.tokenizer import FastTokenizer
from vla_rl.runtime.external import Phrase, fault, parse_json, read_bytes, read_json
from vla_rl.runtime.files import write_json

CODES_FILE, PROCESSOR_FILE = "tokenizer.json", "processor_config.json"
MOST_BYTES = 16 * 2**20
MOST_CODES = 2**16
REMEDY = "Fit a new tokenizer, or copy this one again."
_Size = Annotated[int, Ge(1), Le(1024)]


@dataclass(frozen=True)
class _Processor:
    scale: Annotated[float, Gt(0), Le(1e6)] = 10.0
    vocab_size: Annotated[int, Ge(1), Le(MOST_CODES)] = 1024
    min_token: Annotated[int, Ge(-(10**6)), Le(10**6)] = 0
    time_horizon: _Size | None = None
    action_dim: _Size | None = None


@dataclass(frozen=True)
class _Model:
    type: str
    vocab: dict[str, int]
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False


@dataclass(frozen=True)
class _Codes:
    """What tokenizer.json must say; the merges are for the library that reads it."""

    model: _Model
    added_tokens: list[dict[str, Any]] = field(default_factory=list)
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


def save_fast(tokenizer: FastTokenizer, folder: Path) -> None:
    """Write a tokenizer that `load_fast` reads to the same codes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.codes.save(str(folder / CODES_FILE))
    write_json(
        folder / PROCESSOR_FILE,
        {
            "processor_class": "UniversalActionProcessor",
            "scale": tokenizer.scale,
            "min_token": tokenizer.min_token,
            "vocab_size": tokenizer.vocabulary,
            "time_horizon": tokenizer.horizon,
            "action_dim": tokenizer.action_dim,
        },
    )
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", kind)


def load_fast(folder: Path, horizon: int = 0, action_dim: int = 0) -> FastTokenizer:
    """Read a tokenizer, ours or a published one.

    horizon, action_dim: the chunk that it is to write, where the folder does not say (published ones fit any); 0: it
    must say. Raises UserError for files that are missing, damaged or of another kind, and for a chunk that is not the
    folder's.
    """
    config = read_json(folder / PROCESSOR_FILE, _Processor, inside=folder, remedy=REMEDY)
    source = folder / PROCESSOR_FILE
    sizes = []
    for name, stored, asked in (
        ("time_horizon", config.time_horizon, horizon),
        ("action_dim", config.action_dim, action_dim),
    ):
        if asked and stored not in (None, asked):
            raise fault(source, name, f"{asked}, as is played", stored, REMEDY)
        if not (stored or asked):
            raise fault(source, name, "a whole number", None, REMEDY)
        sizes.append(stored or asked)
    codes = _read_codes(folder / CODES_FILE, config.vocab_size)
    try:
        return FastTokenizer(codes, config.scale, config.min_token, *sizes)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def _read_codes(path: Path, most: int) -> Tokenizer:
    data = read_bytes(path, inside=path.parent, max_bytes=MOST_BYTES, remedy=REMEDY)
    said = parse_json(data, _Codes, source=path, remedy=REMEDY)
    _check(said, path, most)
    try:
        codes = Tokenizer.from_buffer(data)
    except BaseException as error:
        # the library raises plain Exception, and a panic of its own is no Exception at all
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise fault(
            path,
            "",
            "a tokenizer.json",
            Phrase(f"one that cannot be read ({str(error)[:200]})"),
            REMEDY,
        ) from None
    codes.no_truncation()
    codes.no_padding()
    return codes


def _check(said: _Codes, path: Path, most: int) -> None:
    """Raise UserError for whatever is not plain byte-pair coding with the ids 0..V-1."""
    model = said.model
    if model.type != "BPE":
        raise fault(path, "model.type", "'BPE'", model.type, REMEDY)
    if not 1 <= len(model.vocab) <= most:
        found = Phrase(f"{len(model.vocab)} codes")
        raise fault(
            path, "model.vocab", f"1 to {most} codes, as {PROCESSOR_FILE} says", found, REMEDY
        )
    if sorted(model.vocab.values()) != list(range(len(model.vocab))):
        raise fault(path, "model.vocab", "ids from 0 on, each once", Phrase("others"), REMEDY)
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(model, name):
            raise fault(path, f"model.{name}", "nothing", getattr(model, name), REMEDY)
    if model.byte_fallback:
        raise fault(path, "model.byte_fallback", "false", True, REMEDY)
    if said.added_tokens:
        found = Phrase(f"{len(said.added_tokens)}")
        raise fault(path, "added_tokens", "none", found, REMEDY)
    for name, allowed in (
        ("normalizer", (None,)),
        ("pre_tokenizer", (None, "ByteLevel")),
        ("post_processor", (None, "ByteLevel")),
        ("decoder", ("Fuse", "ByteLevel")),
    ):
        part = getattr(said, name)
        kind = None if part is None else str(part.get("type"))
        if kind not in allowed:
            expected = " or ".join("nothing" if k is None else repr(k) for k in allowed)
            raise fault(path, name, expected, kind, REMEDY)
    if (said.pre_tokenizer or {}).get("add_prefix_space"):
        raise fault(path, "pre_tokenizer.add_prefix_space", "false", True, REMEDY)
