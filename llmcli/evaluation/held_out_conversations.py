"""Which conversations of a file were held out when models were trained on it, according to their training records."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmcli.data.conversations.files import ConversationFile
from llmcli.data.conversations.messages import Conversation
from llmcli.data.conversations.split import is_held_out, without_duplicates
from llmcli.formats.training_stages import Record, all_stages


@dataclass(frozen=True)
class MeasuredConversations:
    """The conversations that measure how models answer."""

    conversations: list[Conversation]
    trained: int  # of the files' conversations, those that a model was trained on; they are left out if not all are
    contains_training: bool  # whether all are measured, although a model was trained on some


def measured_conversations(
    files: Sequence[ConversationFile], records: Iterable[Record], *, whole: bool = False
) -> MeasuredConversations:
    """The conversations that were held out for all models; all of them if there are none, or if `whole`."""
    conversations = [one for file in files for one in file.conversations]
    trained: set[int] = set()
    for stage in all_stages(records):
        trained |= trained_indices(files, stage)
    training = [conversations[i] for i in sorted(trained)]
    rest = without_duplicates(training, [one for i, one in enumerate(conversations) if i not in trained]).held_out
    if whole or not rest:
        return MeasuredConversations(conversations, len(trained), bool(trained))
    return MeasuredConversations(rest, len(conversations) - len(rest), False)


def trained_indices(files: Sequence[ConversationFile], record: Record) -> set[int]:
    """The indices, among the conversations of all files, of those that were trained on in one stage."""
    details = record.get("conversations")
    share = (details.get("held_out_share") if isinstance(details, dict) else None) or 0.0
    recorded, count = _recorded_files(record)
    trained: set[int] = set()
    first = 0
    for file in files:
        offset, recorded_count = recorded.get(file.sha256, (None, 0))
        if offset is not None and count:  # a damaged record may not say how many there are
            if len(file.conversations) != recorded_count:  # read otherwise than in training: any may be trained on
                share = 0.0
            held_out = (is_held_out(offset + i, count, share) for i in range(len(file.conversations)))
            trained |= {first + i for i, is_out in enumerate(held_out) if not is_out}
        first += len(file.conversations)
    return trained


def _recorded_files(record: Record) -> tuple[dict[str, tuple[int, int]], int]:
    """(sha256 of each file of conversations in a record -> (the index of its first conversation among all, how many it
    has); the number of all)"""
    listed = record.get("corpus")
    recorded: dict[str, tuple[int, int]] = {}
    count = 0
    for file in listed if isinstance(listed, list) else ():
        if isinstance(file, dict) and "shape" in file:
            recorded.setdefault(str(file.get("sha256")), (count, int(file.get("conversations", 0))))
            count += int(file.get("conversations", 0))
    return recorded, count
