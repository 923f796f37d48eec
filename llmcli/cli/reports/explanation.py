"""The output of `llm explain`: tokens, attention, logit lens, ablation effects and predictions."""

from itertools import zip_longest
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import charts, console, tables
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.cli.terminal.text_layout import terminal_width, truncate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmcli.analysis.explain import Explanation
    from llmcli.formats.metadata import Json

LABEL_WIDTH = 14  # columns of a token's label to the left of a chart
MAX_HEAT_MAP_ROWS = 60
MAX_HEADS = 5  # rows in the table of heads with the highest attention weights
# columns of a token in the logit lens, and of a token with its probability
MAX_LENS_LABEL = 12
LENS_CELL = 20
MAX_BAR = 60  # columns
MIN_FULL_BAR = 1.0  # bits: smaller effects never fill the whole width
SUMMARY_ROWS = 10  # tokens with effects in a summary
MAX_CONTRIBUTIONS = 10  # contributions to the logit that are shown; the others are summed
MAX_POSITIONS = 5  # listed for a copied token


def attention_title(layers: int, heads: int, layer: int | None, head: int | None) -> str:
    """Describe the displayed attention; None: the mean over all layers or heads."""
    mean = f"mean of {units.count(heads, 'head')}"
    if layer is None:
        return f"mean of {units.count(layers, 'layer')} and {units.count(heads, 'head')}"
    return f"layer {layer} of {layers}, {mean if head is None else f'head {head} of {heads}'}"


def show(
    explanation: "Explanation",
    count: int,
    layer: int | None = None,
    head: int | None = None,
    initialized_heads: "Mapping[str, str] | None" = None,
    *,
    is_summary: bool = False,
) -> None:
    """Print an explanation: `count` next tokens and words, and the attention of `layer` and `head`, counted
    from 1 (None: the mean of all). `initialized_heads` is what `analysis.explain.initialized_heads` returns.
    A summary fits on a screen and lists only the tokens with the largest effects."""
    from llmcli.pages.explanation_json import explanation_json

    record = explanation_json(explanation, "", count, attention=False)
    labels = [_label(token) for token in record["tokens"]]
    if not is_summary:
        console.heading("tokens and their ids")
        token_output.tokens(labels, explanation.ids)
        _show_heat_map(explanation, labels, layer, head)
    _show_top_heads(explanation, labels)
    _show_logit_lens(record["lens"])
    if not is_summary:
        _show_attribution(record["attribution"], initialized_heads or {})
    _show_ablation(record, labels, SUMMARY_ROWS if is_summary else len(labels))
    if "copies" in record:
        _show_copies(record["copies"])
    _show_predictions(record, explanation.entropy)


def _label(token: "Json") -> str:
    return visible_whitespace(token["text"])


def lens_cell(token: "Json", max_label: int) -> str:
    """Format a token of the logit lens with its probability."""
    return f"{truncate(_label(token), max_label)} {units.probability(token['probability'])}"


