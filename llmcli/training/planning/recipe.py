"""The training recipe: the hyperparameters of planning and training, measured or published, in one table.

Each constant has a comment with its meaning and, in brackets, its source: the first words of a heading in
tests/benchmarks/LOG.md in quotes, a publication, or "chosen" if no comparison is recorded. Constants of a
single algorithm are in its module (the n-gram cache's in cache_fit.py), as are limits on time and memory.
"""

import math

# ---- Length of the run
MAX_EPOCHS = 20.0  # limit for new models, which memorize the text with 30 ["Toy corpora"]
FINE_TUNING_EPOCHS = 2.0  # four are worse ["Fine-tuning"]
# runs with a time budget use smaller batches to reach this number, and warn if they cannot [chosen]
MIN_STEPS = 10
FINE_TUNING_MIN_STEPS = 30  # the same for fine-tuning, even at LOW_SPEED [chosen]

# ---- Search for the number of epochs of a short text: a first run ends when the loss on a validation slice
# stops falling, and a second run trains on all of the text for that many epochs
SEARCH_MAX_BYTES = 32_000  # longest such text ["Short texts"]
SEARCH_MIN_EPOCHS = 60.0  # no search if the time budget suffices for fewer ["Short texts"]
SEARCH_EPOCHS = 400.0  # plan of the first run, which ends before its learning rate falls [chosen]
# epochs of the second run / epochs at the lowest validation loss of the first run, which has less data and a
# constant learning rate
SEARCH_EPOCHS_FACTOR = 1.1  # ["Short texts"]
# the first run ends after this many times the epochs at its lowest validation loss ["Short texts"]
SEARCH_PATIENCE = 1.5
# evaluations whose relative difference is below this / sqrt(tokens in the slice) count as equal; the last of
# them is used
SEARCH_TIE_MARGIN = 0.2  # ["Short texts"]
SEARCH_VALIDATION_SHARE = 1 / 12  # share of the training tokens in the slice ["Short texts"] ...
SEARCH_VALIDATION_TOKENS = 66  # ... but at least this many, in a text of at least four times as many [chosen]
SEARCH_INTERVAL = 0.005  # minimum share of the first run between two evaluations [chosen]
RESTART_SECONDS = 1.0  # from the end of the first run to the first step of the second [chosen]

# ---- Batch size, in tokens
CPU_BATCH_FACTOR = 1.6  # times sqrt(training tokens) ["At a fixed number", "Batches of 4,096 tokens"]
CPU_BATCH_TOKENS = (1024, 16_384)  # minimum ["At a fixed number"] and maximum [chosen]
CPU_LORA_BATCH_TOKENS = (256, 16_384)  # the same for adapters trained on text ["Fine-tuning"]
GPU_BATCH_DIVISOR = 2500  # training tokens for each token of a batch [chosen]
GPU_BATCH_TOKENS = (16_384, 262_144)  # minimum and maximum [chosen]

# ---- Context length, in tokens, and induction heads in the initial weights
MIN_CONTEXT = 8  # a shorter text is an error [chosen]
SHORT_CONTEXT = 128  # texts shorter than CONTEXT_TOKENS [chosen]
CONTEXT = 256  # longer texts [chosen]
CONTEXT_TOKENS = 100_000  # [chosen]
FINE_TUNING_CONTEXT = 512  # if the base model has at least twice that [chosen]
CPU_LORA_CONTEXT = 256  # the same for adapters trained on text on a CPU ["Fine-tuning"]
INDUCTION_CONTEXT = 1024  # context length of models with induction heads ["Useful context length"] ...
SHORT_INDUCTION_CONTEXT = 512  # ... and in short runs on a CPU ["The network alone"], with ...
SHORT_INDUCTION_CORE_SECONDS = 200.0  # ... less time budget x threads than this ["Induction heads in"]
INDUCTION_MIN_TOKENS = 100_000  # shorter training texts get no induction heads ["Where it does not help"]
# minimum time budget x threads on a CPU: in shorter runs, long windows cost more than they gain
INDUCTION_MIN_CORE_SECONDS = 100.0  # ["The network alone"]
SPELLING_MIN_TOKENS = 100_000  # shorter texts have random embeddings ["Texts of less than 100,000"]
# learning rate of the induction heads' weights, relative to other matrices ["Heads that keep"]
INDUCTION_RATE = 0.3
COPY_FACTOR = 1.15  # on the output of the trained induction head ["The induction head's output"]
# large, so that most pairs of dimensions in a head rotate little within a window and can match tokens
INDUCTION_ROPE_THETA = 1e6  # ["Writing the heads"]

