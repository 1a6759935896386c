"""Run one heavy stage in a worker process and commit its entry to the store."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping

import torch
from pydantic import JsonValue

from kdq_core.frozen import Frozen
from kdq_core.plan.plan import StageName
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.family import Record
from kdq_core.store.store import Entry, Store
from kdq_core.work.context import Emit, StageContext
from kdq_core.work.learning import distill, train_teacher
from kdq_core.work.quantizing import quantize
from kdq_core.work.shipping import evaluate, export
from kdq_core.work.teaching import cache_teacher

STAGES: Mapping[str, Callable[[StageContext], Record]] = {
    "train_teacher": train_teacher,
    "cache_teacher": cache_teacher,
    "distill": distill,
    "quantize": quantize,
    "export": export,
    "evaluate": evaluate,
}


class StageRequest(Frozen):
    """What a stage worker is asked: which stage, under which key, standing on which entries."""

    stage: StageName
    key: str
    parts: dict[str, JsonValue]
    parents: dict[str, str]
    recipe: Recipe
    site: Site


def run_stage(request: StageRequest, emit: Emit) -> Entry:
    """Compute the stage and write its entry; give the existing one where another process was first.

    Args:
        request: the stage, with the keys of its parents by stage name.
        emit: receives progress events.
    """
    store = Store(request.site.store)
    existing = store.lookup_or_discard(request.key, lambda text: print(text, file=sys.stderr))
    if existing is not None:
        return existing
    torch.set_num_threads(request.site.threads)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import the compiler, 2 s
    parents = {name: store.get(key) for name, key in request.parents.items()}
    scratch = request.site.home / "scratch" / request.key
    (scratch / "tmp").mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(scratch / "tmp")  # what libraries write on the way stays in the home
    with store.draft(request.key) as draft:
        context = StageContext(
            stage=request.stage,
            recipe=request.recipe,
            site=request.site,
            catalog=Catalog.load(),
            parents=parents,
            draft=draft,
            scratch=scratch / "fit.safetensors",
            emit=emit,
            parts=request.parts,
        )
        record = STAGES[request.stage](context)
        entry = store.commit(draft, stage=request.stage, key=request.key, parts=request.parts, record=record)
    shutil.rmtree(scratch, ignore_errors=True)
    return entry
