"""The FAST action tokenizer: known answers, round trips, and files that are not what they should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.fast import HORIZON, SIZE, smooth_moves
from vla_rl.config import UserError
from vla_rl.policies.fast.files import CODES_FILE, PROCESSOR_FILE, load_fast, save_fast
from vla_rl.policies.fast.tokenizer import FastTokenizer, fit


@pytest.fixture(scope="module")
def tokenizer() -> FastTokenizer:
    return fit(smooth_moves(), 60, 5.0)


@pytest.fixture(scope="module")
def saved(tokenizer: FastTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast")
    save_fast(tokenizer, folder)
    return folder


# -- known answers


def test_a_chunk_that_stands_still_has_one_frequency(tokenizer: FastTokenizer) -> None:
    """0.4 over 4 steps: 4 x 0.4 / sqrt(4) = 0.8, times the scale of 5 is 4."""
    chunk = np.tile([0.4, -0.4, 0.0, 0.8], (1, HORIZON, 1))
    expected = np.zeros((1, HORIZON, SIZE), np.int64)
    expected[0, 0] = [4, -4, 0, 8]
    np.testing.assert_array_equal(tokenizer.transform(chunk), expected)


def test_one_turn_from_plus_to_minus() -> None:
    """Two steps 1, -1: sqrt(2/2) (cos(pi/4) + cos(pi/4)) = sqrt(2), times 10 is 14; of the mean there is nothing."""
    chunk = np.array([[[1.0], [-1.0]]])
    two = fit(np.concatenate([chunk, -chunk]), 64, 10.0)
    np.testing.assert_array_equal(two.transform(chunk), [[[0], [14]]])
    back = two.decode(two.encode(chunk)[0].tolist())
    np.testing.assert_allclose(back, [[1.4 / 2**0.5], [-1.4 / 2**0.5]])


def test_the_lowest_frequency_of_all_dimensions_comes_first(tokenizer: FastTokenizer) -> None:
    """Codes of single numbers, written by hand: 4 in dimension 1 at frequency 0, 2 in dimension 3 at frequency 1."""
    numbers = [0, 4, 0, 0, 0, 0, 0, 2, *[0] * 8]
    vocabulary = tokenizer.codes.get_vocab()
    codes = [vocabulary[chr(number - tokenizer.min_token)] for number in numbers]
    chunk = tokenizer.decode(codes)
    assert chunk is not None
    np.testing.assert_allclose(chunk[:, 1], 4 / 5 / 2)
    wave = np.cos(np.pi * (2 * np.arange(4) + 1) / 8)
    np.testing.assert_allclose(chunk[:, 3], 2 / 5 * wave / 2**0.5)
    np.testing.assert_array_equal(chunk[:, [0, 2]], 0)


def test_the_same_demonstrations_the_same_codes(tokenizer: FastTokenizer) -> None:
    again = fit(smooth_moves(), 60, 5.0)
    assert again.codes.to_str() == tokenizer.codes.to_str()
    assert (again.min_token, again.vocabulary) == (tokenizer.min_token, tokenizer.vocabulary)


def test_moves_take_fewer_tokens_than_numbers(tokenizer: FastTokenizer) -> None:
    lengths = [len(row) for row in tokenizer.encode(smooth_moves())]
    assert np.mean(lengths) < 0.8 * HORIZON * SIZE
    assert min(lengths) < max(lengths)


# -- round trips


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), size=st.floats(0, 1))
def test_a_round_trip_errs_by_no_more_than_the_rounding(
    tokenizer: FastTokenizer, seed: int, size: float
) -> None:
    """Within what the codes were learned from. The transform keeps lengths: each number errs by 0.5 / scale at most."""
    chunk = size * smooth_moves(200, 0)[seed % 200][None]
    if tokenizer.outside(chunk):
        return
    (codes,) = tokenizer.encode(chunk)
    back = tokenizer.decode(codes.tolist())
    assert back is not None
    np.testing.assert_array_equal(tokenizer.transform(back[None]), tokenizer.transform(chunk))
    error = np.linalg.norm(back - chunk[0], axis=0)
    assert (error <= 0.5 / 5.0 * HORIZON**0.5 + 1e-9).all()
    (again,) = tokenizer.encode(back[None])
    np.testing.assert_array_equal(again, codes)


@settings(max_examples=60)
@given(codes=st.lists(st.integers(-3, 70), max_size=40))
def test_any_codes_mean_a_whole_chunk_or_none(tokenizer: FastTokenizer, codes: list[int]) -> None:
    found = tokenizer.decode(codes)
    words = {code: word for word, code in tokenizer.codes.get_vocab().items()}
    whole = all(code in words for code in codes)
    whole = whole and sum(len(words[code]) for code in codes) == HORIZON * SIZE
    assert (found is not None) == whole
    assert found is None or (found.shape == (HORIZON, SIZE) and np.isfinite(found).all())


def test_what_the_codes_cannot_write_becomes_the_nearest(tokenizer: FastTokenizer) -> None:
    far = np.full((1, HORIZON, SIZE), 100.0)
    assert tokenizer.outside(far) == SIZE
    back = tokenizer.decode(tokenizer.encode(far)[0].tolist())
    assert back is not None
    largest = tokenizer.transform(smooth_moves()).max()
    np.testing.assert_allclose(back, largest / 5 / 2)
    assert tokenizer.outside(smooth_moves()) == 0


@pytest.mark.parametrize(
    ("chunks", "vocabulary", "words"),
    [
        (np.zeros((0, 4, 4)), 60, "no chunk"),
        (np.full((3, 4, 4), np.nan), 60, "finite"),
        (smooth_moves(), 4, "vocabulary needs at least"),
    ],
)
def test_what_cannot_be_learned_from(chunks: np.ndarray, vocabulary: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit(chunks, vocabulary, 5.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_rounds_to_nothing_or_overflows_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="scale of FAST"):
        fit(smooth_moves(), 60, scale)


def test_another_chunk_is_refused(tokenizer: FastTokenizer) -> None:
    with pytest.raises(UserError, match="writes 4 actions of size 4"):
        tokenizer.encode(np.zeros((2, 8, 4)))


# -- files


def test_saved_and_read_it_writes_the_same(tokenizer: FastTokenizer, saved: Path) -> None:
    again = load_fast(saved)
    moves = smooth_moves(seed=3)[:50]
    for one, other in zip(tokenizer.encode(moves), again.encode(moves), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again.horizon, again.action_dim, again.scale) == (HORIZON, SIZE, 5.0)


def as_published(tokenizer: FastTokenizer, folder: Path) -> Path:
    """Codes of bytes, as the published processor learns them, that say nothing of the chunk."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.trainers import BpeTrainer

    codes = ByteLevelBPETokenizer()
    numbers = tokenizer.transform(smooth_moves()).reshape(200, -1) - tokenizer.min_token
    trainer = BpeTrainer(
        vocab_size=60,
        special_tokens=[],
        show_progress=False,
        initial_alphabet=[chr(i) for i in range(int(numbers.max()) + 1)],
    )
    codes._tokenizer.train_from_iterator(
        ("".join(map(chr, row)) for row in numbers.tolist()), trainer=trainer
    )
    folder.mkdir()
    codes.save(str(folder / CODES_FILE))
    said = {
        "action_dim": None,
        "auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"},
        "min_token": tokenizer.min_token,
        "processor_class": "UniversalActionProcessor",
        "scale": 5,
        "time_horizon": None,
        "vocab_size": 60,
    }
    (folder / PROCESSOR_FILE).write_text(json.dumps(said))
    (folder / "processing_action_tokenizer.py").write_text("raise SystemExit('this was run')")
    return folder


