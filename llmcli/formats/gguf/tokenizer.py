"""Conversion between the tokenizer fields of a GGUF file and a tokenizer.json.

llama.cpp names a pre-tokenizer where tokenizer.json describes it, and has SentencePiece scores where
tokenizer.json has merges. Anything that the other format cannot express is an error. Standard library only.
"""

from typing import Any

from llmcli.config import ModelConfig
from llmcli.data.tokenizers import tokenizer_json
from llmcli.data.tokenizers.tokenizer_json import SPACE
from llmcli.errors import LLMError
from llmcli.formats.metadata import Json

# llama.cpp's name of a pre-tokenizer -> name in tokenizer_json.PRE_TOKENIZERS; the first one is used for
# writing
_PRE_TOKENIZERS = {
    "gpt-2": "GPT-2",
    "smollm": "GPT-2, single digits",
    "llama-bpe": "Llama 3",
    "qwen2": "Qwen 2",
    "phi-2": "GPT-2",
    "olmo": "GPT-2",
    "jais": "GPT-2",
    "roberta-bpe": "GPT-2",
    "starcoder": "GPT-2, single digits",
    "refact": "GPT-2, single digits",
    "command-r": "GPT-2, single digits",
    "codeshell": "GPT-2, single digits",
    "llama3": "Llama 3",
    "llama-v3": "Llama 3",
    "dbrx": "Llama 3",
    "smaug-bpe": "Llama 3",
    "deepseek-r1-qwen": "Qwen 2",
}
# these also prepend a token to a text, and ignore merges for whole words
_LLAMA_3 = (
    "llama-bpe",
    "llama3",
    "llama-v3",
)
# token types
_NORMAL = 1
_CONTROL = 3
_USER_DEFINED = 4
_UNUSED = 5
_BYTE = 6
_UNMERGED_SCORE = -1e6  # score of tokens that are not merges
# maximum total length of all ways to split the tokens of a SentencePiece vocabulary: 25 times Gemma 3's
MAX_SPLIT_CHARACTERS = 1 << 28


def to_document(fields: Json) -> tuple[Json, str | None]:
    """Return (a parsed tokenizer.json, control token that begins a text). Raises LLMError if it is not
    supported."""
    kind = fields.get("tokenizer.ggml.model")
    tokens = [*_list_field(fields, "tokens", str)]
    types = [_NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in fields:
        types = _list_field(fields, "token_type", int, len(tokens))
    longest = max(tokens, key=len, default="")
    if len(longest) > (limit := tokenizer_json.MAX_TOKEN_CHARACTERS):
        raise LLMError(
            f"its token {tokens.index(longest)} has {len(longest):,} characters"
            f"; tokens of at most {limit:,} are supported"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary.keys() | {""}) <= len(tokens):  # a name occurs twice, or is empty
        vocabulary = {}
        for i, token in enumerate(tokens):
            if token in vocabulary or not token:  # padding, or a name that was not UTF-8
                tokens[i] = f"<unused {i}>"
            vocabulary[tokens[i]] = i
    added = [
        {
            "id": i,
            "content": token,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "special": token_type == _CONTROL,
        }
        for i, (token, token_type) in enumerate(zip(tokens, types, strict=True))
        if token_type in (_CONTROL, _USER_DEFINED)
    ]
    document: Json = {"added_tokens": added}
    if kind == "gpt2":
        document |= _byte_level(fields, vocabulary)
    elif kind == "llama":
        document |= _sentencepiece(fields, vocabulary, types)
    else:
        raise LLMError(f"its tokenizer is of kind {kind!r}; gpt2 and llama are supported")
    pre_tokenizer = fields.get("tokenizer.ggml.pre")
    bos_token = None
    if fields.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre_tokenizer in _LLAMA_3):
        bos, _ = bos_and_eos(fields)
        bos_token = _token(tokens, bos)
        document["post_processor"] = tokenizer_json.bos_post_processor(bos_token, bos)
    return document, bos_token


