"""The plan as it is shown: every row of a few plans, and the overview."""

from dataclasses import replace

from llmcli.training.planning.plan import Plan, PlanRequest, PlanRow
from llmcli.training.planning.plan_table import overview
from tests.training.plans import BASE, plan, row

LONG = replace(BASE, max_position_embeddings=131_072)
CORPUS = PlanRow("corpus", "600,000 bytes", "540,000 for training, 60,000 held out")
VOCABULARY = PlanRow("vocabulary", "512 tokens", "minimum")


def prepared(request: PlanRequest) -> Plan:
    """A plan with the rows of the corpus."""
    made = plan(request)
    return replace(made, rows=(CORPUS, VOCABULARY, *made.rows))


def test_every_row_of_a_plan() -> None:
    assert [(row.name, row.value, row.reason) for row in plan(PlanRequest(epochs=2, threads=1)).rows] == [
        ("budget", "2 epochs", "as requested"),
        ("model size", "320,160 parameters", "best size for the number of training tokens"),
        ("architecture", "2 layers, hidden size 96, 2 heads", "short runs need few layers, long runs more"),
        ("context length", "1024 tokens", "long enough for induction heads to find earlier occurrences"),
        ("initialization", "induction heads", "they emerge too slowly in short runs"),
        ("tied embeddings", "no", "the embedding has fewer parameters than the layers"),
        ("batch size", "1 x 1024 tokens", "small batches converge fastest in wall-clock time"),
        ("steps", "391", "2 epochs"),
        ("training tokens", "400,384", "steps x batch size"),
        ("distillation", "off", "only used with a time budget"),
        ("dropout", "0", "not needed for about 2 epochs"),
        ("BPE-dropout", "off", "not needed for about 2 epochs"),
        ("validation", "3,125 tokens",
         "spread over the training text, not trained on; the weights with the lowest loss are kept"),
        ("calibration", "off", "not needed for about 2 epochs"),
        ("weight decay", "0.1", "higher values did not help at any epoch count"),
        ("optimizer", "Muon + AdamW", "Muon for matrices, AdamW for the rest: lowest loss in a given time"),
        ("learning rate", "Muon 0.03, AdamW 0.003 (embedding 0.05)",
         "peak rates of the recipe; linear decay to 0 after 40% of the run"),
        ("device", "cpu, 1 thread, float32", "detected"),
    ]  # fmt: skip


def test_rows_of_fine_tuning_with_adapters() -> None:
    made = plan(PlanRequest(lora=8, lr=2.0, seconds=60.0), base=BASE)
    assert row(made, "steps").reason == "2 epochs, the default limit for the text"
    assert (row(made, "LoRA rank").value, row(made, "optimizer").value) == ("8", "AdamW")
    assert row(made, "learning rate").value == "AdamW 0.0375"
    assert (
        row(made, "learning rate").reason
        == "2 times the peak rates of the recipe, as requested; linear decay to 0 after 40% of the run"
    )
    assert row(made, "training tokens").value == "about 400,000"
    assert row(made, "training tokens").reason.startswith("about 2 epochs at ")
    assert row(made, "training tokens").reason.endswith(" tokens/s; ends before the time is up")
    assert row(made, "calibration").reason == "not used with LoRA"
    for lr, shown in [(1.0, False), (0.5, True), (2.0, True)]:  # the overview has a learning rate of the user's
        made = plan(PlanRequest(lora=8, lr=lr, seconds=60.0), base=BASE)
        made = replace(made, rows=(PlanRow("corpus", "", ""), PlanRow("vocabulary", "", ""), *made.rows))
        assert ("learning rate" in [each.name for each in overview(made)]) is shown, lr


def test_the_overview_has_five_rows() -> None:
    made = prepared(PlanRequest(epochs=10))
    assert [(row.name, row.value) for row in overview(made)] == [
        ("corpus", "600,000 bytes"),
        ("vocabulary", "512 tokens"),
        ("model", f"{row(made, 'model size').value}: {row(made, 'architecture').value}"),
        ("training", f"{made.train.steps:,} steps of {row(made, 'batch size').value}"),
        ("regularization", "dropout 0.1, BPE-dropout 15%"),
    ]
    timed = overview(prepared(PlanRequest(seconds=90)))[3]
    assert timed.value.startswith("1m 30s, batches of ") and " epochs at " in timed.reason
    assert overview(prepared(PlanRequest(epochs=1)))[4].value == "dropout 0"


def test_the_context_of_the_final_evaluation_is_given_where_it_is_shorter_than_the_model_s() -> None:
    lora = PlanRequest(seconds=60, lora=8)
    for request in (PlanRequest(steps=9), PlanRequest(epochs=1), PlanRequest(seconds=60), lora):
        assert row(plan(request, base=LONG), "context length") == PlanRow(
            "context length",
            f"{256 if request.lora else 512} tokens",
            "long enough for fine-tuning; longer windows are slower; the final evaluation uses 2,048 of the 131,072 "
            "that the model supports",
        )
    assert "evaluation uses 4,096" in row(plan(PlanRequest(context=4096), base=LONG), "context length").reason
    for made in (plan(base=BASE), plan(PlanRequest(context=4096))):
        assert "evaluation" not in row(made, "context length").reason
