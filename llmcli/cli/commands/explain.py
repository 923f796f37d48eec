"""`llm explain`: how the file comes to its answer."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli import units
from llmcli.cli import charts, console, tables, token_output
from llmcli.cli.options import JsonOption, ModelOption, QuietOption, model_path, reject_options, text_argument
from llmcli.cli.safe_text import visible_whitespace
from llmcli.cli.text_layout import terminal_width, truncate
from llmcli.errors import LLMError, usage

if TYPE_CHECKING:
    from llmcli.analysis.explain import Explanation
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.generation.next_words import NextWords

LABEL = 14  # columns for a token beside a picture
MOST_ROWS = 60  # of the heat map
MOST_HEADS = 5  # told, of those that look most at one token


def explain(
    context_: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text to explain the answer to; - reads standard input.")
    ] = None,
    model: ModelOption = None,
    layer: Annotated[
        int | None, typer.Option("--layer", metavar="N", min=1, help="Show the attention of this layer, from 1.")
    ] = None,
    head: Annotated[
        int | None, typer.Option("--head", metavar="N", min=1, help="And of this head of it alone, from 1.")
    ] = None,
    next_: Annotated[int, typer.Option("--next", metavar="N", min=1, help="Likeliest tokens and words to show.")] = 5,
    literal: Annotated[
        bool,
        typer.Option("--literal/--no-literal", help="Split the prompt into tokens in one way only, as in generate."),
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page for a browser instead.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Follow a prompt through the model: its tokens, which of them each looks at, what the model would say after each
    layer, how much each token matters, and the answer.

    Example: llm explain "I like to eat"
    """
    if html is None:
        reject_options(context_, "without --html", "force")
    else:
        reject_options(context_, "with --html", "layer", "head")
    if head is not None and layer is None:
        raise usage(f"--head {head} says nothing without a layer; add --layer N")
    path = model_path(model)
    text = text_argument(prompt, "prompt")
    from llmcli.analysis import explain
    from llmcli.formats import atomic_io
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.generation.next_words import max_evaluations, next_words
    from llmcli.models.numpy_runtime import NumpyRuntime

    loaded = load_any(path)
    answering, speaker = None, None
    if isinstance(loaded, Ensemble):
        answering, speaker = _heaviest(loaded, text, literal)
        checkpoint = loaded.experts[loaded.names.index(speaker["name"])]
    else:
        checkpoint = loaded
    config = checkpoint.config
    for name, value, most in (
        ("--layer", layer, config.num_hidden_layers),
        ("--head", head, config.num_attention_heads),
    ):
        if value is not None and value > most:
            raise usage(f"{name} {value} is more than the {most} that {path} has")
    if html is not None:
        if html.resolve() == path.resolve():
            raise LLMError(f"{html} is the model itself; give the page another name")
        atomic_io.check_writable(html, force=force, by=" with --html", example="page.html")
    runtime, tokenizer = NumpyRuntime(checkpoint), open_tokenizer(loaded)
    found = explain.explain(
        runtime, tokenizer, text, literal=literal, candidates=next_, every_position=html is not None, ensemble=answering
    )
    words = next_words(answering or runtime, tokenizer, text, max_evaluations(loaded.parameters))
    if found.truncated:
        console.note(
            f"{found.truncated:,} tokens of the prompt do not fit the context of {config.max_position_embeddings:,}"
        )
    if found.tail:
        console.note(
            f"the likeliest first token begins inside the prompt, with {visible_whitespace(found.tail)}; "
            f"--literal takes the prompt's own tokens"
        )
    if found.preceding:
        console.note(f"the last {len(found.ids):,} tokens are looked at, {found.preceding:,} stand before them")
    if checkpoint.quantization:
        console.note("explained is the model as its few bits stand for; generate rounds what it multiplies, too")
    if html is not None:
        from llmcli.cli import html_report

        atomic_io.write(html, [html_report.explanation_page(found, tokenizer, text, words, next_, path.name, speaker)])
        if json_:
            console.json_result({"prompt": text, "page": str(html)})
        else:
            console.note(f"wrote {html}; open it in a browser")
    elif json_:
        answer = _facts(found, tokenizer, text, words, layer, head, next_) | ({"expert": speaker} if speaker else {})
        console.json_result(answer)
    else:
        _show(found, tokenizer, text, words, layer, head, next_)


