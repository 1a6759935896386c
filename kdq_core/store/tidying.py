"""What lies in a store for several machines: its entries, and what attempts left that never became one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import NamedTuple

from kdq_core.store.checks import MANIFEST
from kdq_core.store.listed import Listed
from kdq_core.store.objects import Seen
from kdq_core.store.published import published
from kdq_core.store.reading import DamageError
from kdq_core.store.remote import DAY, RemoteStore


class Left(NamedTuple):
    """Objects that no entry names, and their size in bytes."""

    names: tuple[str, ...]
    bytes: int


def entries_at(store: RemoteStore) -> Iterator[Listed]:
    """All entries, in no order. Their times are those of the store; that of the last use is right to a day."""
    used = store.objects.listed("used")
    for key, files in _by_key(store).items():
        made = files.get(MANIFEST)
        if made is None:
            continue
        try:
            found = published(store.objects, key)
        except DamageError:
            yield Listed(key, store.folder(key), _size(files), made.written, made.written, None)
            continue
        if found is None:  # another machine has removed it meanwhile
            continue
        own = {name: file for name, file in files.items() if name.partition("/")[0] in (MANIFEST, found.sheet.attempt)}
        last = max(made.written, used[key].written if key in used else 0.0)
        yield Listed(key, store.folder(key), _size(own), made.written, last, found.manifest)


def left_behind(store: RemoteStore, seconds: float = DAY) -> Left:
    """What killed processes left: files of attempts that no manifest names, and claims without a beat.

    Args:
        store: where to look.
        seconds: only what nobody has written for so long, by the clock of the store.
    """
    now, names, size = _now(store), list[str](), 0
    for key, files in _by_key(store).items():
        try:
            found = published(store.objects, key) if MANIFEST in files else None
        except DamageError:  # whoever looks it up discards it
            continue
        for name, file in files.items():
            own = name == MANIFEST or (found is not None and name.startswith(f"{found.sheet.attempt}/"))
            if not own and now - file.written >= seconds:
                names.append(f"entries/{key}/{name}")
                size += file.bytes
    for folder in ("claims", ".fresh"):
        old = {n: file for n, file in store.objects.listed(folder).items() if now - file.written >= seconds}
        names += [f"{folder}/{name}" for name in old]
        size += _size(old)
    return Left(tuple(sorted(names)), size)


def _by_key(store: RemoteStore) -> dict[str, dict[str, Seen]]:
    """The objects of each entry and each attempt, by key and name below it."""
    found: dict[str, dict[str, Seen]] = {}
    for path, seen in store.objects.listed("entries").items():
        key, _, name = path.partition("/")
        found.setdefault(key, {})[name] = seen
    return found


def _size(files: dict[str, Seen]) -> int:
    return sum(file.bytes for file in files.values())


def _now(store: RemoteStore) -> float:
    """The time by the clock of the store."""
    name = f"clock/{uuid.uuid4().hex}"
    store.objects.write(name, b"")
    seen = store.objects.seen(name)
    store.objects.remove(name)
    return 0.0 if seen is None else seen.written
