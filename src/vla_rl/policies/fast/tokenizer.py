"""The FAST action tokenizer: cosine transform, quantisation and byte-pair coding of a chunk of actions.

    chunk      [H, D] normalised actions, in -1..1
    transform  X = DCT-II of each dimension over the H steps, orthonormal
    quantise   q = round(scale X), whole numbers
    flatten    all dimensions of the lowest frequency first, then those of the next: H D numbers
    characters one for each number, chr(q - min_token)
    tokens     byte-pair codes of that text, ids 0..vocabulary-1; a chunk that moves little takes few

Source: Pertsch et al. 2025 (arXiv:2501.09747, section 5 and algorithm 1); the text between numbers and codes, and the
rounding, are those of the published processor physical-intelligence/fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64, Int64
from tokenizers import Tokenizer, decoders, models, trainers

from vla_rl.config.errors import UserError
from vla_rl.runtime.extras import need

MOST_CHARACTERS = 0xD800
"""Above this number there are characters that no text may hold."""
LARGEST_SCALE = 1e6
MOST_NUMBERS = 2**16
"""Of a chunk: H times D."""


class FastTokenizer:
    """Chunks of H actions with D numbers each to codes of variable number, and back.

    The byte-pair codes are a `tokenizers.Tokenizer`, whose every text is one of the characters above. See `files.py`
    for where it is stored.
    """

    def __init__(
        self, codes: Tokenizer, scale: float, min_token: int, horizon: int, action_dim: int
    ) -> None:
        """min_token: the quantised number that the character 0 stands for. horizon: H. action_dim: D.

        Raises UserError for a chunk of no or of too many numbers, and where the codes have no character to write in.
        """
        if not 1 <= horizon * action_dim <= MOST_NUMBERS:
            raise UserError(
                f"FAST writes chunks of 1 to {MOST_NUMBERS} numbers, got {horizon} actions of size {action_dim}"
            )
        self.codes, self.scale, self.min_token = codes, float(scale), int(min_token)
        self.horizon, self.action_dim = horizon, action_dim
        if not len(self._characters):
            raise UserError(
                "the codes of this action tokenizer can write no number: its tokenizer.json belongs to something else"
            )

    @property
    def vocabulary(self) -> int:
        """V, how many codes there are."""
        return self.codes.get_vocab_size()

    @cached_property
    def _characters(self) -> Int64[np.ndarray, " n"]:
        """Numbers of the characters that the codes can write and read back, rising.

        Published vocabularies are of bytes: a character that no demonstration had may be left out without a word.
        """
        most = min(MOST_CHARACTERS, max(256, 2 * self.vocabulary))
        texts = [chr(i) for i in range(most)]
        written = self.codes.encode_batch(texts, add_special_tokens=False)
        read = self._texts([row.ids for row in written])
        return np.array([i for i, text in enumerate(read) if text == texts[i]], np.int64)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(map(chr, self._characters.tolist()))

    def transform(self, chunks: Float[np.ndarray, "N H D"]) -> Int64[np.ndarray, "N H D"]:
        """Quantised cosine transform of normalised actions; axis 1 is then frequency, lowest first.

        Raises UserError for chunks of another shape, and for actions that are not finite.
        """
        if chunks.shape[1:] != (self.horizon, self.action_dim):
            raise UserError(
                f"this action tokenizer writes {self.horizon} actions of size {self.action_dim} a turn, got actions of "
                f"shape {tuple(chunks.shape)}: fit one to the chunk and the robot that are played"
            )
        return quantised(chunks, self.scale)

    def encode(self, chunks: Float[np.ndarray, "N H D"]) -> list[Int64[np.ndarray, " n"]]:
        """The codes of each chunk of normalised actions, 0..V-1.

        A number that the tokenizer has no character for becomes the nearest that it has, see `outside`.
        """
        flat = self.transform(chunks).reshape(len(chunks), -1) - self.min_token
        texts = ["".join(map(chr, row)) for row in self._nearest(flat).tolist()]
        rows = self.codes.encode_batch(texts, add_special_tokens=False)
        return [np.array(row.ids, np.int64) for row in rows]

    def outside(self, chunks: Float[np.ndarray, "N H D"]) -> int:
        """How many numbers of these chunks have no character of their own: they come back changed."""
        flat = self.transform(chunks).reshape(len(chunks), -1) - self.min_token
        return int((self._nearest(flat) != flat).sum())

    def _nearest(self, numbers: Int64[np.ndarray, "N n"]) -> Int64[np.ndarray, "N n"]:
        known = self._characters
        above = np.searchsorted(known, numbers).clip(0, len(known) - 1)
        below = (above - 1).clip(0)
        nearer = np.abs(known[below] - numbers) < np.abs(known[above] - numbers)
        return np.where(nearer, known[below], known[above])

    def decode(self, codes: Sequence[int]) -> Float64[np.ndarray, "H D"] | None:
        """Normalised actions of one chunk's codes, not clipped; None where these codes mean no chunk.

        They mean one if they spell exactly H D numbers.
        """
        return self.decode_batch([codes])[0]

    def decode_batch(
        self, rows: Sequence[Sequence[int] | np.ndarray]
    ) -> list[Float64[np.ndarray, "H D"] | None]:
        """`decode` of several chunks."""
        good = [all(0 <= code < self.vocabulary for code in row) for row in rows]
        texts = self._texts(
            [
                [int(code) for code in row] if fine else []
                for row, fine in zip(rows, good, strict=True)
            ]
        )
        whole = self.horizon * self.action_dim
        spelt = [i for i, t in enumerate(texts) if len(t) == whole and self._known.issuperset(t)]
        numbers = np.array([[ord(c) for c in texts[i]] for i in spelt], np.float64) + self.min_token
        found: list[Float64[np.ndarray, "H D"] | None] = [None] * len(texts)
        shape = (len(spelt), self.horizon, self.action_dim)
        for i, chunk in zip(spelt, _idct(numbers.reshape(shape) / self.scale), strict=True):
            found[i] = chunk
        return found

    def _texts(self, rows: list[list[int]]) -> list[str]:
        return self.codes.decode_batch(rows, skip_special_tokens=False)


def fit(
    chunks: Float[np.ndarray, "N H D"], vocabulary: int = 1024, scale: float = 10.0
) -> FastTokenizer:
    """Learn the byte-pair codes of these chunks of normalised actions; the same chunks, the same codes.

    vocabulary: codes there may be; fewer where the data have no more pairs. scale: by which the transform is
    multiplied before it is rounded: a larger one is finer, and takes more codes. The defaults are the paper's. Every
    whole number between the least and the largest that occur has a code of its own.

    Raises UserError without chunks, for actions that are not finite, and where the vocabulary has no room for the
    numbers alone.
    """
    if not 0 < scale <= LARGEST_SCALE:
        raise UserError(
            f"the scale of FAST lies above 0 and at most at {LARGEST_SCALE:g}, got {scale:g}"
        )
    if not len(chunks):
        raise UserError("FAST needs demonstrations to learn its codes from, and there is no chunk")
    numbers = quantised(chunks, scale).reshape(len(chunks), -1)
    least, largest = int(numbers.min()), int(numbers.max())
    alphabet = largest - least + 1
    if alphabet > min(vocabulary, MOST_CHARACTERS):
        raise UserError(
            f"FAST with scale {scale:g} writes these actions in the whole numbers {least}..{largest}, each a code: the "
            f"vocabulary needs at least {alphabet}, got {vocabulary}. Raise it, or lower the scale"
        )
    codes = Tokenizer(models.BPE())
    codes.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=[chr(i) for i in range(alphabet)],
    )
    texts = ("".join(map(chr, row)) for row in (numbers - least).tolist())
    codes.train_from_iterator(texts, trainer=trainer)
    return FastTokenizer(codes, scale, least, chunks.shape[1], chunks.shape[2])


def quantised(chunks: Float[np.ndarray, "N H D"], scale: float) -> Int64[np.ndarray, "N H D"]:
    """Whole numbers of the cosine transform over axis 1. UserError for actions that are not finite."""
    if not np.isfinite(chunks).all():
        raise UserError("expected finite actions, got NaN or infinity: mend the demonstrations")
    need("scipy", purpose="FAST")
    from scipy.fft import dct

    transformed = np.asarray(dct(chunks.astype(np.float64), axis=1, norm="ortho"))
    return np.around(transformed * scale).astype(np.int64)


def _idct(coefficients: Float64[np.ndarray, "N H D"]) -> Float64[np.ndarray, "N H D"]:
    need("scipy", purpose="FAST")
    from scipy.fft import idct

    return np.asarray(idct(coefficients, axis=1, norm="ortho"), np.float64)
