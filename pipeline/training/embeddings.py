"""Token embeddings of which only those are trained that the training rows hold.

An encoder has vectors for 30,000 to 250,000 tokens, and a task's rows hold some thousand of them. All others get the
gradient 0 at every step, and torch nevertheless writes it, adds it up for the clipping of gradients, and moves two
moments and the weight by it. Here the vectors that are met are one weight, and all others stay as they are: what is
trained is the same, but for the weight decay of tokens that no row holds.
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
    """An embedding over an `nn.Embedding`, whose weight holds the vectors of some of its tokens alone.

    Args:
        whole: the embedding, whose weight is not changed before `put_back`.
        met: (tokens,) the ids of the tokens whose vectors are trained.
    """

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
    """Train only the vectors of tokens that the rows hold, for as long as the context lasts. A model whose embedding is
    not trained, or is not torch's own, is left as it is."""
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
    """The ids of the tokens, of so many that the embedding knows, that rows hold, in order."""
    seen = np.zeros(tokens, dtype=bool)
    for part in rows.parts:
        for chunk in part.with_format("arrow").iter(_CHUNK):
            seen[pyarrow.compute.list_flatten(chunk["input_ids"]).to_numpy()] = True
    return np.flatnonzero(seen)
