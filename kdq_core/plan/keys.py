"""What a stage's key is made of.

Code version of KDQ and of the plug-ins the stage names, library versions, the recipe sections it reads with all
options resolved, the data's fingerprint, the seed and the device class. The digests of its parents join later.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdq_core.errors import RecipeError
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.code_version import kdq_code_version, reached_hash
from kdq_core.plugins.kinds import Distiller, Kind, Plugin, Target, Workload
from kdq_core.plugins.named import named_plugins
from kdq_core.reading.teachers import no_factory, teacher_file
from kdq_core.recipe.spec import DistillerUse, Recipe, Site, TeacherSpec
from kdq_core.recipe.teacher import MemberSpec
from kdq_core.store.hashing import sha256_file

_PLACING = ("weights", "activations", "edges", "rules", "round_bias")
_SHOWN_AS = {
    "soft": "distill",
    "grid": "quantize",
    "taught": "workload",
    "outputs": "teacher",
    "tapped": "teacher",
    "views": "teacher",
}
"""Use and options of a section without how its own stage trains, for the stages that only call the plug-in."""
LIBRARIES = ("torch", "numpy", "accelerate", "onnx", "onnxscript", "onnxruntime")
_ISA = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm"}


class KeyParts:
    """Makes the parts of the keys of one plan; builds every plug-in the recipe names once, so it also checks them."""

    def __init__(self, recipe: Recipe, site: Site, catalog: Catalog) -> None:
        named = named_plugins(recipe)
        built = {(kind, name): catalog.build(kind, name, options) for kind, name, options, _ in named}
        losses = {use.title: _loss(use, catalog) for use in recipe.distill.distillers}
        self.tapping = tuple(use for use in recipe.distill.distillers if _compares(built["distiller", use.use]))
        """The distillers that compare features."""
        self._code = {
            kind: {name: catalog.code_version(catalog.find(k, name)) for k, name, _, _ in named if k == kind}
            for kind, _, _, _ in named
        }
        self._sections = _resolved(recipe, built, losses)
        outputs = self._sections["outputs"]
        self._sections["tapped"] = outputs | {"cache": outputs["cache"] | {"features": _taps(self.tapping)}}
        workload = built["workload", recipe.workload.use]
        assert isinstance(workload, Workload)
        self.workload = workload
        self._shared = {
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "data": workload.fingerprint(),
            "seed": recipe.seed,
            "device": device_class(site),
        }

    def of(
        self, *sections: str, plugins: tuple[Kind, ...] = (), workload: str = "workload", seeded: bool = True
    ) -> dict[str, Any]:
        """Parts of a stage that reads the given sections and calls plug-ins of the given kinds.

        Args:
            *sections: of the recipe.
            plugins: kinds whose code the stage runs, beside the workload.
            workload: `taught`, to leave out the options that only the student reads.
            seeded: whether the result depends on the recipe's seed other than through its parents.
        """
        code = {f"{kind} {name}": v for kind in ("workload", *plugins) for name, v in self._code[kind].items()}
        read = {_SHOWN_AS.get(name, name): self._sections[name] for name in (workload, *sections)}
        shared = {name: value for name, value in self._shared.items() if seeded or name != "seed"}
        return {"code": {"kdq": kdq_code_version(), **code}, "recipe": read, **shared}


def _compares(plugin: Plugin) -> bool:
    return isinstance(plugin, Distiller) and plugin.features != "none"


def _taps(uses: Sequence[DistillerUse]) -> list[str]:
    """What decides which of the teacher's modules are tapped: patterns of their paths, or `auto`."""
    return sorted({theirs for use in uses if use.taps != "auto" for _, theirs in use.taps} | {
        "auto" for use in uses if use.taps == "auto"
    })  # fmt: skip


def _loss(use: DistillerUse, catalog: Catalog) -> dict[str, Any]:
    """A distiller with all its options, those with a schedule as they are written; named where its record is."""
    built = catalog.build("distiller", use.use, use.options_at(0))
    changing = {name: schedule.model_dump(mode="json") for name, schedule in use.schedules.items()}
    asked = use.model_dump(mode="json", exclude={"name"}) | ({"name": use.title} if _compares(built) else {})
    return {**asked, "options": built.model_dump(mode="json") | changing}


