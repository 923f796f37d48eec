"""The decisions of a plan as displayed rows: hyperparameter, value, reason."""

from llmcli import units
from llmcli.config import ModelConfig
from llmcli.evaluation.evaluator import evaluation_context
from llmcli.training.planning.plan import FROM_BASE, REQUESTED, ConversationSettings, Plan, PlanRow
from llmcli.training.planning.recipe import learning_rates
from llmcli.training.planning.task import Task


def rows(task: Task, plan: Plan, tokens: float, reasons: dict[str, str]) -> tuple[PlanRow, ...]:
    """Return all rows of a plan, except those without a value. `tokens` is the number of training tokens."""
    train, conversations = plan.train, plan.conversations
    timed = train.seconds is not None
    request = task.request
    budget = units.epochs(request.epochs) if request.epochs else units.count(train.steps, "step")
    if train.seconds:
        budget = units.duration(train.seconds)
    validation = units.count(train.calibration_tokens, "token") if train.calibration_tokens else "none"
    validation_reason = reasons["calibration_tokens"]
    if conversations:
        validation = (
            units.count(conversations.validation, "conversation") if conversations.validation else "none"
        )
        validation_reason = reasons["conversations.validation"]
    machine = f"{request.device}, {units.count(request.threads, 'thread')}, {request.dtype}"
    weights = ""
    if request.processes > 1:
        machine = f"{request.processes} processes, each {machine}"
        weights = "sharded over the processes" if plan.sharded else "in each process"
    distillation = f"from {train.teacher_share:.0%} of the run" if train.teacher_share else "off"
    bpe_dropout = f"{train.token_split:.0%}" if train.token_split else "off"
    steps = f"{train.steps:,}"
    trained = f"{tokens:,.0f}"
    if timed:
        steps = f"at most {steps}"
        trained = f"about {trained}"
    table = [
        PlanRow("budget", budget, reasons["seconds"]),
        *_model_rows(task, plan, reasons),
        PlanRow("batch size", f"{train.batch_size} x {train.context} tokens", reasons["batch_size"]),
        PlanRow("steps", steps, reasons["steps"]),
        PlanRow("training tokens", trained, reasons["tokens"]),
        *([_conversation_row(conversations, reasons)] if conversations else []),
        PlanRow("distillation", distillation, reasons["teacher_share"]),
        PlanRow("dropout", f"{train.dropout:g}", reasons["dropout"]),
        PlanRow("BPE-dropout", bpe_dropout, reasons["token_split"]),
        PlanRow("validation", validation, validation_reason),
        PlanRow("calibration", "on" if train.calibrates else "off", reasons["calibrates"]),
        PlanRow("weight decay", f"{train.weight_decay:g}", reasons["weight_decay"]),
        PlanRow("LoRA rank", str(request.lora or ""), f"{REQUESTED}; the base model's weights stay frozen"),
        PlanRow("weights", weights, reasons["sharded"]),
        PlanRow("optimizer", "Muon + AdamW" if train.recipe == "muon" else "AdamW", reasons["recipe"]),
        PlanRow("learning rate", learning_rate(train.recipe, train.lr, plan.model), reasons["lr"]),
        PlanRow("device", machine, request.machine_reason),
    ]
    return tuple(row for row in table if row.value)


def _model_rows(task: Task, plan: Plan, reasons: dict[str, str]) -> list[PlanRow]:
    model, train = plan.model, plan.train
    heads = model.num_attention_heads
    kv_heads = model.num_key_value_heads
    longest = model.max_position_embeddings
    grouped = "" if kv_heads == heads else f" ({kv_heads} for keys and values)"
    layers = units.count(model.num_hidden_layers, "layer")
    experts = (
        f"{model.num_experts_per_tok} of {model.num_experts} active per token" if model.num_experts else ""
    )
    context_reason = reasons["context"]
    evaluated = evaluation_context(longest, trained=train.context)
    if evaluated < longest and not plan.conversations:  # answers are evaluated with the training context
        context_reason += (
            f"; the final evaluation uses {evaluated:,} of the {longest:,} that the model supports"
        )
    return [
        PlanRow("model size", f"{model.parameters:,} parameters", reasons["size"]),
        PlanRow(
            "architecture",
            f"{layers}, hidden size {model.hidden_size}, {units.count(heads, 'head')}{grouped}",
            reasons["shape"],
        ),
        PlanRow(
            "experts",
            experts,
            f"{FROM_BASE if task.base else REQUESTED}; {model.active_parameters:,} active parameters",
        ),
        PlanRow("context length", f"{train.context} tokens", context_reason),
        PlanRow("initialization", "induction heads" if train.induction else "", reasons["induction"]),
        PlanRow("tied embeddings", "yes" if model.tie_word_embeddings else "no", reasons["tied"]),
    ]


def _conversation_row(chosen: ConversationSettings, reasons: dict[str, str]) -> PlanRow:
    """Return the row about the divergence weight that limits forgetting, or about the phase on conversations
    after text."""
    if chosen.base_divergence:
        return PlanRow(
            "KL divergence", f"weight {chosen.base_divergence:g}", reasons["conversations.base_divergence"]
        )
    dropout = f"dropout {chosen.dropout:g}: {reasons['conversations.dropout']}"
    phase = f"last {chosen.share:.0%} of the run" if chosen.share < 1 else ""
    return PlanRow("conversation phase", phase, f"{reasons['conversations.share']}; {dropout}")


def learning_rate(recipe: str, multiplier: float, model: ModelConfig) -> str:
    """Format the peak learning rates of a run."""
    rates = learning_rates(recipe, model.hidden_size, model.tie_word_embeddings)
    peak = {name: f"{multiplier * rate:.3g}" for name, rate in rates.items()}
    if "all" in peak:
        return f"AdamW {peak['all']}"
    embedding = "" if peak["embedding"] == peak["gains"] else f" (embedding {peak['embedding']})"
    return f"Muon {peak['matrices']}, AdamW {peak['gains']}{embedding}"


def overview(plan: Plan) -> list[PlanRow]:
    """Summarize the plan: corpus, vocabulary, model, training, regularization, and a learning rate if the
    user set it."""
    by_name = {row.name: row for row in plan.rows}
    batch = by_name["batch size"].value
    training = PlanRow("training", f"{by_name['steps'].value} steps of {batch}", by_name["steps"].reason)
    if plan.train.seconds:
        reason = by_name["training tokens"].reason
        training = PlanRow("training", f"{by_name['budget'].value}, batches of {batch}", reason)
    regularizers = [f"dropout {by_name['dropout'].value}"]
    if plan.train.token_split:
        regularizers.append(f"BPE-dropout {by_name['BPE-dropout'].value}")
    if plan.train.teacher_share:
        regularizers.append("distillation")
    size = by_name["model size"]
    architecture = by_name["architecture"]
    return [
        by_name["corpus"],
        *([by_name["conversations"]] if "conversations" in by_name else []),
        by_name["vocabulary"],
        PlanRow("model", f"{size.value}: {architecture.value}", size.reason),
        training,
        PlanRow("regularization", ", ".join(regularizers), by_name["dropout"].reason),
        *([by_name["learning rate"]] if REQUESTED in by_name["learning rate"].reason else []),
    ]
