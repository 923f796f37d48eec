"""The decisions of a plan as rows to show: the name of a hyperparameter, its value, the reason."""

from llmcli import units
from llmcli.config import ModelConfig
from llmcli.evaluation.evaluator import evaluation_context
from llmcli.training.planning.plan import REQUESTED, Decision, ModelDecisions, Plan, PlanRow, Request, TrainDecisions
from llmcli.training.planning.recipe import learning_rates

OPTIMIZERS = {"muon": "Muon + AdamW", "adamw": "AdamW", "fine-tune": "AdamW", "lora": "AdamW"}  # by recipe


def rows(
    request: Request, architecture: ModelDecisions, training: TrainDecisions, tokens: Decision[float]
) -> tuple[PlanRow, ...]:
    """The whole plan; `tokens` is the number of tokens seen in training."""
    budget = PlanRow("budget", _budget(request, training), training.seconds.reason)
    return (
        budget,
        *_model_rows(architecture, training),
        *_train_rows(request, architecture.size.value, training, tokens, architecture.sharded),
    )


def _budget(request: Request, training: TrainDecisions) -> str:
    if training.seconds.value:
        return units.duration(training.seconds.value)
    return units.epochs(request.epochs) if request.epochs else units.count(training.steps.value, "step")


def _model_rows(architecture: ModelDecisions, training: TrainDecisions) -> list[PlanRow]:
    model = architecture.size.value
    table = [
        PlanRow("model size", f"{model.parameters:,} parameters", architecture.size.reason),
        PlanRow("architecture", _architecture(model), architecture.shape.reason),
    ]
    if architecture.experts.value:
        value = f"{model.num_experts_per_tok} of {architecture.experts.value} active per token"
        reason = f"{architecture.experts.reason}; {model.active_parameters:,} active parameters"
        table.append(PlanRow("experts", value, reason))
    table.append(PlanRow("context length", f"{training.context.value} tokens", _context_reason(model, training)))
    if training.induction.value:
        table.append(PlanRow("initialization", "induction heads", training.induction.reason))
    tied = architecture.tied_embeddings
    table.append(PlanRow("tied embeddings", "yes" if tied.value else "no", tied.reason))
    return table


def _context_reason(model: ModelConfig, training: TrainDecisions) -> str:
    """The reason, and with how many tokens the model is evaluated, if it could process more."""
    longest, context = model.max_position_embeddings, training.context
    evaluated = evaluation_context(longest, trained=context.value)
    if evaluated == longest or training.conversations:  # answers are evaluated in the context of training
        return context.reason
    return f"{context.reason}; the final evaluation uses {evaluated:,} of the {longest:,} that the model supports"


def _architecture(model: ModelConfig) -> str:
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    grouped = "" if kv_heads == heads else f" ({kv_heads} for keys and values)"
    layers = units.count(model.num_hidden_layers, "layer")
    return f"{layers}, hidden size {model.hidden_size}, {units.count(heads, 'head')}{grouped}"


def _train_rows(
    request: Request,
    model: ModelConfig,
    training: TrainDecisions,
    tokens: Decision[float],
    sharded: Decision[bool],
) -> list[PlanRow]:
    timed = training.seconds.value is not None
    table = [
        PlanRow(
            "batch size", f"{training.batch_size.value} x {training.context.value} tokens", training.batch_size.reason
        ),
        PlanRow("steps", f"{'at most ' * timed}{training.steps.value:,}", training.steps.reason),
        PlanRow("training tokens", f"{'about ' * timed}{tokens.value:,.0f}", tokens.reason),
        *_conversation_rows(training),
        _distillation_row(training.distillation),
        PlanRow("dropout", f"{training.dropout.value:g}", training.dropout.reason),
        PlanRow("BPE-dropout", _percent(training.bpe_dropout.value), training.bpe_dropout.reason),
        _validation_row(training),
        PlanRow("calibration", "on" if training.calibration.value else "off", training.calibration.reason),
        PlanRow("weight decay", f"{training.weight_decay.value:g}", training.weight_decay.reason),
    ]
    if request.lora:
        table.append(PlanRow("LoRA rank", f"{request.lora}", f"{REQUESTED}; the base model's weights stay frozen"))
    recipe, rate = training.recipe, training.learning_rate
    machine = f"{request.device}, {units.count(request.threads, 'thread')}, {request.dtype}"
    if request.processes > 1:
        machine = f"{request.processes} processes, each {machine}"
        table.append(weights_row(sharded))
    return [
        *table,
        PlanRow("optimizer", OPTIMIZERS[recipe.value], recipe.reason),
        PlanRow("learning rate", learning_rate(recipe.value, rate.value, model), rate.reason),
        PlanRow("device", machine, request.machine_reason),
    ]


def weights_row(sharded: Decision[bool]) -> PlanRow:
    """Where several processes have the weights."""
    return PlanRow("weights", "sharded over the processes" if sharded.value else "in each process", sharded.reason)


def _conversation_rows(training: TrainDecisions) -> list[PlanRow]:
    """When conversations follow text, if they do, and what keeps a base model's knowledge."""
    chosen = training.conversations
    if chosen is None:
        return []
    if divergence := chosen.base_divergence.value:
        return [PlanRow("KL divergence", f"weight {divergence:g}", chosen.base_divergence.reason)]
    if chosen.share.value == 1:
        return []
    dropout = f"dropout {chosen.dropout.value:g}: {chosen.dropout.reason}"
    return [
        PlanRow("conversation phase", f"last {chosen.share.value:.0%} of the run", f"{chosen.share.reason}; {dropout}")
    ]


def _distillation_row(share: Decision[float]) -> PlanRow:
    """Whether the run trains two models."""
    if not share.value:
        return PlanRow("distillation", "off", share.reason)
    return PlanRow("distillation", f"from {share.value:.0%} of the run", share.reason)


def _percent(rate: float) -> str:
    return f"{rate:.0%}" if rate else "off"


def _validation_row(training: TrainDecisions) -> PlanRow:
    chosen, unit = training.validation, "token"
    if training.conversations:
        chosen, unit = training.conversations.validation, "conversation"
    return PlanRow("validation", units.count(chosen.value, unit) if chosen.value else "none", chosen.reason)


def learning_rate(recipe: str, multiplier: float, model: ModelConfig) -> str:
    """The peak learning rates of a run."""
    rates = learning_rates(recipe, model.hidden_size, model.tie_word_embeddings)
    peak = {name: f"{multiplier * rate:.3g}" for name, rate in rates.items()}
    if "all" in peak:
        return f"AdamW {peak['all']}"
    embedding = "" if peak["embedding"] == peak["gains"] else f" (embedding {peak['embedding']})"
    return f"Muon {peak['matrices']}, AdamW {peak['gains']}{embedding}"


def overview(plan: Plan) -> list[PlanRow]:
    """The plan in five rows: corpus, vocabulary, model, training and regularization; and the learning rate where it is
    not the recipe's."""
    by_name = {row.name: row for row in plan.rows}
    if "corpus" not in by_name:  # resumed from a file of an earlier version, with other names
        return list(plan.rows)
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
    size, architecture = by_name["model size"], by_name["architecture"]
    return [
        by_name["corpus"],
        *([by_name["conversations"]] if "conversations" in by_name else []),
        by_name["vocabulary"],
        PlanRow("model", f"{size.value}: {architecture.value}", size.reason),
        training,
        PlanRow("regularization", ", ".join(regularizers), by_name["dropout"].reason),
        *([] if plan.train.lr == 1 else [by_name["learning rate"]]),
    ]