def _resolved(recipe: Recipe, built: dict[tuple[Kind, str], Plugin], losses: dict[str, Any]) -> dict[str, Any]:
    """The recipe's sections, with the defaults of the plug-ins filled in."""
    whole = recipe.model_dump(mode="json")

    def options(kind: Kind, name: str) -> Any:
        return built[kind, name].model_dump(mode="json")

    target, workload = built["target", recipe.target.use], built["workload", recipe.workload.use]
    assert isinstance(target, Target)
    assert isinstance(workload, Workload)
    unused = {"cache", "precision"}  # nothing of these gets into the teacher's weights
    if not any(member.trained for member in recipe.teacher.members):
        unused.add("fit")
    if len(recipe.teacher.members) == 1:
        unused.add("combine")
    cache, precision = whole["teacher"]["cache"], {"precision": whole["teacher"]["precision"]}
    # A teacher of the student's kind is changed by the student's options too.
    unread = () if any(m.source == "student" for m in recipe.teacher.members) else workload.student_options
    teachers_options = workload.model_dump(mode="json", exclude=set(unread))
    several = {"losses": losses, "order": list(losses)}
    soft = several if len(losses) > 1 else next(iter(losses.values()))
    soft = soft | {"fuse_views": recipe.distill.fuse_views}
    grid = {"use": recipe.quantize.use, "options": options("quantizer", recipe.quantize.use)}
    return {
        "workload": {"use": recipe.workload.use, "options": options("workload", recipe.workload.use)},
        "taught": {"use": recipe.workload.use, "options": teachers_options},
        "teacher": {name: value for name, value in whole["teacher"].items() if name not in unused}
        | {"members": [_member(member) for member in recipe.teacher.members]},
        "outputs": {"cache": {name: cache[name] for name in ("views", "seed", "form", "top_k")}, **precision},
        "views": {"cache": {"seed": cache["seed"]}, **precision},
        "distill": {name: whole["distill"][name] for name in ("fit", "transfer", "control")} | soft,
        "soft": soft,
        "quantize": whole["quantize"] | grid,
        "grid": grid | {name: whole["quantize"][name] for name in _PLACING},
        "target": {
            "use": recipe.target.use,
            "options": options("target", recipe.target.use),
            "resolved": dict(target.resolved()),
        },
        "evaluate": {use.use: options("evaluator", use.use) for use in recipe.evaluate},
    }


def _member(member: MemberSpec) -> dict[str, Any]:
    """A teacher with what its file and its factory hold in place of where they are.

    Raises:
        RecipeError: the file is not there, or still in a registry.
    """
    if member.source == "registered":
        raise RecipeError(
            f"the teacher {member.model!r} is in a registry, which a plan does not read; `kdq plan` and `kdq run` "
            "fetch its file first (kdq_flows.run.teachers.resolved), or give that file as source: onnx"
        )
    asked = _described(member)
    if member.file is None:
        return asked
    return asked | {"sha256": sha256_file(teacher_file(member.file))}


def _described(member: MemberSpec) -> dict[str, Any]:
    """A teacher without its file, and with its factory's code."""
    asked = member.model_dump(mode="json", exclude={"file", "model"})
    if member.factory is not None:
        asked["factory_code"] = _module_digest(member.factory.partition(":")[0])
    return asked


def answering(spec: TeacherSpec) -> dict[str, Any]:
    """What decides the teachers' answers beside their weights; later stages depend on it through the record."""
    named = ("weight", "normalize", "tasks", "inputs", "factory", "factory_code")
    members = [{name: part[name] for name in named if part.get(name)} for part in map(_described, spec.members)]
    if len(members) == 1:
        del members[0]["weight"]
    return {"members": members, "inputs": list(spec.inputs), "combine": spec.combine if len(members) > 1 else None}


def _module_digest(name: str) -> str:
    """sha256 of the whole package a module is in and of all that this imports; it is not imported itself.

    Raises:
        RecipeError: there is no such module.
    """
    try:
        found = importlib.util.find_spec(name)
    except ImportError:
        found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise RecipeError(no_factory(name))
    return reached_hash(name.partition(".")[0])


def device_class(site: Site) -> str:
    """What results may depend on: device, precision, thread count, instruction set."""
    kind = site.device.partition(":")[0]
    return f"{kind} {site.precision}, {site.threads} threads, {platform.machine()} {_isa()}".strip()


def _isa() -> str:
    try:
        return " ".join(sorted(_ISA & set(Path("/proc/cpuinfo").read_text().split())))
    except OSError:
        return ""
