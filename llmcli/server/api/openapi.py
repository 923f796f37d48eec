"""The OpenAPI description of the routes, as data. /openapi.json publishes it, and tests send requests made from it.

The bounds are those that the routes check.
"""

from typing import Any

from llmcli.server import limits
from llmcli.server.api.sampling import MAX_SEED, UNSUPPORTED
from llmcli.version import __version__

JsonSchema = dict[str, Any]

TEXT: JsonSchema = {"type": "string"}
FLAG: JsonSchema = {"type": "boolean"}
ANYTHING: JsonSchema = {}
ANY_OBJECT: JsonSchema = {"type": "object"}


def _integer(low: int, high: int) -> JsonSchema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: float, high: float) -> JsonSchema:
    return {"type": "number", "minimum": low, "maximum": high}


def _list(items: JsonSchema, low: int = 0, high: int | None = None) -> JsonSchema:
    return {"type": "array", "items": items, "minItems": low} | ({"maxItems": high} if high else {})


def _object(properties: JsonSchema, *required: str) -> JsonSchema:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def _reference(name: str) -> JsonSchema:
    return {"$ref": f"#/components/schemas/{name}"}


def _optional(schema: JsonSchema) -> JsonSchema:
    """null, too, stands for a field that is left out."""
    return {"anyOf": [schema, {"type": "null"}]}


TOKEN_IDS = _list(_integer(0, 2**31 - 1))
STOP = {"anyOf": [TEXT, _list(TEXT, 0, limits.MAX_STOPS)]}
PROMPT = {"anyOf": [TEXT, TOKEN_IDS, _list({"anyOf": [TEXT, TOKEN_IDS]}, 1, limits.MAX_PROMPTS)]}
MODEL = {"model": _optional(TEXT)}
SAMPLING: JsonSchema = {
    "max_tokens": _integer(0, limits.MAX_TOKENS),
    "temperature": _number(0, 100),
    "top_p": _number(0, 1),
    "top_k": _integer(-1, 2**31),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(1e-6, 1e6),
    "seed": _integer(0, MAX_SEED),
    "n": _integer(1, limits.MAX_CHOICES),
    "stop": STOP,
    "stream": FLAG,
    "stream_options": _object({"include_usage": FLAG}),
}
MESSAGE = _object(
    {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [TEXT, _list(_object({"type": {"const": "text"}, "text": TEXT}, "type", "text"))]},
    },
    "role",
    "content",
)
MESSAGES = _list(MESSAGE, 1, limits.MAX_MESSAGES)
USAGE = _object(
    {
        "prompt_tokens": _integer(0, 2**53),
        "completion_tokens": _integer(0, 2**53),
        "total_tokens": _integer(0, 2**53),
        "prompt_tokens_details": _object({"cached_tokens": _integer(0, 2**53)}),
        "dropped_turns": _integer(1, limits.MAX_MESSAGES),
    },
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
)
FINISH_REASON = {"enum": ["stop", "length", None]}


def _answer(kind: str, choice: JsonSchema) -> JsonSchema:
    """The schema of a whole answer."""
    properties = {"id": TEXT, "object": {"const": kind}, "created": _integer(0, 2**53), "model": TEXT, "usage": USAGE}
    return _object(properties | {"choices": _list(choice, 1)}, "id", "object", "created", "model", "choices", "usage")


SCHEMAS: JsonSchema = {
    "Error": _object(
        {
            "error": _object(
                {"message": TEXT, "type": TEXT, "param": _optional(TEXT), "code": _optional(TEXT)},
                "message",
                "type",
                "param",
                "code",
            )
        },
        "error",
    ),
    "CompletionRequest": _object(
        MODEL
        | {name: _optional(schema) for name, schema in SAMPLING.items()}
        | {
            "prompt": PROMPT,
            "echo": _optional(FLAG),
            "logprobs": _optional(_integer(0, limits.MAX_LOGPROBS)),
            "return_token_ids": _optional(FLAG),
        },
        "prompt",
    ),
    "Completion": _answer(
        "text_completion",
        _object(
            {
                "text": TEXT,
                "index": _integer(0, limits.MAX_CHOICES),
                "logprobs": _optional({"type": "object"}),
                "finish_reason": FINISH_REASON,
            },
            "text",
            "index",
            "logprobs",
            "finish_reason",
        ),
    ),
    "ChatRequest": _object(
        MODEL
        | {name: _optional(schema) for name, schema in SAMPLING.items()}
        | {
            "messages": MESSAGES,
            "max_completion_tokens": _optional(SAMPLING["max_tokens"]),
            "chat_template_kwargs": _optional(ANY_OBJECT),
            "add_generation_prompt": _optional(FLAG),
            "continue_final_message": _optional(FLAG),
            "logprobs": _optional(FLAG),
            "top_logprobs": _optional(_integer(0, limits.MAX_TOP_LOGPROBS)),
        },
        "messages",
    ),
    "ChatCompletion": _answer(
        "chat.completion",
        _object(
            {
                "index": _integer(0, limits.MAX_CHOICES),
                "message": _object({"role": {"const": "assistant"}, "content": TEXT}, "role", "content"),
                "logprobs": _optional({"type": "object"}),
                "finish_reason": FINISH_REASON,
            },
            "index",
            "message",
            "logprobs",
            "finish_reason",
        ),
    ),
    "Model": _object(
        {
            "id": TEXT,
            "object": {"const": "model"},
            "created": _integer(0, 2**53),
            "owned_by": TEXT,
            "context_length": _integer(1, 2**31),
            "parameters": _integer(0, 2**63),
            "chat": FLAG,
            "experts": _list(TEXT),
        },
        "id",
        "object",
        "created",
        "owned_by",
    ),
}


def _content(schema: JsonSchema, kind: str = "application/json") -> JsonSchema:
    return {"content": {kind: {"schema": schema}}}


def _responses(*contents: tuple[str, JsonSchema]) -> JsonSchema:
    error = {"description": "what was found, what was wanted"} | _content(_reference("Error"))
    success = {"description": "the answer", "content": {kind: {"schema": schema} for kind, schema in contents}}
    return {"200": success, "4XX": error, "5XX": error}


def _get(summary: str, schema: JsonSchema, kind: str = "application/json", *parameters: JsonSchema) -> JsonSchema:
    """A route that takes no body."""
    operation = {"summary": summary, "responses": _responses((kind, schema))}
    return {"get": operation | ({"parameters": list(parameters)} if parameters else {})}


def _post(summary: str, body: JsonSchema, answer: JsonSchema, *, streams: bool = False) -> JsonSchema:
    """A route that takes a JSON object, and answers with one or with a stream of them."""
    contents = [("application/json", answer), *([("text/event-stream", TEXT)] if streams else [])]
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True} | _content(body),
            "responses": _responses(*contents),
        }
    }


MODEL_ID: JsonSchema = {"name": "id", "in": "path", "required": True, "schema": TEXT}
MODEL_QUERY: JsonSchema = {"name": "model", "in": "query", "required": False, "schema": TEXT}
STATUS = _object({"status": {"enum": ["ok", "loading", "failed"]}, "error": TEXT}, "status")
MESSAGES_FIELDS: JsonSchema = {"messages": MESSAGES, "chat_template_kwargs": _optional(ANY_OBJECT)}
ANALYZED: JsonSchema = MODEL | {"prompt": TEXT} | MESSAGES_FIELDS
WITHOUT_VERSION = ("/v1/models", "/v1/models/{id}", "/v1/completions", "/v1/chat/completions")  # also without /v1
COUNT = _integer(1, limits.MAX_NEXT_WORDS)

PATHS: JsonSchema = {
    "/": _get("The page.", TEXT, "text/html"),
    "/health": _get("Whether the server is ready.", STATUS),
    "/v1/health": _get("Whether the server is ready.", STATUS),
    "/metrics": _get("Counts, for Prometheus.", TEXT, "text/plain"),
    "/openapi.json": _get("This description.", ANY_OBJECT),
    "/v1/models": _get(
        "The models.",
        _object({"object": {"const": "list"}, "data": _list(_reference("Model"))}, "object", "data"),
    ),
    "/v1/models/{id}": _get("A model.", _reference("Model"), "application/json", MODEL_ID),
    "/v1/models/{id}/examples": _get(
        "A few prompts for it, from its own texts.", {"type": "object"}, "application/json", MODEL_ID
    ),
    "/v1/models/{id}/card": _get("What llm inspect shows of it.", _reference("Model"), "application/json", MODEL_ID),
    "/v1/completions": _post(
        "Continue prompts.", _reference("CompletionRequest"), _reference("Completion"), streams=True
    ),
    "/v1/chat/completions": _post(
        "Answer a conversation.", _reference("ChatRequest"), _reference("ChatCompletion"), streams=True
    ),
    "/v1/next": _post(
        "The most likely next words.", _object(MODEL | {"prompt": TEXT, "n": _optional(COUNT)}, "prompt"), ANY_OBJECT
    ),
    "/v1/explain": _post(
        "How the model arrives at its prediction.",
        _object(ANALYZED | {"n": _optional(COUNT), "literal": _optional(FLAG)}),
        ANY_OBJECT,
    ),
    "/v1/experts": _post(
        "The weights of the experts for each token.",
        _object(ANALYZED | {"token_ids": TOKEN_IDS}, "token_ids"),
        ANY_OBJECT,
    ),
    "/v1/memory": _post(
        "What of a text stands verbatim in the training text.",
        _object(MODEL | {"text": TEXT | {"maxLength": limits.MAX_MEMORY_CHARACTERS}}, "text"),
        ANY_OBJECT,
    ),
    "/tokenize": _post(
        "The tokens of a text or a conversation.",
        _object(
            MODEL
            | {"prompt": TEXT, "content": TEXT}
            | MESSAGES_FIELDS
            | {name: _optional(FLAG) for name in ("add_special_tokens", "add_generation_prompt", "with_pieces")}
        ),
        _object({"tokens": _list(ANYTHING), "count": _integer(0, 2**53)}, "tokens", "count"),
    ),
    "/detokenize": _post(
        "The text of tokens.", _object(MODEL | {"tokens": TOKEN_IDS}, "tokens"), _object({"prompt": TEXT}, "prompt")
    ),
    "/tokenizer_info": _get(
        "The names of the control tokens, and the chat template.",
        _object({"eos_token": TEXT}, "eos_token"),
        "application/json",
        MODEL_QUERY,
    ),
}
PATHS |= {path.removeprefix("/v1"): PATHS[path] for path in WITHOUT_VERSION}


def description() -> JsonSchema:
    """The document."""
    unsupported = ", ".join(UNSUPPORTED)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llm serve",
            "version": __version__,
            "description": f"Language models on this computer. Refused unless without effect: {unsupported}.",
        },
        "paths": PATHS,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }
