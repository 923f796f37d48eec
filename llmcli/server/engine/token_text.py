"""Tokens and log probabilities in the two shapes of OpenAI's API: that of completions and that of chats.

The latter has the token ids, too, as in llama-server.
"""

from collections.abc import Sequence
from typing import Any

from llmcli.data.tokenizers.tokenizer import StreamDecoder, Tokenizer
from llmcli.server.engine.requests import Alternative, PromptToken, Token

JsonObject = dict[str, Any]
ScoredToken = PromptToken | Token


def token_text(tokenizer: Tokenizer, token: int | None, text_bytes: bytes) -> str:
    """A token as text. A control token has its name, and part of a character its bytes, as OpenAI writes them:
    "bytes:\\xe3\\x81"."""
    if token is not None and not text_bytes:
        return tokenizer.label(token)
    try:
        return text_bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text_bytes)


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[ScoredToken], first_offset: int, end: int) -> JsonObject:
    """The four lists of a completion. `text_offset` counts characters from the beginning of the choice's text, up to
    its `end`, where a stop string may have cut it; the tokens begin at `first_offset`.

    A token without a log probability, the first of a prompt, has null in two of them. For any other, the alternatives
    hold the token itself, so that it is the most likely one if its figure is their largest.
    """
    texts, offsets = [], []
    decoder, offset = StreamDecoder(), first_offset
    for token in tokens:
        texts.append(token_text(tokenizer, token.id, token.text_bytes))
        offsets.append(min(offset, end))
        offset += len(decoder.feed(token.text_bytes))
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top_logprobs(tokenizer, token) for token in tokens],
        "text_offset": offsets,
    }


def _top_logprobs(tokenizer: Tokenizer, token: ScoredToken) -> dict[str, float] | None:
    """text -> log probability of a token and its alternatives; the larger of two with the same text."""
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for one in (*token.alternatives, Alternative(token.id, token.text_bytes, token.logprob)):
        text = token_text(tokenizer, one.id, one.text_bytes)
        top[text] = max(one.logprob, top.get(text, one.logprob))
    return top


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[ScoredToken]) -> JsonObject:
    """The tokens of an answer, each with its id, its bytes and alternatives."""
    return {
        "content": [
            _chat_token(tokenizer, token.id, token.text_bytes, token.logprob)
            | {
                "top_logprobs": [
                    _chat_token(tokenizer, one.id, one.text_bytes, one.logprob) for one in token.alternatives
                ]
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _chat_token(tokenizer: Tokenizer, token: int | None, text_bytes: bytes, logprob: float | None) -> JsonObject:
    text = token_text(tokenizer, token, text_bytes) if not text_bytes else text_bytes.decode("utf-8", "replace")
    return {"id": token, "token": text, "logprob": logprob, "bytes": list(text_bytes)}
