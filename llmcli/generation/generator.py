"""Generation of text from a prompt. `decode` is the loop for a single text; the loops in engine/engine.py and
training/data/plain_text.py generate many texts together.

A text begins as token ids. If the prompt may end inside a word, token_healing.py finds the first token. B, V
= texts, vocabulary size.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer, stream_decoder
from llmcli.errors import usage
from llmcli.generation.drafts import Drafts
from llmcli.generation.grammar import GrammarState, compile_grammar
from llmcli.generation.sampler import Sampler, logit_bias, min_logit, usable_temperature
from llmcli.generation.token_healing import FirstToken, Prompt, last_tokens, read_prompt
from llmcli.models.logits import masked
from llmcli.models.runtime import Array, Bools, Runtime

ChosenToken = tuple[int, float]  # (token, log probability under the model)


@dataclass(frozen=True)
class Piece:
    """A token and the text that it completes. The last piece has a finish reason instead of a token."""

    id: int | None
    text: str  # "" while a character is incomplete; the whole text is the concatenation of all pieces
    logprob: (
        float  # under the model, without filters; for the first token given all tokenizations of the prompt
    )
    finish_reason: str | None = None  # "stop" (stop string or end-of-text token) or "length"
    new_bytes: bytes = b""  # the bytes of the token; for the first token, only those beyond the prompt


def decode(runtime: Runtime, text: "GeneratedText") -> Iterator[Piece]:
    """Prefill, sample, step: the decoding loop of a language model.

    The runtime has processed no token of the text yet, or all except the last.
    """
    if not text.sampling.max_tokens:
        yield text.end("length")
    if text.finish_reason is None and not runtime.length:  # prefill: process the prompt
        logits = runtime.prefill(last_tokens(text.ids, runtime.context, text.tokenizer.bos_ids))
        yield from text.append(text.choose(logits))  # sample: draw the next token from its probabilities
    while text.finish_reason is None:
        if runtime.length == runtime.context:
            runtime.shift(text.ids[:-1])
        # step: process the last chosen token; the KV cache holds the previous ones
        for _, pieces in step_with_draft(runtime, text):
            yield from pieces


def step_with_draft(runtime: Runtime, text: "GeneratedText") -> list[tuple[Array, list[Piece]]]:
    """Process the last chosen token, together with a draft of the next ones if there is one, and append
    tokens until one differs from the draft. Returns, for each appended token, (logits [V], pieces). The cache
    then holds the tokens before the last appended one."""
    length = runtime.length
    token = text.ids[-1]
    space = min(runtime.context - length, text.sampling.max_tokens - text.tokens)
    most = min(runtime.draft_tokens, space - 1)
    draft = text.drafts.draft(text.ids, most)
    rows = runtime.logits_of_draft([token, *draft]) if draft else runtime.step(token)[None]
    steps = []
    for i, logits in enumerate(rows):
        choice = text.choose(logits)
        steps.append((logits, text.append(choice)))
        if text.finish_reason or i == len(draft) or choice[0] != draft[i]:
            break
    if draft:
        runtime.undo_step(length + len(steps))
    return steps


def generate(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: SamplingConfig | Sampler,
    *,
    literal: bool = False,
) -> Iterator[Piece]:
    """Continue a prompt, piece by piece. A piece never contains part of a character or of a stop string.

    Unless `literal`, the prompt's end may be tokenized differently and its last word may continue
    (token_healing.py). If the prompt is longer than the context, its end is used. When the context is full,
    its oldest tokens are removed (`Runtime.shift`).
    """
    encoded = Prompt.of(prompt, tokenizer, literal=literal)
    text = GeneratedText(tokenizer, encoded.ids, sampling)
    runtime.rewind()
    # it may end inside a token or inside a word
    if text.sampling.max_tokens and (encoded.tail or encoded.in_word):
        yield from text.add_first(read_prompt(runtime, text.tokenizer, encoded))
    yield from decode(runtime, text)


class GeneratedText:
    """A text during generation: it chooses each token from logits, and detects the end of the text. Its
    callers run the model: `decode` for one text, the engine for a batch of texts."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        how: SamplingConfig | Sampler,
        stop_ids: Collection[int] = (),
        grammar: GrammarState | None = None,
    ) -> None:
        """`ids` are the prompt's tokens. `stop_ids` also end the text; the repetition penalty does not apply
        to them, since every turn of a conversation has them. `grammar` is the compiled grammar of the
        settings, if there is one."""
        self.ids = list(ids)  # prompt and text, without the token that ends it
        self.drafts = Drafts()
        self.tokens = 0  # number of new tokens
        self.finish_reason: str | None = None
        self.last_token: ChosenToken | None = None  # the token that ended the text, and its log probability
        self._sampler = how if isinstance(how, Sampler) else Sampler(how)
        self._decoder = stream_decoder()
        self.sampling = sampling = self._sampler.config
        self.tokenizer = tokenizer = tokenizer.of_any_bytes if sampling.grammar else tokenizer
        self._end_ids = {*tokenizer.eos_ids, *stop_ids}
        # an answer has SentencePiece's space before its first word
        self._strips_space = bool(stop_ids) and tokenizer.adds_prefix_space
        self._vocabulary = tokenizer.vocabulary
        _ = self._decoder.decode(self._vocabulary.bytes_of(ids[-4:]))  # a character may begin here
        self._seen = set(ids).difference(stop_ids)
        bias = np.zeros(len(self._vocabulary), np.float32)
        for i, value in sampling.logit_bias:
            if not 0 <= i < len(bias):
                raise usage(f"`logit_bias` must have token ids from 0 to {len(bias) - 1}, found {i}")
            bias[i] = value
        # [V], added to the logits; penalties change it
        is_biased = sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty
        self._bias = bias if is_biased else None
        self._counted: set[int] = set()  # generated tokens to which the presence penalty was applied
        self._withheld = deque[Piece]()  # pieces that may contain the beginning of a stop string
        self._grammar = None
        if sampling.grammar:
            grammar = grammar or compile_grammar(sampling.grammar, tokenizer, is_answer=bool(stop_ids))
            self._grammar = grammar.copy(self._end_ids)

    @property
    def _allowed(self) -> Bools | None:
        """Mask of the tokens that may be next, [V]; None if all may be."""
        unfinished, _ = self._decoder.getstate()
        allowed = self._grammar.allowed if self._grammar else self._vocabulary.allowed(unfinished)
        if self.tokens >= self.sampling.min_tokens:
            return allowed
        longer = np.ones(len(self._vocabulary), bool) if allowed is None else allowed.copy()
        longer[list(self._end_ids)] = False
        return longer if longer.any() else allowed

    def choose(self, logits: Array) -> ChosenToken:
        """Choose a token from the logits [V] after `ids`."""
        model_logits = logits[: len(self._vocabulary)]  # a model may have more rows than there are tokens
        allowed_logits = masked(logit_bias(model_logits, self._bias), self._allowed)
        return self._sampler(allowed_logits, self._seen, model_logits=model_logits)

    def append(self, choice: ChosenToken) -> list[Piece]:
        """Add a chosen token; return the pieces that it completes, the text's last one with the finish
        reason."""
        return self._append(choice, self._vocabulary.token_bytes[choice[0]])

    def add_first(self, first: FirstToken) -> list[Piece]:
        """Like `append`, for the first token after a prompt: choose it, replace the tokens at the end of the
        prompt if necessary, and bring the runtime to the state before this token."""
        if (allowed := self._allowed) is not None and (self._grammar or self.sampling.min_tokens):
            first.restrict(allowed, self._grammar.allows if self._grammar else lambda text: True)
        logits = logit_bias(first.logits, self._bias, first.tokens)
        self._strips_space = False  # the prompt has the beginning of the word
        entry, logprob = self._sampler(
            logits, self._seen, model_logits=first.model_logits, tokens=first.tokens
        )
        continuations = first.continuations_of(entry)
        chosen = continuations[
            self._sampler.choose([continuation.probability for continuation in continuations])
        ]
        self.ids = first.process(chosen)
        return self._append((chosen.tokens[-1], logprob), chosen.new_bytes)

    def end(self, reason: str) -> Piece:
        """End the text and return the last piece; an incomplete character is dropped."""
        self.finish_reason = reason
        return Piece(None, "", 0.0, reason)

    def _append(self, choice: ChosenToken, new_bytes: bytes) -> list[Piece]:
        token, logprob = choice
        if token in self._end_ids:
            self.last_token = choice
            pieces = [self.end("stop")]
        else:
            self.ids.append(token)
            self.tokens += 1
            self._seen.add(token)
            if self._bias is not None:
                self._bias[token] -= self.sampling.frequency_penalty
                if token not in self._counted:  # the presence penalty applies once
                    self._bias[token] -= self.sampling.presence_penalty
                self._counted.add(token)
            text = self._decoder.decode(new_bytes)
            if self._strips_space and text:
                text = text.removeprefix(" ")
                self._strips_space = False
            pieces = [Piece(token, text, logprob, new_bytes=new_bytes)]
            if self._grammar:
                self._grammar.append(token, new_bytes)
            if self._grammar and self._grammar.is_complete:
                pieces.append(self.end("stop"))
            elif self.tokens == self.sampling.max_tokens:
                pieces.append(self.end("length"))
        if not self.sampling.stop or self.tokens <= self.sampling.min_tokens:
            return pieces
        complete: list[Piece] = []
        for piece in pieces:
            self._withheld.append(piece)
            complete += _released(self._withheld, self.sampling.stop)
            if complete and complete[-1].finish_reason:
                self.finish_reason = complete[-1].finish_reason
                break
        return complete