def bos_and_eos(fields: Json) -> tuple[Any, Any]:
    """Return the tokens that begin and end a text; llama.cpp's defaults if the file has none."""
    bos, eos = (11, 11) if fields.get("tokenizer.ggml.model") == "gpt2" else (1, 2)
    return fields.get("tokenizer.ggml.bos_token_id", bos), fields.get("tokenizer.ggml.eos_token_id", eos)


def to_config(fields: Json, config: ModelConfig, bos_token: str | None) -> Json:
    """Return the content of tokenizer_config.json; `bos_token` comes from `to_document`."""
    tokens = _list_field(fields, "tokens", str)
    tokenizer_config = {
        "add_bos_token": bos_token is not None,
        "bos_token": _token(tokens, fields.get("tokenizer.ggml.bos_token_id", config.eos_token_id)),
        "clean_up_tokenization_spaces": False,
        "eos_token": _token(tokens, config.eos_token_id),
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = fields.get("tokenizer.chat_template")
    return tokenizer_config | ({"chat_template": template} if isinstance(template, str) else {})


def _list_field(fields: Json, name: str, entry_type: type, count: int | None = None) -> list[Any]:
    """Return an array of the tokenizer. Raises LLMError if it is missing, has another type, or lacks `count`
    entries."""
    value = fields.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise LLMError(f"it has no tokenizer.ggml.{name}")
    if not isinstance(value, list) or not {*map(type, value)} <= {entry_type}:
        raise LLMError(f"its tokenizer.ggml.{name} is not a list of {entry_type.__name__}")
    if count is not None and len(value) != count:
        raise LLMError(f"it has {count:,} tokens, but {len(value):,} entries in tokenizer.ggml.{name}")
    return value


def _token(tokens: list[str], token_id: Any) -> str:
    if type(token_id) is not int or not 0 <= token_id < len(tokens):
        raise LLMError(f"its token {str(token_id)[:60]} is not among its {len(tokens):,} tokens")
    return tokens[token_id]


def _byte_level(fields: Json, vocabulary: dict[str, int]) -> Json:
    """Return the parts of a tokenizer.json for a byte-level BPE."""
    name = fields.get("tokenizer.ggml.pre")
    if name is None:
        raise LLMError(
            "it has no tokenizer.ggml.pre, the name of its pre-tokenizer; get a newer GGUF file of this model"
        )
    if name not in _PRE_TOKENIZERS:
        raise LLMError(f"its pre-tokenizer is {name!r}; {', '.join(_PRE_TOKENIZERS)} are supported")
    merges = _list_field(fields, "merges", str)
    return {
        "normalizer": {"type": "NFC"} if _PRE_TOKENIZERS[name] == "Qwen 2" else None,
        "pre_tokenizer": tokenizer_json.PRE_TOKENIZERS[_PRE_TOKENIZERS[name]],
        "decoder": tokenizer_json.decoder("bpe"),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": name in _LLAMA_3},
    }


def _sentencepiece(fields: Json, vocabulary: dict[str, int], types: list[int]) -> Json:
    """Return the parts of a tokenizer.json for a SentencePiece BPE, or for a tokenizer with one token per
    character."""
    merges = _merges(vocabulary, _list_field(fields, "scores", float, len(types)), types)
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": True}
    if not merges:  # one token per character; spaces are not replaced
        names = {" " if token == SPACE else token: i for token, i in vocabulary.items()}
        return {"model": model | {"vocab": names}, "decoder": tokenizer_json.decoder("char")}
    adds_prefix_space = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    steps = tokenizer_json.prefix_space_steps("prepend" if adds_prefix_space else "")
    return {
        "model": model,
        **steps,
        "decoder": tokenizer_json.decoder("spm", adds_prefix_space=adds_prefix_space),
    }


@tokenizer_json.without_collector()
def _merges(vocabulary: dict[str, int], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Derive merges, each of two tokens into a third, from SentencePiece scores, by descending score. Raises
    LLMError for tokens so long that trying all ways to split them would take seconds."""
    size = sum(len(token) ** 2 for token in vocabulary)
    if size > MAX_SPLIT_CHARACTERS:
        raise LLMError(
            f"its tokens are too long: all ways to split them have {size:,} characters"
            f"; at most {MAX_SPLIT_CHARACTERS:,} are supported"
        )
    by_score = sorted(vocabulary.items(), key=lambda entry: (-scores[entry[1]], entry[1]))
    return [
        (token[:cut], token[cut:])
        for token, i in by_score
        if types[i] == _NORMAL
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]


def to_fields(document: Json, config: ModelConfig) -> Json:
    """Return the fields of a GGUF file that describe a tokenizer. Raises LLMError if llama.cpp cannot run
    it."""
    kind, problem = tokenizer_json.classify(document)
    if problem:
        raise LLMError(f"the tokenizer {problem}, which llama.cpp does not support")
    tokens = [f"<unused {i}>" for i in range(config.vocab_size)]  # names for embedding rows without a token
    types = [_UNUSED] * config.vocab_size
    for token, i in document["model"]["vocab"].items():
        is_byte = kind != "bpe" and len(token) == 6 and token.startswith("<0x")
        tokens[i] = token
        types[i] = _BYTE if is_byte else _NORMAL
    for added in document.get("added_tokens") or []:
        # llama.cpp would print SPACE
        is_merged = kind == "spm" and SPACE in added["content"] and not added.get("special")
        if added["id"] < config.vocab_size and not is_merged:
            tokens[added["id"]] = added["content"]
            types[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
    if kind == "bpe":
        name = tokenizer_json.pre_tokenizer_name(document.get("pre_tokenizer"))
        pre_tokenizer = next((theirs for theirs, ours in _PRE_TOKENIZERS.items() if ours == name), None)
        if pre_tokenizer is None:
            raise LLMError(
                "the tokenizer has a pre-tokenizer that llama.cpp does not know; use `to` hf instead"
            )
        merges = document["model"].get("merges") or []
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        fields: Json = {
            "model": "gpt2",
            "pre": pre_tokenizer,
            "merges": merges,
        }
    else:
        scores, tokens = _scores(document["model"], kind, tokens)
        adds_prefix_space = kind == "spm" and bool(tokenizer_json.prefix_space(document))
        fields = {
            "model": "llama",
            "pre": "default",
            "scores": scores,
            "add_space_prefix": adds_prefix_space,
        }
    bos_token = tokenizer_json.bos_token_of(document.get("post_processor"))
    bos = config.eos_token_id if config.bos_token_id is None else config.bos_token_id
    bos = tokens.index(bos_token) if bos_token in tokens else bos
    end_of_answer = {"eot_token_id": config.extra_eos_ids[0]} if config.extra_eos_ids else {}
    return {
        **fields,
        "tokens": tokens,
        "token_type": types,
        "bos_token_id": bos,
        "eos_token_id": config.eos_token_id,
        **end_of_answer,
        "add_bos_token": bos_token in tokens,
        "add_eos_token": False,
    }


def _scores(model: Json, kind: str, tokens: list[str]) -> tuple[list[float], list[str]]:
    """Return (scores, tokens) for llama.cpp's SentencePiece; the first merge has the highest score."""
    if kind == "char":
        if " " in tokens and SPACE in tokens:
            raise LLMError(
                f"the vocabulary has both a space and {SPACE}, which llama.cpp treats as one token"
            )
        return [0.0] * len(tokens), [SPACE if token == " " else token for token in tokens]
    ids = {token: i for i, token in enumerate(tokens)}
    scores = [_UNMERGED_SCORE] * len(tokens)
    for rank, merge in reversed(list(enumerate(model["merges"]))):
        left, right = tokenizer_json.merge_pair(merge)
        scores[ids[left + right]] = -float(rank)
    return scores, tokens