def test_the_published_layout_is_read(tokenizer: FastTokenizer, tmp_path: Path) -> None:
    published = load_fast(as_published(tokenizer, tmp_path / "published"), HORIZON, SIZE)
    moves = smooth_moves()[:50]
    assert published.outside(moves) == 0
    for chunk, found in zip(moves, published.decode_batch(published.encode(moves)), strict=True):
        assert found is not None
        np.testing.assert_array_equal(
            published.transform(found[None]), tokenizer.transform(chunk[None])
        )
    with pytest.raises(UserError, match="time_horizon"):
        load_fast(tmp_path / "published")


def test_transformers_reads_our_codes(tokenizer: FastTokenizer, saved: Path) -> None:
    """The class that the published processor keeps its codes in."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(saved / CODES_FILE), clean_up_tokenization_spaces=False
    )
    numbers = tokenizer.transform(smooth_moves()[:20]).reshape(20, -1) - tokenizer.min_token
    for row, codes in zip(numbers.tolist(), tokenizer.encode(smooth_moves()[:20]), strict=True):
        text = "".join(map(chr, row))
        assert theirs(text)["input_ids"] == codes.tolist()
        assert theirs.decode(codes.tolist()) == text


Change = Callable[[dict[str, Any]], object]
FAULTS: list[tuple[str, Change, str]] = [
    (CODES_FILE, lambda d: d["model"].update(type="Unigram"), "model.type"),
    (CODES_FILE, lambda d: d["model"].update(dropout=0.5), "model.dropout"),
    (CODES_FILE, lambda d: d["model"].update(unk_token="a"), "model.unk_token"),
    (CODES_FILE, lambda d: d["model"].update(byte_fallback=True), "byte_fallback"),
    (CODES_FILE, lambda d: d["model"].update(vocab={}), "codes"),
    (CODES_FILE, lambda d: d["model"]["vocab"].update({"\x00": 10**6}), "ids from 0 on"),
    (CODES_FILE, lambda d: d["model"].update(merges=[["no", "such"]]), "cannot be read"),
    (CODES_FILE, lambda d: d.update(normalizer={"type": "Lowercase"}), "normalizer"),
    (CODES_FILE, lambda d: d.update(decoder=None), "decoder"),
    (CODES_FILE, lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer"),
    (CODES_FILE, lambda d: d.update(added_tokens=[{"id": 0, "content": "a"}]), "added_tokens"),
    (CODES_FILE, lambda d: d.pop("model"), "model"),
    (PROCESSOR_FILE, lambda d: d.update(scale=0), "scale"),
    (PROCESSOR_FILE, lambda d: d.update(scale="10"), "scale"),
    (PROCESSOR_FILE, lambda d: d.update(min_token=2**40), "min_token"),
    (PROCESSOR_FILE, lambda d: d.update(vocab_size=3), "1 to 3 codes"),
    (PROCESSOR_FILE, lambda d: d.update(action_dim=7), "action_dim"),
    (PROCESSOR_FILE, lambda d: d.update(time_horizon=0), "time_horizon"),
]


@pytest.mark.parametrize(("name", "change", "words"), FAULTS)
def test_files_of_another_kind_are_refused_by_name(
    saved: Path, tmp_path: Path, name: str, change: Change, words: str
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    said = json.loads((folder / name).read_text())
    change(said)
    (folder / name).write_text(json.dumps(said))
    with pytest.raises(UserError, match=words) as caught:
        load_fast(folder, HORIZON, SIZE)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", [CODES_FILE, PROCESSOR_FILE])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", None])
def test_damaged_and_missing_files(
    saved: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_fast(folder, HORIZON, SIZE)
