"""The recorded commands, by subcommand."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Compare(Enum):
    """How the standard output of a command is compared with the record."""

    JSON = "json"  # one value, or one a line
    TEXT = "text"  # every character
    ROWS = "rows"  # a tab-separated table: all but the column names and what stands in parentheses
    FIGURES = "figures"  # prose, which may be reworded: its longer numbers and its hashes must occur


@dataclass(frozen=True)
class Command:
    """A command line (in the syntax of a shell), and how its results are compared.

    Values under the keys `type_only` are compared by type. `files` are written by the command and compared as well,
    with tensors compared bit by bit or, unless `exact_tensors`, by mean and norm. `save_text` is a file for the
    "text" of the JSON, for a later command to read. `needs` is a package that not everyone has installed.
    """

    line: str
    compare: Compare = Compare.JSON
    stdin: str = ""
    type_only: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    exact_tensors: bool = True
    save_text: str = ""
    tolerance: float = 1e-4  # relative: processors differ in the last bits
    needs: str = ""


# run before all others, in this order: they make models from models
SETUP = (
    "mix dense.safetensors second.safetensors -o mixture.safetensors",
    "export dense.safetensors int8.safetensors --quantize int8",
)
MODELS = ("dense.safetensors", "llama", "experts.safetensors", "mixture.safetensors", "int8.safetensors")
TEXT = "The cat ate りんごさん 🍎 at 7 o'clock.\n"
MATRIX = "model.layers.1.mlp.up_proj.weight"


def inspect() -> Iterator[Command]:
    for model in (*MODELS, "plain.safetensors", "adapter.safetensors"):
        yield Command(f"inspect {model} --json")
    for model in ("dense.safetensors", "experts.safetensors", "mixture.safetensors", "llama"):
        yield Command(f"inspect {model}", Compare.FIGURES)
    yield Command("inspect dense.safetensors --tensors", Compare.ROWS)
    yield Command(f"inspect dense.safetensors --tensor {MATRIX} --json")
    yield Command(f"inspect dense.safetensors --tensor {MATRIX}", Compare.FIGURES)
    yield Command("inspect plain.safetensors --tensor bias --json")
    yield Command("inspect dense.safetensors --weights --json")
    yield Command("inspect int8.safetensors --weights --json")
    yield Command("inspect dense.safetensors --verify --json")
    yield Command("inspect dense.safetensors --verify", Compare.FIGURES)


def tokenize() -> Iterator[Command]:
    for model in MODELS:
        yield Command(f"tokenize - -m {model} --json", stdin=TEXT)
    yield Command("tokenize - -m dense.safetensors", Compare.TEXT, stdin=TEXT)
    yield Command("tokenize - -m experts.safetensors", Compare.TEXT, stdin=TEXT)
    yield Command("tokenize - -m tokenizer.json --decode", Compare.TEXT, stdin="[46, 263, 300, 7, 12, 99]")
    yield Command("tokenize - -m experts.safetensors --decode", Compare.TEXT, stdin="46 100 200")


def generate() -> Iterator[Command]:
    clock = ("tokens_per_second", "seconds_to_first_token")
    dense = "-m dense.safetensors --json"
    for model in MODELS:
        yield Command(f"generate 'The cat' -t 0 -s 1 -n 8 -m {model} --json", type_only=clock)
    yield Command(f"generate 'The c' -t 0 -s 1 -n 30 {dense}", type_only=clock, save_text="copied.txt")
    for words in (
        "'The c' -t 0 -s 1 -n 40 --memory --corpus copied.txt",
        "'The c' -t 0 -s 1 -n 40 --memory --samples 2",  # the text of its training record, found beside it
        "'The cat' -n 8 --samples 2 --seed 7",
        "'The cat' -n 8 --seed 4 -t 1.5 -k 20 -p 0.9 --min-p 0",
        "'The cat' -t 0 -s 1 -n 6 --quantize int4",
        "'The c' -t 0 -s 1 -n 30 --stop nm --stop app",
        "'The cat sa' -t 0 -s 1 -n 6 --literal",
        "'The cat sa' -t 0 -s 1 -n 6",
    ):
        yield Command(f"generate {words} {dense}", type_only=clock)
    yield Command(f"generate - -t 0 -s 1 -n 6 {dense}", type_only=clock, stdin=TEXT * 3)  # longer than the context
    for model in ("experts.safetensors", "mixture.safetensors"):
        yield Command(f"generate 'The cat' -t 0 -s 1 -n 6 --experts -m {model} --json", type_only=clock)
    yield Command("generate 'The cat' -t 0 -s 1 -n 30 -m dense.safetensors", Compare.TEXT)
    yield Command("generate 'The c' -t 0 -s 1 -n 40 --memory --corpus copied.txt -m dense.safetensors", Compare.TEXT)
    yield Command(f"generate 'The ca' --steps 3 -t 0 -s 1 {dense}")
    yield Command("generate 'The ca' --steps 3 -s 5 -k 9 -p 0.9 --min-p 0.1 -m experts.safetensors --json")
    yield Command(f"generate 'The ca' --next 5 {dense}")
    yield Command("generate 'The ca' --next 5 -m dense.safetensors", Compare.ROWS)


def evaluate() -> Iterator[Command]:
    yield Command("eval text.txt -m dense.safetensors -m experts.safetensors --json")  # the held-out end of the text
    yield Command("eval text.txt -m dense.safetensors", Compare.ROWS)
    yield Command("eval other.txt -m dense.safetensors -m second.safetensors -m mixture.safetensors --json")
    yield Command("eval other.txt --whole -m second.safetensors --context 8 --json")
    yield Command("eval other.txt tokenizer.json -m llama --json")
    yield Command("eval other.txt -m int8.safetensors --json")
    yield Command("eval other.txt --per-token -m second.safetensors --json")
    yield Command("eval other.txt --per-token -m second.safetensors", Compare.FIGURES)


def explain() -> Iterator[Command]:
    for model in ("dense.safetensors", "llama", "mixture.safetensors"):
        yield Command(f"explain 'The cat ate' -m {model} --json")
    yield Command("explain 'The cat ate' --layer 2.3 --next 2 -m int8.safetensors --json")
    yield Command("explain 'The cat a' --layer 1 --literal -m experts.safetensors --json")
    yield Command("explain - --next 2 --layer 1 -m dense.safetensors --json", stdin=TEXT * 3)  # longer than the context
    yield Command("explain 'The cat' --html explained.html -m dense.safetensors --json")
    yield Command("explain 'The cat a' --without 2.3 --without 1 --next 2 -m experts.safetensors --json")
    yield Command("explain 'The cat' --compare 'The dog' --next 2 -m llama --json")
    yield Command("explain 'The cat' --without 2 --next 2 -m dense.safetensors", Compare.ROWS)
    # errors
    yield Command("explain 'The cat' --without 2 -m mixture.safetensors --json")


def mix() -> Iterator[Command]:
    models = "dense.safetensors second.safetensors"
    yield Command(f"mix {models} -o mixed.safetensors --json", files=("mixed.safetensors",))


def import_() -> Iterator[Command]:
    yield Command("import llama -o imported.safetensors --json", files=("imported.safetensors",))
    merged = ("merged.safetensors",)
    yield Command(
        f"import llama --adapter llama_adapter.safetensors -o {merged[0]} --json", files=merged, exact_tensors=False
    )


def export() -> Iterator[Command]:
    texts = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    size = ("bytes",)  # the directory has a README.md, the .gguf a description: both are prose
    for line, names in (
        ("export dense.safetensors hf --to hf --name Tiny --license mit --json", texts),
        ("export llama hf16 --to hf --dtype f16 --json", texts[:1]),
    ):
        files = tuple(f"{line.split()[2]}/{name}" for name in (*names, "model.safetensors"))
        yield Command(line, type_only=size, files=files)
    yield Command("export dense.safetensors exported.json --to tokenizer --json", files=("exported.json",))
    yield Command("export dense.safetensors q8.safetensors --quantize int8 --json", files=("q8.safetensors",))
    yield Command("export experts.safetensors q4.safetensors --quantize int4 --json", files=("q4.safetensors",))


def gguf() -> Iterator[Command]:
    """Export to, and use of, a .gguf."""
    loose = ("bytes", "sha256", "description")
    for model, name, dtype in (("dense.safetensors", "dense", "f32"), ("llama", "llama", "q8_0")):
        line = f"export {model} {name}.gguf --to gguf --dtype {dtype} --json"
        yield Command(line, type_only=loose, files=(f"{name}.gguf",), needs="gguf")
    clock = ("tokens_per_second", "seconds_to_first_token")
    yield Command("inspect llama.gguf --json", type_only=loose, needs="gguf")
    yield Command("generate 'The cat' -t 0 -s 1 -n 8 -m llama.gguf --json", type_only=clock, needs="gguf")
    files = ("from_gguf.safetensors",)
    yield Command(f"import llama.gguf -o {files[0]} --json", type_only=loose, files=files, needs="gguf")


def train() -> Iterator[Command]:
    loose = ("choices", "verdict", "seconds", "tokens_per_second")
    cpu = "--threads 1 --device cpu --dtype float32 --json"
    for words in (
        "text.txt --steps 200",
        "text.txt --epochs 3 --tokenizer char",
        "text.txt --epochs 30 --vocab-size 300",
        "text.txt --steps 200 --layers 3 --width 48 --heads 6 --context 64",
        "text.txt --steps 200 --experts 4",
        "text.txt --steps 200 --dropout 0.2 --optimizer adamw --lr-scale 0.5 --seed 7 --tokenizer tokenizer.json",
        "other.txt --steps 50 --from dense.safetensors",
        "other.txt --epochs 2 --from dense.safetensors --lora 4 --val text.txt",
        "other.txt --steps 50 --like llama",
        "text.txt other.txt --steps 50 --val 0",
    ):
        yield Command(f"train {words} --dry-run {cpu}", type_only=loose)
    loose += ("text", "next", "memorised")  # of the last digits of trained weights
    shape = "--layers 1 --width 16 --context 16 --batch-tokens 64"
    for words in (
        f"text.txt -o fresh.safetensors --vocab-size 300 {shape}",
        f"text.txt -o sparse.safetensors --tokenizer char --experts 2 --dropout 0.1 --val 0 {shape}",
        "other.txt -o tuned.safetensors --from dense.safetensors --lora 2 --batch-tokens 64",
    ):
        yield Command(f"train {words} --steps 3 {cpu}", type_only=loose, tolerance=0.01)


GROUPS = {
    group.__name__.strip("_"): tuple(group())
    for group in (inspect, tokenize, generate, evaluate, explain, mix, import_, export, gguf, train)
}
