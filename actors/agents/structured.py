"""Answers bound to a JSON Schema: the library asks for them, and this checks them.

The library's own ``StructuredDict`` tells the schema to the model and checks nothing but that the answer is
an object; here a wrong answer goes back to the model with what is wrong about it.
"""

from typing import Any

import jsonschema_rs
from pydantic import GetCoreSchemaHandler
from pydantic_ai import NativeOutput, StructuredDict, ToolOutput
from pydantic_ai.exceptions import UserError
from pydantic_ai.output import OutputSpec
from pydantic_core import core_schema

from actors.agents.errors import RunFailed
from actors.agents.models import NamedModel
from runtime.events import Json

OUTPUT_TOOL = "final_result"
OUTPUT_RETRIES = 3
_FAULTS_TOLD_MAX = 10


def output_spec(named: NamedModel, schema: dict[str, Json] | None) -> OutputSpec[Any]:
    """How an answer of this schema is asked for; None: as text.

    Raises: RunFailed (``InvalidOutputSchema``) when the schema can't be used.
    """
    if schema is None:
        return str
    try:
        checked = _checked(schema)
    except (UserError, ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        message = f"the output schema can't be used: {str(error).splitlines()[0]}"
        raise RunFailed("InvalidOutputSchema", message) from None
    return NativeOutput(checked) if named.answers_by_schema else ToolOutput(checked, name=OUTPUT_TOOL)


def _checked(schema: dict[str, Json]) -> type[dict[str, Any]]:
    validator = jsonschema_rs.validator_for(schema, retriever=_no_retrieval)
    base: Any = StructuredDict({"type": "object", **schema}, name=str(schema.get("title") or "answer"))

    def check(value: dict[str, Any]) -> dict[str, Any]:
        faults = [
            f"/{'/'.join(str(step) for step in error.instance_path)}: {error.message}"
            for error, _ in zip(validator.iter_errors(value), range(_FAULTS_TOLD_MAX), strict=False)
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return value

    class Checked(base):
        @classmethod
        def __get_pydantic_core_schema__(
            cls, source_type: Any, handler: GetCoreSchemaHandler
        ) -> core_schema.CoreSchema:
            inner = core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema())
            return core_schema.no_info_after_validator_function(check, inner)

    return Checked


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"a schema can't refer to another document ({uri})")
