"""`llm explain`: follow a prompt through the model to its prediction."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcli.cli.options import (
    JsonOption,
    ModelOption,
    NoCacheOption,
    QuietOption,
    check_report_path,
    model_path,
    reject_options,
    text_argument,
)
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.errors import usage

if TYPE_CHECKING:
    from llmcli.analysis.explain import Explanation
    from llmcli.cli.reports.explanation import ExplanationReport
    from llmcli.config import ModelConfig


def explain(
    context_: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Prompt to analyze; - reads standard input.")
    ] = None,
    model: ModelOption = None,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer",
            metavar="N",
            min=1,
            help="Layer whose attention to show, counted from 1 (default: mean of all).",
        ),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(
            "--head",
            metavar="N",
            min=1,
            help="With --layer: head whose attention to show, counted from 1 (default: mean).",
        ),
    ] = None,
    next_: Annotated[
        int, typer.Option("--next", metavar="N", min=1, help="Number of next tokens and words to show.")
    ] = 5,
    literal: Annotated[
        bool,
        typer.Option("--literal/--no-literal", help="Tokenize the prompt in one way only, as generate --literal does."),
    ] = False,
    prompt_pair: Annotated[
        bool,
        typer.Option(
            "--prompt-pair",
            help="Answer the prompt, as llm generate --prompt-pair does, and show which words of the prompt each word "
            "of the answer attends to.",
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write an interactive HTML page instead.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --html: overwrite an existing file.")] = False,
    no_cache: NoCacheOption = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show how a model arrives at its prediction for a prompt.

    Prints the tokens, the attention between them, the prediction after each layer (logit lens), the effect of leaving
    out each token (ablation), and the next tokens and words.

    Example: llm explain "I like to eat"
    """
    _check_options(context_, html, layer, head)
    path = model_path(model)
    text = text_argument(prompt, "prompt")
    if prompt_pair:
        _explain_answer(path, text, layer, head, json_=json_)
        return
    from llmcli.analysis.explain import explain
    from llmcli.analysis.explained_model import choose_subject
    from llmcli.cli.reports.explanation import ExplanationReport
    from llmcli.formats.cache_weights import CacheWeights
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.generation.next_words import max_evaluations, next_words
    from llmcli.models.ngram_runtime import with_ngram_cache
    from llmcli.models.numpy_runtime import NumpyRuntime

    source = load_any(path)
    tokenizer = open_tokenizer(source)
    subject = choose_subject(source, tokenizer, text, literal=literal, on_note=console.note, cache=not no_cache)
    _check_range("--layer", layer, subject.checkpoint.config.num_hidden_layers, path)
    _check_range("--head", head, subject.checkpoint.config.num_attention_heads, path)
    if html is not None:
        check_report_path(html, path, "--html", "page.html", force=force)
    runtime = NumpyRuntime(subject.checkpoint)
    cache = None if no_cache else CacheWeights.of_record(subject.checkpoint.record, path)
    predictor = subject.ensemble or with_ngram_cache(runtime, cache)
    explanation = explain(
        runtime, tokenizer, text, literal=literal, candidates=next_, every_position=html is not None,
        predictor=predictor,
    )  # fmt: skip
    words = next_words(predictor, tokenizer, text, max_evaluations(source.parameters))
    _print_notes(explanation, subject.checkpoint.config)
    if subject.checkpoint.quantization:
        console.note("the analysis uses the dequantized weights; llm generate also quantizes the activations")
    report = ExplanationReport(explanation, words, tokenizer, text, layer, head, next_)
    if html is not None:
        _save_page(report, html, path.name, subject.expert, json_=json_)
    elif json_:
        console.json_result(report.as_json() | ({"expert": subject.expert} if subject.expert else {}))
    else:
        report.show()


def _check_options(context: typer.Context, html: Path | None, layer: int | None, head: int | None) -> None:
    """Raise LLMError for options that have no effect together."""
    if html is None:
        reject_options(context, "without --html", "force")
    else:
        reject_options(context, "with --html", "layer", "head")
    if context.params["prompt_pair"]:
        reject_options(context, "with --prompt-pair", "next_", "literal", "html", "force")
    if head is not None and layer is None:
        raise usage(f"--head {head} needs a layer; add --layer N")


def _explain_answer(path: Path, text: str, layer: int | None, head: int | None, *, json_: bool) -> None:
    """Show the model's most likely answer to a prompt, and the alignment of the two."""
    from llmcli.analysis.alignment import align
    from llmcli.analysis.explained_model import choose_subject
    from llmcli.cli.reports.explanation import AlignmentReport
    from llmcli.config import SamplingConfig
    from llmcli.data.conversations.messages import Message
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.generation.chat import open_assistant
    from llmcli.generation.generator import Piece
    from llmcli.generation.token_healing import Prompt
    from llmcli.models.numpy_runtime import NumpyRuntime
    from llmcli.models.open_runtime import open_runtime

    source = load_any(path)
    tokenizer = open_tokenizer(source)
    assistant = open_assistant(source, open_runtime(source, on_note=console.note), tokenizer)
    events = assistant.answer([Message("user", text)], SamplingConfig(temperature=0))
    answer = "".join(event.text for event in events if isinstance(event, Piece))
    prompt_ids, answer_ids = assistant.prompt_ids, assistant.answer_ids
    subject = choose_subject(source, tokenizer, Prompt(prompt_ids), literal=True, on_note=console.note)
    _check_range("--layer", layer, subject.checkpoint.config.num_hidden_layers, path)
    _check_range("--head", head, subject.checkpoint.config.num_attention_heads, path)
    alignment = align(NumpyRuntime(subject.checkpoint), tokenizer, text, prompt_ids, answer_ids)
    report = AlignmentReport(alignment, text, answer, layer, head)
    if json_:
        console.json_result(report.as_json())
    else:
        report.show()


def _save_page(
    report: "ExplanationReport", html: Path, model: str, expert: dict[str, object] | None, *, json_: bool
) -> None:
    from llmcli.formats import atomic_io
    from llmcli.pages.html import explanation_page

    assert report.words is not None
    page = explanation_page(
        report.explanation, report.tokenizer, report.prompt, report.words, report.count, model, expert
    )
    atomic_io.write(html, [page])
    if json_:
        console.json_result({"prompt": report.prompt, "page": str(html)})
    else:
        console.note(f"saved {html}; open it in a browser")


def _check_range(option: str, value: int | None, largest: int, model: Path) -> None:
    if value is not None and value > largest:
        raise usage(f"{option} must be at most {largest} for {model}, found {value}")


def _print_notes(explanation: "Explanation", config: "ModelConfig") -> None:
    """Say where the explanation does not cover the prompt as it was typed."""
    if explanation.truncated:
        console.note(
            f"the prompt exceeds the context length of {config.max_position_embeddings:,} tokens; its first "
            f"{explanation.truncated:,} are left out"
        )
    if explanation.tail:
        console.note(
            f"the most likely next token begins inside the prompt, with {visible_whitespace(explanation.tail)}; "
            "--literal keeps the prompt's own tokens"
        )
    if explanation.preceding:
        console.note(
            f"the last {len(explanation.ids):,} tokens are analyzed; the {explanation.preceding:,} before them are not"
        )
