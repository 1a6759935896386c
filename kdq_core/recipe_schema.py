"""The JSON Schema of a recipe, with the options of the plug-ins that are installed, for editors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdq_core.errors import PluginError
from kdq_core.spec import DistillSpec, QuantizeSpec, Recipe

if TYPE_CHECKING:
    from kdq_core.catalog import Catalog
    from kdq_core.kinds import Kind

Schema = dict[str, Any]


def recipe_schema(catalog: Catalog) -> Schema:
    """JSON Schema (draft 7) of a recipe file; imports each plug-in's class for its options.

    A plug-in that cannot be imported is left without a description of its options.
    """
    schema = Recipe.model_json_schema()
    defs, fields = schema["$defs"], schema["properties"]
    del defs["Use"]
    defs["Workload"] = _use(catalog, "workload", defs)
    defs["Target"] = _use(catalog, "target", defs)
    defs["Evaluator"] = _use(catalog, "evaluator", defs)
    _refine(defs["DistillSpec"], catalog, "distiller", DistillSpec().use, defs)
    _refine(defs["QuantizeSpec"], catalog, "quantizer", QuantizeSpec().use, defs)
    fields["workload"] = {"$ref": "#/$defs/Workload"}
    fields["target"] = {"$ref": "#/$defs/Target"}
    fields["evaluate"]["items"] = {"$ref": "#/$defs/Evaluator"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _use(catalog: Catalog, kind: Kind, defs: Schema) -> Schema:
    """A plug-in's bare name, or a mapping of its name and options."""
    long: Schema = {
        "type": "object",
        "properties": {"use": {}, "options": {"type": "object"}},
        "required": ["use"],
        "additionalProperties": False,
    }
    _refine(long, catalog, kind, None, defs)
    return {"anyOf": [{"enum": sorted(catalog.names(kind))}, long]}


def _refine(section: Schema, catalog: Catalog, kind: Kind, default: str | None, defs: Schema) -> None:
    """Add to a section which names `use` takes, and per name which options."""
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
