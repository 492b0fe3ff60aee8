"""``wait_for_signal``: holds nothing until a signal of that name arrives; its payload is the output."""

from typing import Annotated

import msgspec

from runtime.kinds.kind import Binder, Kind
from runtime.kinds.sleep import SECONDS_MAX
from runtime.plan import ON_TIMEOUT, Act, Scope, Wait


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``timeout_seconds``: None waits for ever. ``continue`` completes with null after it."""

    signal: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=SECONDS_MAX)] | None = None
    on_timeout: ON_TIMEOUT = "fail"


def bind(config: Config, binder: Binder) -> Act:
    if config.timeout_seconds is None and config.on_timeout != "fail":
        binder.problem("on_timeout", "needs timeout_seconds")
    wait = Wait(signal=config.signal, delay_seconds=config.timeout_seconds, on_timeout=config.on_timeout)

    def act(scope: Scope) -> Wait:
        return wait

    return act


KIND = Kind(config=Config, bind=bind)
