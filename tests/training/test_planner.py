"""Plans: they can be trained, keep what the user fixed and tell contradictions; text is split to the byte."""

import gzip
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli import units
from llmcli.config import ModelConfig
from llmcli.data.corpus import PARTS, read_corpus
from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.training import model_shapes, rules
from llmcli.training import prepare as prepare_module
from llmcli.training.cost_model import (
    MAX_MEASUREMENT_SECONDS,
    MAX_MEASUREMENTS,
    CorpusSize,
    Machine,
    estimated_speed,
    expected_loss,
    memory_needed,
)
from llmcli.training.memory_fit import MEMORY_SHARE
from llmcli.training.model_shapes import SHAPES
from llmcli.training.plan import Request
from llmcli.training.planner import make_plan
from llmcli.training.prepare import prepare
from llmcli.training.rules import MAX_EPOCHS
from tests.data.test_train_tokenizer import corpus_of, words

BASE = ModelConfig(300, 64, 160, 2, 2, 2, 32, 64)


def plan(request=None, *, train_tokens=200_000, vocab_size=512, base=None, machine=None):
    return make_plan(
        request or Request(), train_tokens=train_tokens, vocab_size=vocab_size, eos_id=0, base=base, machine=machine
    )


def choice(found, name):
    (chosen,) = [chosen for chosen in found.rows if chosen.name == name]
    return chosen


# ---- a time limit that leaves few steps

LONG = replace(BASE, max_position_embeddings=8192)


def test_a_slow_machine_gets_smaller_batches_so_that_there_are_ten_steps() -> None:
    found = plan(
        Request(seconds=120), base=replace(BASE, max_position_embeddings=8192), machine=Machine(lambda *_: 60.0)
    )
    tokens = found.train.batch_size * found.train.context
    assert tokens == 512  # one window
    assert 10 <= 0.9 * 120 * 60 / tokens < 20
    assert not found.warning


def test_a_time_that_leaves_fewer_steps_is_warned_of_before_the_run() -> None:
    found = plan(
        Request(seconds=120), base=replace(BASE, max_position_embeddings=8192), machine=Machine(lambda *_: 10.0)
    )
    assert found.warning == "only about 2 steps fit into 2m; give --time 9m29s or more, or a smaller --context"
    found = plan(
        Request(seconds=120), base=replace(BASE, max_position_embeddings=8192), machine=Machine(lambda *_: 1.0)
    )
    assert found.warning.startswith("less than one step fits into 2m; give --time 1h34m49s or more")
    assert not plan(Request(steps=2)).warning


# ---- any plan can be trained

tokens = st.integers(9, 10**9) | st.integers(9, 2000)
times = st.floats(1, 200_000)
machines = st.fixed_dictionaries(
    {
        "device": st.sampled_from(["cpu", "cuda"]),
        "threads": st.integers(1, 128),
        "experts": st.sampled_from([None, None, 2, 8]),
    }
)
budgets = (
    st.just({})
    | st.fixed_dictionaries({"seconds": times})
    | st.fixed_dictionaries({"steps": st.integers(1, 10**7)})
    | st.fixed_dictionaries({"epochs": st.floats(0.01, 1000)})
)


@settings(max_examples=200, deadline=None)
@given(tokens, budgets, machines, st.integers(257, 70_000))
def test_every_plan_can_be_trained(train_tokens, budget, machine, vocab_size):
    found = plan(Request(**budget, **machine), train_tokens=train_tokens, vocab_size=vocab_size)
    model, train = found.model, found.train  # their own checks have passed
    assert model.head_dim * model.num_attention_heads == model.hidden_size
    assert (model.num_hidden_layers, model.hidden_size) in SHAPES
    assert model.vocab_size == vocab_size
    assert 8 <= train.context == model.max_position_embeddings < train_tokens
    assert train.batch_size >= 1
    assert train.batch_size * train.context <= train_tokens
    assert train.steps >= 1
    assert (train.device, train.threads) == (machine["device"], machine["threads"])
    assert all(chosen.value and chosen.reason for chosen in found.rows)


@settings(max_examples=100, deadline=None)
@given(tokens, machines, st.lists(times, min_size=2, max_size=2))
def test_more_time_never_makes_a_smaller_model(train_tokens, machine, both):
    less, more = (plan(Request(seconds=t, **machine), train_tokens=train_tokens).model for t in sorted(both))
    assert less.parameters <= more.parameters


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 10**7), min_size=2, max_size=2), tokens)
def test_more_steps_never_make_a_smaller_model(both, train_tokens):
    less, more = (plan(Request(steps=n), train_tokens=train_tokens).model for n in sorted(both))
    assert less.parameters <= more.parameters


@settings(max_examples=100, deadline=None)
@given(st.lists(tokens, min_size=2, max_size=2), budgets.filter(lambda b: "epochs" in b or "steps" in b), machines)
def test_more_text_never_makes_a_smaller_model_where_the_clock_has_no_say(both, budget, machine):
    less, more = (plan(Request(**budget, **machine), train_tokens=n).model for n in sorted(both))
    assert less.parameters <= more.parameters


@settings(max_examples=100, deadline=None)
@given(tokens, budgets, machines, st.floats(3.2e8, 1e13))
def test_every_plan_fits_into_memory_or_says_so(train_tokens, budget, machine, memory):
    here = Machine(estimated_speed, memory)
    try:
        found = plan(Request(**budget, **machine), train_tokens=train_tokens, machine=here)
    except LLMError as error:
        assert "GB are free" in str(error)
        smallest = plan(Request(**budget, **machine, layers=1, width=2), train_tokens=train_tokens)
        assert memory < 3 * memory_needed(smallest.model, smallest.train)
    else:
        assert memory_needed(found.model, found.train) <= MEMORY_SHARE * memory


@settings(max_examples=100, deadline=None)
@given(tokens, times, st.lists(st.floats(0.05, 20), min_size=len(SHAPES), max_size=len(SHAPES)), st.integers(1, 64))
def test_the_plan_follows_what_the_machine_does_and_asks_it_rarely(train_tokens, seconds, factors, threads):
    """Each width is faster or slower than assumed by a factor of its own."""
    asked = []

    def speed(model, train, allowed=0.0):
        assert 0 <= allowed <= min(MAX_MEASUREMENT_SECONDS, 0.011 * seconds)
        asked.append((model.num_hidden_layers, model.hidden_size))
        return factors[SHAPES.index(asked[-1])] * estimated_speed(model, train)

    request = Request(seconds=seconds, threads=threads)
    found = plan(request, train_tokens=train_tokens, machine=Machine(speed))
    assert 1 <= len(asked) == len(set(asked)) <= MAX_MEASUREMENTS
    # the shape taken was measured, and none that was measured is expected to be better
    shape = (found.model.num_hidden_layers, found.model.hidden_size)
    assert shape in asked

    def loss(other):
        model = plan(replace(request, layers=other[0], width=other[1]), train_tokens=train_tokens).model
        seen = min(MAX_EPOCHS * train_tokens, seconds * speed(model, found.train))
        return expected_loss(model.parameters, seen, CorpusSize(train_tokens, 3 * train_tokens))

    assert loss(shape) <= 1.02 * min(loss(other) for other in list(asked))


@settings(deadline=None)
@given(budgets.filter(lambda budget: "steps" in budget or "epochs" in budget))
def test_without_a_clock_the_machine_is_not_asked(budget):
    def speed(model, train, allowed):
        raise AssertionError

    assert plan(Request(**budget), machine=Machine(speed)) == plan(Request(**budget))


def test_experts_cost_a_token_what_one_for_all_would():
    dense, sparse = plan(Request(steps=100)), plan(Request(steps=100, experts=8, active=2))
    model = sparse.model
    assert (model.num_experts, model.num_experts_per_tok, model.model_type) == (8, 2, "qwen3_moe")
    routers = model.num_hidden_layers * 8 * model.hidden_size
    assert model.active_parameters == pytest.approx(dense.model.parameters + routers, rel=0.1)
    assert model.parameters > 1.5 * dense.model.parameters
    assert "2 of 8" in choice(sparse, "experts").value
    assert plan(Request(steps=9, experts=2)).model.num_experts_per_tok == 2


