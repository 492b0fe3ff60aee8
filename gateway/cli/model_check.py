"""What `heliograph doctor` says about the endpoint that agents call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.settings import Settings

OPENAI_URL = "https://api.openai.com/v1"
ANSWER_SECONDS = 5.0
OFFLINE = "offline"

_CONFIGURE = (
    "For agents: set HELIOGRAPH_MODEL, and HELIOGRAPH_MODEL_URL and HELIOGRAPH_MODEL_KEY for its endpoint;"
    " HELIOGRAPH_MODEL=offline answers without any."
)


class Verdict(NamedTuple):
    """``fix`` is empty when all is well."""

    found: str
    fix: str = ""


def check_model(settings: Settings) -> Verdict:
    """Whether a default model is set and its endpoint answers with the key there is; blocking.

    Asks for the endpoint's list of models, which costs nothing. The key is sent and never shown.
    """
    if not settings.model:
        return Verdict("none configured", _CONFIGURE)
    if settings.model == OFFLINE:
        return Verdict("offline: every answer is made up here, and says so")
    provider, _, rest = settings.model.partition(":")
    if rest and provider != "openai" and _is_provider(provider):
        return Verdict(f"{settings.model}: by {provider}'s own variables; not asked from here")
    variable = "HELIOGRAPH_MODEL_KEY" if os.environ.get("HELIOGRAPH_MODEL_KEY") else "OPENAI_API_KEY"
    key = os.environ.get(variable, "").strip()
    if not key and not settings.model_url:
        fix = "Set HELIOGRAPH_MODEL_KEY, or HELIOGRAPH_MODEL_URL for an endpoint of your own."
        return Verdict(f"{settings.model}: no key for {OPENAI_URL}", fix)
    if not key.isascii() or not key.isprintable():
        return Verdict(f"{settings.model}: {variable} holds what no key can", f"Correct {variable}.")
    return _asked(settings.model, settings.model_url or OPENAI_URL, key, variable)


def _is_provider(name: str) -> bool:
    """As hosts read a model's name: ``qwen2.5:7b`` of a local server names none."""
    from pydantic_ai.providers import infer_provider_class

    try:
        infer_provider_class(name)
    except ImportError:
        return True  # one of the library's, whose own library is not installed
    except ValueError:
        return False
    return True


def _asked(model: str, url: str, key: str, variable: str) -> Verdict:
    import httpx

    from gateway.cli.doctor import without_password

    shown = f"{model} at {without_password(url)}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", headers=headers, timeout=ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error)
        return Verdict(f"{shown}: {what}", "Start it, or correct HELIOGRAPH_MODEL_URL.")
    if answer.status_code in (401, 403):
        fix = f"Correct {variable}." if key else "Set HELIOGRAPH_MODEL_KEY."
        return Verdict(f"{shown}: refuses {'the key' if key else 'calls without a key'}", fix)
    if answer.is_server_error:
        return Verdict(f"{shown}: answers with {answer.status_code}", "Its own log should say why.")
    return Verdict(f"{shown} answers")
