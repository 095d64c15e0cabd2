"""Baselines: linear models of every kind of task, beside what scikit-learn itself answers."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_runs import base_model
from transformers import AutoModel, AutoTokenizer

from kdc.pipeline.config.tasks import Task, custom_task
from kdc.pipeline.training import predict as predict_module
from kdc.pipeline.training.baselines import Encoder, Sample, fit, fit_probe, fit_tfidf, majority
from kdc.pipeline.training.environment import Environment

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(200, 6)).astype(np.float32)


def task_of(kind: Any, *labels: str, pair: bool = False, **changes: Any) -> Task:
    task = custom_task("own", "text", "text_pair" if pair else None, "label", kind, labels)
    return task.model_copy(update=changes)


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_are_answered_as_logistic_regression_answers_them(classes: int) -> None:
    labels = (FEATURES[:, :classes] + RANDOM.normal(size=(200, classes))).argmax(1)
    logits = fit(FEATURES, labels, task_of("classification", *"abc"[:classes]), 1.0)(FEATURES)
    oracle = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(FEATURES, labels).predict_proba(FEATURES)
    assert torch.softmax(torch.from_numpy(logits), -1).numpy() == pytest.approx(oracle, abs=2e-3)


def test_words_weighted_by_tf_idf_are_fitted_to_the_end() -> None:
    """Catches a solver that stops where the gradient is small, as it is for such features from the start: TF-IDF lost
    5.6 points on SST-2 by it, so that a teacher had less to beat."""
    words = np.array([f"w{place}" for place in range(600)])
    chance = 1 / np.arange(1, 601) / np.sum(1 / np.arange(1, 601))
    texts = [" ".join(RANDOM.choice(words, size=9, p=chance)) for _ in range(1500)]
    features = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    labels = (features @ RANDOM.normal(size=features.shape[1]) + 0.3 * RANDOM.normal(size=1500) > 0).astype(int)
    logits = fit(features, labels, task_of("classification", "a", "b"), 10.0)(features)
    oracle = LogisticRegression(C=10.0, max_iter=5000, tol=1e-9).fit(features, labels).decision_function(features)
    error = (logits[:, 1] - logits[:, 0]) - oracle
    assert np.sqrt((error**2).mean()) < 0.05 * oracle.std()


def test_a_label_that_no_row_has_is_never_answered() -> None:
    # 20,000 rows of millions may miss a rare class; the columns of the others must not move.
    labels = np.where(FEATURES[:, 0] > 0, 3, 1)
    logits = fit(FEATURES, labels, task_of("classification", *"abcd"), 1.0)(FEATURES)
    assert set(logits.argmax(1)) == {1, 3}
    assert (logits.argmax(1) == labels).mean() > 0.95


def test_each_label_of_a_multilabel_task_has_a_model_of_its_own() -> None:
    hot = (FEATURES[:, :3] > 0).astype(np.float32)
    hot[:, 2] = 0.0  # no row has it
    logits = fit(FEATURES, hot, task_of("multilabel", *"abc"), 1.0)(FEATURES)
    for place in (0, 1):
        oracle = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(FEATURES, hot[:, place])
        own = torch.sigmoid(torch.from_numpy(logits[:, place])).numpy()
        assert own == pytest.approx(oracle.predict_proba(FEATURES)[:, 1], abs=2e-3)
    assert (logits[:, 2] < 0).all()


def test_regression_answers_in_the_trainings_unit() -> None:
    labels = 50 + 10 * FEATURES[:, 0]
    task = task_of("regression", center=50.0, spread=10.0)
    assert fit(FEATURES, labels, task, 1e6)(FEATURES)[:, 0] == pytest.approx(FEATURES[:, 0], abs=1e-3)
    assert (majority(labels, 5, task) == 0).all()  # the mean


def test_the_majority_is_that_of_the_training_rows() -> None:
    logits = majority(np.array([2, 2, 0]), 4, task_of("classification", *"abc"))
    assert logits.argmax(1).tolist() == [2, 2, 2, 2]
    hot = majority(np.array([[1, 0], [1, 0], [0, 1]]), 2, task_of("multilabel", "a", "b"))
    assert (hot > 0).tolist() == [[True, False]] * 2


def sample(texts: list[str], labels: list[int], pairs: list[str] | None = None, tokens: Any = None) -> Sample:
    columns: dict[str, Any] = {"text": texts} | ({"text_pair": pairs} if pairs else {}) | {"label": labels}
    return Sample.of(datasets.Dataset.from_dict(columns), tokens)


def test_tfidf_reads_both_texts_of_a_pair_apart() -> None:
    # The label is whether the first text holds "yes"; the second one is full of it.
    texts = ["yes a", "no a", "yes b", "no b"] * 5
    train = sample(texts, [1, 0, 1, 0] * 5, ["yes yes", "yes", "no", "yes no"] * 5)
    fitted = fit_tfidf(train, train, task_of("classification", "n", "y", pair=True))
    assert fitted.tune.argmax(1).tolist() == [1, 0, 1, 0] * 5


def test_texts_without_words_are_answered() -> None:
    train = sample(["!!!", "???"] * 4, [0, 1] * 4)
    assert fit_tfidf(train, train, task_of("classification", "a", "b")).tune.shape == (8, 2)


def test_tfidf_reads_characters_of_a_script_without_spaces() -> None:
    """Would catch: a Japanese sentence that is one word, which no other row has."""
    fillers = ["".join(RANDOM.choice(list("映画音楽時間場所人物"), size=12)) for _ in range(80)]
    texts = [f"{filler[:6]}{'面白' if place % 2 else '退屈'}{filler[6:]}" for place, filler in enumerate(fillers)]
    labels = [place % 2 for place in range(80)]
    train, tune = sample(texts[:40], labels[:40]), sample(texts[40:], labels[40:])
    fitted = fit_tfidf(train, tune, task_of("classification", "dull", "good"))
    assert np.mean(fitted.tune.argmax(1) == labels[40:]) > 0.9


def test_tfidf_reads_words_where_these_are_better_on_the_tuning_rows() -> None:
    # Pairs of words tell the labels apart; characters within words do not.
    rows = sample(["not good but bad", "not bad but good"] * 20, [0, 1] * 20)
    task = task_of("classification", "a", "b")
    assert fit_tfidf(rows, rows, task, ["characters"]).score < fit_tfidf(rows, rows, task).score == 100


@pytest.mark.parametrize("apart", [False, True])
def test_the_probe_reads_the_mean_of_the_token_vectors(tmp_path: Path, apart: bool) -> None:
    source = base_model("bert", tmp_path / "model")
    tokenizer, encoder = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()
    first = [" ".join(f"w{number}" for number in RANDOM.integers(1, 60, size=1 + place % 7)) for place in range(20)]
    first = [first[place] for place in RANDOM.integers(20, size=60)]  # texts that occur again are encoded once
    second = [" ".join(f"w{number}" for number in RANDOM.integers(1, 60, size=3)) for _ in range(60)]
    encoded = dict(tokenizer(first, second, return_attention_mask=False))
    lengths = [len(ids) for ids in encoded["input_ids"]]
    tokens = datasets.Dataset.from_dict({**encoded, "row": list(range(60)), "length": lengths})
    train = sample(first, [place % 2 for place in range(60)], second, tokens)
    task = task_of("classification", "a", "b", pair=True)
    probe = Encoder(str(source), task, environment=Environment(seed=0), max_length=64)

    def mean(*texts: str) -> np.ndarray:
        with torch.inference_mode():
            return encoder(**tokenizer(*texts, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()

    if apart:
        halves = [(mean(one), mean(other)) for one, other in zip(first, second, strict=True)]
        oracle = np.stack([np.concatenate([u, v, u * v, abs(u - v)]) for u, v in halves])
    else:
        oracle = np.stack([mean(one, other) for one, other in zip(first, second, strict=True)])
    assert probe.vectors(train.rows, train.tokens, apart=apart) == pytest.approx(oracle, abs=1e-5)
    # Its head takes the vectors as they are: what it scaled them by is in its weights.
    fitted = fit_probe(probe, train, train, task, apart=apart)
    answers = torch.softmax(torch.from_numpy(fitted.tune), -1).numpy()
    by_sklearn = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-8)).fit(
            oracle, train.labels
        )
        for strength in (0.01, 0.1, 1.0)
    ]
    assert min(np.abs(answers - model.predict_proba(oracle)).max() for model in by_sklearn) < 0.01
    assert fitted.tune == pytest.approx(oracle @ fitted.model.weight.T + fitted.model.bias, abs=1e-4)
    assert fitted.answer(train.rows, train.tokens) == pytest.approx(fitted.tune, abs=1e-5)


@pytest.mark.parametrize("apart", [False, True])
def test_rows_that_were_kept_are_not_encoded_again(
    tmp_path: Path, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = base_model("bert", tmp_path / "model")
    first, second = ([f"w{3 * place + start} w{place + 1}" for place in range(12)] for start in (1, 2))
    encoded = dict(AutoTokenizer.from_pretrained(source)(first, second, return_attention_mask=False))
    lengths = [len(ids) for ids in encoded["input_ids"]]
    rows = datasets.Dataset.from_dict({"text": first, "text_pair": second})
    tokens = datasets.Dataset.from_dict({**encoded, "row": list(range(100, 112)), "length": lengths})
    counted = list[int]()

    def predict(model: Any, rows: Any, *, pad_id: int) -> np.ndarray:
        counted.append(len(rows))
        return predict_module.predict(model, rows, pad_id=pad_id)

    monkeypatch.setattr("kdc.pipeline.training.baselines.predict", predict)
    task = task_of("classification", "a", "b", pair=True)
    encoder = Encoder(str(source), task, environment=Environment(seed=0), max_length=64)
    whole = encoder.vectors(rows, tokens, apart=apart)  # keeps nothing: an evaluation split may have millions of rows
    some = [7, 2, 9]
    encoder.vectors(rows.select(some), tokens.select(some), apart=apart, keep=True)
    again = encoder.vectors(rows, tokens, apart=apart, keep=True)
    assert encoder.vectors(rows, tokens, apart=apart, keep=True) == pytest.approx(again, abs=0)
    assert again == pytest.approx(whole, abs=1e-5)
    assert sum(counted) == (2 if apart else 1) * (12 + 12)


def test_a_feature_that_is_nearly_constant_gets_no_huge_weight() -> None:
    # all-MiniLM has three such features. Their weights were a thousand times as large as all others, and a model with
    # that head lost a third of its labels in int8.
    labels = RANDOM.integers(2, size=200)
    vectors = RANDOM.normal(size=(200, 8)).astype(np.float32)
    vectors[:, 0] += labels
    vectors[:, 3] = 1e-5 * (labels + RANDOM.normal(size=200))

    class Vectors:
        def vectors(self, rows: Any, tokens: Any, **how: bool) -> np.ndarray:
            return vectors

    rows = sample([""] * 200, labels.tolist())
    encoder: Any = Vectors()
    weights = np.abs(fit_probe(encoder, rows, rows, task_of("classification", "a", "b")).model.weight[1])
    assert weights[3] < 10 * np.median(weights)
