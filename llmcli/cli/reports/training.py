"""The output of `llm train`: the plan, events as lines of JSON or in a live view, the result."""

import json
import sys
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.reports.files import files_json, show_files
from llmcli.cli.terminal import console, tables
from llmcli.config import as_record
from llmcli.evaluation.figures import as_json, change
from llmcli.formats.huggingface.config import dump_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llmcli.cli.terminal.progress import TrainingView
    from llmcli.evaluation.compressors import Baseline
    from llmcli.training.data.inputs import Inputs
    from llmcli.training.loop.events import Done, Restarted, RunEvent
    from llmcli.training.planning.plan import Plan


def show_plan(plan: "Plan", inputs: "Inputs", *, dry_run: bool, json_: bool) -> None:
    """Print the plan. With --dry-run it is the result, after the table of files; otherwise it goes to stderr,
    shortened in a terminal."""
    sources = inputs.sources
    if json_:
        files = files_json(sources) if dry_run else {}
        json_event(
            "plan", **_plan_record(plan), data=[group.as_record() for group in sources.groups()], **files
        )
        return
    if dry_run:
        show_files(sources.records(), sources.text.skipped)
    if dry_run or not sys.stderr.isatty():
        rows = [(row.name, row.value, row.reason) for row in plan.rows]
        tables.table(("setting", "value", "reason"), rows, to_stderr=not dry_run)
        return
    if console.settings.quiet:
        return
    from llmcli.training.planning.plan_table import overview

    pairs = [(row.name, f"{row.value} ({row.reason})") for row in overview(plan)]
    tables.pairs([*pairs, ("", "--dry-run shows the whole plan")], to_stderr=True)


def _plan_record(plan: "Plan") -> dict[str, Any]:
    conversations = {"conversations": as_record(plan.conversations)} if plan.conversations else {}
    choices = [as_record(row) for row in plan.rows]
    config = json.loads(dump_config(plan.model))
    return {"choices": choices, "config": config, "train": as_record(plan.train), **conversations}


def show_event(event: "RunEvent", view: "TrainingView", *, json_: bool, of_answers: bool = False) -> None:
    """Show an event of the trainer. `of_answers`: validation measures answers. Raises OSError if stdout is
    closed."""
    from llmcli.training.loop import events

    view.add(event)
    if isinstance(event, events.Restarted):
        _show_restart(event, json_=json_)
    elif json_:
        kinds = {
            events.Step: "step",
            events.Evaluation: "eval",
            events.Prediction: "probe",
            events.Sample: "sample",
            events.TeacherTrained: "teacher",
        }
        kind = kinds[type(event)]
        json_event(kind, **as_record(event), **({"of": "answers"} if of_answers and kind == "eval" else {}))
    elif isinstance(event, events.TeacherTrained):
        console.note(
            f"step {event.step:,}: the teacher is trained (validation loss "
            f"{units.bits_per_byte(event.bits_per_byte)} bits per byte); "
            "the student starts from fresh weights and also learns from its predictions"
        )


def _show_restart(event: "Restarted", *, json_: bool) -> None:
    search = event.plan.search
    assert search
    if json_:
        json_event("restart", step=event.step, seconds=event.seconds)
        json_event("plan", **_plan_record(event.plan))
        return
    why = "more did not lower the validation loss" if search.confirmed else "there is no time to try more"
    console.note(
        f"step {event.step:,}: training starts over, on all of the text, for {units.epochs(search.found)}: "
        f"{why}"
    )


def show_result(
    done: "Done",
    file: "Path",
    *,
    parameters: int,
    baselines: "Sequence[Baseline]",
    sentences: list[str],
    json_: bool,
) -> None:
    """Show the saved file and its losses, then `sentences`, the summary of the run."""
    record = done.checkpoint.record.to_json()
    of_answers = "conversations" in record
    if json_:
        json_event(
            "done",
            file=str(file),
            steps=done.step,
            seconds=round(done.seconds, 2),
            bits_per_byte=done.score.bits_per_byte if done.score else None,
            **as_json(done.score.figures if done.score else None),
            parameters=parameters,
            best_step=done.best_step,
            interrupted=done.interrupted,
            bits_per_byte_before=done.base_score.bits_per_byte if done.base_score else None,
            **as_json(done.base_score.figures if done.base_score else None, "_before"),
            baselines=[
                {
                    "name": b.name,
                    "bits_per_byte": b.bits_per_byte,
                    "adaptive": b.is_adaptive,
                    "estimate": b.is_estimate,
                }
                for b in baselines
            ],
            memorised=record["memorised"],
            verdict=sentences,
            **(
                {"of": "answers"} | {key: record.get(key) for key in ("answers", "plain_text")}
                if of_answers
                else {}
            ),
        )
        return
    saved = "interrupted; saved" if done.interrupted else "saved"
    best = f" (best weights: step {done.best_step:,})" if done.best_step != done.step else ""
    console.note(
        f"{saved} {file}: {units.number(parameters)} parameters, {units.count(done.step, 'step')}{best}, "
        f"{units.duration(done.seconds)}"
    )
    if done.base_score and done.score:
        changed = change(done.base_score.figures, done.score.figures)
        unchanged = "; no step improved it, so the weights are unchanged" if done.best_step == 0 else ""
        console.note(f"held-out bits per byte{' of answers' if of_answers else ''}: {changed}{unchanged}")
    for sentence in sentences:
        console.note(sentence)


def json_event(kind: str, **values: object) -> None:
    console.json_result({"event": kind, **values})
