"""The Python API gives the results of the command line, and importing it loads no heavy library."""

import io
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

import llmcli
from llmcli import api
from tests.cli.commands.test_chat import write_chat_model
from tests.conftest import Llm

PROMPT = "The cat sat"


def output(run: Result) -> dict:
    assert run.exit_code == 0, run.stderr
    return json.loads(run.stdout)


def test_importing_loads_neither_numpy_nor_torch() -> None:
    code = "import llmcli, sys; print(sorted({'numpy', 'torch', 'typer', 'rich', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert set(llmcli._MODULES) | {"__version__"} == set(llmcli.__all__) <= set(dir(llmcli))
    assert llmcli.load is api.load and llmcli.Model is api.Model
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        llmcli.lode  # noqa: B018


def test_generate_gives_the_text_of_the_command(tiny_model: Path, llm: Llm) -> None:
    model = llmcli.load(tiny_model)
    answer = output(llm("generate", PROMPT, "-m", tiny_model, "-n", 12, "--seed", 3, "--json"))
    assert model.generate(PROMPT, max_tokens=12, seed=3) == answer["text"]
    pieces = list(model.pieces(PROMPT, max_tokens=12, seed=3))
    assert [piece.id for piece in pieces if piece.id is not None] == [token["id"] for token in answer["tokens"]]
    assert "".join(model.stream(PROMPT, max_tokens=12, seed=3)) == answer["text"]


def test_batches_give_the_texts_of_single_calls(tmp_path: Path) -> None:
    model = llmcli.load(write_chat_model(tmp_path / "model.safetensors"))
    prompts = [PROMPT, "The", "A mat"]
    options = {"max_tokens": 6, "seed": 4, "min_p": 0.2}
    texts = [model.generate(prompt, **options | {"seed": 4 + i}) for i, prompt in enumerate(prompts)]
    assert model.generate_batch(prompts, **options) == texts and model.generate_batch([]) == []
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    answers = [model.chat(messages, **options | {"seed": 4 + i}) for i, messages in enumerate(asked)]
    assert model.chat_batch(asked, **options) == answers
    with pytest.raises(llmcli.LLMError, match="number 2: the messages have"):
        model.chat_batch([asked[0], [{"role": "user", "content": "The cat. " * 999}]])
    with pytest.raises(TypeError, match="prompts must be a list, found 'The cat'"):
        model.generate_batch("The cat")
    for call in (model.generate_batch, model.chat_batch):
        assert_one_sentence(lambda call=call: call(None))  # type: ignore[misc]
    for texts in (model.generate_batch(["", "The"], seed=4, max_tokens=3), [model.generate("", seed=4, max_tokens=3)]):
        assert texts[0] == model.generate("\n", seed=4, max_tokens=3, literal=True)


