"""Checks of the engine: whether a graph fits its task and tokenizer, and whether rows are what the task takes."""

from collections.abc import Sequence

import onnxruntime

from kdc.artifact.manifest import TaskInfo, TokenizerInfo
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.tokenizing import Text, is_utf8

_REMAKE = "make it again with `kdc compress`"


def check_graph(session: onnxruntime.InferenceSession, task: TaskInfo, info: TokenizerInfo) -> None:
    """Check that a graph takes what the tokenizer feeds, and gives what the task needs.

    Raises:
        KdcError: it does not.
    """
    inputs = {value.name for value in session.get_inputs()}
    if inputs != set(info.input_names):
        raise KdcError(
            "the graph's inputs are not those that the tokenizer feeds",
            given=f"graph {sorted(inputs)}, tokenizer {sorted(info.input_names)}",
            remedy=_REMAKE,
        )
    outputs = {value.name: value.shape for value in session.get_outputs()}
    width = outputs.get("logits", [None])[-1]
    if "logits" not in outputs or (isinstance(width, int) and width != task.outputs):
        raise KdcError(
            "the graph's outputs do not fit the task",
            given=f"graph {outputs}, the task needs logits of width {task.outputs}",
            remedy=_REMAKE,
        )


def checked_rows(texts: Sequence[Text], task: TaskInfo) -> list[Text]:
    """Check that rows are what the task takes; returns texts, or tuples of two texts.

    Raises:
        InputError: a row is not one text (single-text task) or two texts (pair task), or not valid Unicode.
    """
    if isinstance(texts, str):
        raise InputError("the texts are one string, not a list", given="str", remedy='give a list: ["..."]')
    width = 2 if task.is_pair else 1
    columns = f"two texts a row ({task.text}, {task.text_pair})" if task.is_pair else f"one text a row ({task.text})"
    rows: list[Text] = []
    for number, row in enumerate(texts):
        parts = (row,) if isinstance(row, str) else tuple(row) if isinstance(row, tuple | list) else ()
        if len(parts) != width or isinstance(row, str) is task.is_pair:
            raise InputError(
                f"the task {task.name} takes {columns}",
                given=f"row {number}: {type(row).__name__} with {len(parts)} text(s)",
                remedy='give ("first text", "second text")' if task.is_pair else 'give "text"',
            )
        if not all(isinstance(part, str) and is_utf8(part) for part in parts):
            raise InputError("a text is not valid Unicode", given=f"row {number}", remedy="give str, UTF-8 encodable")
        rows.append((parts[0], parts[1]) if task.is_pair else parts[0])
    return rows
