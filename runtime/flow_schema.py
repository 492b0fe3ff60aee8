"""The published JSON Schema of the definition format, made from the same structs that check it.

It covers shapes, for editors; what needs the graph (references, cycles) only ``compile_flow`` can tell.
"""

import json
from typing import Any

import msgspec

from runtime.flow import EachFields, FlowFields, NodeFields, Settings
from runtime.flow_fields import field_names
from runtime.kinds import KINDS, SETTINGS, Kind

SCHEMA_ID = "urn:heliograph:flow:1"

_Schema = dict[str, Any]


def flow_json_schema() -> _Schema:
    """Draft 2020-12; the same value in every process of the same version."""
    definitions: dict[str, _Schema] = {}
    for name, kind in KINDS.items():
        definitions[f"node_{name}"] = _node(name, kind, NodeFields, definitions)
        if kind.in_map:
            definitions[f"each_{name}"] = _node(name, kind, EachFields, definitions)
    each = {"oneOf": [{"$ref": f"#/$defs/each_{name}"} for name, kind in KINDS.items() if kind.in_map]}
    for name, kind in KINDS.items():
        for field in kind.nested:
            definitions[f"node_{name}"]["properties"][field] = each
    flow = _struct(FlowFields, definitions)
    flow["properties"]["nodes"]["items"] = {"oneOf": [{"$ref": f"#/$defs/node_{name}"} for name in KINDS]}
    flow["properties"]["inputs"] = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Heliograph flow definition",
        **flow,
        "$defs": dict(sorted(definitions.items())),
    }
    # Defaults of the structs are tuples and structs.
    return msgspec.json.decode(msgspec.json.encode(schema))


def _node(name: str, kind: Kind, common: type[msgspec.Struct], definitions: dict[str, _Schema]) -> _Schema:
    own = field_names(kind.config)
    shared = _struct(Settings, definitions)["properties"]
    base, config = _struct(common, definitions), _struct(kind.config, definitions)
    settings = {s: shared[s] for s in SETTINGS if s not in own and s not in kind.without}
    return {
        "type": "object",
        "properties": {
            **base["properties"],
            "kind": {"const": name},
            **config["properties"],
            **settings,
        },
        "required": [*base["required"], *config["required"]],
        "additionalProperties": False,
    }


def _struct(struct: type[msgspec.Struct], definitions: dict[str, _Schema]) -> _Schema:
    """The schema of one struct; what it refers to goes into ``definitions``."""
    (reference,), components = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    name = reference["$ref"].rpartition("/")[2]
    for other, schema in components.items():
        if other != name:
            definitions[other] = _closed(schema)
    return _closed(components[name])


def _closed(schema: _Schema) -> _Schema:
    """Unknown keys are refused everywhere; docstrings of the code are not meant for its users."""
    schema = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return schema | {"additionalProperties": False} if schema.get("type") == "object" else schema


def schema_text() -> str:
    """The content of ``docs/flow.schema.json``."""
    return json.dumps(flow_json_schema(), indent=2) + "\n"
