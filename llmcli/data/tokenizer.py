"""Text <-> token ids. Trained on the corpus, kept inside the model file, lossless for any text.

The `tokenizers` library does the work and its tokenizer.json is the format, so that the ecosystem can read it.
This room adds three things: user text never becomes a control token, every id is known as bytes (so that decoding
is exact and can stream), and long text is encoded in pieces of bounded memory.

Knows nothing of models or files on disk.
"""

import codecs
import copy
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from llmcli.data import tokenizer_json
from llmcli.data.vocabulary import Vocabulary
from llmcli.errors import LLMError, usage

END_OF_TEXT = "<|endoftext|>"  # GPT-2's name for the end of a document; always id 0 in tokenizers made here
SMALLEST_VOCABULARY = 257  # 256 bytes and the end of text
LONGEST_TAIL = 200  # characters at the end of a prompt in which its last word is looked for
LONGEST_TOKEN = 63  # bytes of a learned token: longer ones are boilerplate, and leave few tokens of a short text
LONGEST_WORD = 256  # characters of a pre-token that a tokenizer is trained on
PIECE = 1 << 16  # characters encoded at once; an Encoding costs about 200 bytes a token
# bytes that hardly any text has: control characters, and what begins characters that are none
RARE = {*range(9), 11, 12, *range(14, 32), 127, 0xC0, 0xC1, *range(0xF1, 0x100)}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's spelling of a byte that no token covers


