"""Text tokenizers: the checkpoint's own `tokenizer.json`, or a small one built from a suite's instructions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import ModelConfig
from vla_rl.runtime.external import MAX_JSON_BYTES, parse_json, read_bytes

T = TypeVar("T")

BLANK = "\u2581"
SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2 as in Llama's vocabulary
BYTES = 256


def build_tiny_tokenizer(instructions: Sequence[str], model: ModelConfig) -> Tokenizer:
    """A tokenizer whose vocabulary is the words of these instructions, with bytes for everything else.

    Unigram with byte fallback, as SentencePiece models are: ids 0..2 are special, 3..258 the bytes, then the
    fixed parts of the prompt template, the blank and the words, most frequent first. Any text can be encoded; a
    prompt made of known words takes one token a word and two for the template. Deterministic in the set of
    instructions.

    Raises UserError if the text vocabulary leaves no room beside the action tokens.
    """
    room = model.language.text_vocab - model.action_bins - len(SPECIAL) - BYTES
    template = [part.strip(" ") for part in model.prompt.split("{instruction}")]
    pieces = [BLANK + template[0].replace(" ", BLANK)] if template[0] else []
    pieces += [template[1].replace(" ", BLANK)] if template[1] else []
    if room <= len(pieces):
        raise UserError(
            f"text_vocab {model.language.text_vocab} is too small: {model.action_bins} action tokens, {BYTES} bytes, "
            f"{len(SPECIAL)} special tokens and the prompt template need "
            f"{model.language.text_vocab - room + len(pieces) + 1}"
        )
    words = Counter(
        BLANK + word for text in sorted(set(instructions)) for word in text.lower().split()
    )
    ranked = sorted(words, key=lambda word: (-words[word], word))
    pieces = list(dict.fromkeys([*pieces, BLANK, *ranked]))[:room]
    # a longer known piece always beats a chain of shorter ones: every piece costs the same
    cost = -math.log(len(pieces) + 1)
    vocabulary = [(token, 0.0) for token in SPECIAL]
    vocabulary += [(f"<0x{byte:02X}>", 10 * cost) for byte in range(BYTES)]
    vocabulary += [(piece, cost) for piece in pieces]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(BLANK, prepend_scheme="first")]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    bos = model.language.bos_token
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return tokenizer


@dataclass(frozen=True)
class _TokenizerFile:
    """What every tokenizer.json has; the rest is for the library that reads it."""

    model: dict[str, Any]
    added_tokens: list[dict[str, Any]] = field(default_factory=list)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`. Raises UserError if it is missing or damaged.

    Truncation and padding, which other programs may have switched on when they saved it, are switched off: a prompt is
    read whole, and is padded here.
    """
    if not path.is_file():
        raise UserError(f"No tokenizer at {path}: the checkpoint needs its tokenizer.json")
    data = read_bytes(path, inside=path.parent, max_bytes=MAX_JSON_BYTES)
    parse_json(data, _TokenizerFile, source=path, finite=False)
    tokenizer = _attempt(
        lambda: Tokenizer.from_buffer(data), f"{path} is not a readable tokenizer.json"
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text`. Raises UserError where a damaged tokenizer cannot say them."""
    return _attempt(
        lambda: list(tokenizer.encode(text).ids), f"the tokenizer cannot encode {text!r:.80}"
    )


def _attempt(act: Callable[[], T], what: str) -> T:
    try:
        return act()
    except BaseException as error:
        # the library raises plain Exception, and a panic of its own is no Exception at all
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{what} ({reason}): copy the checkpoint's tokenizer.json again") from None
