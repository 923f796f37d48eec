"""The scripts with which a page trains, compared with torch, `tokenizers` and the files of `llm train`."""

import base64
import hashlib
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmcli.config import ModelConfig, TrainConfig
from llmcli.data.text.split import split
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.evaluation.evaluator import measure
from llmcli.formats import loading
from llmcli.formats.loading import open_tokenizer
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.pages.live_page import MODEL_SCRIPTS
from llmcli.pages.model_facts import record_rows
from llmcli.pages.template import joined
from llmcli.pages.training_data import TRAINING_SCRIPTS, training_data
from tests.data.corpora import read_corpus
from tests.pages.live import needs_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_browser
STORY = "".join(
    f"The {size} {animal} sat on the {place}. It saw a {other}, and the {other} ran away.\n"
    for size in ("small", "old", "quick", "grey")
    for animal in ("cat", "fox", "goose")
    for place in ("mat", "hill", "roof")
    for other in ("mouse", "hen")
)
JAPANESE = "私は毎朝リンゴを食べます。猫はマットの上で寝ます。\n" * 12 + "🍎🐱👩‍👩‍👧é\r\n" * 9
SCRIPTS = """window.postMessage = () => {};
    const randomNumbers = (seed) => () => (seed = (seed * 16807) % 2147483647) / 2147483647; // Park and Miller 1988
"""


@pytest.fixture(scope="module")
def worker(browser: "Browser") -> "Iterator[Page]":
    """A page with the scripts of a trainer, and without the page around them."""
    page = browser.new_page()
    page.goto("about:blank")
    names = [f"live/{name}.js" for name in MODEL_SCRIPTS] + [f"training/{name}.js" for name in TRAINING_SCRIPTS]
    page.add_script_tag(content=SCRIPTS + joined(names))
    page.evaluate("(all) => { templates = all; }", training_data())
    yield page
    page.close()


def random_model(config: ModelConfig, rng: np.random.Generator, scale: float = 0.3) -> Any:
    """The same random weights in torch."""
    import torch

    from llmcli.models.torch.transformer import LanguageModel

    model = LanguageModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            values = scale * rng.standard_normal(parameter.shape) + (parameter.ndim == 1)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def script_config(config: ModelConfig) -> dict[str, Any]:
    return asdict(config) | {"rope_frequencies": list(config.rope_frequencies())}


def script_weights(model: Any) -> dict[str, list[float]]:
    return {name: array.ravel().tolist() for name, array in model.to_arrays().items()}


NETWORK = """const { config, weights, windows, T } = input, R = windows.length * T;
    const network = new Network(config, R, T, randomNumbers(5));
    for (const [name, { data }] of network.tensors) data.set(weights[name]);
    network.changed();
    const inputs = Int32Array.from(windows.flatMap((ids) => ids.slice(0, -1)));
    const targets = Int32Array.from(windows.flatMap((ids) => ids.slice(1)));"""


