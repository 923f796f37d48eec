"""The JSON of requests: dataclasses declare each field once, with its type and bounds. Requests are checked by them,
and the OpenAPI description is made from them. A field that is not declared is refused: it could change the answer."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from llmcli.errors import brief
from llmcli.server.errors import ApiError, invalid
from llmcli.version import __version__

JsonObject = dict[str, Any]
F = TypeVar("F", bound="Fields")
SHOWN_VALUES = 60  # the length of longer texts and lists is shown in their place

# fields of OpenAI, vLLM, llama.cpp, Ollama and others that never change a text, or only together with one below
HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "request_id", "priority", "cache_salt", "include_reasoning", "spaces_between_special_tokens",
    "cache_prompt", "id_slot", "n_keep", "timings_per_token", "return_progress", "reasoning_format", "keep_alive",
    "ttl", "mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "repeat_last_n",
    "dry_sequence_breakers", "xtc_threshold", "dynatemp_exponent", "include_obfuscation", "continuous_usage_stats",
}  # fmt: skip
# fields that change the text and are not supported: the values without effect (besides null), and the fields
_UNSUPPORTED: tuple[tuple[tuple[Any, ...], str], ...] = (
    (
        (0, "", [], {}, "none", "auto", ["text"], {"type": "text"}),
        "presence_penalty frequency_penalty logit_bias suffix grammar json_schema use_beam_search min_tokens "
        "ignore_eos mirostat dry_multiplier xtc_probability dynatemp_range n_probs post_sampling_probs lora "
        "early_stopping format stop_token_ids bad_words return_tokens_as_token_ids include_stop_str_in_output "
        "options tools functions think echo documents return_token_ids parse_special return_token_strs tool_choice "
        "function_call reasoning_effort modalities response_format",
    ),
    ((1,), "best_of typical_p typ_p repeat_penalty length_penalty skip_special_tokens"),
    ((-1, 0), "top_n_sigma"),
)
UNSUPPORTED = {name: neutral for neutral, names in _UNSUPPORTED for name in names.split()}


def parse_object(data: bytes) -> JsonObject:
    """The object of a request's body. Raises ApiError for anything else, also for NaN, infinity and text that is not
    Unicode."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails for half of a surrogate pair
    except UnicodeError as error:
        raise ApiError("the body must be UTF-8 text, without lone surrogates") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body must be JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise ApiError(f"the body must be a JSON object, found {brief(value)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


# ---- kinds of fields


@dataclass(frozen=True)
class Kind:
    """The values that a field accepts."""

    wanted: str  # for errors
    schema: JsonObject
    is_valid: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value

    def read(self, name: str, value: Any) -> Any:
        if value is None:
            raise invalid(name, f"is missing; give {self.wanted}")
        if not self.is_valid(value):
            is_long = isinstance(value, str | list) and len(value) > SHOWN_VALUES
            size = f"{len(value):,} {'characters' if isinstance(value, str) else 'values'}" if is_long else ""
            raise invalid(name, f"must be {self.wanted}, found {size or brief(value)}")
        return self.convert(value)


FLAG = Kind("true or false", {"type": "boolean"}, lambda value: isinstance(value, bool))
STRING = Kind("a text", {"type": "string"}, lambda value: isinstance(value, str))


def number(low: float, high: float, *types: type) -> Kind:
    """A number of one of these types."""
    name = "an integer" if types == (int,) else "a number"
    schema = {"type": name.split()[1], "minimum": low, "maximum": high}
    return Kind(
        f"{name} from {low} to {high}", schema, lambda value: type(value) in types and low <= value <= high, types[-1]
    )


def integer(low: int, high: int) -> Kind:
    return number(low, high, int)


def short_text(length: int) -> Kind:
    schema = {"type": "string", "maxLength": length}
    wanted = f"a text of at most {length:,} characters"
    return Kind(wanted, schema, lambda value: isinstance(value, str) and len(value) <= length)


def listed(items: JsonObject, low: int, high: int) -> JsonObject:
    """The schema of a list."""
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


# ---- objects


@dataclass(frozen=True, kw_only=True)
class Fields:
    """An object in a request. A subclass declares its fields: bool, str, or any type annotated with a Kind. A default
    stands for null, too."""

    @classmethod
    @cache
    def kinds(cls) -> dict[str, tuple[Kind, bool]]:
        """(kind, whether it is required) of each field."""
        hints, kinds = get_type_hints(cls, include_extras=True), {}
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            simple = FLAG if bool in (hint, *get_args(hint)) else STRING
            kind = hint.__metadata__[0] if get_origin(hint) is Annotated else simple
            kinds[field.name] = kind, field.default is dataclasses.MISSING
        return kinds

    @classmethod
    def read(cls: type[F], values: Mapping[str, Any]) -> F:
        """Raises ApiError that names the field for a value of another kind, and for a field that is not declared."""
        kinds = cls.kinds()
        _check_undeclared(values, kinds)
        given = {}
        for name, (kind, is_required) in kinds.items():
            if is_required or values.get(name) is not None:
                given[name] = kind.read(name, values.get(name))
        return cls(**given)

    @classmethod
    def schema(cls) -> JsonObject:
        """The JSON schema of the object."""
        kinds, null = cls.kinds(), {"type": "null"}
        properties = {
            name: kind.schema if needed else {"anyOf": [kind.schema, null]} for name, (kind, needed) in kinds.items()
        }
        return {"type": "object", "properties": properties, "required": [name for name in kinds if kinds[name][1]]}


@dataclass(frozen=True, kw_only=True)
class Body(Fields):
    """The body of a request."""

    model: str | None = None  # by default the first one


def _check_undeclared(values: Mapping[str, Any], declared: Collection[str]) -> None:
    for name, value in values.items():
        if value is None or name in declared or name in HARMLESS:
            continue
        if name not in UNSUPPORTED:
            similar = difflib.get_close_matches(name[:100], declared, 1)
            hint = f"; did you mean {similar[0]}?" if similar else "; leave it out"
            raise invalid(name[:100], f"is not supported here{hint}", "unsupported_parameter")
        if value not in UNSUPPORTED[name]:
            raise invalid(name, f"is not supported, found {brief(value)}; leave it out", "unsupported_parameter")


# ---- the OpenAPI description


@dataclass(frozen=True)
class Operation:
    """A route: a GET, or the POST of a body."""

    path: str
    handler: Callable[..., Any]  # the first line of its docstring is the summary
    body: type[Body] | None = None
    answer: str | None = None  # of ANSWERS

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def description(self) -> JsonObject:
        described: JsonObject = {
            "summary": (self.handler.__doc__ or "").partition("\n")[0],
            "responses": {
                "200": {"description": "the answer"} | (_json_content(_reference(self.answer)) if self.answer else {}),
                "default": {"description": "an error"} | _json_content(_reference("Error")),
            },
        }
        if "{id}" in self.path:
            described["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": STRING.schema}]
        if self.body is not None:
            described["requestBody"] = {"required": True} | _json_content(self.body.schema())
        return described