def _heaviest(mixture: "Ensemble", text: str, literal: bool) -> tuple[Any, dict[str, Any]]:
    """(the mixture ready to run, which answers; name and weight of the model in it that counts most for the answer)"""
    from llmcli.analysis import explain
    from llmcli.formats.loading import open_tokenizer
    from llmcli.models.open_runtime import open_runtime

    runtime, tokenizer = open_runtime(mixture, on_note=console.note), open_tokenizer(mixture)
    explain.predict_next(runtime, tokenizer, text, literal=literal)
    weights = runtime.expert_weights()[0].tolist()
    most = weights.index(max(weights))
    console.note(
        f"a mixture of {len(weights)} models: shown is the way through {mixture.names[most]}, which counts "
        f"{weights[most]:.3f} after this; the last probabilities are the mixture's"
    )
    return runtime, {"name": mixture.names[most], "weight": round(weights[most], 6)}


def _facts(
    found: "Explanation", tokenizer: Any, text: str, words: "NextWords", layer: int | None, head: int | None, count: int
) -> dict[str, Any]:
    layers = range(found.attention.shape[0]) if layer is None else [layer - 1]
    heads = range(found.attention.shape[1]) if head is None else [head - 1]
    return {
        "prompt": text,
        "tokens": [
            {"id": token, "text": tokenizer.label(token), "effect_bits": None if math.isnan(bits) else round(bits, 6)}
            for token, bits in zip(found.ids, found.ablation_effects.tolist(), strict=True)
        ],
        "tail": found.tail,
        "cut": found.truncated,
        "earlier": found.preceding,
        "attention": {
            "layers": [number + 1 for number in layers],
            "heads": [number + 1 for number in heads],
            "weights": found.attention[layers][:, heads].astype(float).round(6).tolist(),
        },
        "lens": [
            {
                "layer": depth,
                "next_tokens": [
                    {"id": token, "text": tokenizer.label(token), "probability": round(chance, 6)}
                    for token, chance in zip(ids[-1].tolist(), chances[-1].tolist(), strict=True)
                ],
            }
            for depth, (ids, chances) in enumerate(
                zip(found.logit_lens.ids, found.logit_lens.probabilities, strict=True)
            )
        ],
        "next_tokens": [
            {
                "id": token,
                "text": tokenizer.label(token),
                "probability": round(math.exp(found.logprobs[token]), 6),
                "logprob": round(float(found.logprobs[token]), 6),
            }
            for token in found.most_likely(count)
        ],
        "entropy_bits": round(found.entropy, 6),
        "next": [{"text": word.text, "probability": round(word.probability, 6)} for word in words.words[:count]],
        "unexplored": round(words.unexplored, 6),
    }


def _show(
    found: "Explanation", tokenizer: Any, text: str, words: "NextWords", layer: int | None, head: int | None, count: int
) -> None:
    names = [visible_whitespace(tokenizer.label(token)) for token in found.ids]
    console.heading("tokens and their ids")
    token_output.tokens(names, found.ids)
    _attention(found, names, layer, head)
    _lens(found, tokenizer)
    _effects(found, tokenizer, names)
    answers = found.most_likely(count)
    console.heading(f"next token: {units.entropy(found.entropy)}")
    token_output.probabilities("next token", [
        (visible_whitespace(tokenizer.label(token)), math.exp(found.logprobs[token])) for token in answers
    ])  # fmt: skip
    console.caption(units.choice(found.entropy, "tokens"))
    console.heading("next word, over all the ways to spell it")
    token_output.probabilities("next word", [
        ("…" * word.continues + visible_whitespace(word.text), word.probability) for word in words.words[:count]
    ])  # fmt: skip
    console.caption(
        "A word may be spelled by several tokens; its probability is the sum over the ways to spell it. `llm generate` "
        "draws from these probabilities."
    )


