"""The tokenizer: trained on the corpus, stored in the model file, and lossless for any text.

It wraps the `tokenizers` library and stores its tokenizer.json. In addition, user text never becomes a
control token, the bytes of every token are known (decoding is exact and can be streamed), and long text is
encoded in pieces of bounded memory.
"""

from __future__ import annotations

import codecs
import copy
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from llmcli.config import MIN_VOCAB_SIZE
from llmcli.data.regular_file import read_file
from llmcli.data.text import words
from llmcli.data.tokenizers import tokenizer_json
from llmcli.data.tokenizers.tokenizer_json import SPACE, Json, name_to_bytes
from llmcli.errors import LLMError, brief, usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmcli.data.tokenizers.vocabulary import Vocabulary

END_OF_TEXT = "<|endoftext|>"  # GPT-2's name for the end of a document
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"  # ChatML's names for the beginning and the end of a turn
# control tokens of tokenizers trained here, from id 0 on; the last two are spare, with names from Llama 3
CONTROL_TOKENS = (
    END_OF_TEXT,
    IM_START,
    IM_END,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
)
# names of the end-of-text token, in order of preference
_EOS_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
MAX_TAIL = 200  # characters searched for the last word of a prompt
MAX_TOKEN_BYTES = 63  # longer tokens would be boilerplate, and a short text would have too few tokens
MAX_TRAINING_WORD = 256  # characters of a pre-token in training
BATCH_CHARACTERS = 1 << 19  # per call of the library; its Encoding takes about 200 bytes per token
# Characters that the library encodes at a time, so that its allocations stay in the processor's cache. With
# 65,536 it takes a third longer (LOG.md, "10 GB of text").
PIECE_CHARACTERS = 2048
# bytes that hardly ever occur in text: control characters, and first bytes of unassigned code points
RARE_BYTES = {*range(9), 11, 12, *range(14, 32), 127, 0xC0, 0xC1, *range(0xF1, 0x100)}
_LAST_WORD = r"\s*\S*\Z"


