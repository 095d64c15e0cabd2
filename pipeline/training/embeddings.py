"""Token embeddings of which only those are trained that the training rows hold.

An encoder has vectors for 30,000 to 250,000 tokens, and a task's rows hold some thousand of them. Torch would compute a
gradient of 0, two moments and an update for all others at every step. Here the vectors of the rows' tokens are one
weight, and all others stay as they are. Only the weight decay of tokens that no row holds is left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from kdc.pipeline.training.batches import Rows

_CHUNK = 10_000  # rows that are read at a time to see what tokens they hold


class MetEmbedding(nn.Module):
    """An embedding over a `whole` one, whose weight is not changed before `put_back`. It trains the vectors of some of
    its tokens alone, `met` (tokens,)."""

    _whole: nn.Embedding
    _ids: torch.Tensor

    def __init__(self, whole: nn.Embedding, met: NDArray[np.integer]) -> None:
        super().__init__()
        ids = torch.from_numpy(met).to(whole.weight.device)
        self.weight = nn.Parameter(whole.weight.detach()[ids])
        # Past `nn.Module`, which would register them: neither checkpoints nor other processes need what never changes.
        self.__dict__.update(_whole=whole, _ids=ids)
        self._places = torch.full((whole.num_embeddings,), -1, device=ids.device)
        self._places[ids] = torch.arange(len(ids), device=ids.device)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Vectors (rows, tokens, width) of token ids (rows, tokens)."""
        places = self._places[input]
        vectors = functional.embedding(places.clamp(min=0), self.weight)
        return torch.where((places >= 0).unsqueeze(-1), vectors, self._whole.weight.detach()[input])

    def put_back(self) -> nn.Embedding:
        """The embedding that this one stands for, with what was trained."""
        with torch.no_grad():
            self._whole.weight[self._ids] = self.weight
        return self._whole


@contextmanager
def only_met_tokens(model: Any, rows: Rows) -> Iterator[None]:
    """Train only the vectors of tokens that the rows hold, while the context lasts. Nothing changes for a model with
    frozen vectors, or an embedding that is not torch's own."""
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or not embedding.weight.requires_grad:
        yield
        return
    met = MetEmbedding(embedding, tokens_of(rows, embedding.num_embeddings))
    model.set_input_embeddings(met)
    try:
        yield
    finally:
        model.set_input_embeddings(met.put_back())


def tokens_of(rows: Rows, tokens: int) -> NDArray[np.integer]:
    """The ids of the tokens that rows hold, in order, out of so many `tokens`."""
    seen = np.zeros(tokens, dtype=bool)
    for part in rows.parts:
        for chunk in part.with_format("arrow").iter(_CHUNK):
            seen[pyarrow.compute.list_flatten(chunk["input_ids"]).to_numpy()] = True
    return np.flatnonzero(seen)
