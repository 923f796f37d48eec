"""Models on the Hugging Face hub, named hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE.gguf, or
by a short name.

A model in the hub's cache is used without a request to the hub; otherwise it is downloaded. The modules for
the cache and for downloads are imported only for models on the hub.
"""

import re
from pathlib import Path

from llmcli.errors import OnNote, usage

_NAME = (
    r"hf:(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<file>[\w./-]+\.gguf))?"
    r"(?:@(?P<revision>[\w][\w./-]*))?"
)
SHORT_NAMES = {"smollm2": "hf:HuggingFaceTB/SmolLM2-135M"}


def local_path(name: str | Path, on_note: OnNote = lambda note: None, *, progress: bool = True) -> Path:
    """Return the path of a model. A model on the Hugging Face hub (hf:OWNER/NAME, or its short name) is
    downloaded if it is not in the cache; `on_note` receives its size and license. Raises LLMError."""
    path = Path(name)
    text = Path(name).as_posix()
    text = SHORT_NAMES.get(text, text)
    if not text.startswith("hf:") or text.startswith("hf:/") or path.exists():
        return path
    if not (parts := re.fullmatch(_NAME, text)):
        raise usage(
            f"{text} is not the name of a model on the Hugging Face hub; wanted hf:OWNER/NAME, "
            "hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE.gguf"
        )
    from llmcli.formats.huggingface.download import Download
    from llmcli.formats.huggingface.hub import cached

    where = parts["repository"], parts["revision"] or "main", parts["file"] or ""
    return cached(*where) or Download(text, *where).run(on_note, progress=progress)
