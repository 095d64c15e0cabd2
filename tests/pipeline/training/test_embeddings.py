"""Only the vectors of tokens that the training rows hold are trained: the same training, and the model as it was."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, set_seed

from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.config.training_settings import TrainSettings
from kdc.pipeline.training import loop
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.embeddings import MetEmbedding, only_met_tokens, tokens_of
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.predict import predict

MET, TOKENS = 40, 70  # the training rows hold tokens below 40; the tuning set holds all
NAME = "bert.embeddings.word_embeddings.weight"
TASK = custom_task("toy", "text", None, "label", "classification", ("a", "b"))


def make_rows(count: int, below: int, seed: int) -> Rows:
    random = np.random.default_rng(seed)
    ids = [random.integers(5, below, size=random.integers(3, 12)).tolist() for _ in range(count)]
    columns = {"row": list(range(count)), "input_ids": ids, "length": [len(row) for row in ids]}
    return Rows([datasets.Dataset.from_dict({**columns, "label": random.integers(2, size=count).tolist()})])


def tiny() -> BertForSequenceClassification:
    set_seed(1)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return BertForSequenceClassification(BertConfig(vocab_size=TOKENS, max_position_embeddings=32, **sizes))


def trained(folder: Path, weight_decay: float = 0.0) -> BertForSequenceClassification:
    model = tiny()
    settings = TrainSettings(batch_size=8, learning_rate=3e-3, weight_decay=weight_decay)
    loop.train(
        model,
        make_rows(60, MET, 0),
        make_rows(40, TOKENS, 1),
        pad_id=0,
        objective=loop.Objective(TASK),
        plan=loop.Plan(settings, Environment(seed=5, bf16=False), steps=12, evaluate_every=4),
        folder=folder,
    )
    return model


def test_the_training_is_the_same_as_that_of_all_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bugs to catch: a vector at another token's place, and a model that leaves the training without its embedding.
    made = trained(tmp_path / "met")
    monkeypatch.setattr(loop, "only_met_tokens", lambda model, rows: nullcontext())
    oracle = trained(tmp_path / "all")
    for (name, weight), (other, expected) in zip(made.named_parameters(), oracle.named_parameters(), strict=True):
        assert name == other
        assert weight.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-6), name


def test_tokens_that_no_row_holds_stay_as_they_are(tmp_path: Path) -> None:
    before, after = (model.state_dict()[NAME] for model in (tiny(), trained(tmp_path, 0.5)))
    held = set(tokens_of(make_rows(60, MET, 0)).tolist())
    moved = {token for token in range(TOKENS) if not torch.equal(before[token], after[token])}
    assert moved == held
    assert held <= set(range(5, MET))


def test_tokens_that_are_not_trained_are_read_all_the_same() -> None:
    model, rows, others = tiny(), make_rows(60, MET, 0), make_rows(40, TOKENS, 1)
    before = predict(model, others, pad_id=0)
    with only_met_tokens(model, rows):
        assert predict(model, others, pad_id=0) == pytest.approx(before, abs=1e-6)


def test_a_checkpoint_holds_only_the_vectors_that_are_trained() -> None:
    model, rows = tiny(), make_rows(60, MET, 0)
    with only_met_tokens(model, rows):
        shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        assert isinstance(model.get_input_embeddings(), MetEmbedding)
        assert [shape for name, shape in shapes.items() if "word_embeddings" in name] == [(len(tokens_of(rows)), 16)]
    assert type(model.get_input_embeddings()) is torch.nn.Embedding


def test_an_embedding_that_is_not_trained_is_left_alone() -> None:
    model: Any = tiny()
    model.get_input_embeddings().weight.requires_grad_(False)
    with only_met_tokens(model, make_rows(9, MET, 0)):
        assert type(model.get_input_embeddings()) is torch.nn.Embedding


def test_the_tokens_of_all_parts_count_in_the_order_that_selects_them() -> None:
    # A selected part keeps all rows on the disk: only those that are selected count.
    first, second = (
        datasets.Dataset.from_dict({"input_ids": ids, "length": [1] * len(ids)}) for ids in ([[1, 2], [9]], [[4]])
    )
    rows = Rows([first.select([0]), second])
    assert tokens_of(rows).tolist() == [1, 2, 4]