def test_calls_without_a_seed_give_different_texts(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    assert len({model.generate(PROMPT, max_tokens=8) for _ in range(8)}) > 1
    assert len({model.generate(PROMPT, max_tokens=8, temperature=0) for _ in range(3)}) == 1


@pytest.mark.usefixtures("short_search")
def test_calls_between_the_pieces_of_a_stream_change_nothing(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    options = {"max_tokens": 6, "temperature": 0}
    text, words = model.generate(PROMPT, **options), model.next_words("The", 3)
    next(model.stream("The dog", max_tokens=12))  # abandoned
    pieces = []
    for piece in model.stream(PROMPT, **options):
        pieces.append(piece)
        assert model.next_words("The", 3) == words
        model.explain("A mat")
    assert "".join(pieces) == text


@pytest.mark.usefixtures("short_search")
def test_calls_from_several_threads_give_what_they_give_alone(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    prompts = [PROMPT, *(f"The cat {number}" for number in range(8))]
    calls = [
        partial(model.generate, PROMPT, max_tokens=12, temperature=0),
        partial(model.next_words, "The", 3),
        partial(model.generate_batch, prompts, max_tokens=12, temperature=0),
    ] * 8
    alone = [call() for call in calls]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda call: call(), calls)) == alone


def test_a_single_stop_string_is_accepted(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    text = model.generate(PROMPT, max_tokens=20, seed=1)
    assert model.generate(PROMPT, max_tokens=20, seed=1, stop=text[2]) == text[: text.index(text[2])]


@pytest.mark.usefixtures("short_search")
def test_next_words_are_those_of_the_command(tiny_model: Path, llm: Llm) -> None:
    answer = output(llm("generate", PROMPT, "-m", tiny_model, "--next", 4, "--json"))
    words = llmcli.load(tiny_model).next_words(PROMPT, 4)
    assert [word for word, _ in words] == [entry["text"] for entry in answer["next"]]
    assert [p for _, p in words] == pytest.approx([entry["probability"] for entry in answer["next"]], abs=1e-6)


def test_the_score_is_the_sum_of_the_log_probabilities(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    ids = model.tokenize(PROMPT)
    logits = model.runtime.logits([model.tokenizer.bos_id, *ids])[:-1].astype(np.float64)
    model.runtime.rewind()
    nats = sum(math.log(np.exp(row - row.max()).sum()) + row.max() - row[i] for row, i in zip(logits, ids, strict=True))
    assert model.score(PROMPT).bits_per_byte == pytest.approx(nats / math.log(2) / len(PROMPT), rel=1e-5)


def test_explain_predicts_what_generate_chooses(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    explanation = model.explain(PROMPT)
    assert model.detokenize(explanation.ids) + explanation.tail == PROMPT
    [piece, *_] = model.pieces(PROMPT, max_tokens=1, temperature=0)
    assert piece.id == explanation.most_likely(1)[0]


@pytest.mark.usefixtures("short_search")
def test_explain_compares_as_the_command_does(tiny_model: Path, llm: Llm) -> None:
    model = llmcli.load(tiny_model)
    found = output(llm("explain", PROMPT, "-m", tiny_model, "--without", "2.3", "--json"))
    comparison = model.explain(PROMPT, without=["2.3"])
    assert comparison.kl_divergence == pytest.approx(found["kl_divergence_bits"], abs=1e-6)
    assert [(one.text, one.second) for one in comparison.next_words(5)] == [
        (one["text"], pytest.approx(one["second"], abs=1e-6)) for one in found["next"]
    ]
    other = model.explain(PROMPT, compare="The dog")
    assert other.second.ids == model.explain("The dog").ids and other.without == ()
    assert model.explain(PROMPT, without=["1"], compare="The dog").without == ("1",)


def test_a_model_describes_itself(tiny_model: Path) -> None:
    model = llmcli.load(str(tiny_model))
    assert model.path == tiny_model and model.context == 32 and model.record == {"steps": 0}
    assert f"{model.parameters:,} parameters, context 32" in repr(model)


TEXT = "The cat sat on the mat. The dog ate the hat.\n" * 60
RUN = {"steps": 4, "threads": 1, "seed": 2, "layers": 1, "width": 32, "context": 16, "batch_tokens": 64}


def test_ctrl_c_ends_a_run_that_is_saved_and_a_second_one_interrupts_it(own_directory: Path) -> None:
    """In the main thread, which alone receives signals, and not between two events, where the caller's code runs."""
    from llmcli.training import session

    Path("c.txt").write_text(TEXT, "utf-8")
    run = session.run

    def interrupted(planned: session.PlannedRun, signals: list[int]) -> Iterator[object]:
        for event in run(planned, signals=signals):
            if isinstance(event, llmcli.Step) and event.step > 1:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            yield event

    times = 1
    earlier = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "run", interrupted)
        *events, end = llmcli.train("c.txt", **RUN)
        assert [type(event) for event in events].count(llmcli.Step) == 2
        assert end.done.interrupted and end.file.exists() and end.resumable
        patch.setattr("llmcli.signals.SAME_REQUEST", 0.0)
        times = 2
        with pytest.raises(KeyboardInterrupt):
            for _ in llmcli.train("c.txt", "second.safetensors", **RUN):
                assert signal.getsignal(signal.SIGINT) is earlier
    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(lambda: list(llmcli.train("c.txt", "thread.safetensors", **RUN))[-1])
    assert done.result().done.step == 4


@pytest.mark.slow
def test_training_gives_the_bytes_of_the_command_which_resumes_a_stopped_run(own_directory: Path, llm: Llm) -> None:
    from llmcli.training.files import resume

    Path("c.txt").write_text(TEXT * 60, "utf-8")
    words = [word for key, value in RUN.items() for word in (f"--{key.replace('_', '-')}", value)]
    assert llm("train", "c.txt", "-o", "command.safetensors", "-q", *words).exit_code == 0
    *events, result = llmcli.train("c.txt", "api.safetensors", **RUN)
    assert isinstance(result, llmcli.Result) and result.file == Path("api.safetensors") and result.done.step == 4
    assert {llmcli.Step, llmcli.Evaluation} <= {type(event) for event in events}
    whole = Path("api.safetensors").read_bytes()
    assert whole == Path("command.safetensors").read_bytes()
    assert llmcli.load("api.safetensors").record["bits_per_byte"] == pytest.approx(result.bits_per_byte, abs=1e-4)
    run = llmcli.train("c.txt", "stopped.safetensors", **RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.StateSaver, "is_due", lambda self: True)
        for event in run:
            if isinstance(event, llmcli.Step) and event.step == 3:
                run.close()
                break
    assert Path("stopped.resume.safetensors").exists() and not Path("stopped.safetensors").exists()
    answer = llm("train", "c.txt", "-o", "stopped.safetensors", *words)
    assert answer.exit_code == 0 and "resuming from step" in answer.stderr, answer.stderr
    assert Path("stopped.safetensors").read_bytes() == whole


def test_texts_in_memory_give_the_model_of_files_with_these_names(own_directory: Path, llm: Llm) -> None:
    texts = [f"{number} little cats sat on {number} mats and ate {7 * number} fish.\n" * 30 for number in range(12)]
    texts += [texts[0], "", "\ufeffりんごを食べた。\r\n" * 30]
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"り{n}"}] for n in range(20)]
    for number, text in enumerate(texts, 1):
        Path(f"text {number}").write_bytes(text.encode("utf-8"))
    Path("conversations in memory").write_text("".join(json.dumps(chat) + "\n" for chat in chats), "utf-8")
    names = [f"text {number}" for number in range(1, 16)]
    *_, files = llmcli.train([*names, "conversations in memory"], "files.safetensors", **RUN)
    for name in [*names, "conversations in memory"]:
        Path(name).unlink()
    *_, memory = llmcli.train(text=(text for text in texts), conversations=chats, output="memory.safetensors", **RUN)
    tensors = [done.checkpoint.tensors for done in (files.done, memory.done)]
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in {*tensors[0], *tensors[1]})
    records = [llmcli.load(f"{name}.safetensors").record for name in ("files", "memory")]
    assert {entry.pop("kind", None) for entry in records[1]["corpus"]} == {"in memory", None}
    assert all(entry.pop("path") == entry["name"] for entry in records[0]["corpus"])
    assert records[0]["corpus"] == records[1]["corpus"] and len(records[1]["corpus"]) == 14
    run = llm("generate", "The cat", "-n", 1, "-m", "memory.safetensors", "--memory")
    assert run.exit_code == 1 and "in memory, was in memory and has no file; name it: --corpus FILE" in run.stderr


