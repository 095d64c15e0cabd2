"""Parity of an exported graph with the model that it was made from: the same rows give the same numbers.

Reads a folder that `save_pretrained` wrote, and ONNX files; writes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from kdc.common.errors import KdcError
from kdc.pipeline.graphs.onnx_graph import load_classifier
from kdc.serving.engine.providers import open_session

Feeds = dict[str, np.ndarray]
LogitsFunction = Callable[[Feeds], np.ndarray]

BATCH_SIZES = (1, 2, 7, 32)
SHORTEST_ROW = 3  # [CLS] word [SEP]


def torch_logits(model_dir: Path) -> LogitsFunction:
    """The saved torch classifier as a function from feeds to logits: the reference for parity."""
    model = load_classifier(model_dir)
    accepted = inspect.signature(model.forward).parameters

    def run(feeds: Feeds) -> np.ndarray:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value) for name, value in feeds.items() if name in accepted}
            return model(**tensors).logits.float().numpy()

    return run


def onnx_logits(path: Path, *, threads: int | None = None) -> LogitsFunction:
    """An ONNX file on the CPU as a function from feeds to logits. Feeds that are no input of the graph are left out."""
    session = open_session(lambda _: path, device="cpu", threads=threads).session
    names = {value.name for value in session.get_inputs()}

    def run(feeds: Feeds) -> np.ndarray:
        return session.run(["logits"], {name: value for name, value in feeds.items() if name in names})[0]

    return run


def parity_batches(
    rows: Sequence[Mapping[str, Sequence[int]]], *, pad_id: int, max_length: int, seed: int = 0
) -> Iterator[Feeds]:
    """Padded batches that a graph must get right: 1, 2, 7 and 32 rows, from 3 tokens to `max_length`.

    Args:
        rows: tokenised rows without padding: "input_ids" and, if the tokenizer makes them, "token_type_ids".
        pad_id: id of the padding token.
        max_length: tokens of the longest row; a row is repeated to fill it.
        seed: chooses the rows.

    Yields:
        int64 arrays (batch, sequence) by input name. Each batch size comes twice: once with its first row cut to 3
        tokens, and once with its first row stretched to `max_length`. So a batch of one row has no padding, and every
        other batch has some.
    """
    generator = np.random.default_rng(seed)
    for size in BATCH_SIZES:
        for length in (SHORTEST_ROW, max_length):
            chosen = [rows[index] for index in generator.integers(len(rows), size=size)]
            yield _pad([_resize(chosen[0], length), *chosen[1:]], pad_id)


def check_parity(
    run: LogitsFunction,
    reference: LogitsFunction,
    batches: Iterable[Feeds],
    *,
    tolerance: float = 1e-4,
) -> float:
    """Compare two functions from feeds to logits (or to probabilities) on every batch.

    Args:
        run: the function that is checked.
        reference: the function that it must equal.
        batches: feeds, see `parity_batches`.
        tolerance: largest absolute difference that is allowed, times the largest absolute reference value where that
            exceeds 1.

    Returns:
        The largest absolute difference.

    Raises:
        KdcError: a difference above the tolerance, a NaN, outputs of another shape, or no batch at all.
    """
    worst, shapes = 0.0, []
    for feeds in batches:
        expected, actual = reference(feeds), run(feeds)
        shapes.append(feeds["input_ids"].shape)
        if actual.shape != expected.shape:
            raise KdcError(
                "the graph gives outputs of another shape than the model",
                given=f"{actual.shape}, expected {expected.shape}",
            )
        difference = float(np.abs(actual - expected).max())
        allowed = tolerance * max(1.0, float(np.abs(expected).max()))
        if not difference <= allowed:  # also catches NaN
            raise KdcError(
                "the graph does not compute what the model does",
                given=f"difference {difference:.3g} at (batch, sequence) {shapes[-1]}, allowed {allowed:.3g}",
                remedy="try the other exporter: `--set export.exporter=torch` or `optimum`",
            )
        worst = max(worst, difference)
    if not shapes:
        raise KdcError("parity was checked on no batch", remedy="give at least one tokenised row")
    return worst


def _resize(row: Mapping[str, Sequence[int]], length: int) -> dict[str, list[int]]:
    """The row cut or repeated to `length` tokens."""
    return {name: list(np.resize(row[name], length)) for name in ("input_ids", "token_type_ids") if name in row}


def _pad(rows: Sequence[Mapping[str, Sequence[int]]], pad_id: int) -> Feeds:
    longest = max(len(row["input_ids"]) for row in rows)
    fillers = {"input_ids": pad_id} | ({"token_type_ids": 0} if "token_type_ids" in rows[0] else {})
    feeds = {name: np.full((len(rows), longest), filler, dtype=np.int64) for name, filler in fillers.items()}
    feeds["attention_mask"] = np.zeros((len(rows), longest), dtype=np.int64)
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        feeds["attention_mask"][number, :length] = 1
        for name in fillers:
            feeds[name][number, :length] = row[name]
    return feeds
