"""``template``: text made by Jinja2; the output is the text."""

import msgspec

from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, Output, Scope


class Config(msgspec.Struct, frozen=True, kw_only=True):
    template: str


def bind(config: Config, binder: Binder) -> Act:
    render = binder.template("template", config.template)

    def act(scope: Scope) -> Output:
        return Output(render(scope))

    return act


KIND = Kind(config=Config, bind=bind, in_map=True)
