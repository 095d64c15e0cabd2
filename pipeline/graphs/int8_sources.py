"""What int8 candidates are made from: the fp32 graph as exported or smoothed, with the ranges of its activations.

Reads the fp32 graph and tokenised training rows; writes the smoothed graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from kdc.pipeline.graphs.int8 import Candidate
from kdc.pipeline.graphs.layers import activations
from kdc.pipeline.graphs.parity import Feeds
from kdc.pipeline.graphs.ranges import Ranges, calibration_batches, collect_ranges
from kdc.pipeline.graphs.smoothing import largest_by_channel, smooth


class TokenRows(Protocol):
    """Tokenised rows by position, such as a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Sequence[int]]: ...


@dataclass(frozen=True)
class Source:
    """A graph to quantise, and the ranges of its activations."""

    file: Path
    ranges: Ranges


def sample_batches(tokens: TokenRows, input_names: Sequence[str], *, rows: int, seed: int) -> list[Feeds]:
    """Draw rows at random, and put those of equal length together, so that no batch has padding.

    Args:
        tokens: of the training split: "input_ids" and, if the tokenizer makes them, "token_type_ids".
        input_names: the graph's inputs.
        rows: how many to draw; all where there are fewer.
        seed: of the draw.
    """
    chosen = np.random.default_rng(seed).permutation(len(tokens))[:rows]
    return list(calibration_batches([tokens[int(index)] for index in chosen], input_names))


def plain_source(fp32_file: Path, batches: Sequence[Feeds]) -> Source:
    """The graph as exported, calibrated on `batches`."""
    return Source(fp32_file, collect_ranges(fp32_file, activations(fp32_file), batches))


def smoothed_source(fp32_file: Path, batches: Sequence[Feeds], out: Path) -> Source:
    """The same graph with outliers of its activations moved into the weights (`smoothing.py`), written to `out`."""
    smooth(fp32_file, out, largest_by_channel(fp32_file, batches))
    return plain_source(out, batches)


@dataclass(frozen=True)
class Sources:
    """The sources of all candidates of one graph; each is made when the first candidate asks for it.

    Attributes:
        fp32_file: the graph as exported.
        batches: calibration rows, see `sample_batches`.
        smoothed_file: where the smoothed graph is written.
    """

    fp32_file: Path
    batches: Sequence[Feeds]
    smoothed_file: Path

    def of(self, candidate: Candidate) -> Source:
        """What a candidate is made from.

        Raises:
            KdcError: the graph cannot be calibrated.
        """
        return self._smoothed if candidate.smooth else self._plain

    @cached_property
    def _plain(self) -> Source:
        return plain_source(self.fp32_file, self.batches)

    @cached_property
    def _smoothed(self) -> Source:
        return smoothed_source(self.fp32_file, self.batches, self.smoothed_file)
