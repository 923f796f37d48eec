"""Lists: lines that a model generates one by one, without duplicates or known lines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation.batch import CONCURRENT, continuation_request, decode_batch
from llmcli.generation.engine.requests import GenerationRequest
from llmcli.generation.token_healing import Prompt, beginning_of_line
from llmcli.models.runtime import Runtime

ATTEMPTS = 20  # maximum number of generated texts for each requested line ...
MIN_ATTEMPTS = 200  # ... but at least this many in total


@dataclass
class LineGenerator:
    """Generates up to `count` distinct lines, and counts the others."""

    runtime: Runtime
    tokenizer: Tokenizer
    prompt: str  # the beginning of each line; "": start like a line of the training text
    sampling: SamplingConfig  # for the first text; later texts use the following seeds
    count: int
    known: Callable[[set[str]], set[str]] = lambda lines: set()  # returns the lines to leave out
    generated: int = 0
    yielded: int = 0
    duplicates: int = 0
    dropped: int = 0  # known lines
    incomplete: int = 0  # texts that were empty, longer than `max_tokens`, or more than one line

    def __iter__(self) -> Iterator[str]:
        seen: set[str] = set()
        limit = max(MIN_ATTEMPTS, ATTEMPTS * self.count)
        while self.yielded < self.count and self.generated < limit:
            new = list(
                self._round(
                    seen, min(limit - self.generated, max(CONCURRENT, 2 * (self.count - self.yielded)))
                )
            )
            known = self.known(set(new))
            self.dropped += len(known)
            for line in new:
                if line not in known and self.yielded < self.count:
                    self.yielded += 1
                    yield line

    def _round(self, seen: set[str], texts: int) -> Iterator[str]:
        """Generate some texts, and yield the lines that are not in `seen`."""
        beginning = self.prompt.rpartition("\n")[2]
        requests = map(self._request, range(self.generated, self.generated + texts))
        for result in decode_batch(self.runtime, self.tokenizer, requests):
            if result.error is not None:
                raise result.error
            self.generated += 1
            line = (beginning + result.text).strip()
            if not line or "\n" in line or (result.finished and result.finished.reason == "length"):
                self.incomplete += 1
            elif line in seen:
                self.duplicates += 1
            else:
                seen.add(line)
                yield line

    def _request(self, number: int) -> GenerationRequest:
        sampling = replace(self.sampling, seed=self.sampling.seed + number)
        if not sampling.grammar:  # a constrained text ends where it is complete
            sampling = replace(sampling, stop=(*sampling.stop, "\n"))
        if self.prompt:
            return continuation_request(self.prompt, self.tokenizer, sampling)
        return GenerationRequest("", Prompt(beginning_of_line(self.tokenizer)), sampling)