@pytest.mark.parametrize(("experts", "active"), [(4, 5), (None, 2)])
def test_experts_that_cannot_be(experts, active):
    with pytest.raises(LLMError, match="--active"):
        Request(experts=experts, active=active)


def test_budget_and_text_both_bound_the_size():
    def sizes(**of):
        model = plan(Request(seconds=of["seconds"]), train_tokens=of["train_tokens"]).model
        return model.num_hidden_layers, model.hidden_size

    assert sizes(seconds=1, train_tokens=10**9) == sizes(seconds=200_000, train_tokens=100) == SHAPES[0]
    assert sizes(seconds=200_000, train_tokens=10**9) > sizes(seconds=300, train_tokens=10**9) > SHAPES[0]


def test_the_same_request_gives_the_same_plan():
    assert plan(Request(seconds=60.0)) == plan(Request(seconds=60.0))


@pytest.mark.parametrize(
    ("train_tokens", "seconds", "expected"),
    [
        (9, 60, 8),
        (40, 60, 8),
        (70, 60, 16),
        (1000, 60, 128),
        (100_000, 60, 256),
        (100_000, 3600, 1024),
        (99_999, 3600, 128),
    ],
)
def test_contexts_fit_the_text(train_tokens, seconds, expected):
    assert plan(Request(seconds=seconds), train_tokens=train_tokens).train.context == expected


@pytest.mark.parametrize(
    ("asked", "train_tokens", "copies"),
    [
        ({"seconds": 300.0}, 1_000_000, True),
        ({"seconds": 300.0}, 50_000, False),  # a short text
        ({"seconds": 20.0}, 1_000_000, False),  # no time for long windows
        ({"seconds": 20.0, "device": "cuda"}, 1_000_000, True),
        ({"seconds": 300.0, "tie": True}, 1_000_000, False),  # no place for it
        ({"seconds": 300.0, "layers": 1}, 1_000_000, False),
        ({"seconds": 300.0, "width": 32}, 1_000_000, False),
        ({"steps": 10}, 1_000_000, True),
    ],
)
def test_weights_can_copy_where_that_pays(asked, train_tokens, copies):
    found = plan(Request(**asked), train_tokens=train_tokens)
    assert found.train.induction is copies
    assert [c.value for c in found.rows if c.name == "initialization"] == (["induction heads"] if copies else [])
    # long windows are for weights that can use them
    assert (found.train.context, found.model.rope_theta) == ((1024, 1e6) if copies else (found.train.context, 1e4))
    assert copies or found.train.context <= 256
    assert not plan(Request(seconds=300.0), train_tokens=train_tokens, base=BASE).train.induction


def test_a_shape_without_room_to_copy_has_no_long_windows():
    """Beside so large a vocabulary a small model's head is tied; a large one's is not."""
    small = plan(Request(steps=10), train_tokens=5_000_000, vocab_size=8192)
    assert small.model.tie_word_embeddings and not small.train.induction
    assert (small.train.context, small.model.rope_theta) == (256, 1e4)
    large = plan(Request(steps=10**6), train_tokens=5_000_000, vocab_size=8192)
    assert large.train.induction and (large.train.context, large.model.rope_theta) == (1024, 1e6)


# ---- what the user fixed


def test_steps_give_exactly_these_steps_and_no_clock():
    found = plan(Request(steps=123))
    assert (found.train.steps, found.train.seconds) == (123, None)
    assert (choice(found, "budget").value, choice(found, "budget").reason) == ("123 steps", "as requested")
    assert (choice(found, "steps").value, choice(found, "steps").reason) == ("123", "as requested")


@pytest.mark.parametrize("steps", [10, 1000, 20_000])
def test_a_plan_counts_the_tokens_that_its_steps_take(steps):
    found = plan(Request(steps=steps))
    tokens = steps * found.train.batch_size * found.train.context
    assert choice(found, "training tokens").value == f"{tokens:,}"
    assert choice(found, "dropout").reason.endswith(f" about {units.epochs(tokens / 200_000)}")
    assert (found.train.dropout > 0) == (tokens / 200_000 > rules.DROPOUT[0][0])


