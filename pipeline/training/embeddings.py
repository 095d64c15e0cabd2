"""Train only the token embeddings that training rows use. The others would only decay."""

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


class MetEmbedding(nn.Module):
    """Trains the token ids `met` (tokens,); the embedding changes only in `put_back`."""

    _whole: nn.Embedding
    _ids: torch.Tensor

    def __init__(self, whole: nn.Embedding, met: NDArray[np.integer]) -> None:
        super().__init__()
        ids = torch.from_numpy(met).to(whole.weight.device)
        self.weight = nn.Parameter(whole.weight.detach()[ids])
        # Unregistered: neither checkpoints nor other processes need frozen vectors.
        self.__dict__.update(_whole=whole, _ids=ids)
        self._places = torch.full((whole.num_embeddings,), -1, device=ids.device)
        self._places[ids] = torch.arange(len(ids), device=ids.device)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        places = self._places[input]
        vectors = functional.embedding(places.clamp(min=0), self.weight)
        return torch.where((places >= 0).unsqueeze(-1), vectors, self._whole.weight.detach()[input])

    def put_back(self) -> nn.Embedding:
        with torch.no_grad():
            self._whole.weight[self._ids] = self.weight
        return self._whole


@contextmanager
def only_met_tokens(model: Any, rows: Rows) -> Iterator[None]:
    """Replace the token embedding, unless it is frozen or a custom class."""
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or not embedding.weight.requires_grad:
        yield
        return
    met = MetEmbedding(embedding, tokens_of(rows))
    model.set_input_embeddings(met)
    try:
        yield
    finally:
        model.set_input_embeddings(met.put_back())


def tokens_of(rows: Rows) -> NDArray[np.integer]:
    ids = pyarrow.compute.list_flatten(rows.dataset.with_format("arrow")[:]["input_ids"])
    return np.sort(pyarrow.compute.unique(ids).to_numpy())
