"""Conformance kit for stages."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError
from safetensors import safe_open

from kdq_core.errors import PluginError
from kdq_core.plugins.contract import Port, Reads
from kdq_core.plugins.stage import Stage
from kdq_core.store.family import Record, type_of
from kdq_core.store.records import Checkpoint, Manifest
from kdq_core.testing.bench import Bench, KilledError, Tried, elsewhere
from kdq_core.testing.declared import Tell, described, promise, silent
from kdq_core.training.resume import tensors_of

CARD = ("What", "Source|Defaults", "Limits")


def check_stage(
    stage: Stage,
    recipe: Mapping[str, Any],
    *,
    others: Mapping[str, JsonValue] | None = None,
    tell: Tell = silent,
) -> None:
    """Check the promises of a stage.

    The stage declares the slot it gives, and a class of records with its own `type`. Its module has a method card, its
    options have descriptions, and each option changes the key. The stage passes its own `check`. It reads only what its
    `inputs` and `reads` name, and gives a record of its class that KDQ can read again. A second run gives the same
    record and the same files, byte for byte; a stage that measures time (`needs.alone`) is exempt. A try after a killed
    one, with its scratch, gives the same too; the kit kills tries at the first, middle and last event, and before KDQ
    stores the result. The stage leaves no file outside its draft and its scratch, and changes no entry of the store.
    `untrained` and `operate` give modules that the weights fit.

    The kit runs the earlier stages once, and the stage itself about seven times. Give it a small workload and short
    fits of at least two epochs, so that there is something to resume.

    Args:
        stage: the plug-in, with the options to check.
        recipe: fields of a recipe; its `stages` lists the stages that run before this one.
        others: another value for each option for which the kit finds none by itself.
        tell: hears of each promise that is kept.

    Raises:
        AssertionError: the stage breaks a promise, which the text names.
        KdqError: the recipe does not fit together, or an earlier stage fails.
    """
    declared(stage)
    tell(promise(declared))
    with elsewhere() as folder:
        bench = Bench(stage, recipe, folder)
        gives_ports(bench)
        bench.wire()
        says_what_it_reads(bench)
        tell("`inputs` and `reads` say what it reads")
        bench.run_before()
        options_change_the_key(bench, others or {})
        tell(promise(options_change_the_key))
        passes_its_own_check(bench)
        tell(promise(passes_its_own_check))
        first = tried(bench, bench.folder("scratch"))
        gives_its_record(bench, first)
        tell(promise(gives_its_record))
        fits_its_architecture(bench, first)
        tell(promise(fits_its_architecture))
        if not stage.needs.alone:
            same(bench, first, tried(bench, bench.folder("scratch")), "run twice")
            tell("a second run gives the same record and files")
            resumes(bench, first)
            tell(promise(resumes))


def declared(stage: Stage) -> None:
    """Check the declared slot and record, the method card and the descriptions."""
    name, of = type(stage).__name__, type(stage)
    gives, record = getattr(of, "gives", None), getattr(of, "record", None)
    assert isinstance(gives, str), f"{name} should say which slot it gives: gives: ClassVar[str] = ..."
    assert gives, f"{name} should name the slot it gives, but 'gives' is empty"
    assert isinstance(record, type) and issubclass(record, Record), (  # noqa: PT018
        f"{name} should say which record it gives: record: ClassVar[type[Record]] = ..., a subclass of Record"
    )
    assert type_of(record), (
        f"the record {record.__name__} of {name} should have a type of its own, such as "
        f'type: Literal["my-record"] = "my-record"'
    )
    card = sys.modules[of.__module__].__doc__ or ""
    missing = [heading for heading in CARD if not re.search(rf"^({heading})\b", card, re.MULTILINE)]
    assert not missing, f"the module of {name} should have a method card, but its docstring lacks {missing}"
    described(stage)


def gives_ports(bench: Bench) -> None:
    """Check that `inputs` gives ports."""
    with working(bench, "say what its inputs are"):
        ports = bench.stage.inputs(bench.asked)
    odd = [port for port, given in ports.items() if not isinstance(given, Port)]
    assert not odd, f"stage {bench.title!r} should give a Port for each input, but not for {', '.join(map(repr, odd))}"


def says_what_it_reads(bench: Bench) -> None:
    """Check that `reads` gives `Reads`."""
    with working(bench, "say what it reads"):
        reads = bench.stage.reads(bench.asked, bench.wired.ports)
    assert isinstance(reads, Reads), f"reads() of stage {bench.title!r} should give Reads, but gives {reads!r}"


def options_change_the_key(bench: Bench, others: Mapping[str, JsonValue]) -> None:
    """Check that each option is a part of the key."""
    stage, usual = bench.stage, bench.parts()
    for option in type(stage).model_fields:
        value = others[option] if option in others else other_value(stage, option)
        assert value is not None, (
            f"the kit finds no other value of option {option!r} of stage {bench.title!r}; give it one: "
            f"check_stage(..., others={{{option!r}: ...}})"
        )
        changed = bench.parts({option: value}) != usual
        assert changed, f"stage {bench.title!r} should have another key with {option}={value!r}, but it has the same"


def other_value(stage: Stage, option: str) -> JsonValue:
    """Find another value that the option allows; `None` if the kit finds none."""
    now = getattr(stage, option)
    field = type(stage).model_json_schema().get("properties", {}).get(option, {})
    candidates: list[Any] = [*field.get("enum", ()), not now if isinstance(now, bool) else None]
    if isinstance(now, int | float) and not isinstance(now, bool):
        candidates += [now + 1, now - 1, now / 2, now * 2, (now + 1) / 2]
    if isinstance(now, str):
        candidates.append(f"{now}x")
    for value in candidates:
        with contextlib.suppress(ValidationError):
            other = type(stage).model_validate({**stage.model_dump(), option: value})
            if value is not None and getattr(other, option) != now:
                return value  # type: ignore[no-any-return]
    return None


def passes_its_own_check(bench: Bench) -> None:
    """Check that `check` accepts the recipe that the stage will run in."""
    with working(bench, "pass its own check() in this recipe"):
        bench.stage.check(bench.work)


def tried(bench: Bench, scratch: Path, *, kill_at: int | None = None) -> Tried:
    """Try the stage once, and check that it changes no file of the store."""
    with working(bench, "run"):
        found = bench.run(scratch, kill_at=kill_at)
    assert not found.changed, (
        f"stage {bench.title!r} should write to its draft and its scratch alone, but in the store it changed "
        f"{', '.join(map(repr, found.changed))}"
    )
    return found


def gives_its_record(bench: Bench, first: Tried) -> None:
    """Check that the record has the declared slot, and that KDQ can read it again."""
    record = first.record
    if isinstance(record, Checkpoint):
        assert record.slot == bench.stage.gives, (
            f"the checkpoint of stage {bench.title!r} should be of the slot it gives, {bench.stage.gives!r}, "
            f"but is of {record.slot!r}; make it with work.checkpoint"
        )
    manifest = Manifest.model_construct(stage="", key="0" * 64, parts={}, record=record, files=())
    try:
        again = Manifest.model_validate_json(manifest.model_dump_json(warnings=False)).record
    except ValidationError as error:
        raise AssertionError(f"the record of stage {bench.title!r} should read what it writes, but {error}") from error
    assert again.model_dump_json() == record.model_dump_json(warnings=False), (
        f"the record of stage {bench.title!r} should read what it writes, but it reads something else"
    )


def fits_its_architecture(bench: Bench, first: Tried) -> None:
    """Check that the weights fit the model that `operate` or `untrained` builds."""
    record = first.record
    if not isinstance(record, Checkpoint):
        return
    try:
        bench.rebuilt(first)
    except RuntimeError as error:
        raise AssertionError(
            f"the weights of stage {bench.title!r} should fit the model that is built again with operate(), but "
            f"{' '.join(str(error).split())}"
        ) from error
    with working(bench, "give an untrained model"):
        untrained = bench.stage.untrained(bench.work)
    if untrained is None:
        return
    with safe_open(first.draft / record.weights, framework="pt") as file:
        kept = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(untrained).items()}
    odd = sorted(name for name in kept.keys() | shapes.keys() if kept.get(name) != shapes.get(name))
    assert not odd, (
        f"untrained() of stage {bench.title!r} should give a module of the architecture that the stage gives, but "
        f"{odd[0]!r} has shape {shapes.get(odd[0])} in it, and {kept.get(odd[0])} in the weights"
    )


def resumes(bench: Bench, first: Tried) -> None:
    """Check that a try after a killed one, with its scratch, gives the same result."""
    for event in sorted({1, first.events // 2 + 1, first.events} - {0}):
        scratch = bench.folder("scratch")
        with contextlib.suppress(KilledError):
            tried(bench, scratch, kill_at=event)
        same(bench, first, tried(bench, scratch), f"killed at event {event} of {first.events} and tried again")
    if not first.events:
        scratch = bench.folder("scratch")
        tried(bench, scratch)
        same(bench, first, tried(bench, scratch), "killed before its files were stored and tried again")


def same(bench: Bench, first: Tried, other: Tried, how: str) -> None:
    """Check that two tries gave the same record and files."""
    start = f"stage {bench.title!r}, {how}, should give the same"
    mine, theirs = first.record.model_dump(mode="json"), other.record.model_dump(mode="json")
    fields = sorted(name for name in mine.keys() | theirs.keys() if str(mine.get(name)) != str(theirs.get(name)))
    assert not fields, f"{start} record, but these fields differ: {', '.join(fields)}"
    names = first.files.keys() | other.files.keys()
    files = sorted(name for name in names if first.files.get(name) != other.files.get(name))
    assert not files, f"{start} files, byte for byte, but these differ: {', '.join(files)}"


@contextlib.contextmanager
def working(bench: Bench, what: str) -> Iterator[None]:
    """Turn any exception of the stage into an `AssertionError` that says what the stage should do."""
    try:
        yield
    except PluginError as error:
        raise AssertionError(f"stage {bench.title!r} should {what}, but it breaks its contract: {error}") from error
    except Exception as error:
        raise AssertionError(f"stage {bench.title!r} should {what}, but it raises {error!r}") from error
