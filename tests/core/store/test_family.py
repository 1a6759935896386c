"""Records are an open family: a guest's record is one like the house's, also where its class is not imported."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from kdq_core.errors import PluginError, StageError
from kdq_core.store import family
from kdq_core.store.family import Record, UnknownRecord
from kdq_core.store.records import Checkpoint, EpochRecord, EvaluationReport, Manifest, Metric
from kdq_core.store.store import Entry, Store

KEY = "ab" + "0" * 62


class Ranks(Record):
    type: Literal["ranks"] = "ranks"
    by_layer: dict[str, tuple[int, ...]]
    share: float = 1


class PrunedStudent(Checkpoint):
    type: Literal["thinned-student"] = "thinned-student"
    kept: dict[str, tuple[int, ...]]


RANKS = Ranks(by_layer={"body": (1, 2)}, share=1e-7)
PRUNED = PrunedStudent(
    slot="student",
    weights="weights.bin",
    parameters=3,
    history=(EpochRecord(epoch=1, values={"validation/loss": math.inf}),),
    kept={"body": (0, 2)},
)


def stored(root: Path, record: Record) -> Entry:
    store = Store(root)
    with store.draft(KEY) as draft:
        (draft / "weights.bin").write_bytes(b"weights")
        return store.commit(draft, stage="prune", key=KEY, parts={}, record=record)


@pytest.mark.parametrize("record", [RANKS, PRUNED])
def test_a_guests_record_is_written_and_read_with_its_own_fields(tmp_path: Path, record: Record) -> None:
    made = stored(tmp_path, record)
    read = Store(tmp_path).get(KEY)
    assert made.record == read.record == record
    assert type(read.record) is type(record)
    assert read.record_as(type(record)) == record
    assert read.record_as(Record) == record


@pytest.mark.parametrize("record", [RANKS, PRUNED])
def test_a_record_whose_class_is_not_imported_has_the_same_digest_and_gets_its_class_later(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = stored(tmp_path, record).digest
    with monkeypatch.context() as patched:
        patched.delitem(family.FAMILY, record.type)
        early = Store(tmp_path).get(KEY)
        assert type(early.record) is UnknownRecord
        assert early.digest == digest
        assert Manifest.model_validate_json(early.manifest.model_dump_json()) == early.manifest
        with pytest.raises(StageError) as caught:
            early.record_as(EvaluationReport)
        assert str(caught.value) == (
            f"the entry of stage 'prune' holds a {record.type!r}, not a 'report'; take one from a stage that gives it"
        )
    assert early.digest == digest
    assert early.record == record
    assert early.record_as(type(record)) == record


def test_another_process_that_has_no_such_class_reads_the_same_digest(tmp_path: Path) -> None:
    digest = stored(tmp_path, PRUNED).digest
    code = "import sys, pathlib, kdq_core.store.store as s; e = s.Store(pathlib.Path(sys.argv[1])).get(sys.argv[2])\n"
    code += "print(type(e.record).__name__, e.digest)"
    read = subprocess.run([sys.executable, "-c", code, str(tmp_path), KEY], capture_output=True, text=True, check=True)
    assert read.stdout == f"UnknownRecord {digest}\n"


def test_a_record_that_no_longer_fits_its_class_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, RANKS)
    monkeypatch.delitem(family.FAMILY, "ranks")
    entry = Store(tmp_path).get(KEY)

    class Ranks(Record):
        type: Literal["ranks"] = "ranks"
        layers: int

    with pytest.raises(StageError) as caught:
        entry.record_as(Ranks)
    assert str(caught.value) == (
        "the 'ranks' in the entry of stage 'prune' does not fit its class: Field required; run again with the version "
        f"of the plug-in that wrote it, or delete {str(entry.folder)!r}"
    )


def test_a_subclass_is_taken_where_its_base_is_asked_for(tmp_path: Path) -> None:
    assert stored(tmp_path, PRUNED).record_as(Checkpoint) == PRUNED


def test_two_classes_with_one_type_are_refused_with_both_names() -> None:
    with pytest.raises(PluginError) as caught:

        class Other(Record):
            type: Literal["ranks"] = "ranks"

    here = f"{__name__}.test_two_classes_with_one_type_are_refused_with_both_names.<locals>.Other"
    assert str(caught.value) == (
        f"two records have the type 'ranks': {__name__}.Ranks and {here}; give one of them a type of its own, such as: "
        'type: Literal["my-ranks"] = "my-ranks"'
    )
    assert family.FAMILY["ranks"] is Ranks


def test_a_subclass_of_a_house_record_needs_a_type_of_its_own() -> None:
    with pytest.raises(PluginError, match=r"two records have the type 'checkpoint': kdq_core\.store\.records\."):

        class Forgetful(Checkpoint):
            kept: int


def test_a_class_may_be_defined_again_and_a_base_without_a_type_is_none_of_the_family() -> None:
    def define() -> type[Record]:
        class Base(Record):
            layers: int

        class Again(Base):
            type: Literal["again"] = "again"

        return Again

    define()
    again = define()
    assert family.FAMILY["again"] is again
    assert "Base" not in {found.__name__ for found in family.FAMILY.values()}
    del family.FAMILY["again"]


def test_a_record_has_the_type_of_its_class() -> None:
    with pytest.raises(ValidationError, match=r"the type of kdq_core\.store\.records\.Checkpoint is 'checkpoint', not"):
        Checkpoint(type="report", slot="student", weights="w", parameters=1)


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_a_metric_that_is_not_finite_is_text_in_json_and_a_number_again(
    tmp_path: Path, value: float, text: str
) -> None:
    metric = Metric(name="f1", value=value, low=value, high=value, unit="fraction", direction="higher")
    entry = stored(tmp_path, EvaluationReport(models={"int8": (metric,)}))
    manifest = json.loads((entry.folder / "manifest.json").read_text(), parse_constant=pytest.fail)
    (written,) = manifest["record"]["models"]["int8"]
    assert (written["value"], written["low"], written["high"]) == (text, text, text)
    (read,) = Store(tmp_path).get(KEY).record_as(EvaluationReport).models["int8"]
    assert [repr(number) for number in (read.value, read.low, read.high)] == [repr(value)] * 3
    assert Store(tmp_path).get(KEY).digest == entry.digest


def test_curves_that_are_not_finite_survive_a_round_trip() -> None:
    point = EpochRecord(epoch=1, values={"a": -math.inf, "b": 0.1})
    assert point.model_dump(mode="json") == {"epoch": 1, "values": {"a": "-Infinity", "b": 0.1}}
    assert EpochRecord.model_validate(point.model_dump(mode="json")) == point
    assert point.model_dump() == {"epoch": 1, "values": {"a": -math.inf, "b": 0.1}}