def test_time_gives_a_clock_and_an_upper_limit_of_steps():
    found = plan(Request(seconds=90.0))
    assert found.train.seconds == 90.0
    assert choice(found, "budget").value == "1m 30s"
    assert choice(found, "budget").reason == "as requested"
    assert choice(found, "steps").value.startswith("at most ")


def test_without_a_budget_there_are_5_minutes():
    found = plan()
    assert found.train.seconds == 300
    assert choice(found, "budget").reason != "as requested"


@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
def test_epochs_give_as_many_steps_as_go_through_the_text_so_often(epochs):
    found = plan(Request(epochs=epochs))
    seen = found.train.steps * found.train.batch_size * found.train.context
    assert found.train.seconds is None
    assert epochs * 200_000 <= seen < epochs * 200_000 + found.train.batch_size * found.train.context
    assert choice(found, "budget").reason == "as requested"


@pytest.mark.parametrize(
    ("asked", "line", "value"),
    [
        ({"layers": 5}, "model size", None),
        ({"width": 96}, "architecture", None),
        ({"context": 77}, "context length", "77 tokens"),
        ({"tie": True}, "tied embeddings", "yes"),
        ({"tie": False}, "tied embeddings", "no"),
        ({"batch_tokens": 2048}, "batch size", "2 x 1024 tokens"),
        ({"dropout": 0.0}, "dropout", "0"),
        ({"dropout": 0.35}, "dropout", "0.35"),
    ],
)
def test_what_was_asked_for_is_taken_and_the_reason_says_so(asked, line, value):
    found, free = choice(plan(Request(**asked)), line), choice(plan(), line)
    assert found.reason == "as requested" != free.reason
    assert value is None or found.value == value


def test_every_size_asked_for_is_in_the_model():
    asked = Request(layers=3, width=80, heads=4, kv_heads=2, context=32, tie=True)
    model = plan(asked).model
    assert (model.num_hidden_layers, model.hidden_size, model.num_attention_heads) == (3, 80, 4)
    assert (model.num_key_value_heads, model.head_dim, model.max_position_embeddings) == (2, 20, 32)
    assert model.tie_word_embeddings is True


def test_every_setting_asked_for_is_in_the_training():
    asked = Request(
        lr=0.5, seed=9, device="cuda", dtype="bfloat16", threads=3, dropout=0.25, batch_tokens=512, context=64
    )
    train = plan(asked).train
    assert (train.lr, train.seed, train.device, train.dtype, train.threads) == (0.5, 9, "cuda", "bfloat16", 3)
    assert (train.dropout, train.batch_size, train.context) == (0.25, 8, 64)


def test_one_size_alone_leaves_the_other_to_the_plan():
    deep, wide = plan(Request(layers=7)).model, plan(Request(width=80)).model
    assert deep.num_hidden_layers == 7 and deep.hidden_size in {width for _, width in SHAPES}
    assert wide.hidden_size == 80 and wide.num_hidden_layers in {layers for layers, _ in SHAPES}


def test_a_batch_of_fewer_tokens_than_a_context_is_one_window():
    assert plan(Request(batch_tokens=10)).train.batch_size == 1


def test_little_text_seen_often_gets_dropout_and_much_text_does_not():
    small = plan(Request(epochs=30.0, layers=2, width=64)).train
    assert (small.dropout, small.token_split) == (0.2, 0.15)
    large = plan(Request(epochs=30.0, layers=4, width=192)).train  # nine parameters of its layers for each token
    assert (large.dropout, large.token_split) == (0.3, 0.3)
    assert plan(Request(epochs=10.0)).train.dropout == 0.1
    assert plan(Request(epochs=2.0)).train.dropout == 0.0


@pytest.mark.parametrize(
    ("epochs", "train_tokens", "tokens"),
    [(10.0, 200_000, 3 * 1025), (10.0, 10_000_000, 7 * 1025), (10.0, 50_000, 0), (2.0, 200_000, 0)],
)  # a 64th of the text in whole windows with the token after each, at most 8,192, of little text none
def test_of_text_seen_often_some_is_set_aside(epochs, train_tokens, tokens):
    assert plan(Request(epochs=epochs), train_tokens=train_tokens).train.calibration_tokens == tokens