def _json_content(schema: JsonObject) -> JsonObject:
    return {"content": {"application/json": {"schema": schema}}}


def _reference(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


ANSWERS: dict[str, dict[str, str]] = {  # by type, the properties that each answer has
    "Completion": {"string": "id object model", "integer": "created", "array": "choices", "object": "usage"},
    "Models": {"string": "object", "array": "data"},
    "Model": {
        "string": "id object owned_by", "integer": "created context_length max_model_len parameters",
        "boolean": "chat", "array": "experts",
    },
    "NextWords": {"string": "model prompt", "array": "next", "number": "unexplored entropy_bits"},
    "Explanation": {
        "string": "model prompt tail", "integer": "cut earlier", "array": "tokens lens next_tokens next",
        "object": "attention", "number": "entropy_bits unexplored",
    },
    "Experts": {"string": "model", "array": "experts weights"},
    "Memory": {"string": "model", "array": "corpus spans", "integer": "searched_bytes", "number": "share"},
    "Tokens": {"array": "tokens", "integer": "count max_model_len"},
    "Text": {"string": "prompt content"},
}  # fmt: skip
_ERROR = {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")}


def _object(properties: JsonObject) -> JsonObject:
    return {"type": "object", "properties": properties, "required": list(properties)}


def openapi(operations: Iterable[Operation]) -> JsonObject:
    """The OpenAPI document of all routes; each has one method."""
    described = f"Language models on this computer. Refused unless without effect: {', '.join(UNSUPPORTED)}."
    return {
        "openapi": "3.1.0",
        "info": {"title": "llm serve", "version": __version__, "description": described},
        "paths": {one.path: {one.method.lower(): one.description()} for one in operations},
        "components": {
            "schemas": {"Error": _object({"error": _object(_ERROR)})}
            | {
                answer: _object({name: {"type": kind} for kind, names in by_type.items() for name in names.split()})
                for answer, by_type in ANSWERS.items()
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }
