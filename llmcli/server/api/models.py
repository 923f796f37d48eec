"""The served models, by the stem of the file name. A model is loaded on first use."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from threading import Thread

from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import Message
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, OnNote
from llmcli.formats.atomic_io import name_of
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.loading import load_any, open_chat_template, open_tokenizer
from llmcli.models.ngram_runtime import network_of
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.open_runtime import expert_names, open_runtime
from llmcli.models.runtime import Runtime
from llmcli.server.errors import ApiError, not_loaded

MAX_LISTED = 10  # names in an error


class ServedModel:
    """A model file. Its header is read immediately, so that a missing or damaged file is an error at
    startup."""

    def __init__(self, path: Path, context: int | None) -> None:
        """`context` limits the context length. Raises LLMError."""
        self.path = path
        self.name = path.stem if path.is_file() else name_of(path.resolve())
        if self.name != self.name.encode("utf-8", "replace").decode("utf-8"):  # not representable in JSON
            raise LLMError(f"the name {path} is not UTF-8 text; rename the file")
        self.source = load_any(path)
        self.experts = expert_names(self.source)
        self._version = _version(path)
        self._readable: tuple[Checkpoint, NumpyRuntime] | None = None
        self.created = int(path.stat().st_mtime)
        longest = self.source.shared.config.max_position_embeddings
        self.context = longest if context is None else min(context, longest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.source)

    @cached_property
    def template(self) -> ChatTemplate | None:
        return open_chat_template(self.source, self.tokenizer)

    def prepare(self) -> None:
        """Load everything that would delay the first request. Errors are ignored here and reported by
        requests."""
        with suppress(LLMError, OSError, MemoryError):
            self.tokenizer.vocabulary.allowed()
            if self.template is not None:
                self.template.encode([Message("user", "Hello")], add_generation_prompt=True)
                _ = self.template.stop_ids

    def readable_runtime(self, checkpoint: Checkpoint) -> NumpyRuntime:
        """Open a runtime whose activations can be recorded, for this model or a model of its ensemble. The
        latest runtime is kept. Raises ApiError if the file has changed since it was opened."""
        if self._readable is None or self._readable[0] is not checkpoint:
            self.check_unchanged()  # tensors are read again
            runtime = NumpyRuntime(checkpoint)
            runtime.context = self.context
            self._readable = checkpoint, runtime
        return self._readable[1].fork()

    def check_unchanged(self) -> None:
        """Raise ApiError if the file was replaced since it was opened, because its tensors would be
        read with the wrong header."""
        try:
            if _version(self.path) == self._version:
                return
            reason = "was replaced while the server was running"
        except OSError as error:
            reason = f"can no longer be read ({error.strerror})"
        raise not_loaded(f"the file of {self.name} {reason}; restart llm serve")

    def as_json(self) -> dict[str, object]:
        """Return the model's entry in /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "llmcli",
            "context_length": self.context,
            "max_model_len": self.context,  # vLLM's name
            "parameters": self.source.parameters,
            "chat": self.template is not None,
            "experts": self.experts,
        }


def _version(path: Path) -> list[tuple[str, int, int, int]]:
    """Return a value that changes when a model file, or a file in a model's directory, is replaced."""
    files = [path]
    if path.is_dir():
        files = sorted(
            file for file in path.iterdir() if file.suffix in (".safetensors", ".json") and file.is_file()
        )
    states = [(file.name, file.stat()) for file in files]
    return [(name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states]


class Models:
    """The served models."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        device: str,
        quantize: str | None,
        context: int | None,
        cache: bool,
        on_note: OnNote,
    ) -> None:
        """Open model files. Raises LLMError for a file that is not a model, and for two files with the same
        name."""
        self._open = partial(
            open_runtime, device=device, quantize=quantize, on_note=on_note, fast=True, cache=cache
        )
        self._on_note = on_note
        self.uses_cache = cache
        self._models: dict[str, ServedModel] = {}
        for path in paths:
            model = ServedModel(path, context)
            if other := self._models.get(model.name):
                raise LLMError(
                    f"{other.path} and {path} would both be served as {model.name}; "
                    "rename or leave out one of them"
                )
            self._models[model.name] = model

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str | None = None) -> ServedModel:
        """Return the model with this name (default: the first one). Raises ApiError if it is not served."""
        name = next(iter(self._models)) if name is None else name
        if name not in self._models:
            names = ", ".join(list(self._models)[:MAX_LISTED])
            message = f"there is no model {name[:200]!r} here; this server has {names}"
            raise ApiError(message, 404, param="model", code="model_not_found")
        return self._models[name]

    def open_runtime(self, name: str) -> tuple[Runtime, Tokenizer]:
        """Load a model. Raises ApiError; its cause names files and is for the log."""
        model = self._models[name]
        with suppress(RuntimeError):  # if no thread can be started, the first request does the work
            Thread(target=model.prepare, name="prepare-model", daemon=True).start()
        try:
            model.check_unchanged()
            runtime = self._open(model.source)
            runtime.context = network_of(runtime).context = model.context
            return runtime, model.tokenizer
        except (ApiError, LLMError, OSError, MemoryError) as error:
            self._on_note(f"{model.path} could not be loaded: {str(error) or 'out of memory'}")
            if isinstance(error, ApiError):
                raise
            raise not_loaded("the model could not be loaded; the server's log says why") from error
