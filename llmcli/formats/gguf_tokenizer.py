"""A GGUF file's facts on its tokenizer <-> a tokenizer.json.

llama.cpp names a way to cut words where a tokenizer.json describes it, and keeps scores of SentencePiece where that has
merges. What cannot be said in the other's terms is refused. Standard library only.
"""

import json
from collections.abc import Mapping
from typing import Any

from llmcli.config import ModelConfig
from llmcli.data import tokenizer_json
from llmcli.data.token_names import SPACE
from llmcli.errors import LLMError

# llama.cpp's name of a way to cut words -> ours, tokenizer_json.PRE_TOKENIZERS; the first of each is written
_PRE = {
    "gpt-2": "GPT-2", "smollm": "GPT-2, single digits", "llama-bpe": "Llama 3", "qwen2": "Qwen 2",
    "phi-2": "GPT-2", "olmo": "GPT-2", "jais": "GPT-2", "roberta-bpe": "GPT-2",
    "starcoder": "GPT-2, single digits", "refact": "GPT-2, single digits", "command-r": "GPT-2, single digits",
    "codeshell": "GPT-2, single digits",
    "llama3": "Llama 3", "llama-v3": "Llama 3", "dbrx": "Llama 3", "smaug-bpe": "Llama 3",
    "deepseek-r1-qwen": "Qwen 2",
}  # fmt: skip
_LLAMA_3 = ("llama-bpe", "llama3", "llama-v3")  # those that also begin a text, and take whole words as they are
_NORMAL, _CONTROL, _USER, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # kinds of tokens


def read(facts: dict[str, Any]) -> tuple[str, str | None]:
    """(the text of a tokenizer.json, the control token that a text begins with). Raises LLMError for kinds unknown
    here."""
    model, tokens = facts.get("tokenizer.ggml.model"), _listed(facts, "tokens", str)
    longest = max(map(len, tokens), default=0)
    if longest > tokenizer_json.MAX_TOKEN_CHARACTERS:
        raise LLMError(
            f"its token {max(range(len(tokens)), key=lambda i: len(tokens[i]))} has {longest:,} characters; tokens of "
            f"at most {tokenizer_json.MAX_TOKEN_CHARACTERS:,} are read"
        )
    kinds = [_NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in facts:
        kinds = _listed(facts, "token_type", int, len(tokens))
    tokens = _told_apart(tokens)
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (_CONTROL, _USER)
    ]  # fmt: skip
    vocabulary = {token: i for i, token in enumerate(tokens)}
    found: dict[str, Any] = {"added_tokens": added}
    if model == "gpt2":
        name = facts.get("tokenizer.ggml.pre")
        if name is None:
            raise LLMError(
                "it has no tokenizer.ggml.pre, which tells how words are cut; get a newer file of this model"
            )
        if name not in _PRE:
            raise LLMError(f"its tokenizer cuts words as {name!r} does; {', '.join(_PRE)} are supported")
        found["normalizer"] = {"type": "NFC"} if _PRE[name] == "Qwen 2" else None
        found["pre_tokenizer"] = tokenizer_json.PRE_TOKENIZERS[_PRE[name]]
        merges = _listed(facts, "merges", str)
        found["model"] = {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": merges,
            "ignore_merges": name in _LLAMA_3,
        }
    elif model == "llama":
        merges = _merges(vocabulary, _listed(facts, "scores", float, len(tokens)), kinds)
        found["model"] = {"type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": True}
        if facts.get("tokenizer.ggml.add_space_prefix", True):
            found["normalizer"] = tokenizer_json.space_first_normalizer()
        else:
            found["normalizer"] = tokenizer_json.space_first_normalizer()["normalizers"][1]
        if not merges:  # a token for each character; spaces are what they are
            spelled = {" " if token == SPACE else token: i for token, i in vocabulary.items()}
            found = {"added_tokens": added, "model": found["model"] | {"vocab": spelled}}
    else:
        raise LLMError(f"its tokenizer is of kind {model!r}; gpt2 and llama are supported")
    start = None
    begins = facts.get("tokenizer.ggml.add_bos_token", model == "llama" or facts.get("tokenizer.ggml.pre") in _LLAMA_3)
    if begins:
        number, _ = ends(facts)
        start = _token(tokens, number)
        found["post_processor"] = tokenizer_json.bos_post_processor(start, number)
    return json.dumps(found, ensure_ascii=False), start


def ends(facts: Mapping[str, Any]) -> tuple[Any, Any]:
    """(the token that begins a text, the one that ends it); where the file names none, those of llama.cpp."""
    begin, end = (11, 11) if facts.get("tokenizer.ggml.model") == "gpt2" else (1, 2)
    return facts.get("tokenizer.ggml.bos_token_id", begin), facts.get("tokenizer.ggml.eos_token_id", end)


