"""The evaluators of the examples keep the promises of the kit and give figures that can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, Evaluator, Metric, StageError, Subject
from kdq_core.testing import check_evaluator

Answer = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Answering(Subject):
    """A subject that answers by a function in place of a file."""

    answer: Answer = np.zeros_like

    def run(self, batches: Any) -> Iterator[tuple[np.ndarray, ...]]:
        """Answer for each batch."""
        for batch in batches():
            yield (self.answer(*(x.numpy() for x in batch.inputs)),)


class Runtime:
    """A target that makes sessions of functions."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def session(self, path: Path, *, threads: int) -> Runtime:
        """Give the function itself."""
        return self

    def run(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Answer for one batch."""
        return (self.answer(*inputs),)


def subject(folder: Path, role: str, answer: Answer) -> Subject:
    """Make a subject with a file of its own."""
    path = folder / f"{role}.onnx"
    path.write_bytes(role.encode())
    return Answering(role=role, path=path, target=Runtime(answer), threads=1, answer=answer)  # type: ignore[arg-type]


def values(metrics: tuple[Metric, ...]) -> dict[str, float]:
    """Give the values by name."""
    return {metric.name: metric.value for metric in metrics}


def checked(evaluator: Evaluator, candidate: Subject, baseline: Subject, batches: Any) -> dict[str, float]:
    """Check the promises, then give the values."""
    check_evaluator(evaluator, candidate, baseline, batches)
    return values(evaluator.evaluate(candidate, baseline, batches))


def test_readers_whose_liked_books_come_first_are_hits(tmp_path: Path) -> None:
    from kdq_examples.goodbooks import read
    from kdq_examples.ranking import BookRanking, ranked

    test = read()["test"]
    liked = {(user, book) for user, book, rating in test.tolist() if rating >= 4}

    def knows(user: np.ndarray, book: np.ndarray) -> np.ndarray:
        return np.array([[float(pair in liked)] for pair in zip(user.tolist(), book.tolist(), strict=True)], np.float32)

    best = subject(tmp_path, "student", knows)
    worst = subject(tmp_path, "int8", lambda user, book: -knows(user, book))
    assert checked(BookRanking(), best, best, list) == {"hr_at_10": 1.0, "ndcg_at_10": 1.0}
    assert values(BookRanking().evaluate(worst, best, list))["ndcg_at_10"] < 0.8
    readers = {user for user, _ in liked}
    assert {user for user, _, _ in ranked(500)} == readers
    assert len(ranked(2)) == 2


def test_a_book_that_the_reader_rated_before_is_not_ranked() -> None:
    from kdq_examples.goodbooks import read
    from kdq_examples.ranking import ranked

    splits = read()
    known = {(u, b) for split in ("train", "validation") for u, b, _ in splits[split].tolist()}  # type: ignore[index]
    asked = {(user, book) for user, books, _ in ranked(500) for book in books.tolist()}
    assert not known & asked
    users = {user for user, _ in asked}
    assert asked == {(user, book) for user in users for book in range(12)} - known


def speakers(labels: list[int]) -> Callable[[], list[Batch]]:
    """Batches whose inputs are the labels."""
    given = torch.tensor(labels)
    return lambda: [Batch(inputs=(given,), targets=given, ids=torch.arange(len(labels)))]


def test_vectors_that_tell_all_speakers_apart_have_no_errors(tmp_path: Path) -> None:
    from kdq_examples.verification import SpeakerVerification

    own = subject(tmp_path, "student", lambda x: np.eye(3, dtype=np.float32)[x] * (1 + x[:, None]))
    assert checked(SpeakerVerification(), own, own, speakers([0, 0, 1, 1, 2, 2])) == {"eer": 0.0}


def test_the_equal_error_rate_counts_pairs(tmp_path: Path) -> None:
    from kdq_examples.verification import SpeakerVerification, trials

    angle = np.deg2rad(np.array([0.0, 10.0, 30.0, 80.0]))
    vectors = np.stack((np.cos(angle), np.sin(angle)), 1).astype(np.float32)
    scores, same = trials(vectors, np.array([0, 0, 1, 1]))
    assert same.tolist() == [True, False, False, False, False, True]
    assert np.allclose(scores, np.cos(np.deg2rad([10, 30, 80, 20, 70, 50])), atol=1e-6)
    own = subject(tmp_path, "student", lambda x: vectors)
    # Between 30 and 50 degrees, 1 of 2 true pairs is rejected and 2 of 4 false ones are accepted.
    assert values(SpeakerVerification().evaluate(own, own, speakers([0, 0, 1, 1]))) == {"eer": 0.5}


def test_trials_of_one_kind_are_refused(tmp_path: Path) -> None:
    from kdq_examples.verification import SpeakerVerification

    own = subject(tmp_path, "student", lambda x: np.ones((len(x), 2), np.float32))
    with pytest.raises(StageError) as error:
        SpeakerVerification().evaluate(own, own, speakers([0, 0]))
    assert str(error.value) == (
        "evaluator 'speaker-verification' needs pairs of one speaker and of two, and the test split has only pairs of "
        "one; give it two samples of each of two speakers"
    )


def words(rows: list[list[int]]) -> Callable[[], list[Batch]]:
    """Batches of one letter a word, its number, with phonemes as labels."""
    letters, targets = torch.arange(len(rows))[:, None], torch.tensor(rows)
    return lambda: [Batch(inputs=(letters, targets), targets=targets, ids=torch.arange(len(rows)))]


def speaking(rows: list[list[int]]) -> Answer:
    """Answer with the next phoneme of a row, if the phonemes before it are those of the row."""

    def answer(letters: np.ndarray, given: np.ndarray) -> np.ndarray:
        logits = np.zeros((*given.shape, 74), np.float32)
        for row, word in enumerate(letters[:, 0]):
            full = [2, *rows[word], *[3] * 20]
            for place in range(given.shape[1]):
                known = full[: place + 1] == given[row, : place + 1].tolist()
                logits[row, place, full[place + 1] if known else 3] = 1
        return logits

    return answer


def test_phonemes_are_decoded_from_the_files_own_phonemes_and_edits_are_counted(tmp_path: Path) -> None:
    from kdq_examples.pronunciation import PhonemeErrors

    truth = [[22, 7, 3, 0], [24, 16, 22, 3], [25, 3, 0, 0]]
    right = subject(tmp_path, "student", speaking(truth))
    assert checked(PhonemeErrors(), right, right, words(truth)) == {"phoneme_error_rate": 0.0}
    wrong = subject(tmp_path, "int8", speaking([[22, 8, 3], [24, 16, 3], [25, 3]]))
    found = checked(PhonemeErrors(), wrong, right, words(truth))
    assert found == pytest.approx(
        {"phoneme_error_rate": 2 / 6, "phoneme_error_rate_to_float": 2 / 6, "same_words": 1 / 3}
    )


def test_a_file_that_never_ends_a_word_is_stopped_after_20_phonemes() -> None:
    from kdq_examples.pronunciation import decoded, text

    given = decoded(lambda letters, before: np.eye(74, dtype=np.float32)[np.full(before.shape, 22)], np.ones((2, 3)))
    assert given.shape == (2, 20)
    assert text(given[0].tolist()) == " ".join(["B"] * 20)
