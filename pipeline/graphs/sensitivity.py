"""Which linear layers lose most by 8 bits, found by measuring: each group of layers that reads the same tensor is taken
back to fp32, and the accuracy that this gains is divided by the time that it costs.

Reads the fp32 graph and rows; writes nothing that stays.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from kdc.common.errors import KdcError
from kdc.pipeline.graphs.int8 import Candidate, quantise
from kdc.pipeline.graphs.layers import linear_layers, readers
from kdc.pipeline.graphs.nodes import float_matrices
from kdc.pipeline.graphs.parity import Feeds, onnx_logits
from kdc.pipeline.graphs.ranges import Ranges


def layers_by_worth(
    onnx_path: Path, candidate: Candidate, ranges: Ranges, batches: Sequence[Feeds]
) -> list[frozenset[str]]:
    """Groups of linear layers that gain by fp32, the group first that removes most error for the time that it costs.

    The error is the mean square of the change of the logits by quantising. A group's gain is the error of the candidate
    minus the error of the same candidate with this group in fp32. Its cost is the number of its multiplications for
    each token: the size of its weights.

    Args:
        onnx_path: the fp32 graph that the candidate is made from.
        candidate: how the layers are quantised.
        ranges: of that graph's activations.
        batches: rows to measure on.

    Returns:
        Names of nodes, by group.
    """
    graph = onnx.load(onnx_path).graph
    sizes = {name: math.prod(tensor.dims) for name, tensor in float_matrices(graph).items()}
    fp32 = onnx_logits(onnx_path)
    expected = [fp32(feeds) for feeds in batches]

    def error(keep: frozenset[str]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "int8.onnx"
            quantise(onnx_path, file, replace(candidate, keep=candidate.keep | keep), ranges)
            answer = onnx_logits(file)
            squares = [(answer(feeds) - logits) ** 2 for feeds, logits in zip(batches, expected, strict=True)]
        return float(np.concatenate(squares).mean())

    before = error(frozenset())
    worth: dict[frozenset[str], float] = {}
    for nodes in readers(linear_layers(graph)).values():
        names = frozenset(node.name for node in nodes)
        try:
            gain = before - error(names)
        except KdcError:  # without this group nothing is left to quantise
            continue
        if gain > 0:
            worth[names] = gain / sum(sizes[node.input[1]] for node in nodes)
    return sorted(worth, key=lambda names: worth[names], reverse=True)
