"""The rows of the scorecard: what is tried, and how often.

What a row runs takes an empty directory and a number of tries and returns a line for each try that went wrong. Each
fault that is injected is proven to have struck.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.reliability import disks, files, kills, terminals, texts


@dataclass(frozen=True)
class Row:
    """One line of the scorecard."""

    what: str
    run: Callable[[Path, int], list[str]]
    fast: int = 1  # tries in the tests; 0: none
    full: int = 1


ROWS = {
    "R1 R2": Row("killed at random instants, resumed: the same bytes", kills.killed_and_resumed, 1, 50),
    "R3": Row("killed at each call of a save: the old file or the new one", disks.killed_while_saving, 1, 2),
    "R4": Row("space, flush, move, flush: in this order", disks.order_of_a_save),
    "R5": Row("full disks, limits, I/O errors: the old file, nothing left, one line", disks.refusing_disks),
    "R6": Row("what killed runs left is removed by the next", kills.stale_files_go, 3, 3),
    "R7": Row("signals, also twice at once: the model of that very step, the right code", kills.signals, 1, 63),
    "R8": Row("single flipped bits, all found", files.flipped_bits, 100, 1000),
    "R9": Row("two runs on one output: one runs, a kill frees it", kills.two_runs, 1, 5),
    "R10": Row("mode, owner, link and mask are kept", disks.kept_places),
    "R11": Row("a changed run is told, not taken", kills.changed_runs, 0, 7),
    "R12": Row("a loss that is no number: the last good state", kills.exploding_loss, 0, 2),
    "B2": Row("memory for no such model, or hardly any: one line", kills.short_memory, 0, 5),
    "R13": Row("texts of every kind: learned or refused in a line", texts.corpora, 1, 36),
    "R14": Row("mutated files: read or refused in a line, at once", files.mutants, 100, 2000),
    "R15": Row("a catalogue of malformed files: each its verdict", files.malformed_files),
    "R16": Row("absurd configs: refused at once", files.absurd_configs),
    "R17": Row("tokenizers made to hang or abort: refused or tamed", files.tokenizer_bombs, 0, 15),
    "R18": Row("nothing is unpickled, evaluated or rendered", files.nothing_executes),
    "R19": Row("streamed text is the whole text", texts.streamed_text, 1000, 10_000),
    "R20": Row("text stays text", texts.text_stays_text, 1000, 10_000),
    "R21": Row("absurd sampling options: an answer or one line", terminals.sampling_options),
    "R22": Row("prompts from nothing to 10 MB", terminals.long_prompts),
    "R23": Row("closed pipes, full outputs, narrow encodings", terminals.pipes),
    "R24": Row("text that would command a terminal becomes marks", terminals.commanding_text),
    "R25": Row("140 GB inspected at once, without torch", files.huge_file),
    "R28": Row("the same run, the same bytes", kills.same_run_same_bytes, 0, 1),
    "R29": Row("a soak, in seconds: memory flat, nothing left", kills.soak, 0, 1200),
}

NOT_APPLICABLE = {"R26": "nothing here serves", "R27": "there is no release yet whose files could be opened"}