# ---- Sequence-length warm-up: (up to this progress of the run, the context length is divided by this)
LENGTH_WARMUP = ((0.2, 4), (0.5, 2))  # ["At a fixed number"]
LENGTH_WARMUP_WITH_INDUCTION = ((0.5, 2),)  # induction heads need text to copy ["Writing the heads"]
SHORTEST_WINDOW = 16  # minimum window length in tokens [chosen]

# ---- Peak learning rates
MUON_LR = 0.03  # matrices of the layers ["At a fixed number"]
EMBEDDING_LR = 0.05  # ["Polar Express"]
HEAD_LR = 0.003  # output embedding, also if tied ["Polar Express"]
GAIN_LR = 0.003  # gains of RMSNorms ["Polar Express"]
ADAMW_LR = 0.003  # all parameters of a new model trained by AdamW alone [chosen]
FINE_TUNING_LR = 0.1  # divided by the hidden size: 1.7e-4 for 576, 5e-5 for 2,048 ["Fine-tuning"]
LORA_LR = 0.6  # divided by the hidden size ["Fine-tuning"]
LORA_TEXT_FACTOR = 2.0  # times that rate if adapters are trained on text alone ["Fine-tuning"]

# ---- Schedules of the learning rate and of the momentum; AdamW
WARMUP = 0.01  # share of the run in which the learning rate rises linearly [chosen] ...
INITIAL_RATE = 0.1  # ... from this fraction of its peak [chosen]
DECAY = 0.6  # share of the run, at the end, when it falls linearly ["At a fixed number"]
FINAL_RATE = 0.0  # ... to this fraction of its peak [arXiv:2502.15938]
MOMENTUM = 0.85  # Muon's momentum at the beginning [modded-nanogpt, train_gpt.py]
MOMENTUM_RISE = 0.10  # its linear rise [modded-nanogpt, train_gpt.py] ...
MOMENTUM_WARMUP = 0.1  # ... during this first share of the run [chosen]
ADAMW_BETAS = (0.9, 0.99)  # 0.95 for the second is no better ["Polar Express"]
ADAMW_EPSILON = 1e-10  # [chosen]

# ---- Muon: coefficients of five iterations of x <- a x + (b A + c A A) x with A = x x', which bring singular
# values in [0.001, 1] close to 1 [arXiv:2505.16932, section 4]
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# in all iterations except the last, x is first divided by this: otherwise, bfloat16 rounding occasionally
# raises a value above the interval, where it diverges (measured: a largest singular value of 2,094 instead of
# 1.15)
POLAR_SAFETY = 1.02  # [chosen]

# ---- Regularization
# (up to this number of epochs, rate)
# ["At a fixed time", "Many epochs", "A 15-minute run", "The network alone"]
DROPOUT = (
    (6, 0.0),
    (8, 0.05),
    (12, 0.1),
    (math.inf, 0.2),
)
# where each word is one token: stronger dropout, without BPE-dropout ["Texts with few"]
FEW_WORDS_DROPOUT = (*DROPOUT[:-1], (math.inf, 0.5))
BPE_DROPOUT = ((4.5, 0.0), (math.inf, 0.15))  # ["At a fixed time", "Many epochs"]
BPE_DROPOUT_UNTIL = 0.8  # progress; afterwards, the text is tokenized as in generation ["A 15-minute run"]
# a model can memorize its text after this many epochs if its layers have more parameters than both limits
LARGE_PARAMETERS = 500_000  # ["Large models"]
LARGE_PARAMETERS_PER_TOKEN = 4.0  # per training token ["Large models"]
LARGE_EPOCHS = 12.0  # ["Large models"]
LARGE_DROPOUT = 0.3  # ["Large models"]
LARGE_BPE_DROPOUT = 0.3  # ["Large models"]
REGULARIZE_EVERY = 0.02  # share of the run between two updates of the rates, by the expected epochs [chosen]
EPOCHS_MARGIN = 0.05  # relative distance beyond a threshold at which the rates change [chosen]

# ---- Distillation, in runs from scratch with a time budget
# minimum length of the training text; shorter texts reach 20 epochs within minutes and have a small
# validation slice
DISTILLATION_MIN_TOKENS = 100_000  # [chosen]
# minimum number of epochs that one model of the shape for half the time would make in the whole time; with
# fewer, one larger model is as good or better ["Training two models"]
DISTILLATION_EPOCHS = 6.5
TEACHER_SHARE = 0.45  # share of the run; the student gets about as many, slower steps ["Training two models"]
# weight of the teacher's predictions in the targets; 0.8 is no better ["Distillation from a first run"]
TEACHER_WEIGHT = 0.5
TEACHER_COST = 0.2  # time of these predictions relative to a step without a teacher ["Training two models"]

