"""The rows of the scorecard: which fault is injected, and how often.

The function of a row takes an empty directory and a number of tries, and returns a line for each failed try. It also
checks that every injected fault took effect.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.reliability import disks, earlier_versions, files, kills, serve_abuse, terminals, texts


@dataclass(frozen=True)
class Row:
    """One line of the scorecard."""

    what: str
    run: Callable[[Path, int], list[str]]
    fast: int = 1  # tries in the tests; 0: none
    full: int = 1


ROWS = {
    "R1 R2": Row("killed at random instants, resumed: the same bytes", kills.killed_and_resumed, 0, 50),
    "R3": Row("killed at each system call of a save: the old file or the new one", disks.killed_while_saving, 1, 2),
    "R4": Row("flush, rename, flush the directory: in this order", disks.order_of_a_save),
    "R5": Row(
        "full disks, limits, I/O errors: the old file stays, nothing is left behind, one line of error",
        disks.refusing_disks,
    ),
    "R6": Row("temporary files of killed runs are removed by the next run", kills.stale_files_go, 3, 3),
    "R7": Row(
        "signals, also two at once: the model of the current step, the exit code of the signal", kills.signals, 0, 63
    ),
    "R8": Row("single flipped bits, all detected", files.flipped_bits, 100, 1000),
    "R9": Row("two runs on one output: one is refused, a kill releases the lock", kills.two_runs, 1, 5),
    "R10": Row("file mode, owner, symbolic link and umask are respected", disks.kept_places),
    "R11": Row("a run with other options or text is not resumed: the difference is named", kills.changed_runs, 0, 7),
    "R12": Row("a loss of NaN: the last good weights are saved", kills.exploding_loss, 0, 2),
    "B2": Row("too little memory: one line of error", kills.short_memory, 0, 5),
    "R13": Row("texts of every kind: trained on, or refused in one line", texts.corpora, 1, 36),
    "R14": Row("mutated files: read or refused in one line, quickly", files.mutants, 50, 2000),
    "R15": Row("a catalogue of malformed files: each is refused", files.malformed_files, 1, len(files.HUGE)),
    # tests/formats/test_untrusted_counts.py is similar
    "R16": Row("absurd configs: refused quickly", files.absurd_configs, 0),
    "R17": Row("hostile tokenizers (hangs, aborts): refused or limited", files.tokenizer_bombs, 0, 15),
    "R18": Row("no pickle or eval is executed; templates only in a sandbox", files.nothing_executes),
    "R19": Row("streamed text equals the text decoded at once", texts.streamed_text, 1000, 10_000),
    "R20": Row("text never becomes a control token", texts.text_stays_text, 1000, 10_000),
    "R21": Row("absurd sampling options: output or one line of error", terminals.sampling_options),
    "R22": Row("prompts from 0 bytes to 10 MB", terminals.long_prompts, 1, 10),
    "R23": Row("closed pipes, full disks, ASCII locales", terminals.pipes),
    # tests/cli/test_names.py is similar
    "R24": Row("terminal escape sequences in text are escaped", terminals.commanding_text, 0),
    "R25": Row("140 GB inspected quickly, without torch", files.huge_file),
    "R26": Row(
        "`llm serve`: foreign pages, false lengths, slow and vanishing clients, absurd fields, random requests",
        serve_abuse.abused_server,
        40,
        serve_abuse.FULL_TRIES,
    ),
    "R27": Row(
        "files of earlier versions: the same answers and exports, stopped runs go on",
        earlier_versions.earlier_files,
        0,  # tests/formats/test_earlier_files.py has the models
        len(earlier_versions.MODELS) + len(earlier_versions.STOPPED),
    ),
    "R28": Row("the same run gives the same bytes", kills.same_run_same_bytes, 0, 1),
    "R29": Row("a soak test, in seconds: memory stays flat, nothing is left behind", kills.soak, 0, 1200),
}