@pytest.mark.parametrize("train_tokens", [100, 200_000])
def test_the_model_to_go_on_from_keeps_its_shape(train_tokens):
    found = plan(Request(seconds=1e5), train_tokens=train_tokens, base=BASE, vocab_size=300)
    assert found.model == BASE
    assert found.train.context == min(64, 16 if train_tokens == 100 else 64)
    for name in ("model size", "architecture", "tied embeddings"):
        assert choice(found, name).reason == "from the base model"


# ---- contradictions


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seconds": 60.0, "steps": 10}, "--time and --steps"),
        ({"seconds": 60.0, "epochs": 2.0}, "--time and --epochs"),
        ({"steps": 10, "epochs": 2.0}, "--steps and --epochs"),
        ({"width": 64, "heads": 3}, "--heads 3 does not divide --width 64"),
        ({"epochs": 0.0}, "--epochs"),
        ({"epochs": -1.0}, "--epochs"),
        ({"epochs": float("nan")}, "--epochs"),
        ({"epochs": float("inf")}, "--epochs"),
    ],
)
def test_wishes_at_odds_are_told_before_anything_is_read(asked, message):
    with pytest.raises(LLMError, match=message) as caught:
        Request(**asked)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"heads": 7}, "7 heads do not divide width"),
        ({"width": 64, "heads": 4, "kv_heads": 3}, "--kv-heads"),
        ({"width": 64, "heads": 2, "kv_heads": 4}, "--kv-heads"),
        ({"width": 66, "heads": 2}, "even"),
        ({"width": 101}, "--width must be even for rotary positions, found 101"),
        ({"dropout": 1.0}, "--dropout"),
        ({"lr": 0.0}, "--lr"),
    ],
)
def test_wishes_that_give_no_model_are_wrong_usage(asked, message):
    with pytest.raises(LLMError, match=message) as caught:
        plan(Request(**asked))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("width", [100, 130, 200])
def test_a_width_alone_gets_heads_that_divide_it(width):
    model = plan(Request(width=width)).model
    assert model.hidden_size == width == model.num_attention_heads * model.head_dim


def test_a_context_longer_than_the_text_is_told_with_the_longest_that_fits():
    with pytest.raises(LLMError, match=r"--context 500 needs 501; add more text$"):
        plan(Request(context=500, context_reason="another's"), train_tokens=500)
    with pytest.raises(LLMError, match="--context 500 needs 501") as caught:
        plan(Request(context=500), train_tokens=500)
    assert "--context 499 or less" in str(caught.value)
    assert caught.value.exit_code == 1
    assert plan(Request(context=499), train_tokens=500).train.context == 499


@pytest.mark.parametrize("train_tokens", [0, 1, 8])
def test_a_text_too_short_for_any_context_is_told(train_tokens):
    with pytest.raises(LLMError, match=f"too short: {train_tokens} training tokens .* 9 .*add more text") as caught:
        plan(train_tokens=train_tokens)
    assert caught.value.exit_code == 1


def test_a_context_longer_than_that_of_the_model_to_go_on_from_is_wrong_usage():
    with pytest.raises(LLMError, match="--context 65 is longer than the base model's 64") as caught:
        plan(Request(context=65), base=BASE)
    assert caught.value.exit_code == 2
    assert plan(Request(context=64), base=BASE).train.context == 64


@pytest.mark.parametrize("width", [2, 6, 30, 97, 128, 1000, 4096, 999_998])
def test_a_width_is_divided_as_a_search_through_all_numbers_would(width):
    assert model_shapes._divisors(width) == [n for n in range(1, width + 1) if width % n == 0]


def test_a_width_beyond_all_machines_is_told_at_once(no_hang):
    """Its divisors are not tried one after another."""
    with pytest.raises(LLMError, match=r"needs about .* GB of memory"):
        plan(Request(width=500_000_000), machine=Machine(estimated_speed, 1e9))


# ---- from a corpus to all that training needs