@pytest.mark.parametrize(
    "V, C, inner, layers, H, D, T, tied",
    [
        (37, 8, 12, 1, 1, 8, 5, False),
        (300, 32, 80, 2, 2, 16, 64, False),
        (19, 16, 24, 2, 4, 4, 1, True),
        (5, 4, 3, 1, 2, 2, 7, True),
        (70, 40, 33, 1, 5, 8, 12, False),
    ],
)
def test_loss_and_gradients_are_those_of_torch(
    worker: "Page", V: int, C: int, inner: int, layers: int, H: int, D: int, T: int, tied: bool
) -> None:
    config = ModelConfig(V, C, inner, layers, H, H, D, 64, tie_word_embeddings=tied)
    rng = np.random.default_rng(V)
    import torch

    model = random_model(config, rng)
    windows = rng.integers(0, V, (3, T + 1))
    loss = model.loss(torch.from_numpy(windows))
    loss.backward()
    found = worker.evaluate(
        f"""(input) => {{ {NETWORK}
            network.arrays.gradients.fill(1e9); // what an earlier batch left
            const loss = computeGradients(network, {{ inputs, targets, T }}, R) / R;
            const gradients = [...network.tensors.values()].map(({{ name, gradient }}) => [name, [...gradient]]);
            return {{ loss, gradients }};
        }}""",
        {"config": script_config(config), "weights": script_weights(model), "windows": windows.tolist(), "T": T},
    )
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: parameter.grad.numpy().ravel() for name, parameter in model.named_parameters()}
    assert {name for name, _ in found["gradients"]} == set(expected)
    for name, gradient in found["gradients"]:
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_gradients_with_dropout_are_the_slopes_of_the_loss(worker: "Page") -> None:
    config = ModelConfig(23, 16, 24, 2, 2, 2, 8, 16)
    rng = np.random.default_rng(1)
    slopes = worker.evaluate(
        f"""(input) => {{ {NETWORK}
            const lossAt = (dropout) => {{ // the same seed: the same values are dropped
                network.random = randomNumbers(7);
                return computeGradients(network, {{ inputs, targets, T, dropout }}, 1);
            }};
            const losses = [lossAt(0), lossAt(0.4)], found = [];
            const computed = [...network.tensors.values()].map(({{ gradient }}) => gradient.slice());
            for (const {{ data }} of network.tensors.values()) {{
                const i = Math.floor(data.length / 2), before = data[i];
                const around = [0.01, -0.01].map((step) => {{
                    data[i] = before + step;
                    network.changed();
                    return lossAt(0.4);
                }});
                data[i] = before;
                found.push([(around[0] - around[1]) / 0.02, computed.shift()[i]]);
            }}
            return {{ losses, found }};
        }}""",
        {
            "config": script_config(config),
            "weights": script_weights(random_model(config, rng)),
            "windows": rng.integers(0, 23, (2, 10)).tolist(),
            "T": 9,
        },
    )
    assert abs(slopes["losses"][0] - slopes["losses"][1]) > 0.1
    measured, computed = np.array(slopes["found"]).T
    np.testing.assert_allclose(computed, measured, rtol=0.02, atol=0.02)


def test_a_hundred_steps_are_those_of_torch(worker: "Page") -> None:
    import torch

    from llmcli.training.step.optimizer import Optimizer

    config = ModelConfig(90, 32, 64, 2, 2, 2, 16, 32)
    rng = np.random.default_rng(2)
    model = random_model(config, rng, 0.1)
    settings = TrainConfig(100, context=16, batch_size=4)
    batches = rng.integers(0, 90, (10, 4, 17))  # ten batches, again and again: the loss falls
    first = script_weights(model)
    optimizer, losses = Optimizer(model, settings), []
    for step in range(100):
        loss = model.loss(torch.from_numpy(batches[step % 10]))
        torch.autograd.backward(loss)
        optimizer.step(step / 100)
        losses.append(loss.item())
    found = worker.evaluate(
        """({ config, weights, batches }) => {
            const network = new Network(config, 64, 16), losses = [];
            const optimizer = new Optimizer(network, templates.recipe);
            for (const [name, { data }] of network.tensors) data.set(weights[name]);
            network.changed();
            for (let step = 0; step < 100; step++) {
                const windows = batches[step % 10];
                const inputs = Int32Array.from(windows.flatMap((ids) => ids.slice(0, -1)));
                const targets = Int32Array.from(windows.flatMap((ids) => ids.slice(1)));
                losses.push(computeGradients(network, { inputs, targets, T: 16 }, 64) / 64);
                optimizer.update(step / 100);
            }
            return losses;
        }""",
        {"config": script_config(config), "weights": first, "batches": batches.tolist()},
    )
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(found, losses, atol=1e-3)


