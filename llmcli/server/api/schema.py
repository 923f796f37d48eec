"""The JSON of requests. Pydantic models declare each field once, with its type and bounds; they validate
requests and generate the OpenAPI description. Undeclared fields are refused, since the client may expect an
effect.
"""

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from llmcli.errors import brief_json
from llmcli.server.errors import ApiError, invalid
from llmcli.version import __version__

JsonObject = dict[str, Any]
REFERENCE = "#/components/schemas/{model}"
B = TypeVar("B", bound="Body")

# fields of OpenAI, vLLM, llama.cpp, Ollama and others that do not change a text, unless used together with
# one of the fields below
HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "request_id",
    "priority",
    "cache_salt",
    "include_reasoning",
    "spaces_between_special_tokens",
    "cache_prompt",
    "id_slot",
    "n_keep",
    "timings_per_token",
    "return_progress",
    "reasoning_format",
    "keep_alive",
    "ttl",
    "mirostat_tau",
    "mirostat_eta",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "repeat_last_n",
    "dry_sequence_breakers",
    "xtc_threshold",
    "dynatemp_exponent",
    "include_obfuscation",
    "continuous_usage_stats",
}
# unsupported fields that would change the text: (values without effect, besides null; names of the fields)
_UNSUPPORTED: tuple[tuple[tuple[Any, ...], str], ...] = (
    (
        (0, "", [], {}, "none", "auto", ["text"], {"type": "text"}),
        "suffix use_beam_search ignore_eos mirostat dry_multiplier xtc_probability dynatemp_range n_probs "
        "post_sampling_probs lora early_stopping format stop_token_ids bad_words return_tokens_as_token_ids "
        "include_stop_str_in_output options tools functions think echo documents return_token_ids "
        "parse_special return_token_strs tool_choice function_call reasoning_effort modalities",
    ),
    ((1,), "best_of typical_p typ_p repeat_penalty length_penalty skip_special_tokens"),
    ((-1, 0), "top_n_sigma"),
)
UNSUPPORTED = {name: neutral for neutral, names in _UNSUPPORTED for name in names.split()}
TOOLS = ("tools", "functions", "tool_choice", "function_call")  # current names and earlier ones
SIMILAR = 0.8  # difflib's ratio above which a name is considered a misspelling of another