@pytest.mark.parametrize(("share", "held_bytes"), [(0.1, 1000), (0.25, 2500), (0.0, 0)])
def test_the_end_of_the_corpus_is_held_out_to_the_byte(tmp_path, share, held_bytes):
    text = words(3000)[:10_000]
    assert len(text) == 10_000
    ready = prepare(Request(steps=5), corpus_of(tmp_path, text), held_out=share)
    cut = len(text) - held_bytes
    assert ready.tokenizer.decode(ready.tokens.tolist()) == text[:cut]
    assert ready.tokenizer.decode(ready.held_out.tolist()) == text[cut:]


def test_a_tenth_is_held_out_unless_asked_otherwise(tmp_path):
    ready = prepare(Request(steps=5), corpus_of(tmp_path, words(3000)[:5000]))
    assert len(ready.tokenizer.decode_bytes(ready.held_out.tolist())) == 500


def test_no_character_is_cut_or_lost_between_the_parts(tmp_path):
    text = "りんごを食べる🍎 " * 101
    for share in (0.1, 0.11, 0.12, 0.13):
        ready = prepare(Request(steps=5), corpus_of(tmp_path, text), held_out=share, characters=True)
        first, last = (ready.tokenizer.decode(part.tolist()) for part in (ready.tokens, ready.held_out))
        assert first + last == text
        assert len(last.encode()) == pytest.approx(len(text.encode()) * share, abs=4)


@pytest.mark.parametrize("kind", ["gzip", "UTF-16"])
@pytest.mark.parametrize("budget", [{"seconds": 1.0}, {"steps": 5}], ids=str)
def test_a_packed_text_is_prepared_as_the_plain_one_is_in_one_decoding(tmp_path, monkeypatch, kind, budget):
    """With a clock parts of it are taken, for the tokenizer, the tokens and the held-out ones; with steps all of it."""
    monkeypatch.setattr(prepare_module, "MIN_BYTES", 5000)
    monkeypatch.setattr(prepare_module, "CPU_BYTES_FACTOR", 5000.0)
    text = words(20_000) + words(3000, 1, "りんごé🍎")
    (tmp_path / "packed").mkdir()
    path = tmp_path / "packed" / "0.txt"  # the name as in the record
    path.write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode("utf-16"))
    decoded = []
    real = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: decoded.append(len(data := real(self, size))) or data
    )
    plain = prepare(Request(**budget), corpus_of(tmp_path, text))
    packed = prepare(Request(**budget), read_corpus([str(path)]))
    assert sum(decoded) == (len(text.encode()) if kind == "gzip" else 0)
    assert packed.record == plain.record and packed.plan == plain.plan
    assert (plain.record["read_bytes"] < plain.record["train_bytes"]) == ("seconds" in budget)
    assert packed.tokenizer.to_json() == plain.tokenizer.to_json()
    assert packed.tokens.tolist() == plain.tokens.tolist()
    assert packed.held_out.tolist() == plain.held_out.tolist()


def test_another_corpus_can_be_held_out_whole(tmp_path):
    text = words(500)
    (tmp_path / "other.txt").write_text("quite another text", "utf-8")
    ready = prepare(Request(steps=5), corpus_of(tmp_path, text), held_out=read_corpus([str(tmp_path / "other.txt")]))
    assert ready.tokenizer.decode(ready.tokens.tolist()) == text
    assert ready.tokenizer.decode(ready.held_out.tolist()) == "quite another text"
    assert ready.record["held_out"]["bytes"] == 18
    assert ready.record["held_out"]["from"].endswith("other.txt")
    assert ready.record["train_bytes"] == len(text)


def test_documents_are_parted_by_one_end_of_text(tmp_path):
    ready = prepare(Request(steps=5), corpus_of(tmp_path, "first text here. ", "the second text"), held_out=0.0)
    ids, end = ready.tokens.tolist(), ready.tokenizer.eos_id
    assert ids.count(end) == 1
    assert ready.tokenizer.decode(ids[: ids.index(end)]) == "first text here. "
    assert ready.tokenizer.decode(ids[ids.index(end) :]) == "the second text"