def _listed(facts: dict[str, Any], name: str, kind: type, count: int | None = None) -> list[Any]:
    """A list of the tokenizer. Raises LLMError when it is none, or not of `count`."""
    found = facts.get(f"tokenizer.ggml.{name}")
    if found is None:
        raise LLMError(f"it has no tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(type(value) is kind for value in found):
        raise LLMError(f"its tokenizer.ggml.{name} is no list of {kind.__name__}")
    if count is not None and len(found) != count:
        raise LLMError(f"it has {count:,} tokens, but {len(found):,} entries in tokenizer.ggml.{name}")
    return found


def _token(tokens: list[str], number: Any) -> str:
    if type(number) is not int or not 0 <= number < len(tokens):
        raise LLMError(f"its token {str(number)[:60]} is none of its {len(tokens):,} tokens")
    return tokens[number]


def _told_apart(tokens: list[str]) -> list[str]:
    """Names that occur twice (filling at the vocabulary's end, tokens that were no text) become names of their own."""
    seen: set[str] = set()
    apart = []
    for i, token in enumerate(tokens):
        apart.append(token if token not in seen and token else f"<unused {i}>")
        seen.add(token)
    return apart


def _merges(vocabulary: dict[str, int], scores: list[float], kinds: list[int]) -> list[list[str]]:
    """What SentencePiece's scores say as a list of merges: the best first, each into a token from two others. Raises
    LLMError when they are longer together than any tokenizer that is read here.

    Takes time in proportion to the vocabulary's characters and to the merges that are found, not to all the places
    where a token could be cut.
    """
    beginnings = _beginnings(vocabulary)
    endings = _beginnings({token[::-1]: i for token, i in vocabulary.items()})
    found, size = [], 0
    for token, i in vocabulary.items():
        if kinds[i] != _NORMAL:
            continue
        cuts = {len(token) - length for length in endings[i]}.intersection(beginnings[i])
        size += len(cuts) * len(token)
        if size > tokenizer_json.MAX_CHARACTERS:
            raise LLMError(f"the merges of its tokenizer have more than {tokenizer_json.MAX_CHARACTERS:,} characters")
        found += [(-scores[i], i, -cut, [token[:cut], token[cut:]]) for cut in cuts]
    return [pair for *_, pair in sorted(found, key=lambda entry: entry[:3])]


def _beginnings(vocabulary: dict[str, int]) -> dict[int, list[int]]:
    """For each token, by its id, the lengths of the shorter tokens that it begins with.

    >>> _beginnings({"ab": 0, "abc": 1, "a": 2, "b": 3})
    {2: [], 0: [1], 1: [1, 2], 3: []}
    """
    found, path = {}, [""]  # path: the tokens that each begin the next
    for token in sorted(vocabulary):  # whatever begins with a token follows it at once
        while not token.startswith(path[-1]):
            path.pop()
        found[vocabulary[token]] = [len(beginning) for beginning in path[1:]]
        path.append(token)
    return found


def config_of(facts: dict[str, Any], config: ModelConfig, start: str | None) -> dict[str, Any]:
    """A tokenizer_config.json."""
    tokens = _listed(facts, "tokens", str)
    first = facts.get("tokenizer.ggml.bos_token_id", config.eos_token_id)
    told = {
        "add_bos_token": start is not None,
        "bos_token": _token(tokens, first),
        "clean_up_tokenization_spaces": False,
        "eos_token": _token(tokens, config.eos_token_id),
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = facts.get("tokenizer.chat_template")
    return told | ({"chat_template": template} if isinstance(template, str) else {})


def facts_of(found: dict[str, Any], config: ModelConfig) -> list[tuple[str, Any]]:
    """(method of the writer, value), of a tokenizer.json. Raises LLMError for one that llama.cpp cannot run."""
    kind, problem = tokenizer_json.classify(found)
    if problem:
        raise LLMError(f"the tokenizer {problem}, which llama.cpp cannot run")
    vocabulary, added = found["model"]["vocab"], found.get("added_tokens") or []
    tokens = [f"<unused {i}>" for i in range(config.vocab_size)]
    kinds = [_UNUSED] * config.vocab_size
    for token, i in vocabulary.items():
        is_byte = kind != "bpe" and len(token) == 6 and token.startswith("<0x")
        tokens[i], kinds[i] = token, _BYTE if is_byte else _NORMAL
    for entry in added:
        tokens[entry["id"]] = entry["content"]
        kinds[entry["id"]] = _CONTROL if entry.get("special") else _USER
    facts: list[tuple[str, Any]] = []
    if kind == "bpe":
        name = tokenizer_json.pre_tokenizer_name(found.get("pre_tokenizer"))
        pre = next((theirs for theirs, ours in _PRE.items() if ours == name), None)
        if pre is None:
            raise LLMError("the tokenizer cuts words in a way that llama.cpp has no name for; use --to hf instead")
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in found["model"].get("merges") or []]
        facts += [("add_tokenizer_model", "gpt2"), ("add_tokenizer_pre", pre), ("add_token_merges", merges)]
    else:
        scores, tokens = _scores(found["model"], kind, tokens)
        space_first = "Prepend" in json.dumps(found.get("normalizer"))
        facts += [
            ("add_tokenizer_model", "llama"), ("add_tokenizer_pre", "default"), ("add_token_scores", scores),
            ("add_add_space_prefix", space_first),
        ]  # fmt: skip
    start = tokenizer_json.bos_token_of(found.get("post_processor"))
    bos = config.eos_token_id if config.bos_token_id is None else config.bos_token_id
    facts += [
        ("add_token_list", tokens),
        ("add_token_types", kinds),
        ("add_bos_token_id", tokens.index(start) if start in tokens else bos),
        ("add_eos_token_id", config.eos_token_id),
        ("add_add_bos_token", start in tokens),
        ("add_add_eos_token", False),
    ]
    return facts


def _scores(model: dict[str, Any], kind: str, tokens: list[str]) -> tuple[list[float], list[str]]:
    """(scores, tokens) for llama.cpp's SentencePiece: what is merged first has the highest score."""
    if kind == "char":
        if " " in tokens and SPACE in tokens:
            raise LLMError(f"the vocabulary has both a space and {SPACE}, which llama.cpp takes for one")
        return [0.0] * len(tokens), [SPACE if token == " " else token for token in tokens]
    places = {token: i for i, token in enumerate(tokens)}
    scores = [-1e6] * len(tokens)
    for rank, merge in reversed(list(enumerate(model["merges"]))):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores[places[left + right]] = -float(rank)
    return scores, tokens
