"""The workloads on speech, books, a census and words keep the promises of the kit, and read files as they say."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
import torch

from kdq_core.api import PluginError, View, Workload
from kdq_core.testing import check_workload


def made(name: str, **options: object) -> Workload:
    """Make a workload of the examples."""
    from kdq_examples.adult import Adult
    from kdq_examples.g2p import G2p
    from kdq_examples.goodbooks import Goodbooks
    from kdq_examples.spoken_digits import SpokenDigits
    from kdq_examples.voices import Voices

    return {"adult": Adult, "g2p": G2p, "goodbooks": Goodbooks, "digits": SpokenDigits, "voices": Voices}[name](
        **options  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adult", {"student_width": 4, "teacher_width": 8}),
        ("goodbooks", {"student_size": 2, "teacher_size": 4}),
        ("digits", {"student_width": 4, "teacher_width": 4}),
        ("digits", {"student_width": 4, "teacher_width": 4, "student_net": "gru", "test": "theo"}),
        ("voices", {"pieces": 20, "student_width": 8}),
        ("g2p", {"train_words": 20, "test_words": 8}),
    ],
)
def test_each_workload_keeps_the_promises(name: str, options: dict[str, object]) -> None:
    check_workload(made(name, **options))


def samples(workload: Workload, split: str) -> list[tuple[torch.Tensor, ...]]:
    """Give inputs and labels of each sample."""
    found = [(*batch.inputs, batch.targets) for batch in workload.batches(split, batch_size=7)]  # type: ignore[arg-type]
    return [row for columns in found for row in zip(*columns, strict=True)]  # type: ignore[arg-type]


def test_nobody_hears_theo_before_the_test() -> None:
    from kdq_examples.speech import recordings
    from kdq_examples.spoken_digits import chosen

    for one in recordings():
        before = chosen("theo", "train", one) or chosen("theo", "validation", one)
        assert before == (one.speaker != "theo" and not one.test)
        assert chosen("theo", "test", one) == (one.speaker == "theo")
    assert len(samples(made("digits", test="theo"), "test")) == 33
    assert len(samples(made("digits"), "test")) == 4 * 3 * 5


def test_a_recording_of_another_form_is_refused(small_files: dict[str, bytes]) -> None:
    name = "recordings/0_ann_0.wav"
    with wave.open(io.BytesIO(small_files[f"fsdd/fsdd_recordings.zip!{name}"])) as opened:
        frames = opened.readframes(2000)
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setparams((1, 2, 16000, 0, "NONE", ""))
        opened.writeframes(frames)
    small_files[f"fsdd/fsdd_recordings.zip!{name}"] = file.getvalue()
    with pytest.raises(PluginError) as error:
        samples(made("digits"), "test")
    assert str(error.value) == (
        "'recordings/0_ann_0.wav' in 'fsdd/fsdd_recordings.zip' has 16000 Hz, 1 channels and 16 bit; a recording has "
        "8000 Hz, 1 channel and 16 bit"
    )


def test_a_recording_that_is_missing_is_named(small_files: dict[str, bytes]) -> None:
    del small_files["fsdd/fsdd_recordings.zip!recordings/1_bob_2.wav"]
    with pytest.raises(PluginError) as error:
        samples(made("digits"), "test")
    assert str(error.value) == (
        "'fsdd/fsdd_recordings.zip' has no 'recordings/1_bob_2.wav', which 'fsdd/manifest.csv.gz' lists; fetch both "
        "files again"
    )


def test_a_louder_recording_gives_the_same_spectrogram_of_a_digit() -> None:
    from kdq_examples.speech import recordings
    from kdq_examples.spoken_digits import features

    quiet = recordings()[0].samples
    once, again = features(quiet), features(2 * quiet)
    assert once.shape == (40, 64)
    assert np.abs(once - again).max() < 0.02
    assert np.abs(once[:, 20:40]).max() > 0.1


def test_the_bank_of_slaney_has_filters_of_one_area() -> None:
    from kdq_examples.speech import mel_bank

    bank = mel_bank(16000, 400, 40, 0.0, "slaney")
    areas = bank.sum(1) * 40  # hertz a bin
    assert bank.shape == (40, 201)
    assert np.abs(areas - 1).max() < 0.15
    assert mel_bank(8000, 256, 40, 60.0, "htk").max() <= 1


def test_pieces_of_a_split_share_no_recording_and_views_play_others() -> None:
    from kdq_examples.voices import LENGTH, joined

    own = [np.full(LENGTH // 3 + 1, number) for number in range(10)]
    assert [set(piece.tolist()) for piece in joined(own)] == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]
    workload = made("voices", pieces=6)
    first, other = (next(iter(workload.batches("train", batch_size=6, view=View(0, n)))) for n in (0, 1))
    assert torch.equal(first.ids, other.ids)
    assert first.targets is not None
    assert other.targets is not None
    assert torch.equal(first.targets, other.targets)
    assert not torch.equal(first.inputs[0], other.inputs[0])


def test_unseen_speakers_are_in_the_test_split_alone() -> None:
    speakers = {split: {int(row[1]) for row in samples(made("voices", test="unseen", pieces=8), split)}
                for split in ("train", "validation", "test")}  # fmt: skip
    assert speakers == {"train": {0, 1}, "validation": {0, 1}, "test": {2, 3}}


def test_a_row_of_the_census_that_is_also_a_test_row_is_left_out() -> None:
    workload = made("adult")
    counts = {split: len(samples(workload, split)) for split in ("train", "validation", "test")}
    assert counts == {"train": 53, "validation": 6, "test": 30}


def test_a_category_that_training_does_not_have_gets_the_code_of_its_column_for_that() -> None:
    from kdq_examples.adult import codes_in, read

    codes = read()["test"][0]
    assert codes[1, 0] == 0  # workclass is the first column
    assert (codes[:, 0] > 0).sum() >= len(codes) - 4
    assert codes.max() < codes_in()
    assert all(codes[:, column].min() > codes[:, column - 1].max() for column in range(1, 14))


def test_a_word_with_two_pronunciations_or_other_signs_is_left_out() -> None:
    from kdq_examples.g2p import NAMES, words

    assert len(words()) == 36
    assert words()["ba"] == ["B", "AE1"]
    letters, before, after = samples(made("g2p", train_words=20, test_words=8), "test")[0]
    word = "".join(chr(ord("a") + number - 3) for number in letters.tolist() if number > 2)
    spoken = [NAMES[number] for number in after.tolist() if number > 3]
    assert words()[word] == spoken
    assert before.tolist()[:3] == [2, *after.tolist()[:2]]
    assert after.tolist()[2:4] == [3, 0]


def test_what_follows_a_phoneme_does_not_change_the_logits_before_it() -> None:
    from kdq_examples.g2p_nets import G2pNet

    torch.manual_seed(0)
    net, letters = G2pNet().eval(), torch.tensor([[3, 4, 2, 0, 0]])
    with torch.no_grad():
        short, longer = net(letters, torch.tensor([[2, 10]])), net(letters[:, :3], torch.tensor([[2, 10, 30, 0]]))
    assert torch.allclose(short, longer[:, :2], atol=1e-6)