def choose_together(texts: Sequence[GeneratedText], logits: Array) -> list[ChosenToken | None]:
    """Choose tokens for several texts of one model from logits [B, V], with the same bits as `choose` but
    fewer numpy calls. None for a text that must choose by itself, because it has filters other than
    temperature and min-p or the model is damaged."""

    def is_simple(text: GeneratedText) -> bool:
        filters = text.sampling.top_k > 0 or text.sampling.top_p < 1
        penalizes = text.sampling.repetition_penalty != 1 or text._bias is not None
        return not penalizes and not (filters and text.sampling.temperature)

    choices: list[ChosenToken | None] = [None] * len(texts)
    together = [i for i, text in enumerate(texts) if is_simple(text)]
    if len(together) < 2:
        return choices
    texts = [texts[i] for i in together]
    rows = logits[:, : len(texts[0]._vocabulary)]
    if len(together) < len(choices):
        rows = rows[together]
    highest = rows.max(axis=1, keepdims=True)  # [B, 1]
    if not np.isfinite(highest).all():
        return choices
    masks = [text._allowed for text in texts]
    allowed = masks[0]
    if any(mask is not allowed for mask in masks):
        every = np.ones(rows.shape[1], bool)
        allowed = np.stack([every if mask is None else mask for mask in masks])
    allowed_logits = masked(rows, allowed)
    tokens = allowed_logits.argmax(axis=1)
    samplings = [text.sampling for text in texts]
    if any(sampling.temperature for sampling in samplings):
        temperatures = np.array([[usable_temperature(sampling.temperature)] for sampling in samplings])
        scaled = (allowed_logits - allowed_logits.max(axis=1, keepdims=True)) / temperatures
        kept = scaled >= np.array([[min_logit(sampling.min_p)] for sampling in samplings])
        for i, text in enumerate(texts):
            if text.sampling.temperature:
                candidates = np.flatnonzero(kept[i])
                tokens[i] = candidates[text._sampler.draw(scaled[i][candidates])]
    shifted = rows - highest
    chosen = shifted[np.arange(len(rows)), tokens].astype(np.float64)
    logprobs = chosen - np.log(np.exp(shifted).sum(axis=1).astype(np.float64))  # as token_logprob
    for i, token, logprob in zip(together, tokens.tolist(), logprobs.tolist(), strict=True):
        choices[i] = token, logprob
    return choices


def _released(pieces: deque[Piece], stops: Sequence[str]) -> list[Piece]:
    """Remove and return the pieces that can no longer be part of a stop string. At a stop string, return the
    pieces before it and the last piece."""
    text = "".join(piece.text for piece in pieces)
    stop = min((at for stop in stops if (at := text.find(stop)) >= 0), default=-1)
    safe = len(text)  # no stop string begins before this position
    if not pieces[-1].finish_reason:  # the text may end with the beginning of a stop string: hold that back
        longest = max(map(len, stops)) - 1
        starts = range(max(0, safe - longest), safe)
        safe = next((i for i in starts if any(stop.startswith(text[i:]) for stop in stops)), safe)
    complete = []
    if 0 <= stop <= safe:  # otherwise, a longer stop string that began earlier may still be completed
        while stop > 0:  # the pieces of the first `stop` characters
            piece = pieces.popleft()
            complete.append(replace(piece, text=piece.text[:stop], finish_reason=None))
            stop -= len(piece.text)
        return [*complete, Piece(None, "", 0.0, "stop")]
    while pieces and len(pieces[0].text) <= safe:
        safe -= len(pieces[0].text)
        complete.append(pieces.popleft())
    return complete