# ---- Model shape
# layers x hidden size, each at most twice the previous size. Two layers beat four in runs of up to a minute
# ["At a fixed time"]; wide models need three ["Fewer heads"], and runs of 15 minutes six ["Deeper models"]
SHAPES = (
    (2, 64),
    (2, 96),
    (2, 128),
    (3, 128),
    (3, 192),
    (3, 256),
    (3, 320),
    (6, 256),
    (6, 320),
    (8, 384),
    (8, 512),
    (12, 640),
    (12, 768),
)
# maximum parameters in the layers: factor * tokens of text ** exponent ["The planner allows"]
MAX_SIZE_FACTOR = 0.006
MAX_SIZE_EXPONENT = 1.6  # ["The planner allows"]
HEAD_DIM = 64  # size of a head; half of the hidden size if that is smaller ["At a fixed number"]
MIN_HEADS = 2  # minimum number of heads in a layer ["Fewer heads"]
# size of all heads together / hidden size; on other devices, where attention takes less of a step, it is 1
CPU_HEADS_SHARE = 0.5  # ["Fewer heads"]
ACTIVE_EXPERTS = 2  # per token [arXiv:2401.04088, section 2.1]

# ---- Choice of the model: expected loss and measured speed
# minimum per parameter in the layers, for a fixed number of steps or epochs [chosen]
TOKENS_PER_PARAMETER = 1.2
# expected loss: factor / parameters ** exponent + 1 / tokens ** exponent; with nanochat's exponents,
# compute-optimal parameters grow as compute ** 0.52
PARAMETER_FACTOR = 0.34  # fitted ["The network alone"]
PARAMETER_EXPONENT = 0.34  # [nanochat, dev/LOG.md, 2026-01-27]
TOKEN_EXPONENT = 0.374  # [nanochat, dev/LOG.md, 2026-01-27]
REFERENCE_BYTES_PER_TOKEN = 3.3  # longer tokens count more [chosen]
REPETITION_DECAY = 2.0  # epochs; R* of arXiv:2305.16264, where it is 15.4; fitted ["The network alone"]
# maximum share of the time budget; the rest is for reading, planning, evaluating, saving [chosen]
TRAINING_SHARE = 0.9
SHARE_OF_REST = 0.95  # maximum share of the time after reading, which is shorter in short runs [chosen] ...
AROUND_TRAINING_SECONDS = 1.0  # ... minus these seconds for measuring speeds and ending the run [chosen]
MIN_TRAINING_SHARE = 0.1  # planned for even if reading used up the time budget [chosen]
MAX_MEASUREMENTS = 3  # shapes whose speed is measured [chosen]
# each is measured in two rounds, some time apart, and the mean counts ["Planned and reached"]
MEASUREMENT_SHARE = 0.0025  # share of the run for a measurement in a round [chosen] ...
MAX_MEASUREMENT_SECONDS = 1.0  # ... up to this maximum [chosen]
# share of the measured speed at which a run must still have time for its conversations, and for
# FINE_TUNING_MIN_STEPS
LOW_SPEED = 0.7  # [chosen]


# ---- Validation slice and temperature calibration
# share of the training tokens in the slice ["The held-out text chooses nothing"] ...
VALIDATION_SHARE = 1 / 64
MIN_VALIDATION_TOKENS = 512  # ... or none, if that would be fewer ["The held-out text chooses nothing"]
MIN_VALIDATION_WINDOWS = 8  # windows are shorter than the training context if necessary [chosen] ...
SHORTEST_VALIDATION_WINDOW = 32  # ... but not shorter than this, in tokens [chosen]
TIE_MARGIN = 0.002  # evaluations with a smaller relative difference count as equal [chosen]
CALIBRATION_EPOCHS = 6.0  # with fewer, a model is not overconfident ["A 15-minute run"]
# with fewer, the factor is mostly noise ["The held-out text chooses nothing"]
MIN_CALIBRATION_TOKENS = 1024

