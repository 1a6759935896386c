"""The JSON Schema of a recipe for editors, with the options of all installed plug-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdq_core.errors import PluginError
from kdq_core.recipe.spec import MAX_WEIGHT, DistillSpec, QuantizeSpec, Recipe
from kdq_core.recipe.study import StudySpec

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.plugins.kinds import Kind

Schema = dict[str, Any]

STUDY = {"matrix": "MatrixSpec", "search": "SearchSpec", "select": "SelectSpec", "limits": "LimitsSpec"}
"""The sections of a study, each with the name of its definition."""


def recipe_schema(catalog: Catalog) -> Schema:
    """JSON Schema (draft 7) of a recipe file; imports each plug-in's class for its options.

    If a plug-in cannot be imported, the schema does not describe its options.
    """
    schema = Recipe.model_json_schema()
    defs, fields = schema["$defs"], schema["properties"]
    del defs["Use"]
    defs["Workload"] = _use(catalog, "workload", defs)
    defs["Target"] = _use(catalog, "target", defs)
    defs["Evaluator"] = _use(catalog, "evaluator", defs)
    _distill(catalog, defs)
    _refine(defs["QuantizeSpec"], catalog, "quantizer", QuantizeSpec().use, defs)
    _stages(catalog, defs, fields)
    fields["workload"] = {"$ref": "#/$defs/Workload"}
    fields["target"] = {"$ref": "#/$defs/Target"}
    fields["evaluate"]["items"] = {"$ref": "#/$defs/Evaluator"}
    _study(defs, fields)
    branches = {"anyOf": [{"required": ["matrix"]}, {"required": ["search"]}]}
    alone = {
        "select": branches,
        "limits": branches,
        "search": {"required": ["select"], "not": {"required": ["matrix"]}},
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema, "dependencies": alone}


def _study(defs: Schema, fields: Schema) -> None:
    """Describe the sections that make branches of a recipe."""
    study = StudySpec.model_json_schema()
    for name, spec in STUDY.items():
        fields[name] = study["properties"][name]
        defs[spec] = study["$defs"][spec]
    defs["Range"] = study["$defs"]["Range"]


def _distill(catalog: Catalog, defs: Schema) -> None:
    """Describe one distiller, or several in `losses`; allow a schedule for each real number."""
    several, schedule = defs["DistillerUse"], {"$ref": "#/$defs/Schedule"}
    weight = several["properties"]["weight"]
    number = {"type": "number", "minimum": 0, "maximum": MAX_WEIGHT}
    several["properties"]["weight"] = {
        "anyOf": [number, schedule], "default": 1.0, "description": weight["description"]
    }  # fmt: skip
    section = defs["DistillSpec"]
    for one, default in ((section, DistillSpec().use), (several, None)):
        _refine(one, catalog, "distiller", default, defs)
        for rule in one["allOf"]:
            options = rule["then"]["properties"]["options"]["properties"]
            for name, option in options.items():
                if option.get("type") == "number":
                    options[name] = {"anyOf": [option, schedule]}
    defs["DistillerUse"] = {"anyOf": [{"enum": sorted(catalog.names("distiller"))}, several]}
    section["properties"]["losses"] |= {"minItems": 1}
    section["not"] = {"anyOf": [{"required": ["losses", "use"]}, {"required": ["losses", "options"]}]}


def _stages(catalog: Catalog, defs: Schema, fields: Schema) -> None:
    """Describe a stage of the list, and the section for each stage with options."""
    long = defs["StageUse"]
    _refine(long, catalog, "stage", None, defs)
    defs["StageUse"] = {"anyOf": [{"enum": sorted(catalog.names("stage"))}, long]}
    for rule in long["allOf"]:
        options = rule["then"]["properties"]["options"]
        name = rule["if"]["properties"]["use"]["const"].rpartition("/")[2]
        if options.get("properties") and name not in fields:
            fields[name] = options


def _use(catalog: Catalog, kind: Kind, defs: Schema) -> Schema:
    """Describe a plug-in: its bare name, or a mapping with its name and options."""
    long: Schema = {
        "type": "object",
        "properties": {"use": {}, "options": {"type": "object"}},
        "required": ["use"],
        "additionalProperties": False,
    }
    _refine(long, catalog, kind, None, defs)
    return {"anyOf": [{"enum": sorted(catalog.names(kind))}, long]}


def _refine(section: Schema, catalog: Catalog, kind: Kind, default: str | None, defs: Schema) -> None:
    """Add to a section the names that `use` allows, and the options of each."""
    names = catalog.names(kind)
    section["properties"]["use"] |= {"enum": sorted(names), "description": f"name of the {kind}"}
    section["allOf"] = []
    for name, entry in sorted(names.items()):
        try:
            options = catalog.options_schema(entry)
        except PluginError:
            continue
        defs |= options.pop("$defs", {})
        chosen: Schema = {"properties": {"use": {"const": name}}}
        if name != default:
            chosen["required"] = ["use"]
        section["allOf"].append({"if": chosen, "then": {"properties": {"options": options}}})
