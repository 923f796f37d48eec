"""The Modelfile with which Ollama imports a GGUF file: template, stop strings, context, temperature.

https://docs.ollama.com/modelfile describes the format; its templates are Go's text/template.
"""

from llmcli.config import SamplingConfig
from llmcli.data.conversations.chat_template import CHATML, ChatTemplate

# the same text as CHATML
_CHATML = (
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)
_TEXT = "{{ .Prompt }}"  # continues the prompt, without turns of a conversation


def modelfile(gguf_name: str, context: int, template: ChatTemplate | None) -> str:
    """Return the content of a Modelfile next to the GGUF file. A jinja2 template other than CHATML is left
    out: the GGUF file contains it, and Ollama recognizes the common ones there."""
    lines = [f'FROM "./{gguf_name}"' if " " in gguf_name else f"FROM ./{gguf_name}"]
    if template is None:
        lines.append(f'TEMPLATE """{_TEXT}"""')
    elif template.source == CHATML:
        lines.append(f'TEMPLATE """{_CHATML}"""')
    if template is not None:
        lines += [
            f'PARAMETER stop "{template.tokenizer.label(token)}"' for token in sorted(template.stop_ids)
        ]
    lines += [f"PARAMETER num_ctx {context}", f"PARAMETER temperature {SamplingConfig.temperature}"]
    return "".join(f"{line}\n" for line in lines)