def test_no_tokenizer_learns_from_held_out_text(tmp_path):
    learned, held = words(300), words(2000, seed=1, letters="あいうえお")
    text = learned + held
    share = len(held.encode()) / len(text.encode())
    corpus = corpus_of(tmp_path, text)
    bpe = prepare(Request(steps=5, vocab_size=400), corpus, held_out=share).tokenizer
    assert bpe.to_json() == Tokenizer.train_bpe([learned], 400).to_json()
    char = prepare(Request(steps=5), corpus, held_out=share, characters=True).tokenizer
    assert "あ".encode() not in char.token_bytes
    assert char.to_json() == Tokenizer.train_char([learned]).to_json()


def test_the_record_says_what_was_learned_from(tmp_path):
    first, second = "one text of many words. " * 50, "another one! " * 50
    corpus = corpus_of(tmp_path, first, second)
    ready = prepare(Request(steps=5), corpus)
    size = len(first) + len(second)
    assert ready.record == {
        "corpus": [
            {"name": "0.txt", "bytes": len(first), "sha256": corpus.documents[0].sha256},
            {"name": "1.txt", "bytes": len(second), "sha256": corpus.documents[1].sha256},
        ],
        "train_bytes": size - round(size / 10),
        "read_bytes": size - round(size / 10),
        "train_tokens": len(ready.tokens),
        "held_out": {"bytes": round(size / 10), "tokens": len(ready.held_out), "from": "the last 0.1 of the corpus"},
        "seen_bytes": bytes(sorted(set((first + second)[: size - round(size / 10)].encode()))).hex(),
    }
    assert [chosen.name for chosen in ready.plan.rows][:3] == ["corpus", "vocabulary", "budget"]
    assert f"{size:,} bytes" == choice(ready.plan, "corpus").value


def test_the_same_corpus_and_request_give_the_same_of_everything(tmp_path):
    corpus = corpus_of(tmp_path, words(2000))
    one, two = (prepare(Request(seconds=20.0, seed=3), corpus) for _ in range(2))
    assert one.plan == two.plan
    assert one.record == two.record
    assert one.tokenizer.to_json() == two.tokenizer.to_json()
    assert one.tokens.tolist() == two.tokens.tolist()
    assert one.held_out.tolist() == two.held_out.tolist()


def test_a_tokenizer_that_is_given_is_taken(tmp_path):
    given_one = Tokenizer.train_char(["abc"])
    ready = prepare(Request(steps=5), corpus_of(tmp_path, words(200)), tokenizer=given_one)
    assert ready.tokenizer.to_json() == given_one.to_json()
    assert ready.plan.model.vocab_size == given_one.vocab_size
    assert choice(ready.plan, "vocabulary").reason == "from the tokenizer given"


@pytest.mark.parametrize("text", ["a" * 300_000, "👨\u200d👩\u200d👧\u200d👦" * 5000], ids=["a", "emoji"])
def test_a_text_that_repeats_itself_is_not_called_short(tmp_path, text):
    """With tokens of any length these were 9 and 6 tokens, "too short"."""
    ready = prepare(Request(steps=5), corpus_of(tmp_path, text))
    assert len(ready.tokens) > 1000 and ready.plan.train.context >= 64


def test_a_corpus_too_short_is_told_with_its_bytes(tmp_path):
    with pytest.raises(LLMError, match=r"too short: 5 training tokens \(90 bytes\), at least 9 .*--tokenizer char"):
        prepare(Request(steps=5), corpus_of(tmp_path, "a" * 100))


@pytest.mark.parametrize(
    ("before", "goes_on", "expected"),
    [(None, False, b" ab"), (b"xy", False, b" ab"), (b"xy", True, b" abxy"), (None, True, None)],
)
def test_the_bytes_of_the_text_are_kept_with_those_of_a_base_model(tmp_path, before, goes_on, expected):
    tokenizer = Tokenizer.train_bpe(["ab xy"], 257).with_seen_bytes(before)
    base = ModelConfig(257, 32, 64, 2, 4, 2, 8, 32) if goes_on else None
    ready = prepare(Request(steps=5), corpus_of(tmp_path, "ab ba " * 300), tokenizer=tokenizer, base=base)
    assert ready.tokenizer.seen_bytes == expected
    assert ready.record.get("seen_bytes") == (expected.hex() if expected else None)