class Tokenizer:
    """A vocabulary with its merges and pre-tokenizer; `to_json()` is the text of a tokenizer.json."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        kind: str,
        bos_token: str | None = None,
        prefix_space: str = "",
        eos_ids: Iterable[int] = (),
        seen_bytes: bytes | None = None,
    ) -> None:
        """`kind`: "bpe" (byte-level), "spm" (SentencePiece) or "char" (no merges: one token per
        character)."""
        self.kind = kind
        self._bos_token = bos_token
        self._prefix_space = prefix_space
        self._end_ids = frozenset(eos_ids)
        self.imported = False  # whether the model was trained by another program
        self.seen_bytes = seen_bytes  # byte values in the training text; None if unknown
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # "<|endoftext|>" typed by a user is text, not the control token
        self._inner = inner
        self._boundary = words.WORD_END

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train byte-level BPE (Sennrich et al. 2016; GPT-2 section 2.2). The vocabulary is CONTROL_TOKENS,
        the 256 bytes, and merges of at most MAX_TOKEN_BYTES in the order of training, until `vocab_size` is
        reached or there are no more pairs."""
        _check_vocab_size(vocab_size, f"(256 bytes and {len(CONTROL_TOKENS)} control tokens)")
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = _training_pre_tokenizer()
        inner.decoder = _decoder("bpe")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(CONTROL_TOKENS),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=MAX_TOKEN_BYTES + 1,  # the library's limit is exclusive
        )
        inner.train_from_iterator(words.pieces(texts), trainer)
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return cls(inner, "bpe")

    @classmethod
    def train_char(cls, texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
        """Train a tokenizer with one token per character: all ASCII characters of the texts and the most
        frequent others; the rest is encoded as bytes. In tokenizer.json, it is a BPE without merges and with
        `byte_fallback`."""
        counts: Counter[str] = Counter()
        if vocab_size is not None:
            _check_vocab_size(vocab_size, "for `tokenizer` char")
        for text in texts:
            counts.update(text)
        non_ascii = sorted((c for c in counts if ord(c) >= 128), key=lambda c: (-counts[c], c))
        if vocab_size is not None:
            non_ascii = non_ascii[: vocab_size - MIN_VOCAB_SIZE]
        characters = {c for c in counts if ord(c) < 128} | set(non_ascii)
        other_bytes = [b for b in range(256) if b >= 128 or chr(b) not in characters]
        names = [*CONTROL_TOKENS, *(f"<0x{b:02X}>" for b in other_bytes), *sorted(characters)]
        vocabulary = {name: i for i, name in enumerate(names)}
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
        inner.decoder = _decoder("char")
        inner.add_special_tokens(list(CONTROL_TOKENS))
        return cls(inner, "char")

    @classmethod
    def from_json(
        cls,
        text: str | Json,
        max_vocab_size: int | None = None,
        eos_ids: Iterable[int] = (),
        seen_bytes: bytes | None = None,
    ) -> Tokenizer:
        """Read a tokenizer.json, as text or parsed. Raises LLMError unless it is a BPE, byte-level or with
        byte fallback. With the `max_vocab_size` of a model, control tokens beyond it are left out, and bytes
        may have no token (`encode` then raises LLMError). `eos_ids` end a text; `seen_bytes` occur in the
        training text."""
        document = tokenizer_json.parse(text)
        kind, added = tokenizer_json.checked(document, max_vocab_size)
        model = document["model"]
        safe = tokenizer_json.safe_parts(document, kind)
        flags = {key: bool(model.get(key)) for key in ("byte_fallback", "ignore_merges")}
        try:
            inner = tokenizers.Tokenizer.from_str(json.dumps(safe))
            with tokenizer_json.without_collector():
                merges = tokenizer_json.MergePairs(model.get("merges") or [])
                inner.model = models.BPE(model["vocab"], merges, **flags)
            inner.add_tokens([_added_token(token) for token in added])
        except BaseException as error:  # a panic of the library is not an Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            is_merge = isinstance(error, TypeError) and "PyMerges" in str(error)
            problem = (
                "an entry of its merges is not a pair of tokens"
                if is_merge
                else str(error).partition("\n")[0]
            )
            raise LLMError(f"the tokenizer could not be read: {problem}") from error
        for token in added:
            if (expected := inner.token_to_id(token["content"])) != token["id"]:
                actual = f"the tokenizer's added token {brief(token['content'])} has id {token['id']}"
                raise LLMError(f"{actual}; expected {expected}, from its other tokens")
        inner.decoder = _decoder(kind)
        bos_token = tokenizer_json.bos_token_of(document.get("post_processor"))
        if not any(token["content"] == bos_token and token.get("special") for token in added):
            bos_token = None
        prefix_space = tokenizer_json.prefix_space(document) if kind == "spm" else ""
        tokenizer = cls(inner, kind, bos_token, prefix_space, eos_ids, seen_bytes)
        if tokenizer_json.pre_tokenizer_name(safe["pre_tokenizer"]) in ("Llama 3", "Qwen 2"):
            tokenizer._boundary = words.WORD_OR_LINE_END
        tokenizer.token_bytes = tokenizer._bytes_of(model["vocab"])
        if max_vocab_size is not None and tokenizer.vocab_size > max_vocab_size:
            raise LLMError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, its model only {max_vocab_size}"
            )
        missing = set(tokenizer._missing_bytes) - RARE_BYTES
        if missing and max_vocab_size is None:
            raise LLMError(
                f"the tokenizer has no token for {len(missing)} of the 256 bytes, so it would lose text"
            )
        return tokenizer

    def to_json(self) -> str:
        text = self._inner.to_str()
        if self._bos_token is None and not self._prefix_space:
            return text
        document = json.loads(text)
        if self._bos_token is not None:
            document["post_processor"] = tokenizer_json.bos_post_processor(self._bos_token, self.bos_id)
        if self._prefix_space:
            document |= tokenizer_json.prefix_space_steps(self._prefix_space)
            document["decoder"] = tokenizer_json.decoder("spm", adds_prefix_space=True)
        return json.dumps(document, ensure_ascii=False)

    def to_config_json(self, context: int) -> str:
        """Return the text of tokenizer_config.json for transformers; `context` is the context length in
        tokens."""
        eos_token = self._inner.id_to_token(self.eos_id)
        config = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": eos_token,
            "clean_up_tokenization_spaces": False,
            "eos_token": eos_token,
            "model_max_length": context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        return json.dumps(config, indent=2)

    @cached_property
    def vocab_size(self) -> int:
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    @property
    def adds_prefix_space(self) -> bool:
        return bool(self._prefix_space)

    @cached_property
    def control_ids(self) -> dict[str, int]:
        return {t.content: i for i, t in self._inner.get_added_tokens_decoder().items() if t.special}

    @cached_property
    def eos_id(self) -> int:
        if name := next(filter(self.control_ids.__contains__, _EOS_NAMES), None):
            return self.control_ids[name]
        if self._end_ids:
            return min(self._end_ids)
        return self.control_ids.get(IM_END, min(self.control_ids.values(), default=0))

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        return self._end_ids | {self.eos_id}

    @cached_property
    def bos_id(self) -> int:
        """The id before a document: the beginning-of-text token if there is one, otherwise `eos_id`."""
        return self.eos_id if self._bos_token is None else self.control_ids[self._bos_token]

    @property
    def bos_ids(self) -> list[int]:
        """The ids before a prompt: the beginning-of-text token, if there is one."""
        return [] if self._bos_token is None else [self.bos_id]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Bytes of each token; b"" for control tokens. Decoding joins them."""
        return self._bytes_of(self._inner.get_vocab(with_added_tokens=True))

    def _bytes_of(self, vocabulary: dict[str, int]) -> list[bytes]:
        table = [b""] * self.vocab_size
        for name, i in vocabulary.items():
            table[i] = name_to_bytes(self.kind, name)
        for i, added in self._inner.get_added_tokens_decoder().items():
            spelled = added.content.replace(SPACE, " ") if self.kind == "spm" else added.content
            table[i] = b"" if added.special else spelled.encode("utf-8")
        return table

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Number of bytes of each token, [vocab_size]."""
        import numpy as np

        return np.array([len(data) for data in self.token_bytes])

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """An index of the bytes of all tokens. Models trained here generate no control tokens except
        `eos_ids`."""
        # imported here, since it needs numpy and encoding does not
        from llmcli.data.tokenizers.vocabulary import Vocabulary

        return Vocabulary(self.token_bytes, self.seen_bytes, self.eos_ids, unrestricted=self.imported)

    def for_model(self, seen_bytes: bytes | None, eos_ids: Iterable[int] = ()) -> Tokenizer:
        """Return a copy with the model's seen byte values (None: unknown) and additional tokens that end a
        text."""
        other = copy.copy(self)
        other.seen_bytes = seen_bytes
        other.eos_id = self.eos_id
        other._end_ids = self.eos_ids | set(eos_ids)
        for name in ("vocabulary", "eos_ids", "of_any_bytes"):
            other.__dict__.pop(name, None)
        return other

    @cached_property
    def of_any_bytes(self) -> Tokenizer:
        """Return this tokenizer for texts that may have other bytes than the training text."""
        return self if self.seen_bytes is None else self.for_model(None)

    def with_chat_tokens(self) -> Tokenizer:
        """Return this tokenizer if it has the control tokens of ChatML, otherwise a copy with the missing
        ones appended and the same `eos_id`. Raises LLMError if ordinary text would become a control token."""
        missing = [name for name in (IM_START, IM_END) if name not in self.control_ids]
        if not missing:
            return self
        inner = tokenizers.Tokenizer.from_str(self._inner.to_str())
        inner.add_special_tokens(missing)
        other = Tokenizer(
            inner, self.kind, self._bos_token, self._prefix_space, self.eos_ids, self.seen_bytes
        )
        other._boundary = self._boundary
        other.eos_id = self.eos_id
        other.imported = self.imported
        for name in missing:
            if other.control_ids[name] in other.encode(name):
                raise LLMError(
                    f"the tokenizer makes {name} from ordinary text, so it cannot be a control token"
                )
        return other

    def strips(self, control_id: int) -> tuple[bool, bool]:
        """Return whether a control token in a template absorbs the white space (before it, after it)."""
        token = self._inner.get_added_tokens_decoder()[control_id]
        return token.lstrip, token.rstrip

    def label(self, token: int) -> str:
        """Format a token for display: bytes of an incomplete character as \\xe3, a control token by its
        name."""
        data = self.token_bytes[token]
        return data.decode("utf-8", "backslashreplace") if data else self._inner.id_to_token(token) or ""

    @cached_property
    def merge_pairs(self) -> NDArray[np.int64]:
        """The two tokens from which each token was merged, [vocab_size, 2]; -1 for tokens that are not
        merges."""
        import numpy as np

        model = json.loads(self._inner.to_str())["model"]
        vocabulary = model.get("vocab") or {}
        pairs = np.full((self.vocab_size, 2), -1)
        for merge in model.get("merges") or []:
            left, right = tokenizer_json.merge_pair(merge)
            pairs[vocabulary[left + right]] = vocabulary[left], vocabulary[right]
        return pairs

    @cached_property
    def _missing_bytes(self) -> bytes:
        """Bytes without a token, as in some published vocabularies. The library would silently drop them."""
        table = set(self.token_bytes)
        return bytes(b for b in range(256) if bytes([b]) not in table)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; names of control tokens are plain text. Raises LLMError for a lone
        surrogate."""
        check_unicode(text)
        return [i for ids in self.encode_stream([text]) for i in ids]

    def encode_part(self, text: str, *, after_control_token: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return (ids, spans) of text between control tokens, with a space before it where other programs
        prepend one. A span is (first character, one past the last); tokens of the same character share it."""
        check_unicode(text)
        scheme = self._prefix_space
        has_space = text.startswith((" ", SPACE))
        adds_space = scheme == "prepend" or (
            not has_space and (scheme == "always" or (scheme == "first" and not after_control_token))
        )
        added = " " if text and adds_space else ""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        start = -len(added)
        for piece in words.pieces([added + text], self._boundary):
            self._check_bytes([piece])
            encoding = self._inner.encode(piece, add_special_tokens=False)
            ids += encoding.ids
            spans += [(max(0, start + first), start + end) for first, end in encoding.offsets]
            start += len(piece)
        return ids, spans

    def split_last_word(self, text: str) -> tuple[str, str]:
        """Split a text into (head, last word). Words are the pre-tokens of this tokenizer, so no token
        crosses the split. The last word is "" for character tokenizers, and at most MAX_TAIL characters of a
        long word."""
        if self.kind == "char" or not text:
            return text, ""
        end = text[-MAX_TAIL:]
        if self.kind == "spm":  # a SentencePiece token begins with spaces and ends before the next space
            word = re.search(_LAST_WORD, end)[0]  # type: ignore[index]  # the pattern matches any text
        else:
            word = end[self._inner.pre_tokenizer.pre_tokenize_str(end)[-1][1][0] :]
        return text[: len(text) - len(word)], word

    def encode_stream(self, texts: Iterable[str], *, continued: bool = False) -> Iterator[array[int]]:
        """Return the ids of a long text in arrays of bounded size. The ids do not depend on how the text is
        divided into `texts`, except in runs of over 65,536 characters without a space. `continued`: this is
        the rest of a text that was cut at `first_cut`."""
        if self.adds_prefix_space and not continued:
            texts = filter(None, texts)
            texts = itertools.chain([" " + first for first in itertools.islice(texts, 1)], texts)
        # SentencePiece has no pattern that splits text into words, so the pieces are long
        size = words.SEARCHED_CHARACTERS if self.kind == "spm" else PIECE_CHARACTERS
        pieces = words.pieces(texts, self._boundary, size)
        return map(self._encode_batch, words.grouped(pieces, BATCH_CHARACTERS, len))

    def first_cut(self, text: str) -> int | None:
        """Return the first position at which a text may be cut into two parts that are encoded separately;
        None if there is none."""
        match = self._boundary.search(text, 1)
        return match.start() if match else None

    def _encode_batch(self, batch: list[str]) -> array[int]:
        self._check_bytes(batch)
        ids = array("I")
        for encoding in self._inner.encode_batch_fast(batch, add_special_tokens=False):
            ids.fromlist(encoding.ids)  # takes a third of the time of `extend`
        return ids

    def _check_bytes(self, batch: list[str]) -> None:
        for piece in batch if self._missing_bytes else ():
            data = piece.encode("utf-8", "surrogatepass")
            if len(data.translate(None, self._missing_bytes)) != len(data):
                byte = next(byte for byte in data if byte in self._missing_bytes)
                raise LLMError(
                    f"the tokenizer has no token for the byte 0x{byte:02x} in the text; "
                    "remove it from the text"
                )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, with U+FFFD for invalid UTF-8. Raises LLMError for an id outside the
        vocabulary."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes of ids. Raises LLMError like `decode`."""
        table = self.token_bytes
        parts = []
        for i in ids:
            if not 0 <= i < len(table):
                raise LLMError(f"there is no token {i}; this vocabulary has 0 to {len(table) - 1}")
            parts.append(table[i])
        return b"".join(parts).removeprefix(b" " if self.adds_prefix_space else b"")