def parse_object(data: bytes) -> JsonObject:
    """Parse the object in a request's body. Raises ApiError for anything else, including NaN, infinity and
    text that is not Unicode."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails for half of a surrogate pair
    except UnicodeError as error:
        raise ApiError("the body must be UTF-8 text, without lone surrogates") from error
    except (ValueError, RecursionError) as error:
        reason, _, _ = str(error).partition(";")  # for a number of many digits, advice to Python programmers
        raise ApiError(f"the body must be JSON: {reason[:200]}") from error
    if not isinstance(value, dict):
        raise ApiError(f"the body must be a JSON object, found {brief_json(value)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


# ---- objects


class Body(BaseModel):
    """The body of a request. Null means the default. Errors about a field quote its `description`, if any."""

    model_config = ConfigDict(strict=True, frozen=True)
    model: str | None = None  # default: the first one

    @classmethod
    def read(cls: type[B], values: Mapping[str, Any]) -> B:
        """Validate the values of a body. Raises ApiError, which names the field, for an invalid value and for
        an undeclared field."""
        _check_undeclared(values, cls.model_fields)
        try:
            return cls.model_validate({name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            # if a field may have several types, report the errors of those that matched furthest
            problems = error.errors(include_url=False)
        keys = max((_keys(problem["loc"]) for problem in problems), key=len)
        furthest = [problem for problem in problems if _keys(problem["loc"]) == keys]
        first = furthest[0]
        name = keys[0]
        place = ".".join(keys)
        actual = first["input"]
        if first["type"] == "missing":
            raise invalid(place, "is missing")
        if first["type"] in ("extra_forbidden", "none_required"):
            raise invalid(place, "is not supported here; leave it out", "unsupported_parameter")
        wanted = " or ".join(problem["msg"].replace("'", '"') for problem in furthest)
        wanted = wanted.replace("dictionary", "object")
        wanted = re.sub(r" after validation.*| or instance of \w+", "", wanted)
        wanted = re.sub(r"^\w+ should ", "must ", re.sub(r" or \w+ should be ", " or ", wanted))
        if described := cls.model_fields[name].description:
            place = name
            wanted = f"must be {described}"
            actual = values[name]
        raise invalid(place, f"{wanted}, found {brief_json(actual)}")


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """Return the field names and indices in an error's location, without pydantic's names of types."""
    return [str(key) for key in place if isinstance(key, int) or (key.isidentifier() and key != "str")]


def _check_undeclared(values: Mapping[str, Any], declared: Collection[str]) -> None:
    is_callable = "none" not in (values.get("tool_choice"), values.get("function_call"))
    for name, value in values.items():
        if value is None or name in declared or name in HARMLESS or (name in TOOLS and not is_callable):
            continue
        if name not in UNSUPPORTED:
            similar = difflib.get_close_matches(name[:100], declared, 1, SIMILAR)
            hint = f"; did you mean {similar[0]}?" if similar else "; leave it out"
            raise invalid(name[:100], f"is not supported here{hint}", "unsupported_parameter")
        if value not in UNSUPPORTED[name]:
            message = f"{name} is not supported, found {brief_json(value)}; leave it out"
            if name in TOOLS:
                message = (
                    "tools are not supported; leave out their fields, or set tool_choice to none; for a JSON "
                    "answer, give a JSON schema in response_format"
                )
            raise ApiError(message, param=name, code="unsupported_parameter")


# ---- the OpenAPI description


@dataclass(frozen=True)
class Operation:
    """A route: a GET, or a POST with a body."""

    path: str
    handler: Callable[..., Any]  # the first line of its docstring is the summary
    body: type[Body] | None = None
    answer: str | None = None  # a key of ANSWERS
    # raises ApiError for a model without what the route shows; called before other fields are validated
    check_model: Callable[[Any], None] | None = None

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def description(self) -> JsonObject:
        described: JsonObject = {
            "summary": (self.handler.__doc__ or "").partition("\n")[0],
            "responses": {
                "200": {"description": "the answer"}
                | (_json_content(_reference(self.answer)) if self.answer else {}),
                "default": {"description": "an error"} | _json_content(_reference("Error")),
            },
        }
        if "{id}" in self.path:
            described["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        if self.body is not None:
            described["requestBody"] = {"required": True} | _json_content(_reference(self.body.__name__))
        return described


def _json_content(schema: JsonObject) -> JsonObject:
    return {"content": {"application/json": {"schema": schema}}}


def _reference(name: str) -> JsonObject:
    return {"$ref": REFERENCE.format(model=name)}


ANSWERS: dict[str, dict[str, str]] = {  # {type: the properties that each answer has}
    "Completion": {"string": "id object model", "integer": "created", "array": "choices", "object": "usage"},
    "Models": {"string": "object", "array": "data"},
    "Model": {
        "string": "id object owned_by",
        "integer": "created context_length max_model_len parameters",
        "boolean": "chat",
        "array": "experts",
    },
    "NextWords": {"string": "model prompt", "array": "next", "number": "unexplored entropy_bits"},
    "Explanation": {
        "string": "model prompt tail",
        "integer": "cut earlier",
        "array": "tokens lens next_tokens next",
        "object": "attention",
        "number": "entropy_bits unexplored",
    },
    "Experts": {"string": "model", "array": "experts weights"},
    "Memory": {"string": "model", "array": "corpus spans", "integer": "searched_bytes", "number": "share"},
    "Tokens": {"array": "tokens", "integer": "count max_model_len"},
    "Text": {"string": "prompt"},
}
_ERROR = {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")}


def _object(properties: JsonObject) -> JsonObject:
    return {"type": "object", "properties": properties, "required": list(properties)}


def openapi(operations: Iterable[Operation]) -> JsonObject:
    """Return the OpenAPI document of all routes; each has one method."""
    operations = [*operations]
    bodies = {
        operation.body.__name__: operation.body.model_json_schema(ref_template=REFERENCE)
        for operation in operations
        if operation.body
    }
    nested = {name: schema for body in bodies.values() for name, schema in body.pop("$defs", {}).items()}
    answers = {
        answer: _object({name: {"type": kind} for kind, names in by_type.items() for name in names.split()})
        for answer, by_type in ANSWERS.items()
    }
    described = f"Language models on this computer. Refused unless without effect: {', '.join(UNSUPPORTED)}."
    return {
        "openapi": "3.1.0",
        "info": {"title": "llm serve", "version": __version__, "description": described},
        "paths": {
            operation.path: {operation.method.lower(): operation.description()} for operation in operations
        },
        "components": {
            "schemas": {"Error": _object({"error": _object(_ERROR)})} | nested | bodies | answers,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }
