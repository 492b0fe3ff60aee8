"""Runs one user function in this process and turns whatever it does into a ``StepOutcome``.

Nothing the function raises leaves this module; only what ends the process does.
"""

import asyncio
import functools
import importlib
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import FrameType
from typing import Any, cast

import msgspec

from actors import step_context
from actors.large_values import Arguments, NotStorable, ValueCache, is_stored, store, within_json
from actors.optional_libraries import NotInstalled
from actors.step_call import KIB, BlobStore, StepCall, StepOutcome
from actors.step_context import StepContext
from runtime.events import Json, StepError

MESSAGE_CHARS_MAX = 4 * KIB
TRACEBACK_CHARS_MAX = 8 * KIB
TRACEBACK_FRAMES_MAX = 50
_LEADS = ("execute", "resolve", "_outcome", "encode_result", "_guarded")
_IMPORT_MACHINERY = (
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
)


class Unserialisable(Exception):
    """The function returned what JSON can't express."""


class AsyncSteps:
    """Runs coroutines on one event loop that lasts as long as the worker.

    One loop for all steps, because users keep clients in module variables, bound to the loop that made
    them. Tasks that a step leaves behind are cancelled with it.
    """

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._running: asyncio.Task[Any] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any], context: StepContext) -> Any:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(self._drive(coroutine, context))

    async def _drive(self, coroutine: Coroutine[Any, Any, Any], context: StepContext) -> Any:
        self._running = asyncio.ensure_future(_guarded(coroutine))
        try:
            if context.is_cancelled():  # asked to stop before there was a task to cancel
                self._running.cancel()
            result, error = await self._running
        finally:
            self._running = None
            coroutine.close()  # only does anything when it was cancelled before its first step
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        if error is not None:
            raise error
        return result

    def cancel(self) -> None:
        """Cancel the running coroutine, if any. Callable from any thread."""
        runner, running = self._runner, self._running
        if runner is not None and running is not None:
            runner.get_loop().call_soon_threadsafe(running.cancel)

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()


