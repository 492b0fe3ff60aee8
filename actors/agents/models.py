"""A model by its name.

``offline``: the library's own stand-in, which says so in every answer; as the server's default it answers for
every other name too, so nothing is called by surprise. ``provider:name``: that provider, by the library's own
rules and environment variables. Any other name goes to the OpenAI-compatible endpoint that is configured.
"""

import os
from dataclasses import replace

import aiohttp
import httpx2
import msgspec
from openai import AsyncOpenAI
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models import Model, ModelRequestParameters, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers import Provider, infer_provider_class
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from actors.agents.errors import ModelNotConfigured
from actors.agents.home import AgentSettings
from actors.agents.lean_client import LeanClient, open_session

OFFLINE = "offline"
OFFLINE_LABEL = "[offline model] "
_MODELS_MAX = 256
_SCHEMAS_MAX = 1_024
"""Tools' schemas that a model keeps worked out; at the bound it begins anew."""

NOT_CONFIGURED = (
    "no model is configured: set HELIOGRAPH_MODEL, and HELIOGRAPH_MODEL_URL or HELIOGRAPH_MODEL_KEY"
    " (OPENAI_API_KEY) for its endpoint, or start with --model offline"
)


class NamedModel(msgspec.Struct, frozen=True):
    """``name``: as named to the provider. ``takes_headers``: it sends what ``extra_headers`` holds."""

    model: Model
    name: str
    takes_headers: bool = True

    @property
    def answers_by_schema(self) -> bool:
        """Whether a structured answer comes as text bound to its schema; else by an output tool."""
        return bool(self.model.profile.get("supports_json_schema_output", False))


class Models:
    """The models of one service; they share one pool of connections."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._known: dict[str, NamedModel] = {}
        self._session: aiohttp.ClientSession | None = None
        self._http: httpx2.AsyncClient | None = None
        self.key = os.environ.get("HELIOGRAPH_MODEL_KEY") or os.environ.get("OPENAI_API_KEY") or ""

    def named(self, name: str) -> NamedModel:
        """The model called ``name``; empty: the server's default.

        Raises: ModelNotConfigured with one sentence that says what to set.
        """
        name = OFFLINE if self._settings.model == OFFLINE else name or self._settings.model
        if not name:
            raise ModelNotConfigured(NOT_CONFIGURED)
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= _MODELS_MAX:
                self._known.clear()
            known = self._known[name] = self._build(name)
        return known

    def _build(self, name: str) -> NamedModel:
        if name == OFFLINE:
            return NamedModel(OfflineModel(), OFFLINE, takes_headers=False)
        provider, _, rest = name.partition(":")
        if rest and provider != "openai" and _is_provider(provider):
            return self._inferred(name, provider)
        return self._compatible(rest if provider == "openai" and rest else name)

    def _inferred(self, name: str, provider: str) -> NamedModel:
        try:
            return NamedModel(infer_model(name), name)
        except ImportError:
            message = f"the model {name} needs a library: install pydantic-ai-slim[{provider}]"
            raise ModelNotConfigured(message) from None
        except UserError as error:
            raise ModelNotConfigured(f"the model {name} can't be used: {error}") from None

    def _compatible(self, name: str) -> NamedModel:
        url = self._settings.model_url or os.environ.get("OPENAI_BASE_URL") or ""
        if not url and not self.key:
            message = f"the model {name} has no endpoint: set HELIOGRAPH_MODEL_URL or HELIOGRAPH_MODEL_KEY"
            raise ModelNotConfigured(f"{message} (or OPENAI_API_KEY)")
        client = LeanClient(
            base_url=url or None,
            api_key=self.key or "none",
            max_retries=0,  # retries are ours: recorded, and visible
            http_client=self._shared_http(),
        )
        client.session = self._shared_session
        provider: Provider[AsyncOpenAI] = (
            OpenAICompatibleProvider("openai-compatible", openai_client=client)
            if url
            else OpenAIProvider(openai_client=client)
        )
        # Without a finish reason a stream was cut: only so does a broken answer differ from a short one.
        profile = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
        return NamedModel(_ChatModel(name, provider, profile), name)

    def _shared_session(self, url: str) -> aiohttp.ClientSession:
        """``url``: the endpoint's, which is one for all models."""
        if self._session is None:
            self._session = open_session(url, self._settings.model_calls_max)
        return self._session

    def _shared_http(self) -> httpx2.AsyncClient:
        """Of the SDK, which would make one for each model; streamed requests do not go this way."""
        if self._http is None:
            self._http = httpx2.AsyncClient()
        return self._http

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._http is not None:
            await self._http.aclose()


def _is_provider(name: str) -> bool:
    try:
        infer_provider_class(name)
    except ImportError:
        return True  # one of the library's, whose own library is not installed
    except ValueError:
        return False  # e.g. the ``qwen2.5:7b`` of a local server
    return True


class _ChatModel(OpenAIChatModel):
    """Works a tool's schema out once: the library walks through all of it for every call."""

    def __init__(self, name: str, provider: Provider[AsyncOpenAI], profile: OpenAIModelProfile) -> None:
        super().__init__(name, provider=provider, profile=profile)
        self._worked_out: dict[tuple[bytes, bool | None], ToolDefinition] = {}

    def customize_request_parameters(
        self, model_request_parameters: ModelRequestParameters
    ) -> ModelRequestParameters:
        tools = [self._customized(tool) for tool in model_request_parameters.function_tools]
        rest = super().customize_request_parameters(replace(model_request_parameters, function_tools=[]))
        return replace(rest, function_tools=tools)

    def _customized(self, tool: ToolDefinition) -> ToolDefinition:
        place = msgspec.json.encode(tool.parameters_json_schema), tool.strict
        known = self._worked_out.get(place)
        if known is None:
            alone = ModelRequestParameters(function_tools=[tool])
            [known] = super().customize_request_parameters(alone).function_tools
            if len(self._worked_out) >= _SCHEMAS_MAX:
                self._worked_out.clear()
            self._worked_out[place] = known
        return replace(tool, parameters_json_schema=known.parameters_json_schema, strict=known.strict)


class OfflineModel(TestModel):
    """The library's model for trying things out, labelled: it calls every tool once, then answers.

    It makes up arguments by a tool's schema; tools whose schema says more than it understands are not called.
    """

    def __init__(self) -> None:
        super().__init__(model_name=OFFLINE)

    def _request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        # Nothing is awaited between here and the use of it.
        self.call_tools = [
            tool.name for tool in model_request_parameters.function_tools if self._can_call(tool)
        ]
        response = super()._request(messages, model_settings, model_request_parameters)
        response.parts = [
            TextPart(OFFLINE_LABEL + part.content) if isinstance(part, TextPart) else part
            for part in response.parts
        ]
        return response

    def _can_call(self, tool: ToolDefinition) -> bool:
        try:
            self.gen_tool_args(tool)
        except (NotImplementedError, KeyError, TypeError):
            return False
        return True
