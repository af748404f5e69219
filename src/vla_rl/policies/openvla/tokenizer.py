"""Text tokenizers: the checkpoint's own `tokenizer.json`, or a small one built from a suite's instructions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import ModelConfig

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


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`. Raises UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"No tokenizer at {path}: the checkpoint needs its tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} is not a readable tokenizer.json ({error})") from None