def _attention(found: "Explanation", names: list[str], layer: int | None, head: int | None) -> None:
    L, H, N, _ = found.attention.shape
    if layer is None:
        what, map_ = f"mean of {L} layers of {H} heads", found.attention.mean((0, 1))
    elif head is None:
        what, map_ = f"layer {layer} of {L}, mean of {H} heads", found.attention[layer - 1].mean(0)
    else:
        what, map_ = f"layer {layer} of {L}, head {head} of {H}", found.attention[layer - 1, head - 1]
    console.heading(f"attention, {what}: rows look at columns")
    fit = max(1, min(N, MOST_ROWS, (terminal_width() - LABEL - 8) // 2))
    if fit < N:
        console.paragraph(f"(the last {fit} of {N} tokens; --html shows more, --json all)")
    first = N - fit + 1
    top, ones, *rows = charts.heat_map(map_[-fit:, -fit:].tolist(), first)
    digits = len(str(N))
    labels = [f"{i:>{digits}} {names[i - 1]}" for i in range(first, N + 1)]
    above = [top, ones] if top.strip() else [ones]
    tables.labelled([*(("", line) for line in above), *zip(labels, rows, strict=True)], LABEL + digits + 1)
    console.paragraph(charts.HEAT_LEGEND)
    console.caption(
        "A row is a token, and the dark cells in it are the tokens before it from which it takes information. Much "
        "attention to the first token often means: nothing needed here."
    )
    ranked = sorted(
        ((float(share), i + 1, j + 1, int(share_at)) for i in range(L) for j in range(H)
         for share_at in [found.attention[i, j, -1].argmax()] for share in [found.attention[i, j, -1, share_at]]),
        reverse=True,
    )[:MOST_HEADS]  # fmt: skip
    if N > 1:
        console.heading(f"heads that look hardest from the last token, {names[-1]}")
        tables.table(
            ("layer", "head", "looks at", "share"),
            [(str(i), str(j), f"{at + 1} {names[at]}", units.probability(share)) for share, i, j, at in ranked],
            numbers=(0, 1, 3),
        )
        console.caption("Each head takes its information where it looks; the shares of a head add up to 1.")


def _lens(found: "Explanation", tokenizer: Any) -> None:
    depths, _, K = found.logit_lens.ids.shape
    fit = max(1, min(K, (terminal_width() - 12) // 20))
    console.heading("what it would say after each layer (the logit lens)")
    rows = []
    for depth in range(depths):
        cells = [
            f"{truncate(visible_whitespace(tokenizer.label(token)), 12)} {units.probability(chance)}"
            for token, chance in zip(
                found.logit_lens.ids[depth, -1, :fit].tolist(),
                found.logit_lens.probabilities[depth, -1, :fit].tolist(),
                strict=True,
            )
        ]
        rows.append(("none" if depth == 0 else str(depth), *cells))
    ranks = [{1: "likeliest", 2: "second", 3: "third"}.get(i, f"{i}th") for i in range(1, fit + 1)]
    tables.table(("after layer", *ranks), rows, numbers=(0,))
    console.caption(
        "What the model would answer if it ended after this layer: where in the model the answer comes about."
    )


def _effects(found: "Explanation", tokenizer: Any, names: list[str]) -> None:
    tried = [(i, bits) for i, bits in enumerate(found.ablation_effects.tolist()) if not math.isnan(bits)]
    if not tried:
        return
    answer = visible_whitespace(tokenizer.label(found.most_likely(1)[0]))
    console.heading(f"what each token does for {answer}: bits it loses when the token is left out")
    if len(tried) < len(names):
        console.paragraph(f"(of a model of this size the last {len(tried)} tokens alone are left out)")
    most = max(abs(bits) for _, bits in tried)
    room = min(60, terminal_width() - LABEL - len(str(len(names))) - 12)
    tables.labelled(
        [(f"{i + 1:>{len(str(len(names)))}} {names[i]}",
          f"{units.bits(bits, signed=True):>7} {charts.signed_bar(bits, most, room)}")
         for i, bits in tried],
        LABEL + len(str(len(names))) + 1,
    )  # fmt: skip
    console.caption(
        f"+1.00: without the token {answer} is half as likely, so the token speaks for it; below 0 it speaks against."
    )
