"""The evaluators `transcription` and `translation` against torchmetrics, sentence by sentence and by hand."""

import sys

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, StageError
from kdq_evaluators.texts import merged
from kdq_evaluators.transcription import Transcription
from kdq_evaluators.translation import Translation

TOKENS = ("", "\u2581a", "\u2581bee", "x", "\u2581zoo", "q")


def named(metrics):
    return {metric.name: metric for metric in metrics}


@pytest.fixture
def texts(subject):
    """Batches of token numbers, 7 at a time, and the files of two models that make other mistakes."""
    random = np.random.default_rng(0)
    wanted = random.integers(1, 6, (90, 9))
    wanted[:, 0] = 1
    wanted[np.arange(9) >= random.integers(1, 10, 90)[:, None]] = -1
    given = {}
    for role, rate in (("student", 0.05), ("int8", 0.25)):
        hit = (random.random(wanted.shape) < rate) & (wanted >= 0)
        given[role] = np.where(hit, random.integers(1, 6, wanted.shape), wanted)

    def batches():
        for ids in torch.arange(90).split(7):
            yield Batch((ids,), torch.tensor(wanted)[ids], ids)

    student, int8 = (subject(role, lambda ids, role=role: given[role][ids]) for role in ("student", "int8"))
    return batches, student, int8, spelled(wanted), {role: spelled(rows) for role, rows in given.items()}


def spelled(rows):
    return ["".join(TOKENS[token] for token in row if token >= 0).replace("\u2581", " ").strip() for row in rows]


def test_error_rates_equal_those_of_torchmetrics_and_their_parts_add_up(texts):
    pytest.importorskip("rapidfuzz")
    from torchmetrics.functional.text import char_error_rate, word_error_rate

    batches, student, int8, wanted, given = texts
    evaluator = Transcription(form="tokens", tokens=TOKENS)
    found, own = named(evaluator.evaluate(int8, student, batches)), named(evaluator.evaluate(student, student, batches))
    assert set(found) == set(Transcription.metrics)
    for metrics, role in ((found, "int8"), (own, "student")):
        assert metrics["wer"].value == pytest.approx(float(word_error_rate(given[role], wanted)))
        assert metrics["cer"].value == pytest.approx(float(char_error_rate(given[role], wanted)))
        assert metrics["exact"].value == np.mean([a == b for a, b in zip(given[role], wanted, strict=True)])
        parts = [metrics[f"wer_{kind}"].value for kind in ("substitutions", "deletions", "insertions")]
        assert sum(parts) == pytest.approx(metrics["wer"].value)
        for name in ("wer", "cer"):
            assert metrics[name].low < metrics[name].value < metrics[name].high
    assert found["wer_difference"].value == pytest.approx(found["wer"].value - own["wer"].value)
    assert found["wer_difference"].low > 0
    order = np.argsort([len(text.split()) for text in wanted], kind="stable")[:30]
    short = word_error_rate([given["int8"][i] for i in order], [wanted[i] for i in order])
    assert found["wer_short"].value == pytest.approx(float(short))


def test_bleu_and_chrf_equal_those_of_torchmetrics(texts):
    from torchmetrics.functional.text import bleu_score, chrf_score

    batches, student, int8, wanted, given = texts
    evaluator = Translation(tokens=TOKENS)
    found, own = named(evaluator.evaluate(int8, student, batches)), named(evaluator.evaluate(student, student, batches))
    assert set(found) == set(Translation.metrics)
    for metrics, role in ((found, "int8"), (own, "student")):
        references = [[text] for text in wanted]
        assert metrics["bleu"].value == pytest.approx(float(bleu_score(given[role], references)), abs=1e-6)
        chrf = float(chrf_score(given[role], references, n_word_order=0))
        assert metrics["chrf"].value == pytest.approx(chrf, abs=1e-6)
        assert metrics["chrf"].low < metrics["chrf"].value < metrics["chrf"].high
    assert found["chrf_difference"].high < 0


