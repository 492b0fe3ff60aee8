"""Runs in a worker: what a model is told about a user's function. The host never imports users' code.

Imports the model library when it is called, not before: every worker that runs a function of a user's would
pay for it.
"""

from runtime.events import Json


def describe(function: str) -> Json:
    """Name, description and JSON Schema of the parameters, from signature and docstring.

    Raises: whatever importing the function raises; pydantic_ai's UserError for a signature that JSON can't
    serve.
    """
    from pydantic_ai import Tool

    from actors.step_execution import resolve

    definition = Tool(resolve(function), takes_ctx=False).tool_def
    return {
        "name": definition.name,
        "description": definition.description or "",
        "parameters": definition.parameters_json_schema,
    }