def stream_decoder() -> codecs.IncrementalDecoder:
    """Return a decoder from bytes to text that does not split characters; invalid UTF-8 becomes U+FFFD as
    soon as it is known to be invalid.

    >>> d = stream_decoder(); [d.decode(b"\\xe3\\x81"), d.decode(b"\\x82!"), d.decode(b"", final=True)]
    ['', 'あ!', '']
    """
    return codecs.getincrementaldecoder("utf-8")("replace")


def check_unicode(text: str) -> None:
    """Encode as UTF-8. Raises LLMError for a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LLMError(
            f"not text: the character at position {error.start} is not Unicode (the bytes were not UTF-8)"
        ) from error


def _check_vocab_size(size: int, detail: str) -> None:
    if size < MIN_VOCAB_SIZE:
        raise usage(f"`vocab_size` must be at least {MIN_VOCAB_SIZE} {detail}, found {size}")


def _added_token(token: Json) -> AddedToken:
    flags = {key: bool(token.get(key)) for key in ("single_word", "normalized", "special")}
    if flags["special"]:  # next to other tokens, such as </s> in Phi-3, text must keep its white space
        flags |= {key: bool(token.get(key)) for key in ("lstrip", "rstrip")}
    return AddedToken(token["content"], **flags)


def _training_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Return GPT-2's pre-tokenizer with a limit of MAX_TRAINING_WORD characters, because training takes time
    quadratic in the length of a pre-token. Ordinary text has no pre-tokens that long."""
    pattern = tokenizer_json.PATTERNS["GPT-2"].replace("+", f"{{1,{MAX_TRAINING_WORD}}}")
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _decoder(kind: str) -> Any:
    """Return the decoder in tokenizer.json, for other programs; this one uses `token_bytes`."""
    if kind == "bpe":
        return decoders.ByteLevel()
    spaces = [decoders.Replace(SPACE, " ")] if kind == "spm" else []
    return decoders.Sequence([*spaces, decoders.ByteFallback(), decoders.Fuse()])


def read_tokenizer(path: str, expected: str = "a tokenizer.json") -> tuple[str, Tokenizer]:
    """Return (text, tokenizer) of a file. Raises LLMError; its message names what is `expected`."""
    if not path:
        raise usage(f"`tokenizer` is empty; give {expected}")
    data = read_file(Path(path), expected)
    try:
        text = data.decode("utf-8")
        return text, Tokenizer.from_json(text)
    except UnicodeDecodeError as error:
        raise LLMError(f"{path} is not UTF-8 text; name {expected}") from error
    except LLMError as error:
        raise LLMError(f"{path}: {error}") from error
