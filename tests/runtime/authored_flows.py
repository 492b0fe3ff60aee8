"""Steps and flows as users write them; in a module of their own, as workers import them."""

from typing import Any

from runtime.authoring import Handle, flow, node, run_flow, sleep, step, wait_for_signal
from runtime.plan import Resources, RetryPolicy

WORDS_INPUT = {"type": "object", "properties": {"words": {"type": "array"}}}


@step()
def split(text: str, separator: str = " ") -> list[str]:
    """Cut a text into words."""
    return text.split(separator)


@step(retry=RetryPolicy(attempts=3, on=("ValueError",)), timeout_seconds=5, resources=Resources(cpus=1))
def shout(word: str, mark: str = "!", **more: Any) -> str:
    return word.upper() + mark


@step()
async def later(word: str) -> str:
    return word


@flow(id="linear", name="Linear", description="Two steps", timeout_seconds=60)
def linear(inputs: Handle) -> Handle:
    words = split(inputs["text"])
    return shout(words[0], mark="${not an expression}")


@flow(id="wide", inputs=WORDS_INPUT)
def wide(inputs: Handle) -> dict[str, Any]:
    shouted = shout.map(inputs["words"], concurrency=2, on_error="fail", mark="?")
    fixed = shout.options(id="fixed", name="Fixed").map(["a", "`b`"])
    return {"all": shouted["results"], "first": fixed["results"][0], "odd": inputs["odd key"]}


@flow(id="very-wide")
def very_wide(inputs: Handle) -> Handle:
    words = "words/*.csv"
    first = shout.options(id="first").map_wide(words, format="csv", chunk_items=10, failures_max_share=0.1)
    return shout.options(id="second").map_wide(first, chunk_seconds=0.5, concurrency=2, on_error="fail")


@flow(id="waits")
def waits(inputs: Handle) -> None:
    go = wait_for_signal("go-ahead", timeout_seconds=10, on_timeout="continue")
    pause = sleep(inputs["delay"], needs=[go], when=go["approved"])
    child = run_flow(linear, {"text": inputs["text"]}, needs=[pause])
    twice = [later.options(needs=[child])("x"), later("y")]
    node("template", "letter", template="Dear {{ inputs.text }}", needs=twice)
    node("branch", "way", cases=[{"when": "inputs.text", "then": ["letter"]}])