def test_a_corpus_too_short_is_told_through_prepare(tmp_path):
    with pytest.raises(LLMError, match="too short"):
        prepare(Request(steps=5), corpus_of(tmp_path, "few words"), characters=True)


# ---- tokenizers


@pytest.mark.parametrize(
    ("request_", "most"),
    [
        (Request(seconds=20.0, threads=2), 1024),
        (Request(seconds=300.0, threads=2), 4096),
        (Request(seconds=3600.0, threads=2), 8192),
        (Request(seconds=20.0, device="cuda"), 8192),
        (Request(steps=10), 8192),
    ],
)
def test_little_time_bounds_the_vocabulary(tmp_path, monkeypatch, request_, most):
    wanted = []
    small = Tokenizer.train_char(["ab"])
    monkeypatch.setattr(Tokenizer, "train_bpe", lambda texts, size: wanted.append(size) or small)
    corpus = corpus_of(tmp_path, "ab" * 50)
    monkeypatch.setattr(type(corpus), "text_bytes", 10**9)
    prepare(request_, corpus)
    assert wanted == [most]


# ---- more text than there is time for


def test_of_more_text_than_there_is_time_for_parts_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "CPU_BYTES_FACTOR", 6400)
    monkeypatch.setattr(prepare_module, "BYTES_EXPONENT", 0.5)
    monkeypatch.setattr(prepare_module, "MIN_BYTES", 1)
    text = words(20_000)
    corpus = corpus_of(tmp_path, text)
    ready = prepare(Request(seconds=2.0, threads=2), corpus)
    learned = len(text) - round(len(text) / 10)
    assert ready.record["train_bytes"] == learned  # the last tenth is held out, whatever was read of the rest
    assert ready.record["read_bytes"] == 12_800 < learned
    ids = ready.tokens.tolist()
    assert len(ready.tokenizer.decode_bytes(ids)) == 12_800
    assert ids.count(ready.tokenizer.eos_id) == PARTS - 1
    read = ["".join(part) for part in ready.read_from(corpus)]
    assert ready.tokenizer.decode(ids) == "".join(read)
    assert all(part in text[:learned] for part in read)
    assert len(ready.tokenizer.decode_bytes(ready.held_out.tolist())) == 1280
    assert "12,800 bytes of training text, sampled evenly" in choice(ready.plan, "corpus").reason


def test_without_a_clock_all_text_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "CPU_BYTES_FACTOR", 1)
    monkeypatch.setattr(prepare_module, "MIN_BYTES", 1)
    text = words(2000)
    ready = prepare(Request(steps=5), corpus_of(tmp_path, text), held_out=0.0)
    assert ready.tokenizer.decode(ready.tokens.tolist()) == text
    assert ready.record["read_bytes"] == len(text)


@given(seconds=st.floats(1, 1e6), threads=st.integers(1, 64))
def test_more_time_reads_no_less_text(seconds, threads):
    less, more = (prepare_module._max_bytes(Request(seconds=s, threads=threads)) for s in (seconds, 2 * seconds))
    assert prepare_module.MIN_BYTES <= less <= more


def test_where_memory_is_short_the_batch_becomes_smaller_before_a_model_is_refused():
    wishes = {"seconds": 600.0, "layers": 4, "width": 256, "context": 256}
    roomy = plan(Request(**wishes))
    smallest = memory_needed(roomy.model, replace(roomy.train, batch_size=1))
    tight = plan(Request(**wishes), machine=Machine(estimated_speed, 1.3 * smallest))
    assert tight.model == roomy.model
    assert tight.train.batch_size < roomy.train.batch_size
    assert choice(tight, "batch size").reason == "largest that fits into memory"
    assert memory_needed(tight.model, tight.train) <= 1.3 * smallest
    with pytest.raises(LLMError, match=r"needs about .* GB of memory"):
        plan(Request(**wishes, batch_tokens=16384), machine=Machine(estimated_speed, 1.3 * smallest))
    with pytest.raises(LLMError, match="give a smaller --width"):
        plan(Request(**wishes), machine=Machine(estimated_speed, 0.5 * smallest))
