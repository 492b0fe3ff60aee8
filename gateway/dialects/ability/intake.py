"""A form becomes a command: the fields of 3.1, their rules, and the files (ability contract 3.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from actors.egress import EgressRefused, Unresolved
from gateway.dialects.ability.wire import SOURCE, encode
from gateway.envelopes import Problem
from gateway.idempotency import request_digest
from gateway.settings import Settings
from gateway.uploads import Form, FormFault, FormRules, KeptFile, read_form
from runtime.commands import StartExecution
from runtime.errors import InvalidInput
from runtime.events import FileDescriptor
from runtime.inputs import check_input
from runtime.queue_keys import placed

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.catalogue import PublishedFlow

ABILITY_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

PARAMS_BYTES_MAX = 1024 * 1024
TEXT_BYTES_MAX = 16 * 1024
"""Of `callback_url` and `debug`; whatever is longer than their own rules but below this gets their error."""

FORM_OVERHEAD_BYTES = 256 * 1024
"""Boundaries, part headers and fields that are read over."""

FILES_KEY = "$files"
"""Under this name a node sees the request's files among its inputs; params can't use it."""

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def body_bytes_max(settings: Settings) -> int:
    return settings.upload_bytes_max + PARAMS_BYTES_MAX + FORM_OVERHEAD_BYTES


def _rules(settings: Settings) -> FormRules:
    return FormRules(
        texts={"params_json": PARAMS_BYTES_MAX, "callback_url": TEXT_BYTES_MAX, "debug": TEXT_BYTES_MAX},
        files=frozenset({"files", "files[]"}),
        files_max=settings.upload_files_max,
        file_bytes_max=settings.upload_file_bytes_max,
        files_bytes_max=settings.upload_bytes_max,
    )


class Submission(NamedTuple):
    """A request as it was read; ``form`` holds its files until they are kept or discarded."""

    params: dict[str, Any]
    callback_url: str
    debug: bool
    form: Form

    def digest(self) -> str:
        """The same for the same request, though a client that repeats it draws a new boundary."""
        return request_digest(
            encode(self.params),
            self.callback_url.encode(),
            str(self.debug).encode(),
            *(
                part
                for file in self.form.staged
                for part in (file.name.encode(), file.content_type.encode(), file.writer.sha256.encode())
            ),
        )


async def published_ability(call: Call) -> PublishedFlow:
    """The released version behind the path's code. Raises: Problem flow_not_found."""
    code = call.path["api_endpoint"]
    found = None
    if ABILITY_CODE.fullmatch(code):
        found = await call.gateway.catalogue.published(call.caller.tenant, code)
    if found is None:
        raise Problem("flow_not_found")
    return found


async def read_submission(call: Call) -> Submission:
    """Read and check the form. Whoever gets it must end it by `form.keep` or `form.discard`.

    Raises: Problem, and then nothing stays behind.
    """
    gateway = call.gateway
    try:
        form = await read_form(
            call.header(b"content-type"), call.chunks(), _rules(gateway.settings), gateway.blobs.open_writer
        )
    except FormFault as fault:
        raise _invalid_params(str(fault)) from None
    try:
        return Submission(
            _params(form), _text(form, "callback_url", "invalid_callback_url"), _debug(form), form
        )
    except BaseException:
        await form.discard()
        raise


def _params(form: Form) -> dict[str, Any]:
    data = form.texts.get("params_json")
    if not data:
        raise _invalid_params("is required")
    try:
        params: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _invalid_params("is not valid JSON") from None
    if not isinstance(params, dict):
        raise _invalid_params("must be an object")
    try:
        msgspec.msgpack.encode(params)
    except OverflowError:
        # Messages between processes carry 64 bits, as do most readers of JSON.
        raise _invalid_params("has an integer beyond 64 bits") from None
    if FILES_KEY in params:
        raise _invalid_params("is a reserved name", FILES_KEY)
    return cast("dict[str, Any]", params)


def _invalid_params(rule: str, field: str = "params_json") -> Problem:
    return Problem("invalid_input", f"{field}: {rule}", [(field, rule)])


def _text(form: Form, name: str, code: str) -> str:
    try:
        return form.text(name)
    except FormFault as fault:
        raise Problem(code, str(fault), [(name, "is not UTF-8")]) from None


def _debug(form: Form) -> bool:
    if "debug" not in form.texts:
        return False
    value = _BOOLEANS.get(_text(form, "debug", "invalid_debug").strip().lower())
    if value is None:
        raise Problem("invalid_debug", details=[("debug", "must be true, false, 1 or 0")])
    return value


async def command_of(
    call: Call, published: PublishedFlow, given: Submission, execution_id: str
) -> StartExecution:
    """The checked command; the submission's files are blobs from here on.

    Raises: Problem.
    """
    gateway, caller = call.gateway, call.caller
    try:
        check_input(published.definition, given.params)
    except InvalidInput as error:
        raise Problem(
            "invalid_input", details=[(field or "params_json", rule) for field, rule in error.problems]
        ) from None
    if given.callback_url:
        try:
            await gateway.egress.check_url(given.callback_url)
        except Unresolved:
            # Nothing resolved, so there is no address to refuse; a resolver's bad moment must not refuse
            # work, and the delivery looks the name up and checks it again.
            pass
        except EgressRefused as refused:
            message = f"callback_url: {refused.reason}"
            raise Problem("invalid_callback_url", message, [("callback_url", refused.reason)]) from None
    await gateway.limits.count_start(caller)
    kept = await given.form.keep()
    command = StartExecution(
        at=gateway.clock(),
        by=caller.key_id,
        cause=call.correlation_id,
        execution_id=execution_id,
        tenant=caller.tenant,
        flow_id=call.path["api_endpoint"],
        flow_version=published.version,
        placement=published.plan.placement,
        source=SOURCE,
        input=given.params,
        correlation_id=call.given_correlation_id,
        callback_url=given.callback_url,
        debug=given.debug,
        files=tuple(_descriptor(execution_id, number, file) for number, file in enumerate(kept, start=1)),
    )
    return placed(command, published.plan)


def _descriptor(execution_id: str, number: int, file: KeptFile) -> FileDescriptor:
    file_id = f"f{number}"
    return FileDescriptor(
        file_id=file_id,
        name=file.name,
        content_type=file.content_type,
        size=file.blob.size,
        sha256=file.blob.sha256,
        uri=f"artifact://{execution_id}/{file_id}",
    )