def test_several_workers_add_up_to_the_gradients_of_one(worker: "Page") -> None:
    """The same batches, divided among one, two or more workers than there are windows."""
    runs = worker.evaluate(
        """async (text) => {
            const bytes = new TextEncoder().encode(text), weights = [];
            const corpus = new Corpus(bytes, "x.txt", "bpe", templates);
            for (const others of [0, 1, 9]) {
                const channels = Array.from({ length: others }, () => new MessageChannel());
                for (const { port2: port } of channels) {
                    port.onmessage = ({ data }) => port.postMessage(atOnce.assist(data));
                }
                const shape = { layers: 1, width: 16, heads: 1, context: 32 };
                const helpers = channels.map(({ port1 }) => port1), random = randomNumbers(1);
                const settings = { steps: 100, helpers, random };
                const run = new Run(corpus, shape, settings, { ...templates.recipe, dropout: [[Infinity, 0]] });
                for (let step = 0; step < 5; step++) await run.next();
                weights.push([[...run.network.arrays.weights], run.losses]);
            }
            return weights;
        }""",
        STORY,
    )
    (one, losses), *others = runs
    assert np.abs(np.array(one)).max() > 0.1 and losses[-1] < losses[0]
    for weights, same_losses in others:
        np.testing.assert_allclose(weights, one, atol=1e-3)
        np.testing.assert_allclose(same_losses, losses, rtol=1e-4)


def test_the_kernel_is_made_from_its_source(tmp_path: Path) -> None:
    if not shutil.which("wat2wasm"):
        pytest.skip("needs wat2wasm, from the package wabt")
    folder = files("llmcli.pages") / "training"
    (tmp_path / "kernel.wat").write_text((folder / "kernel.wat").read_text("utf-8"), "utf-8")
    subprocess.run(["wat2wasm", "kernel.wat", "--output=kernel.wasm"], cwd=tmp_path, check=True)
    kernel = re.search(r'KERNEL = "([^"]+)"', (folder / "products.js").read_text("utf-8"))
    assert kernel and base64.b64decode(kernel[1]) == (tmp_path / "kernel.wasm").read_bytes()


@pytest.mark.parametrize(
    "text",
    [STORY, JAPANESE, "def f(x):\n\treturn x**2  # \r\n\u3000ああ" * 40, "a" * 700 + "b " * 300, "🍎🐱👩‍👩‍👧" * 300],
    ids=["English", "Japanese", "code", "long words", "emoji"],
)
def test_tokenizers_are_those_of_llm_train(worker: "Page", text: str) -> None:
    trained = {"bpe": Tokenizer.train_bpe([text], 512), "char": Tokenizer.train_char([text], 2048)}
    for kind, tokenizer in trained.items():
        found, ids = worker.evaluate(
            """([kind, text]) => {
                const { data, document } = structuredClone(templates.tokenizers[kind]);
                (kind === "bpe" ? trainMerges : trainCharacters)(data, text);
                return [tokenizerJson(document, data), new Tokenizer(data).encode(text)];
            }""",
            [kind, text],
        )
        assert json.loads(found) == json.loads(tokenizer.to_json()), kind
        assert ids == tokenizer.encode(text), kind


def test_a_text_in_which_each_word_is_one_token_gets_no_bpe_dropout(worker: "Page") -> None:
    """As in `llm train`: here after 10 of 20 epochs."""
    few = "".join(f"{name} has a {thing}.\n" for thing in ("kite", "boat") for name in ("Anna", "Ben", "Clara"))
    few *= 40_000 // len(few)
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=40_000)
    many = "".join(letter + " " * (i % 5 == 4) for i, letter in enumerate(letters))
    script = """([text, kind]) => {
        const corpus = new Corpus(new TextEncoder().encode(text), "x.txt", kind, templates), { recipe } = templates;
        const run = { corpus, recipe, share: 0.5, step: (10 * corpus.tokens.length) / recipe.batch_tokens };
        const { dropout, split } = Run.prototype.regularization.call(run);
        return [dropout, split];
    }"""
    usual = [0.2, 0.15]
    for text, kind, expected in [
        (few, "bpe", [0.5, 0]),
        (few[:20_000], "bpe", usual),
        (few, "char", usual),
        (many, "bpe", usual),
    ]:
        assert worker.evaluate(script, [text, kind]) == expected, (text[:40], kind)