class Tokenizer:
    """A vocabulary with its rules; `to_json()` is the text of a tokenizer.json."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        start: str | None = None,
        space_first: bool = False,
        ends: Iterable[int] = (),
        seen_bytes: bytes | None = None,
    ) -> None:
        self._start, self.space_first, self._ends = start, space_first, frozenset(ends)
        self.imported = False  # from another program, with its model
        self.seen_bytes = seen_bytes  # those of the text that its model was trained on; None: not known
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # "<|endoftext|>" typed by a user is text, not the control token
        self._inner = inner

    # ---- making one

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2 section 2.2) with GPT-2's pre-tokenizer.

        The vocabulary is the end of text, the 256 bytes, then merges in the order they were learned; it can end
        up smaller than `vocab_size` when the text has no more pairs to merge. No token is longer than
        LONGEST_TOKEN bytes.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise usage(
                f"--vocab-size must be at least {SMALLEST_VOCABULARY} (256 bytes and the end of text), "
                f"found {vocab_size}"
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = _pre_tokenizer_for_training()
        inner.decoder = _decoder("bpe")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            max_token_length=LONGEST_TOKEN + 1,  # the library stays below its limit
        )
        inner.train_from_iterator(_pieces(texts), trainer)
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return cls(inner)

    @classmethod
    def train_char(cls, texts: Iterable[str], vocab_size: int | None = None) -> "Tokenizer":
        """One token for each character of the texts; any other is spelled in bytes, so nothing is lost.

        ASCII costs nothing (its byte becomes its character); of the others `vocab_size` keeps the most frequent. In a
        tokenizer.json this is a BPE without merges and with `byte_fallback`.
        """
        if vocab_size is not None and vocab_size < SMALLEST_VOCABULARY:
            raise usage(f"--vocab-size must be at least {SMALLEST_VOCABULARY} for --tokenizer char, found {vocab_size}")
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        wide = sorted((c for c in counts if ord(c) >= 128), key=lambda c: (-counts[c], c))
        if vocab_size is not None:
            wide = wide[: vocab_size - SMALLEST_VOCABULARY]
        characters = {c for c in counts if ord(c) < 128} | set(wide)
        needed_bytes = [b for b in range(256) if b >= 128 or chr(b) not in characters]
        names = [END_OF_TEXT, *(f"<0x{b:02X}>" for b in needed_bytes), *sorted(characters)]
        inner = tokenizers.Tokenizer(
            models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True)
        )
        inner.decoder = _decoder("char")
        inner.add_special_tokens([END_OF_TEXT])
        return cls(inner)

    @classmethod
    def from_json(
        cls, text: str, most: int | None = None, ends: Iterable[int] = (), seen_bytes: bytes | None = None
    ) -> "Tokenizer":
        """Read a tokenizer.json: a BPE that is byte-level or has byte fallback. Raises LLMError for anything else.

        With `most` also for one of more tokens than that: those of the model it belongs to. `ends` are the tokens that
        end a text, to that model; `seen_bytes` those that its training text has, None where they are not known.
        """
        found = tokenizer_json.checked(text)
        try:
            inner = tokenizers.Tokenizer.from_str(found.text)
        except BaseException as error:  # the library's panics are no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise LLMError(f"the tokenizer could not be read: {error}") from error
        inner.decoder = _decoder(found.kind)
        tokenizer = cls(inner, found.start, found.space_first, ends, seen_bytes)
        if most is not None and tokenizer.vocab_size > most:
            raise LLMError(f"the tokenizer has {tokenizer.vocab_size} tokens, its model only {most}")
        missing = set(tokenizer._missing) - RARE
        if missing and most is None:  # a model has been learned with it; text that it lacks is refused when it comes
            raise LLMError(f"the tokenizer has no token for {len(missing)} of the 256 bytes, so it would lose text")
        return tokenizer

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        text = self._inner.to_str()
        if self._start is None and not self.space_first:
            return text
        found = json.loads(text)
        if self._start is not None:
            found["post_processor"] = tokenizer_json.starting_with(self._start, self.start_id)
        if self.space_first:
            found["normalizer"] = tokenizer_json.space_first_normalizer()
            found["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return json.dumps(found, ensure_ascii=False)

    def to_config_json(self, context: int) -> str:
        """The text of tokenizer_config.json for transformers; `context` in tokens."""
        end = self._names[self.eos_id]
        return json.dumps(
            {
                "add_bos_token": False,
                "add_prefix_space": False,
                "bos_token": end,
                "clean_up_tokenization_spaces": False,
                "eos_token": end,
                "model_max_length": context,
                "tokenizer_class": "PreTrainedTokenizerFast",
            },
            indent=2,
        )

    # ---- facts

    @cached_property
    def kind(self) -> str:
        """ "bpe" (byte-level), "spm" (SentencePiece's) or "char" (no merges: a token for each character)."""
        return tokenizer_json.kind_and_problem(json.loads(self.to_json()))[0]

    @cached_property
    def vocab_size(self) -> int:
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    @cached_property
    def eos_id(self) -> int:
        """The id that ends a document: the special token called end-of-text, </s> or the like, else the first."""
        special = {t.content: i for i, t in self._inner.get_added_tokens_decoder().items() if t.special}
        for name in (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>"):
            if name in special:
                return special[name]
        return min(self._ends or special.values(), default=0)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that end a text: that of a document's end, and what the model has besides."""
        return self._ends | {self.eos_id}

    @cached_property
    def start_id(self) -> int:
        """What a document begins after: the control token that this tokenizer puts there, else a document's end."""
        return self.eos_id if self._start is None else self._names.index(self._start)

    @property
    def start_ids(self) -> list[int]:
        """What stands before a prompt: the control token that this tokenizer puts there, if any."""
        return [] if self._start is None else [self.start_id]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id writes; b"" for control tokens. The whole of decoding is joining these."""
        spell = {"char": _spell_char, "spm": _spell_sentencepiece}.get(self.kind, _spell_byte_level)
        spelled = [spell(name) for name in self._names]
        for i, added in self._inner.get_added_tokens_decoder().items():
            spelled[i] = b"" if added.special else added.content.encode("utf-8")
        return spelled

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of all tokens, indexed."""
        return Vocabulary(self.token_bytes, self.seen_bytes, unrestricted=self.imported)

    def with_seen_bytes(self, seen_bytes: bytes | None) -> "Tokenizer":
        """The same, of a model whose training text has these byte values; None where they are not known."""
        known = copy.copy(self)
        known.__dict__.pop("vocabulary", None)
        known.seen_bytes = seen_bytes
        return known

    def label(self, token: int) -> str:
        """A token that stands alone, as text: bytes of half a character as \\xe3, a control token by its name."""
        data = self.token_bytes[token]
        return data.decode("utf-8", "backslashreplace") if data else self._names[token]

    @cached_property
    def _ends_of_words(self) -> re.Pattern[str]:
        """Where a long text may be cut."""
        name = tokenizer_json.pre_tokenizer_name(json.loads(self._inner.to_str()).get("pre_tokenizer"))
        return _LINE_END if name in ("Llama 3", "Qwen 2") else _WORD_END

    @cached_property
    def _missing(self) -> bytes:
        """The bytes that no token spells, of which published vocabularies lack some; the library would drop them."""
        spelled = set(self.token_bytes)
        return bytes(b for b in range(256) if bytes([b]) not in spelled)

    @cached_property
    def parts(self) -> list[tuple[int, int]]:
        """The two tokens that each was merged from; (-1, -1) for those that were not."""
        model = json.loads(self._inner.to_str())["model"]
        vocabulary = model.get("vocab") or {}
        found = [(-1, -1)] * self.vocab_size
        for merge in model.get("merges") or []:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            found[vocabulary[left + right]] = vocabulary[left], vocabulary[right]
        return found

    @cached_property
    def _names(self) -> list[str]:
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        return sorted(vocabulary, key=vocabulary.__getitem__)

    # ---- text -> ids

    def encode(self, text: str) -> list[int]:
        """The ids of a text; any text, and what looks like a control token is spelled out.

        Raises LLMError for what is no text (a lone surrogate: bytes that were not UTF-8).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LLMError(
                f"not text: the character at position {error.start} is not Unicode (the bytes were not UTF-8)"
            ) from error
        return [i for ids in self.encode_stream([text]) for i in ids]

    def split_last(self, text: str) -> tuple[str, str]:
        """(head, tail): the last word of a text, as tokens are cut, apart from what stands before it.

        Tokens never cross the cut but may go on beyond the text's end: after "I like to ea" stands one of " eat".
        The tail is "" where no token is longer than a character; of a very long word it is the end.
        """
        if self.kind == "char" or not text:
            return text, ""
        end = text[-LONGEST_TAIL:]
        if self.kind == "spm":  # SentencePiece's tokens begin with spaces and end before the next
            tail = _LAST_WORD.search(end)[0]  # type: ignore[index]  # it matches any text
        else:
            tail = end[self._inner.pre_tokenizer.pre_tokenize_str(end)[-1][1][0] :]
        return text[: len(text) - len(tail)], tail

    def encode_stream(self, texts: Iterable[str]) -> Iterator[array]:
        """The ids of one long text that comes in parts, as arrays of bounded size.

        The parts are cut anew where a word ends, so the ids do not depend on how the text came
        (but for runs of over 65,536 characters without a space).
        """
        batch: list[str] = []
        for piece in _pieces(_after_space(texts) if self.space_first else texts, self._ends_of_words):
            batch.append(piece)
            if len(batch) == 8:
                yield self._encode_batch(batch)
                batch = []
        if batch:
            yield self._encode_batch(batch)

    def _encode_batch(self, batch: list[str]) -> array:
        ids = array("I")
        for piece in batch if self._missing else ():
            data = piece.encode("utf-8", "surrogatepass")
            if len(data.translate(None, self._missing)) != len(data):
                lost = next(byte for byte in data if byte in self._missing)
                raise LLMError(f"the tokenizer has no token for the byte 0x{lost:02x}, which the text has; take it out")
        for encoding in self._inner.encode_batch_fast(batch, add_special_tokens=False):
            ids.extend(encoding.ids)
        return ids

    # ---- ids -> text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 show as U+FFFD. Raises LLMError for an id outside the vocabulary."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, exactly."""
        table = self.token_bytes
        parts = []
        for i in ids:
            if not 0 <= i < len(table):
                raise LLMError(f"there is no token {i}; this vocabulary has 0 to {len(table) - 1}")
            parts.append(table[i])
        return b"".join(parts).removeprefix(b" " if self.space_first else b"")


def _pre_tokenizer_for_training() -> Any:
    """GPT-2's pre-tokenizer, but it cuts pre-tokens of more than LONGEST_WORD characters.

    Training takes time with the square of a pre-token's length, and 300 kB of one letter are a single pre-token.
    Ordinary text has none that long and gives the same vocabulary. Encoding is fast at any length and does not cut.
    """
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}{1,N}| ?\p{N}{1,N}| ?[^\s\p{L}\p{N}]{1,N}|\s{1,N}(?!\S)|\s{1,N}"
    split = pre_tokenizers.Split(tokenizers.Regex(pattern.replace("{1,N}", f"{{1,{LONGEST_WORD}}}")), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _after_space(texts: Iterable[str]) -> Iterator[str]:
    """A text with a space before it, if there is any."""
    first = True
    for text in texts:
        yield " " + text if first and text else text
        first = first and not text


def _decoder(kind: str) -> Any:
    """How the library turns tokens into text; here that is `token_bytes`."""
    if kind == "bpe":
        return decoders.ByteLevel()
    spaces = [decoders.Replace(tokenizer_json.SPACE, " ")] if kind == "spm" else []
    return decoders.Sequence([*spaces, decoders.ByteFallback(), decoders.Fuse()])


class StreamDecoder:
    """Bytes in, text out, never half a character; what is no UTF-8 comes as U+FFFD as soon as that is certain.

    >>> d = StreamDecoder(); [d.feed(b"\\xe3\\x81"), d.feed(b"\\x82!"), d.finish()]
    ['', 'あ!', '']
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What was still waiting for the rest of its character."""
        return self._decoder.decode(b"", final=True)


def _pieces(texts: Iterable[str], where: re.Pattern[str] | None = None) -> Iterator[str]:
    """Cut text anew into pieces of about PIECE characters, each beginning where white space follows a word, or as
    `where` has it.

    There the pattern that cuts words always ends one, so encoding piece by piece gives the ids of the whole.
    """
    where = where or _WORD_END
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > 2 * PIECE:
            end = _cut(rest, start + PIECE, start + 2 * PIECE, where)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _cut(text: str, low: int, high: int, where: re.Pattern[str]) -> int:
    """The first place in text[low:high] where words part."""
    found = where.search(text, low, high)
    return found.start() if found else high


_LAST_WORD = re.compile(r"\s*\S*\Z")
_WORD_END = re.compile(r"(?<=\S)[ \n]")
_LINE_END = re.compile(r"(?<=\S) |(?<=\n)(?=\S)")  # in the patterns of Llama 3 and Qwen 2 a sign takes line ends along


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, read backwards: character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _spell_byte_level(name: str) -> bytes:
    if all(c in _ALPHABET for c in name):
        return bytes(_ALPHABET[c] for c in name)
    return name.encode("utf-8")


def _spell_sentencepiece(name: str) -> bytes:
    return _spell_char(name).replace(tokenizer_json.SPACE.encode("utf-8"), b" ")


def _spell_char(name: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.encode("utf-8")
