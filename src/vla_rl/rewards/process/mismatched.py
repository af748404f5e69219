"""Which images can be shown under another task's instruction as negatives.

A reward model that has never seen an instruction denied looks at the image alone. So some of its negatives are images
of one task under the instruction of another. They must not contradict what the other task teaches as positive: an
episode of "open the drawer" begins where "close the drawer" ends, and whoever grasps the bowl to put it on the stove
looks like somebody who is about to put it on the plate.

What instructions speak of decides. Their objects are their words without the verbs (the first word, and those after
"and" and "then") and without function words such as articles, prepositions and sides:

    objects of the two instructions               images of the one under the other
    have nothing in common                        all
    have something in common, both have more      those at the end of a success: its own goal is reached, another is not
    one has all that the other has                none: open and close the drawer; push the puck, pick up the puck

In doubt an image is left out: words that are no objects make fewer pairs, never wrong ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vla_rl.rewards.process.examples import Examples, Rows

_FUNCTION_WORDS = """
    a an the this that these those it its them one both all of in on at to into onto inside out from off under
    underneath over above below behind beside between next near by with without around across through against
    and or then up down left right top bottom front back middle center centre side sideways away
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
VERB_FOLLOWS = frozenset({"and", "then"})


def objects_of(instruction: str) -> frozenset[str]:
    """The words of an instruction that name what it is about."""
    words = re.findall(r"[^\W_]+", instruction.lower())
    verbs = {i for i, _ in enumerate(words) if i == 0 or words[i - 1] in VERB_FOLLOWS}
    return frozenset(
        word for i, word in enumerate(words) if i not in verbs and word not in FUNCTION_WORDS
    )


class Mismatches:
    """Pairs of a turn and the instruction of another task under which it is certainly negative."""

    def __init__(self, examples: Examples, rows: Rows, choices: Sequence[str]) -> None:
        """rows: the turns to choose from. choices: the instructions, of which each counts once."""
        self.instructions = sorted(set(choices))
        self.rows = rows
        self.allowed = self._allowed(examples)
        """Which pairs there are, by row and instruction."""

    def _allowed(self, examples: Examples) -> Bool[np.ndarray, "R I"]:
        own = np.array(examples.instructions_of(self.rows))
        final = examples.final[self.rows]
        allowed = np.zeros((len(self.rows), len(self.instructions)), dtype=bool)
        for text in set(own.tolist()):
            mine, of_text = objects_of(text), own == text
            for column, other in enumerate(self.instructions):
                theirs = objects_of(other)
                if mine <= theirs or theirs <= mine:
                    continue
                allowed[:, column] |= of_text & (final if mine & theirs else True)
        return allowed

    @property
    def never_denied(self) -> list[str]:
        """The instructions that no turn can deny."""
        deniable = set(self._deniable())
        return [text for i, text in enumerate(self.instructions) if i not in deniable]

    def pairs(self) -> tuple[Rows, list[str]]:
        """All of them: turns, and the instruction of each."""
        at, column = np.nonzero(self.allowed)
        return self.rows[at], [self.instructions[i] for i in column.tolist()]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Rows, list[str]]:
        """`count` pairs, with repetition, or none where there are none.

        Each instruction that can be denied is drawn as often as any other, and its turns evenly.
        """
        places = {column: np.flatnonzero(self.allowed[:, column]) for column in self._deniable()}
        if not count or not places:
            return self.rows[:0], []
        drawn = rng.choice([*places], count).tolist()
        at = [int(rng.choice(places[column])) for column in drawn]
        return self.rows[at], [self.instructions[column] for column in drawn]

    def _deniable(self) -> list[int]:
        return np.flatnonzero(self.allowed.any(0)).tolist()