def test_the_groups_of_a_corpus_are_left_out_exactly(texts):
    from torchmetrics.functional.text import chrf_score
    from torchmetrics.text import CHRFScore

    from kdq_evaluators.sampled import groups_of
    from kdq_evaluators.translation import corpus

    _, _, _, wanted, given = texts
    one = corpus("chrf", lambda: CHRFScore(n_word_order=0), given["int8"], wanted)
    without = []
    for group in (4, 7):
        rows = np.flatnonzero(groups_of(90) != group)
        some = [given["int8"][i] for i in rows], [[wanted[i]] for i in rows]
        without.append(float(chrf_score(*some, n_word_order=0)))
    assert one.influence[4] - one.influence[7] == pytest.approx(-19 * (without[0] - without[1]), abs=1e-5)
    assert len(one.influence) == 20


def test_without_letters_tokens_are_words(texts):
    pytest.importorskip("rapidfuzz")
    batches, student, _, _, _ = texts
    found = named(Transcription(form="tokens").evaluate(student, student, batches))
    assert "cer" not in found
    assert 0.02 < found["wer"].value < 0.06
    assert set(named(Translation().evaluate(student, student, batches))) == {"bleu", "exact"}


def test_a_path_is_merged_before_blanks_are_dropped():
    assert merged(np.array([0, 3, 3, 0, 3, 1, 1, 0]), 0) == [3, 3, 1]
    assert merged(np.array([5, 5, 2]), 5) == [2]


def test_logits_are_read_by_their_largest_and_cut_at_the_end(subject):
    pytest.importorskip("rapidfuzz")
    rows, wanted = np.eye(6, dtype=np.float32)[[[0, 4, 4, 0, 1, 5], [3, 3, 3, 5, 1, 1]]], [[4, 1, 5], [3, 5, 2]]
    one = subject("student", lambda ids: rows[ids])
    batches = [Batch((torch.arange(2),), torch.tensor(wanted), torch.arange(2))]
    found = named(Transcription().evaluate(one, one, lambda: batches))
    assert found["wer"].value == pytest.approx(1 / 6)  # 4 1 5 is right, 3 5 1 has one wrong token
    cut = named(Transcription(form="tokens", end=5).evaluate(one, one, lambda: batches))
    assert cut["wer"].value == pytest.approx(5 / 3)  # 0 4 4 0 1 beside 4 1: three insertions; 3 3 3 beside 3: two


def test_a_users_function_spells_and_its_code_is_in_the_key(subject, texts, tmp_path, monkeypatch):
    batches, student, _, _, _ = texts
    (tmp_path / "spelling.py").write_text("def spell(row):\n    return ' '.join('abcdef'[t] for t in row)\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    evaluator = Translation(decode="spelling:spell")
    assert evaluator.runs() == ("spelling:spell",)
    assert "chrf" in named(evaluator.evaluate(student, student, batches))


def test_outputs_and_labels_that_are_no_texts_are_named(subject, texts, table):
    batches, student, _, _, _ = texts
    with pytest.raises(StageError) as caught:
        Translation().evaluate(student, student, table(np.zeros((3, 2)), np.array([0, 1, 1])))
    assert str(caught.value) == (
        "evaluator 'translation' compares texts with labels, int64 [B, L] of token numbers filled up with -1, but a "
        "test batch has int64 [3]; give such `targets`, or leave 'translation' out of 'evaluate'"
    )
    classifier = subject("classifier", lambda ids: np.zeros((len(ids), 10), np.float32))
    with pytest.raises(StageError) as caught:
        Translation().evaluate(classifier, classifier, batches)
    assert str(caught.value) == (
        "evaluator 'translation' reads token numbers [N, L] or logits [N, L, V], but the first output of "
        "'classifier.onnx' is float32 [7, 10]; it measures models that give texts: leave it out of 'evaluate', or "
        "name 'quality' there for classes"
    )


def test_a_missing_package_is_told_with_its_command(texts, monkeypatch):
    batches, student, _, _, _ = texts
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(StageError) as caught:
        Transcription(form="tokens").evaluate(student, student, batches)
    assert str(caught.value) == (
        "evaluator 'transcription' counts edits with RapidFuzz, which is not installed: `pip install rapidfuzz`"
    )