def test_sha256(worker: "Page") -> None:
    for size in (0, 1, 55, 56, 63, 64, 65, 1000):
        data = bytes(i * 7 % 256 for i in range(size))
        found = worker.evaluate("(bytes) => sha256(Uint8Array.from(bytes))", list(data))
        assert found == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("utf-8", "naïve café, ﬁn\n"),
        ("utf-16le", "\ufeffI like tea.\n"),
        ("utf-16be", "\ufeffI like tea.\n"),
        ("utf-16le", "I like tea.\n"),
        ("utf-16be", "I like tea.\n"),
        ("shift_jis", "私は毎朝リンゴを食べます。\n"),
        ("euc-jp", "私は毎朝リンゴを食べます。\n"),
        ("iso-2022-jp", "私は毎朝リンゴを食べます。\n"),
        ("euc-kr", "나는 매일 아침 사과를 먹습니다.\n"),
        ("gb18030", "我每天早上吃苹果。小猫在垫子上睡觉。\n"),
        ("windows-1251", "Я ем яблоко каждое утро.\n"),
        ("shift_jis", "私は毎朝リンゴを食べます。\n\x1a"),
        ("utf-8", "1\x01\t2\x1a"),
        ("windows-1252", "Ich esse jeden Morgen Äpfel; très bien, señor.\n"),
    ],
)
def test_encodings(worker: "Page", encoding: str, text: str) -> None:
    data = text.encode({"utf-16le": "utf-16-le", "utf-16be": "utf-16-be"}.get(encoding, encoding)) * 3
    found = worker.evaluate("(bytes) => decodeText(new Uint8Array(bytes))", list(data))
    assert found == {"text": (text * 3).removeprefix("\ufeff"), "encoding": encoding}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "shift_jis"])
def test_a_text_has_the_facts_that_llm_records(worker: "Page", tmp_path: Path, encoding: str) -> None:
    """They are those of its UTF-8, by which `llm eval` finds the held-out part."""
    data = ("私は毎朝リンゴを食べます。\r\n猫はマットの上で寝ます。\n" * 12).encode(encoding)
    script = """(bytes) => {
        const { facts } = new Corpus(Uint8Array.from(bytes), "x.txt", "char", templates);
        return [facts.bytes, facts.sha256, facts.characters, facts.heldOutBytes];
    }"""
    (tmp_path / "x.txt").write_bytes(data)
    corpus = read_corpus([str(tmp_path / "x.txt")])
    text, held_out = corpus.documents[0], split(corpus, 0.1).held_out.text_bytes
    expected = [text.text_bytes, text.sha256, text.characters, held_out]
    assert worker.evaluate(script, list(data)) == expected


TRAIN = """async ([bytes, name, kind, steps]) => {
    const answers = [], noCheck = async () => {}, text = Uint8Array.from(bytes).buffer;
    const shape = { layers: 1, width: 32, heads: 2, context: 32 };
    const preparing = jobs.prepare({ bytes: text, name, kind, training: templates }, noCheck);
    for await (const answer of preparing) answers.push(answer);
    for await (const { progress, model } of jobs.train({ shape, steps, helpers: 0 }, noCheck)) {
        if (progress) answers.push({ progress });
        if (model) self.lastModel = model;
    }
    const { file } = atOnce.save({ probe: { prompt: "The", points: [[1, null, [["cat", 0.5]]]] } });
    open({ data: lastModel.data, weights: lastModel.weights });
    runtime.rewind();
    const ids = tokenizer.encode("The cat sat"), logits = runtime.read(ids, { every: true }).map((row) => [...row]);
    let binary = "";
    for (const byte of new Uint8Array(file)) binary += String.fromCharCode(byte);
    return { answers, ids, logits, file: btoa(binary), record: lastModel.data.record };
}"""


