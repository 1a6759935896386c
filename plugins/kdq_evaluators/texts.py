"""Reads texts from the first output of a file and from the labels, for evaluators that compare texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from kdq_core.api import USER_CODE, Batches, Evaluator, Field, StageError, Subject, user_object

if TYPE_CHECKING:
    import numpy as np

SPACE = "\u2581"
"""Sentence pieces write a space like this."""


class Texts(Evaluator):
    """Base of the evaluators that compare texts."""

    form: Literal["ctc", "tokens"] = Field(
        default="tokens",
        description="how the first output is read. ctc: logits `[N, T, V]`, of which the largest are taken, repeats "
        "merged and blanks dropped; tokens: token numbers `[N, L]`, or logits `[N, L, V]`, of which the largest are "
        "taken",
    )
    blank: int = Field(default=0, ge=0, description="number of the blank, for ctc")
    end: int | None = Field(default=None, ge=0, description="a text ends before this token; null: at its last token")
    tokens: tuple[str, ...] = Field(
        default=(), description="text of each token by number; a text is all of them in a row, with ▁ as a space"
    )
    decode: str | None = Field(
        default=None,
        pattern=USER_CODE,
        description="`file.py:function` or `module:function` that makes a text of a list of token numbers, in place of "
        "'tokens'",
    )

    def runs(self) -> tuple[str, ...]:
        """The user's function."""
        return () if self.decode is None else (self.decode,)

    @property
    def spelled(self) -> bool:
        """Whether tokens have letters; else a text is a row of numbers."""
        return bool(self.tokens) or self.decode is not None

    def given(self, subject: Subject, batches: Batches) -> list[str]:
        """The texts that a file answers.

        Raises:
            StageError: its first output has another form.
        """
        return list(map(self._decoder(), self._answers(subject, batches)))

    def wanted(self, batches: Batches) -> list[str]:
        """The texts of the labels.

        Raises:
            StageError: a batch has no labels, or other ones.
        """
        decoder, found = self._decoder(), []
        for batch in batches():
            labels = batch.targets
            if labels is None or labels.ndim != 2 or labels.is_floating_point():
                there = "none" if labels is None else f"{labels.dtype} {list(labels.shape)}".removeprefix("torch.")
                raise StageError(
                    f"evaluator {self._title!r} compares texts with labels, int64 [B, L] of token numbers filled up "
                    f"with -1, but a test batch has {there}; give such `targets`, or leave {self._title!r} out of "
                    "'evaluate'"
                )
            found += [decoder(self._cut(row)) for row in labels.tolist()]
        return found

    def _answers(self, subject: Subject, batches: Batches) -> Iterator[list[int]]:
        for outputs in subject.run(batches):
            values = outputs[0]
            if values.ndim == 3:
                values = values.argmax(2)
            elif values.ndim != 2 or values.dtype.kind == "f" or self.form == "ctc":
                wanted = "logits [N, T, V]" if self.form == "ctc" else "token numbers [N, L] or logits [N, L, V]"
                raise StageError(
                    f"evaluator {self._title!r} reads {wanted}, but the first output of {subject.path.name!r} is "
                    f"{values.dtype} {list(values.shape)}; it measures models that give texts: leave it out of "
                    "'evaluate', or name 'quality' there for classes"
                )
            yield from (merged(row, self.blank) if self.form == "ctc" else self._cut(row.tolist()) for row in values)

    @property
    def _title(self) -> str:
        return type(self).__name__.lower()

    def _cut(self, row: Sequence[int]) -> list[int]:
        if self.end is not None and self.end in row:
            row = row[: row.index(self.end)]
        return [token for token in row if token >= 0]

    def _decoder(self) -> Callable[[list[int]], str]:
        if self.decode is not None:
            made: Callable[[list[int]], str] = user_object(self.decode)
            return made
        if not self.tokens:
            return lambda row: " ".join(map(str, row))
        return lambda row: "".join(self.tokens[token] for token in row).replace(SPACE, " ").strip()


def merged(row: np.ndarray, blank: int) -> list[int]:
    """Merge repeats of a path `[T]` and drop blanks: Graves et al. 2006, "Connectionist Temporal Classification"."""
    import numpy as np

    kept = row[np.append(True, row[1:] != row[:-1])]
    found: list[int] = kept[kept != blank].tolist()
    return found