async def _guarded(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """These two would tear through the event loop and leave it half stopped."""
    try:
        return await coroutine, None
    except (SystemExit, KeyboardInterrupt) as error:
        return None, error


def execute(
    call: StepCall,
    context: StepContext,
    coroutines: AsyncSteps,
    blobs: Callable[[], BlobStore],
    output_bytes_max: int,
) -> StepOutcome:
    """Run the function to its end and say how it ended (without ``logs`` and ``where``)."""
    started = False
    began = time.perf_counter_ns()
    step_context.enter(context)
    try:
        function = resolve(call.function)
        with Arguments(blobs, context.cache) as given:
            arguments = given.decoded(call.arguments)
            started = True
            result = function(**arguments)
            if inspect.iscoroutine(result):
                result = coroutines.run(result, context)
            del arguments
            outcome = _outcome(result, blobs, context.cache, output_bytes_max)
    except BaseException as error:  # noqa: BLE001  # SystemExit and the like are the function's fault, too
        outcome = StepOutcome(error=describe(error), started=started)
    finally:
        step_context.enter(None)
    micros = (time.perf_counter_ns() - began) // 1000
    return msgspec.structs.replace(outcome, duration_micros=micros)


def _outcome(
    result: Any, blobs: Callable[[], BlobStore], cache: ValueCache | None, output_bytes_max: int
) -> StepOutcome:
    if is_stored(result):
        return StepOutcome(output=store(result, blobs(), cache), started=True)
    data = encode_result(result, lambda value: store(value, blobs(), cache))
    if len(data) > output_bytes_max:
        return StepOutcome(output_ref=blobs().put_bytes(data, "application/json"), started=True)
    return StepOutcome(output=msgspec.Raw(data), started=True)


@functools.lru_cache(maxsize=4096)
def resolve(function: str) -> Callable[..., Any]:
    """The callable that ``module:qualname`` names, imported once for each worker.

    Raises: whatever importing raises; AttributeError, TypeError or ValueError for a wrong name.
    """
    module_name, separator, qualname = function.partition(":")
    if not separator or not module_name or not qualname:
        raise ValueError(f"{function!r} does not have the form module:qualname")
    found: Any = importlib.import_module(module_name)
    for name in qualname.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{function} is a {type(found).__name__}, not a function")
    return found


# --- results ------------------------------------------------------------------------------------------


def encode_result(result: Any, keep: Callable[[Any], Json] | None = None) -> bytes:
    """JSON of ``result``, by msgspec's rules: dataclasses become objects, dates text, NaN null.

    ``keep`` gives what stands for tables, arrays and files in it (``large_values``).
    Raises: Unserialisable, naming the path and type of the first value that can't be expressed; what ``keep``
    raises for the storage's faults.
    """
    try:
        return msgspec.json.encode(result, enc_hook=None if keep is None else within_json(keep))
    except RecursionError:
        raise Unserialisable(
            "the result is nested too deeply, or contains itself: JSON can't express it"
        ) from None
    except (NotStorable, NotInstalled):
        raise
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        hook = None if keep is None else within_json(_nothing)
        raise Unserialisable(_explain(result, error, hook)) from None


def _nothing(_: Any) -> Json:
    """Stands for what would be stored, while a result that can't be encoded is searched for the reason."""
    return None


def _explain(result: Any, error: Exception, hook: Callable[[Any], Json] | None) -> str:
    for path, value in _walk(result, "result", 0):
        try:
            msgspec.json.encode(value, enc_hook=hook)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as reason:
            kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            return f"{path} is a {kind}, which JSON can't express ({reason})"
    return f"the result can't be expressed as JSON ({error})"


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Leaves of ``value`` in order, each with its path; containers only where nothing inside is at fault."""
    if depth < 100:
        if isinstance(value, Mapping):
            entries = cast(Mapping[Any, Any], value)
            for key, inner in entries.items():
                yield f"{path} (key {key!r:.40})", {key: None}
                yield from _walk(inner, f"{path}.{key}", depth + 1)
            return
        if isinstance(value, (list, tuple)):
            for index, inner in enumerate(cast("list[Any] | tuple[Any, ...]", value)):
                yield from _walk(inner, f"{path}[{index}]", depth + 1)
            return
    yield path, value


# --- errors -------------------------------------------------------------------------------------------


def describe(error: BaseException) -> StepError:
    """What an operator needs to know about an exception of user code, bounded."""
    if isinstance(error, Unserialisable):
        return StepError(type="Unserialisable", message=bounded(str(error), MESSAGE_CHARS_MAX))
    if isinstance(error, SystemExit):
        message = f"the function called sys.exit({error.code!r:.200}) instead of returning"
    else:
        try:
            message = str(error)
        except Exception:  # noqa: BLE001  # __str__ is user code as well
            message = "(its __str__ failed)"
    return StepError(
        type=type(error).__name__,
        message=bounded(message, MESSAGE_CHARS_MAX),
        traceback=format_traceback(error),
    )


def format_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, from the user's function inwards; files relative to sys.path."""
    report = traceback.TracebackException.from_exception(error, limit=-TRACEBACK_FRAMES_MAX)
    _clean_chain(report, 0)
    return bounded("".join(report.format()), TRACEBACK_CHARS_MAX)


def format_stack(frame: FrameType) -> str:
    """Where a thread is now, in the same form."""
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame))
    stack.reverse()
    frames = _user_frames(stack)[-TRACEBACK_FRAMES_MAX:]
    lines = traceback.StackSummary.from_list(frames).format()
    return bounded("Stopped here:\n" + "".join(lines), TRACEBACK_CHARS_MAX)


def _clean_chain(report: traceback.TracebackException, depth: int) -> None:
    report.stack = traceback.StackSummary.from_list(_user_frames(report.stack))
    if depth < 10:
        for other in (report.__cause__, report.__context__):
            if other is not None:
                _clean_chain(other, depth + 1)
    else:
        report.__cause__ = report.__context__ = None


def _user_frames(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """Without the frames that lead from the worker to the user's function, or to its module."""
    lead = [at for at, frame in enumerate(stack) if frame.filename == __file__ and frame.name in _LEADS]
    return [
        traceback.FrameSummary(
            short_path(frame.filename), frame.lineno, frame.name, lookup_line=False, line=frame.line
        )
        for frame in stack[lead[-1] + 1 if lead else 0 :]
        if frame.filename not in _IMPORT_MACHINERY
    ]


def short_path(filename: str) -> str:
    """``filename`` below the longest entry of sys.path it stands in: no layout of the machine."""
    for root in sorted({entry for entry in sys.path if entry}, key=len, reverse=True):
        if filename.startswith(root.rstrip("/") + "/"):
            return filename[len(root.rstrip("/")) + 1 :]
    return os.path.basename(filename) if os.path.isabs(filename) else filename


def bounded(text: str, limit: int) -> str:
    """``text`` within ``limit`` characters and a note: the first quarter and the end; both are telling."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n... {len(text) - limit} characters left out ...\n{text[head - limit :]}"