@pytest.mark.parametrize("kind, text", [("bpe", STORY), ("char", JAPANESE)])
def test_the_saved_file(worker: "Page", tmp_path: Path, kind: str, text: str) -> None:
    """It opens like any model file, has the logits of the page, and records what was trained on."""
    data = text.encode()
    answer = worker.evaluate(TRAIN, [list(data), "story.txt", kind, 60])
    (tmp_path / "story.txt").write_bytes(data)
    path = tmp_path / "model.safetensors"
    path.write_bytes(base64.b64decode(answer["file"]))
    model = loading.load(path)
    tokenizer = open_tokenizer(model)
    assert tokenizer.encode("The cat sat") == answer["ids"]
    np.testing.assert_allclose(NumpyRuntime(model).logits(answer["ids"]), answer["logits"], atol=1e-4)

    progress = [one["progress"] for one in answer["answers"] if "progress" in one]
    record, held_out = model.record, data[len(data) - round(0.1 * len(data)) :].decode("utf-8", "ignore")
    assert record.corpus[0].name == "story.txt" and record.corpus[0].bytes == len(data)
    assert "best weights" not in dict(record_rows(record))
    assert record.corpus[0].sha256 == answer["answers"][0]["facts"]["sha256"]
    assert record.corpus[0].held_out == len(held_out.encode())
    assert record.steps == 60 == progress[-1]["step"] and record.verdict == ("Trained in a browser, for 60 steps.",)
    score = measure("held out", [held_out], NumpyRuntime(model), tokenizer)
    assert record.bits_per_byte == pytest.approx(score.bits_per_byte, abs=1e-4)
    assert progress[-1]["validation"] == record.bits_per_byte < progress[0]["validation"] / 1.5
    assert record.probe and record.probe.prompt == "The" and not record.interrupted


def test_the_figure_of_a_run_that_goes_on_is_that_of_its_weights(worker: "Page", tmp_path: Path) -> None:
    """Saving and pausing measure all of the held-out text; between them it is measured each second only."""
    script = """async ([bytes, shape]) => {
        const answer = {}, noCheck = async () => {}, text = Uint8Array.from(bytes).buffer;
        const request = { bytes: text, name: "story.txt", kind: "bpe", training: templates };
        for await (const _ of jobs.prepare(request, noCheck));
        const check = async () => {
            if (training.step === 5) answer.file = [...new Uint8Array(atOnce.save({ probe: null }).file)];
            if (training.step === 8) atOnce.pause();
        };
        for await (const { model } of jobs.train({ shape, steps: 10, helpers: 0 }, check)) {
            if (!training.pause || !model) continue;
            Object.assign(answer, { rows: model.data.record.rows, expected: training.heldOutLoss(Infinity) });
            atOnce.resume();
        }
        return { ...answer, curve: training.curve.validation_steps };
    }"""
    shape = {"layers": 1, "width": 32, "heads": 2, "context": 32}
    answer = worker.evaluate(script, [list(STORY.encode()), shape])
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(answer["file"]))
    model = loading.load(path)
    held_out = STORY.encode()[-model.record.corpus[0].held_out :].decode()
    score = measure("held out", [held_out], NumpyRuntime(model), open_tokenizer(model))
    assert model.record.bits_per_byte == pytest.approx(score.bits_per_byte, abs=1e-4) and model.record.interrupted
    rows = dict(answer["rows"])
    assert rows["steps"] == "8" and rows["held-out"] == f"{answer['expected']:.3f} bits per byte"
    assert {1, 5, 8, 10} <= {*answer["curve"]} and answer["curve"] == sorted({*answer["curve"]})