def test_a_file_is_replaced_only_with_overwrite(own_directory: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("notes.safetensors").write_text("mine", "utf-8")
    Path("m.safetensors").write_bytes(b"\1\0\0\0\0\0\0\0{")
    for name in ("m.safetensors", "notes.safetensors"):
        before = Path(name).read_bytes()
        with pytest.raises(llmcli.LLMError, match="exists"):
            list(llmcli.train("c.txt", name, **RUN))
        assert Path(name).read_bytes() == before
    assert list(llmcli.train("c.txt", "m.safetensors", overwrite=True, **RUN))[-1].file == Path("m.safetensors")


NOT_TEXTS = [None, b"ab", ["I like"], Path("x"), 5, np.int64(3), {"a": 1}, "\ud800"]
CALLS: dict[str, Callable[[llmcli.Model, object], object]] = {
    "generate": lambda model, value: model.generate(value, max_tokens=1),  # type: ignore[arg-type]
    "stream": lambda model, value: list(model.stream(value, max_tokens=1)),  # type: ignore[arg-type]
    "next_words": lambda model, value: model.next_words(value),  # type: ignore[arg-type]
    "score": lambda model, value: model.score(value),  # type: ignore[arg-type]
    "tokenize": lambda model, value: model.tokenize(value),  # type: ignore[arg-type]
    "explain": lambda model, value: model.explain(value),  # type: ignore[call-overload]
    "without": lambda model, value: model.explain("a", without=value or 5),  # type: ignore[call-overload]
    "compare": lambda model, value: model.explain("a", compare=5 if value is None else value),  # type: ignore[call-overload]
    "detokenize": lambda model, value: model.detokenize(value),  # type: ignore[arg-type]
    "load": lambda model, value: llmcli.load(value),  # type: ignore[arg-type]
    "train": lambda model, value: next(llmcli.train(value, "o.safetensors")),  # type: ignore[arg-type]
    "output": lambda model, value: next(llmcli.train("c.txt", value)),  # type: ignore[arg-type]
}
OPTIONS: dict[str, list[object]] = {
    "max_tokens": [None, -1, 1.5, "3", True], "temperature": [None, -1, "1", math.nan, 10**400, [1]],
    "top_k": [-1, 2.0],
    "top_p": [-1, 1.5, "x"], "min_p": [-1, None], "repetition_penalty": [0, None], "seed": [-1, "1", 1.5],
    "stop": [5, "", [""], [1]], "min_tokens": [201], "literal": ["no", None],
    "nonsense": [1],
}  # fmt: skip
TRAIN_OPTIONS: dict[str, list[object]] = {
    "seconds": [-1, 0, "10", math.nan, math.inf, 10**400],
    "steps": [0, -1, "5", 1.5, True], "epochs": [0, "1"], "val": [2.0, b"x"],
    "base": ["no", 5, ""], "like": ["no", 5, ""], "tokenizer": ["no", 5, None], "speakers": ["ab", ("a",), 5],
    "device": ["gpu", 5, None], "dtype": ["f8", 5], "threads": [0, -1, "2", 1.5], "layers": [0, -1, "2", 2.5, 10**9],
    "width": [0, "64"], "heads": [0, 3], "kv_heads": [0, 5], "dropout": [-1, 2, "x"], "lr": [0, -1, "x"],
    "optimizer": ["x", 5], "vocab_size": [1, "x", 10**9], "context": [0, "x"], "batch_tokens": [0, "x"],
    "seed": [-1, "x", 1.5, 1 << 64], "lora": [-1, 1.5], "experts": [-1, "x", 10**9], "tie": [5], "weight_decay": [0],
    "kl_weight": [-1, "x"], "pairs": ["no", None, 5], "plain": ["no", None], "overwrite": ["no", None, 1],
    "column": ["q", 5, ("q", "a")], "time": ["20s", 20],
}  # fmt: skip


def assert_one_sentence(call: Callable[[], object]) -> None:
    with pytest.raises((llmcli.LLMError, TypeError)) as caught:
        call()
    assert len(str(caught.value)) > 15 and "\n" not in str(caught.value)
    if caught.type is TypeError:  # raised by us, not by Python on the way
        assert caught.traceback[-1].path == Path(api.__file__), caught.value
        assert "object" not in str(caught.value) and "instances" not in str(caught.value)


def test_what_is_no_text_or_file_is_refused(tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    model = llmcli.load(tiny_model)
    for name in CALLS:
        takes_empty = name in ("tokenize", "detokenize", "generate", "stream", "next_words")
        for value in [*NOT_TEXTS, None if takes_empty else "", "x\0" if name == "load" else None]:
            is_fine = (name == "load" and value == Path("x")) or (name == "output" and value == Path("x"))
            is_fine = is_fine or (name == "detokenize" and value == b"ab")  # a sequence of integers
            if not is_fine and not (name == "train" and isinstance(value, Path)):
                assert_one_sentence(lambda value=value, name=name: CALLS[name](model, value))  # type: ignore[misc]


def test_options_of_other_types_and_out_of_range_are_refused(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    for name, values in OPTIONS.items():
        for value in values:
            assert_one_sentence(lambda name=name, value=value: model.generate("The", **{name: value}))  # type: ignore[misc]
    for count in (None, -1, 0, 1.5, "3"):
        assert_one_sentence(lambda count=count: model.next_words("The", count))  # type: ignore[misc]
    for ids in ([-1], [10**9], [1.5], ["a"], [[1]], "abc"):
        assert_one_sentence(lambda ids=ids: model.detokenize(ids))  # type: ignore[misc]
    for option in (
        {"device": "gpu"},
        {"device": 5},
        {"quantize": "int2"},
        {"quantize": True},
        {"quantize": "int8", "device": "auto"},
        {"cache": "no"},
    ):
        assert_one_sentence(lambda option=option: llmcli.load(tiny_model, **option))  # type: ignore[misc]


def test_options_of_training_are_refused_before_anything_is_written() -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    for name, values in TRAIN_OPTIONS.items():
        for value in values:
            options = {"steps": 1, "layers": 1, "width": 32, "context": 16} | {name: value}
            if name in ("seconds", "epochs"):
                del options["steps"]
            assert_one_sentence(lambda options=options: next(llmcli.train("c.txt", "o.safetensors", **options)))  # type: ignore[misc]
    assert {path.name for path in Path().iterdir()} <= {"c.txt", ".o.safetensors.lock"}


def test_errors_name_arguments(tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    mine = tiny_model.read_bytes()
    Path("mine.safetensors").write_bytes(mine)
    model = llmcli.load(tiny_model)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: model.generate("The", max_tokens=-1), "^`max_tokens` must be"),
        (lambda: model.generate("The", temprature=1), "unknown option 'temprature'; the options are .*temperature"),
        (lambda: llmcli.train("c.txt", time="20s"), "unknown option 'time'; the options are text, "),
        (lambda: llmcli.train("c.txt", steps=1, seconds=5), "^`seconds` and `steps` both"),
        (lambda: next(llmcli.train("c.txt", "o.safetensors", steps=1, lr=-1)), "^`lr` must be between 1e-12"),
        (lambda: llmcli.train([]), "^corpus is an empty list"),
        (lambda: llmcli.train(TEXT), "^corpus must be the name of a file, found a text"),
        (lambda: llmcli.train(io.StringIO(TEXT)), "^corpus must be a list, found"),
        (lambda: llmcli.train(), r"^give either corpus \(names of files\), or text and conversations \(in"),
        (lambda: llmcli.train("c.txt", text=[TEXT]), "^give either corpus"),
        (lambda: llmcli.train(text=[]), "^text is an empty list"),
        (lambda: llmcli.train(text=[TEXT, math.nan]), "^text 2 must be a str, found nan"),
        (lambda: llmcli.train(text=io.StringIO(TEXT)), "^text must be a list, found "),
        (lambda: llmcli.train(text=[TEXT, "a\0"]), "^text 2 is not text: a zero character at position 1"),
        (lambda: llmcli.train(text=[TEXT], column="a"), "^speakers, pairs, column, .* are for files"),
        (lambda: llmcli.train(conversations=[{"a": "b"}]), "^conversations "),
        (lambda: llmcli.train(conversations=[{"text": "b"}]), "^conversations must be lists of messages, or records"),
        (lambda: llmcli.train(conversations=[[{"role": "user", "content": b"b"}]]), "^conversations must be lists of"),
        (lambda: next(llmcli.train(text="short", output="o.safetensors")), "^text 1 is too short: 5 bytes"),
        (lambda: list(llmcli.train(text=[""])), "^text 1 is empty; give some text to read"),
        (lambda: next(llmcli.train("c.txt", "mine.safetensors", steps=1)), "add `overwrite=True` to replace it"),
        (lambda: next(llmcli.train(tiny_model, "o.safetensors", steps=1)), "llm train TEXT --from "),
    ]
    for call, message in calls:
        with pytest.raises((llmcli.LLMError, TypeError), match=message):
            call()
    assert Path("mine.safetensors").read_bytes() == mine


@pytest.mark.usefixtures("short_search")
def test_numbers_of_numpy_are_numbers(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    options = {"max_tokens": np.int64(4), "temperature": np.float32(0.5), "seed": np.uint8(3), "top_k": np.int32(9)}
    text = model.generate("The", max_tokens=4, temperature=0.5, seed=3, top_k=9)
    assert model.generate("The", **options) == text
    assert len(model.next_words("The", np.int64(2))) == 2  # type: ignore[arg-type]
    assert model.detokenize(np.array(model.tokenize("The cat"))) == "The cat"  # type: ignore[arg-type]


def test_two_answers_at_once_are_those_of_each_alone() -> None:
    model = llmcli.load(write_chat_model(Path("chat.safetensors")))
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "Who sat there")]
    options = {"max_tokens": 8, "temperature": 0}
    alone = [model.chat(messages, **options) for messages in chats]
    streams = [model.stream_chat(messages, **options) for messages in chats]
    answers = ["", ""]
    for _ in range(9):
        for number, stream in enumerate(streams):
            answers[number] += next(stream, "")
    assert answers == alone and all(alone)


def test_messages_of_other_types_are_refused() -> None:
    model = llmcli.load(write_chat_model(Path("chat.safetensors")))
    for messages in (
        "Hello", b"Hello", [], ["Hello"], [{}], [{"role": "user"}], [{"role": "user", "content": 5}],
        [{"role": "x", "content": "a"}], {"role": "user", "content": "a"}, [{"role": "user", "content": "\ud800"}],
        [{"role": "assistant", "content": "a"}],
    ):  # fmt: skip
        assert_one_sentence(lambda messages=messages: model.chat(messages, max_tokens=1))  # type: ignore[misc]
    example = r'messages must be a list such as \[{"role": "user", "content": "Hello"}\], found'
    for messages in (None, "Hi", {"role": "user", "content": "Hi"}, 3):
        with pytest.raises(llmcli.LLMError, match=example):
            model.chat(messages)  # type: ignore[arg-type]


def test_choose_normalizes_what_score_gives(tmp_path: Path) -> None:
    model = llmcli.load(write_chat_model(tmp_path / "model.safetensors"))
    question = [{"role": "user", "content": "What did the cat do?"}]
    for prompt, choices in ((question, ["It sat", "It ate", "🍎"]), ("The cat", [" sat", " ate", "s"])):
        chosen = model.choose(prompt, choices)
        scores = {choice: model.score(choice, prompt=prompt) for choice in choices}
        total = sum(score.probability for score in scores.values())
        assert [text for text, _ in chosen] == sorted(choices, key=lambda text: -scores[text].logprob)
        for text, probability in chosen:
            assert probability == pytest.approx(scores[text].probability / total, rel=1e-3)
        assert dict(model.choose(prompt, choices[::-1])) == pytest.approx(dict(chosen), rel=1e-3)
    assert scores[" sat"].bits_per_byte == pytest.approx(-scores[" sat"].logprob / math.log(2) / 4)
    with pytest.raises(llmcli.LLMError, match="at least two texts"):
        model.choose("The cat", ["a"])
    with pytest.raises(TypeError, match="choices must be a list, found"):
        model.choose("The cat", "ab")


def test_texts_have_the_form_that_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason='needs pip install "llmcli[structured]"')
    model = llmcli.load(write_chat_model(tmp_path / "model.safetensors"))
    question = [{"role": "user", "content": "What did the cat do?"}]
    schema = {"type": "array", "items": {"enum": ["りんご", 1]}, "minItems": 2, "maxItems": 2}
    for ask in (partial(model.generate, "The ca"), partial(model.chat, question)):
        assert set(json.loads(ask(schema=schema))) <= {"りんご", 1}
        assert ask(regex="[xy]") in ("x", "y") and ask(grammar='start: "a" | "b"') in ("a", "b")
    [token] = model.tokenize("x")
    assert model.generate("The cat", max_tokens=3, logit_bias={np.int64(token): 100}, literal=True) == "xxx"
    with pytest.raises(llmcli.LLMError, match="schema and regex cannot be combined"):
        model.generate("The cat", schema=schema, regex="a")
    with pytest.raises(llmcli.LLMError, match="a JSON schema must be an object"):
        model.generate("The cat", schema="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="regex must be a str"):
        model.generate("The cat", regex=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="logit_bias must be"):
        model.generate("The cat", logit_bias=[1])  # type: ignore[arg-type]