# ---- Evaluation during the run and at its end
EVAL_DIVISOR = 400  # training tokens for each token of an evaluation [chosen] ...
EVAL_TOKENS = (4096, 65_536)  # ... but at least and at most this many tokens [chosen]
# minimum tokens of training between two evaluations, per token evaluated [chosen]
TRAINING_PER_EVALUATED = 24.0
EVALUATION_INTERVAL = 0.05  # minimum share of the run between two evaluations [chosen]
FINAL_TOKENS = 65_536  # held-out tokens evaluated at the end [chosen] ...
SHORT_FINAL_DIVISOR = 16  # ... or one for this many tokens trained on, if that is fewer [chosen] ...
FINAL_DIVISOR = 64  # ... or one for this many tokens trained on, if that is more [chosen] ...
MAX_FINAL_TOKENS = 1 << 22  # ... up to this number: more would not change the displayed digits [chosen]

# ---- Conversations
CONVERSATION_SHORTEST_CONTEXT = 128  # tokens, for new models ["Rows"]
CONVERSATION_LONGEST_CONTEXT = 1024  # [chosen]
# rows of a batch; the model keeps its own context length [chosen]
CONVERSATION_SHORTEST_FINE_TUNING_CONTEXT = 64
CONVERSATION_EPOCHS = 60.0  # limit for new models ["Text first"], exceeded ...
CONVERSATION_STEPS = 1000  # ... if that would be fewer steps than this [chosen]
CONVERSATION_FINE_TUNING_EPOCHS = 3.0  # the same two limits for fine-tuning [chosen]
CONVERSATION_FINE_TUNING_STEPS = 100  # [chosen]
CONVERSATION_MIN_EPOCHS = 2.0  # prefer a model that reaches this many even at LOW_SPEED [chosen]
CONVERSATION_BATCHES_PER_EPOCH = 4  # minimum, if a batch then has at least one row [chosen]
CONVERSATION_SHARE = 0.3  # last share of the run, on conversations that follow text [chosen]
CONVERSATION_LARGEST_SHARE = 0.8  # if there are more of them than of text [chosen]
CONVERSATION_SMALLEST_SHARE = 0.05  # if there are few [chosen]
# share in the validation slice ["The held-out text chooses nothing"] ...
CONVERSATION_VALIDATION_SHARE = 1 / 32
CONVERSATION_MIN_VALIDATION = 32  # ... or none, if that would be fewer ["The held-out text chooses nothing"]
DIVERGENCE_WEIGHT = 5.0  # weight of the KL divergence on the base model's text ["Catastrophic forgetting"]
DIVERGENCE_TOKENS = 0.25  # tokens of that text in a step, relative to the batch ["Catastrophic forgetting"]
DIVERGENCE_COST = 0.4  # their time relative to the batch ["Catastrophic forgetting"]
DIVERGENCE_TIME = 0.1  # maximum share of the time budget for generating that text [chosen]

# ---- Corpus and vocabulary
HELD_OUT = 0.1  # share of the corpus that is held out [chosen]
# maximum bytes of text that a run reads: factor * (time budget x threads) ** exponent, a third more than one
# epoch of any plan
CPU_BYTES_FACTOR = 4e5  # ["100 MB of text"]
GPU_BYTES_FACTOR = 1.2e7  # [chosen]
BYTES_EXPONENT = 0.6  # ["100 MB of text"]
MIN_BYTES = 1_000_000  # minimum of this limit [chosen]
# vocabulary size / sqrt(core-seconds) on a CPU: the output layer must leave time for the others
VOCABULARY_FACTOR = 170  # ["At a fixed time"]


def learning_rates(name: str, width: int, tied: bool) -> dict[str, float]:
    """Return the peak learning rates of a recipe in config.RECIPES: for "all" parameters (AdamW), or for
    "matrices" (Muon), "embedding", "head" and "gains" (AdamW). `width` is the hidden size; `tied` says
    whether the embeddings are tied.

    >>> learning_rates("fine-tune", 1000, tied=True)
    {'all': 0.0001}
    """
    single = {"adamw": ADAMW_LR, "fine-tune": FINE_TUNING_LR / width, "lora": LORA_LR / width}.get(name)
    if single is not None:
        return {"all": single}
    return {
        "matrices": MUON_LR,
        "embedding": HEAD_LR if tied else EMBEDDING_LR,
        "head": HEAD_LR,
        "gains": GAIN_LR,
    }


def polar_coefficients() -> list[tuple[float, float, float]]:
    """Return the coefficients (a, b, c) of the iterations, with POLAR_SAFETY."""
    *first, last = POLAR_EXPRESS
    return [(a / POLAR_SAFETY, b / POLAR_SAFETY**3, c / POLAR_SAFETY**5) for a, b, c in first] + [last]
