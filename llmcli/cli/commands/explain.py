"""`llm explain`: show how a model arrives at its prediction for a prompt."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.cli.options import ResultOptions, argument, flag, model_path, option, text_argument, utf8_argument
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.errors import usage

if TYPE_CHECKING:
    from llmcli.analysis.explain import ExplainedModel, Explanation
    from llmcli.config import ModelConfig
    from llmcli.data.tokenizers.tokenizer import Tokenizer

CONFLICTS = {"html": "layer next token literal"}


class _Options(ResultOptions):
    prompt: str | None = argument("PROMPT", "Prompt to analyze; - reads standard input.")
    model: str | None
    layer: str | None = option(
        "PART", "Layer (2) or head (2.3: head 3 of layer 2) whose attention to show (default: mean of all)."
    )
    without: list[str] | None = option(
        "PART",
        "Switch off a layer (2), a head (2.3: head 3 of layer 2) or the n-gram cache (cache); "
        "can be repeated.",
    )
    compare: str | None = option("PROMPT", "Compare with the prediction after another prompt.")
    next: int = option("N", "Number of next tokens and words to show.", 5, min=1)
    token: str | None = option("TEXT", "Explain this next token instead of the most likely one.")
    literal: bool = flag("Disable token healing: keep the tokens of the prompt as they are.")
    html: Path | None = option(
        "FILE", "Write an HTML page with the model inside instead; it opens at the prompt."
    )


def explain(options: _Options) -> None:
    """Prints the tokens, the attention between them, the prediction after each layer (logit lens), the effect
    of leaving out each token (ablation), the contribution of each head (logit attribution), and the next
    tokens and words. --without shows how the prediction changes if layers or heads are switched off.

    Example: llm explain "I like to eat" --without 2.3 --without 1
    """
    options.check(CONFLICTS)
    if options.without or options.compare is not None:
        options.reject("with --without or --compare", "layer", "token")
    path = model_path(options.model)
    text = text_argument(options.prompt, "prompt")
    if options.html is not None:
        _write_page(options, options.html, path, text)
    else:
        _explain_prompt(options, path, text)


def _explain_prompt(options: _Options, path: Path, text: str) -> None:
    from llmcli.analysis.comparison import parse_part
    from llmcli.analysis.explain import choose_explained_model, explain, initialized_heads
    from llmcli.cli.reports import explanation as report
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.generation.token_healing import Prompt
    from llmcli.pages.explanation_json import explanation_json

    source = load_any(path)
    tokenizer = open_tokenizer(source)
    prompt = Prompt.of(text, tokenizer, literal=options.literal)
    subject = choose_explained_model(source, tokenizer, prompt, on_note=console.note)
    config = subject.checkpoint.config
    layer, head = (None, None) if options.layer is None else parse_part(options.layer, config, "layer")
    if subject.checkpoint.quantization:
        console.note("the analysis uses the dequantized weights; llm generate also quantizes the activations")
    if options.without or options.compare is not None:
        _compare(options, subject, tokenizer, text)
        return
    token = None if options.token is None else _token_of(options.token, tokenizer)
    explanation = explain(
        subject.network,
        tokenizer,
        prompt,
        candidates=options.next,
        token=token,
        predictor=subject.predictor,
        evaluations=None,
    )
    _print_notes(explanation, config)
    shown = options.next, None if layer is None else layer + 1, None if head is None else head + 1
    if options.json:
        console.json_result(explanation_json(explanation, text, *shown) | subject.facts)
    else:
        heads = initialized_heads(subject.checkpoint)
        report.show(explanation, *shown, heads)


def _write_page(options: _Options, output: Path, path: Path, text: str) -> None:
    """Write the page that contains the model. It opens at the prompt, with some parts switched off or with
    another prompt for comparison."""
    from llmcli.analysis.comparison import parse_parts
    from llmcli.formats import atomic_io
    from llmcli.formats.loading import load
    from llmcli.pages.live_page import live_page
    from llmcli.pages.live_weights import page_bytes

    source = load(path)
    other = None if options.compare is None else utf8_argument(options.compare, "prompt")
    if "" in (text, other):
        raise usage("the prompt is empty; give a text to continue")
    atomic_io.reject_overwriting(output, "output", [path], "the model itself", by=": --html page.html")
    atomic_io.check_writable(output, force=None, by=" with --html", example="page.html")
    options.claim(output)
    without = options.without or []
    parse_parts(without, source.config, has_cache=source.record.ngram_cache is not None)
    atomic_io.check_space(output, page_bytes(source.config))
    page = live_page(
        source,
        None,
        console.note,
        prompt=text,
        compare=other,
        without=without,
        if_too_large="leave out --html, or write --json in its place",
    )
    atomic_io.write(output, page)
    options.report({"prompt": text, "page": str(output)}, f"saved {output}; open it in a browser")


def _compare(
    options: _Options,
    subject: "ExplainedModel",
    tokenizer: "Tokenizer",
    text: str,
) -> None:
    """Show two predictions side by side: with and without some parts, or after two prompts."""
    from llmcli.analysis.comparison import compare
    from llmcli.cli.reports import comparison as report
    from llmcli.generation.token_healing import Prompt
    from llmcli.pages.explanation_json import comparison_json

    encode = partial(Prompt.of, tokenizer=tokenizer, literal=options.literal)
    other = None if options.compare is None else utf8_argument(options.compare, "prompt")
    comparison = compare(
        subject.network,
        tokenizer,
        encode(text),
        other=None if other is None else encode(other),
        without=options.without or (),
        candidates=options.next,
        predictor=subject.predictor,
    )
    for explanation in (comparison.first, comparison.second)[: 1 if other is None else 2]:
        _print_notes(explanation, subject.network.config)
    if options.json:
        prompts = text, text if other is None else other
        console.json_result(comparison_json(comparison, prompts, options.next) | subject.facts)
    else:
        report.show(comparison, text, other, options.next)


def _token_of(text: str, tokenizer: "Tokenizer") -> int:
    """Return the token with this text. Raises LLMError if there is none."""
    text = utf8_argument(text, "text of --token")
    for token in range(tokenizer.vocab_size):
        if tokenizer.label(token) == text:
            return token
    tokens = ", ".join(repr(tokenizer.label(part)) for part in tokenizer.encode(text)) or "empty"
    raise usage(f"--token must be one token of the model, found {text!r}, which is {tokens}")


def _print_notes(explanation: "Explanation", config: "ModelConfig") -> None:
    """Note which parts of the prompt the explanation leaves out or tokenizes differently."""
    if explanation.truncated:
        console.note(
            f"the prompt exceeds the context length of {config.max_position_embeddings:,} tokens; its first "
            f"{explanation.truncated:,} are left out"
        )
    if explanation.tail:
        console.note(
            f"the explained token begins inside the prompt, with {visible_whitespace(explanation.tail)}; "
            "--literal keeps the prompt's own tokens"
        )
    if explanation.preceding:
        console.note(
            f"the last {len(explanation.ids):,} tokens are analyzed; "
            f"the {explanation.preceding:,} before them are not"
        )