def _show_heat_map(
    explanation: "Explanation", labels: list[str], layer: int | None, head: int | None
) -> None:
    from llmcli.analysis.explain import mean_attention

    L, H, N, _ = explanation.attention.shape
    weights = mean_attention(explanation.attention, layer, head)
    console.heading(f"attention, {attention_title(L, H, layer, head)}: rows attend to columns")
    shown = max(1, min(N, MAX_HEAT_MAP_ROWS, (terminal_width() - LABEL_WIDTH - 8) // 2))
    if shown < N:
        console.paragraph(f"(the last {shown} of {N} tokens; --html shows more, --json all)")
    first = N - shown + 1
    tens, ones, *rows = charts.heat_map(weights[-shown:, -shown:].tolist(), first)
    digits = len(str(N))
    numbered = [f"{i:>{digits}} {labels[i - 1]}" for i in range(first, N + 1)]
    header = [("", line) for line in (tens, ones) if line.strip()]
    tables.labeled([*header, *zip(numbered, rows, strict=True)], LABEL_WIDTH + digits + 1)
    console.paragraph(charts.HEAT_LEGEND)
    console.caption(
        "Each row is a token; its dark cells are the tokens that it attends to, itself or earlier ones. "
        "High attention to the first token often means that there is nothing else to "
        "attend to (an attention sink)."
    )


def _show_top_heads(explanation: "Explanation", labels: list[str]) -> None:
    """Print the heads with the highest attention weight from the last token to a single token."""
    if len(labels) < 2:
        return
    weights = explanation.attention[:, :, -1]  # [L, H, N]
    rows = []
    for number in (-weights.max(-1)).argsort(axis=None, kind="stable")[:MAX_HEADS].tolist():
        layer, head = divmod(number, weights.shape[1])
        target = int(weights[layer, head].argmax())
        weight = units.probability(float(weights[layer, head, target]))
        rows.append((str(layer + 1), str(head + 1), f"{target + 1} {labels[target]}", weight))
    console.heading(f"heads with the highest attention weights from the last token, {labels[-1]}")
    tables.table(("layer", "head", "attends to", "weight"), rows, numbers=(0, 1, 3))
    console.caption("The attention weights of a head sum to 1 over all tokens.")


def _show_logit_lens(lens: "list[Json]") -> None:
    shown = max(1, min(len(lens[0]["next_tokens"]), (terminal_width() - 12) // LENS_CELL))
    console.heading("predictions after each layer (logit lens)")
    rows = [
        (
            str(row["layer"] or "none"),
            *(lens_cell(token, MAX_LENS_LABEL) for token in row["next_tokens"][:shown]),
        )
        for row in lens
    ]
    ranks = ["most likely", "second", "third", *(f"{rank}th" for rank in range(4, shown + 1))]
    tables.table(("after layer", *ranks[:shown]), rows, numbers=(0,))
    console.caption("What the model would predict if it ended after this layer.")


def _show_attribution(attribution: "Json", initialized_heads: "Mapping[str, str]") -> None:
    """Print the largest contributions to the logit, in the order of the network."""
    rows = [("embedding", attribution["embedding"])]
    for layer in attribution["layers"]:
        name = f"layer {layer['layer']}"
        rows += [(f"{name}, head {head}", value) for head, value in enumerate(layer["heads"], 1)]
        rows.append((f"{name}, MLP", layer["mlp"]))
    if len(rows) > MAX_CONTRIBUTIONS + 1:
        smallest = sorted(rows, key=lambda row: -abs(row[1]))[MAX_CONTRIBUTIONS:]
        rows = [row for row in rows if row not in smallest]
        rows.append((f"{len(smallest)} others", sum(value for _, value in smallest)))
    margin = max(len(name) for name, _ in rows)
    token = _label(attribution)
    console.heading(f"contributions to the logit of {token} (direct logit attribution)")
    _print_bars(rows, margin, terminal_width() - margin - 9, [("sum: logit", attribution["logit"])])
    for name, kind in initialized_heads.items():
        console.paragraph(f"head {name} was initialized as: {kind}")
    console.caption(
        "What the embedding of the last token, each attention head and each feed-forward network (MLP) "
        f"adds to the logit of {token}, without effects through later layers. --without 2.1 switches "
        "head 1 of layer 2 off, which shows its whole effect."
    )


def _show_ablation(record: "Json", labels: list[str], max_rows: int) -> None:
    """Print the effect of leaving out each token except the last, or the `max_rows` largest effects."""
    measured = enumerate(token["effect_bits"] for token in record["tokens"])
    # rounded as displayed: an effect of 0.00 has no bar
    effects = [(i, round(bits, units.BITS_DIGITS)) for i, bits in measured if bits is not None]
    if not effects:
        return
    predicted = _label(record["attribution"])
    console.heading(f"ablation: bits that {predicted} loses without each token")
    if max_rows < len(effects):
        console.paragraph(f"(the {max_rows} tokens with the largest effects)")
        effects = sorted(sorted(effects, key=lambda effect: -abs(effect[1]))[:max_rows])
    elif len(effects) < len(labels) - 1:
        console.paragraph(f"(only the last {len(effects) + 1} tokens: a model of this size takes long)")
    digits = len(str(len(labels)))
    labeled = [(f"{i + 1:>{digits}} {labels[i]}", bits) for i, bits in effects]
    _print_bars(labeled, LABEL_WIDTH + digits + 1, terminal_width() - LABEL_WIDTH - digits - 12)
    console.caption(
        f"+1.00: without the token, {predicted} is half as likely. Negative: without it, {predicted} is "
        "more likely. The last token is not left out: "
        "the model would then predict what follows the token before it."
    )


def _show_copies(copies: "list[Json]") -> None:
    """Print the tokens that the n-gram cache makes more likely, and their positions in the prompt."""
    console.heading("copies from the prompt (n-gram cache)")
    if not copies:
        console.paragraph("none: the end of the prompt does not occur earlier in it")
        return
    rows = []
    for copy in copies:
        positions = copy["positions"][-MAX_POSITIONS:]
        numbers = ", ".join(f"{at + 1:,}" if at >= 0 else "earlier" for at in positions)  # from 1
        probabilities = units.probability(copy["network"]), units.probability(copy["probability"])
        rows.append((_label(copy), *probabilities, str(copy["matched"]), numbers))
    tables.table(("next token", "network", "with cache", "matched", "at token"), rows, numbers=(1, 2, 3))
    console.caption(
        "matched: number of last tokens that also preceded this token earlier in the prompt; at token: "
        "its position there. The longer and more recent the match, the more the cache counts. --without "
        "cache switches it off."
    )


def _show_predictions(record: "Json", entropy: float) -> None:
    console.heading(f"next token: {units.entropy(entropy)}")
    token_output.probabilities(
        "next token", [(_label(token), token["probability"]) for token in record["next_tokens"]]
    )
    console.caption(units.explained_entropy(entropy, "tokens"))
    if not record["next"]:
        return
    console.heading("next word")
    token_output.probabilities(
        "next word", [(token_output.word_label(word), word["probability"]) for word in record["next"]]
    )
    console.caption(
        "A word may consist of several tokens; its probability is summed over its tokenizations. llm "
        "generate samples from these probabilities."
    )


def _print_bars(
    rows: "Sequence[tuple[str, float]]",
    max_label: int,
    width: int,
    sums: "Sequence[tuple[str, float]]" = (),
) -> None:
    """Print (label, value) pairs with bars of at most `width` columns, then `sums` without bars."""
    largest = max(MIN_FULL_BAR, *(abs(value) for _, value in rows))
    bars = [charts.signed_bar(value, largest, min(MAX_BAR, width)) for _, value in rows]
    figures = [f"{units.bits(value, signed=True):>7}" for _, value in (*rows, *sums)]
    lines = [f"{figure} {bar}" for figure, bar in zip_longest(figures, bars, fillvalue="")]
    tables.labeled(zip((label for label, _ in (*rows, *sums)), lines, strict=True), max_label)
