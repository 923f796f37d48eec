"""How a request wants its tokens chosen: the fields that completions and chats have in common."""

import secrets
from dataclasses import dataclass, replace
from typing import Any

from llmcli.config import SamplingConfig
from llmcli.server.api.fields import Fields
from llmcli.server.errors import invalid
from llmcli.server.limits import MAX_CHOICES, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TOKENS

MAX_SEED = (1 << 63) - 1
SMALLEST_TOP_P = 1e-9  # keeps the most likely token alone
# known fields that change the text and are not supported, with the values that change nothing
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    # of llama.cpp and vLLM
    "grammar": ("",),
    "json_schema": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "mirostat": (0,),
    "typical_p": (1,),
    "repeat_penalty": (1,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "typ_p": (1,),
    "top_n_sigma": (-1, 0),
    "dynatemp_range": (0,),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "lora": ([],),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "skip_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "include_stop_str_in_output": (False,),
    # of Ollama
    "format": ("",),
    "options": ({},),
}


@dataclass(frozen=True)
class Settings:
    """How the texts of one request are made and sent."""

    sampling: SamplingConfig
    n: int  # texts for each prompt
    stream: bool
    include_usage: bool  # in the stream

    def of_choice(self, number: int) -> SamplingConfig:
        """The sampling of one of the n texts, each with a seed of its own."""
        return replace(self.sampling, seed=self.sampling.seed + number)


def read_settings(fields: Fields, max_tokens: int) -> Settings:
    """The settings of a request that generates at most `max_tokens`. Raises ApiError."""
    fields.refuse(UNSUPPORTED)
    default = SamplingConfig
    stream = fields.flag("stream")
    if fields.given("stream_options") and not stream:
        raise invalid("stream_options", "has no effect without stream; leave it out, or set stream to true")
    seed = fields.integer("seed", -1, 0, MAX_SEED)
    sampling = SamplingConfig(
        max_tokens=max_tokens,
        temperature=fields.number("temperature", default.temperature, 0, 100),
        top_k=max(0, fields.integer("top_k", default.top_k, -1, 1 << 31)),  # -1, too, turns it off elsewhere
        top_p=max(SMALLEST_TOP_P, fields.number("top_p", default.top_p, 0, 1)),
        min_p=fields.number("min_p", default.min_p, 0, 1),
        repetition_penalty=fields.number("repetition_penalty", default.repetition_penalty, 1e-6, 1e6),
        seed=secrets.randbelow(1 << 32) if seed < 0 else seed,
        stop=fields.texts("stop", MAX_STOPS, MAX_STOP_CHARACTERS),
    )
    return Settings(
        sampling,
        n=fields.integer("n", 1, 1, MAX_CHOICES),
        stream=stream,
        include_usage=fields.object("stream_options").flag("include_usage"),
    )


def read_max_tokens(fields: Fields, default: int, *names: str) -> int:
    """The most new tokens, of the first of these fields that is given."""
    name = fields.given(*names)
    return default if name is None else fields.integer(name, default, 0, MAX_TOKENS)
