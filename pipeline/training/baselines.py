"""Cheap baselines: TF-IDF and a linear probe on the teacher's untrained encoder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.models import loading
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.environment import Environment, answering, settle
from kdc.pipeline.training.joining import set_join
from kdc.pipeline.training.predict import predict

# scikit-learn's C
_TFIDF_STRENGTHS = (1.0, 10.0)
_PROBE_STRENGTHS = (0.01, 0.1, 1.0)
_MOST_FEATURES = 100_000  # of TF-IDF, for each text column
# Characters serve scripts without spaces: a Japanese sentence is one word.
_TFIDF_FORMS: dict[str, dict[str, Any]] = {
    "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    "characters": {"ngram_range": (1, 4), "analyzer": "char_wb"},
}
_LEAST_SPREAD = 0.01  # share of the median
_TOLERANCE = 1e-4
_NEVER = -30.0  # logit of absent labels

Logits = NDArray[np.float32]  # (rows, outputs)


@dataclass(frozen=True)
class Linear:
    """For regression, a model of (answer - center) / spread."""

    weight: NDArray[np.float32]  # (outputs, features)
    bias: NDArray[np.float32]  # (outputs,)

    def __call__(self, features: Any) -> Logits:
        return np.asarray(features @ self.weight.T, dtype=np.float32) + self.bias


@dataclass(frozen=True)
class Sample:
    rows: Any  # `datasets.Dataset` of texts
    tokens: Any
    labels: NDArray[np.generic]  # (rows,); multi-label: (rows, outputs) in {0, 1}

    @classmethod
    def of(cls, rows: Any, tokens: Any, positions: list[int] | None = None) -> "Sample":
        if positions is not None:
            rows, tokens = rows.select(positions), tokens.select(positions)
        return cls(rows, tokens, np.asarray(rows["label"][:]))


@dataclass(frozen=True)
class Fitted:
    model: Linear
    answer: Callable[[Any, Any], Logits]  # (rows, tokens) -> logits
    tune: Logits  # on the tuning set
    score: float  # first metric


def fit_tfidf(train: Sample, tune: Sample, task: Task, forms: Iterable[str] = _TFIDF_FORMS) -> Fitted:
    """TF-IDF of words or of characters, chosen on the tuning set."""
    return max((_fit_tfidf(train, tune, task, form) for form in forms), key=lambda fitted: fitted.score)


def _fit_tfidf(train: Sample, tune: Sample, task: Task, form: str) -> Fitted:
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizers = []
    for texts in _columns(train.rows):
        vectorizer = TfidfVectorizer(
            sublinear_tf=True, max_features=_MOST_FEATURES, dtype=np.float32, **_TFIDF_FORMS[form]
        )
        try:
            vectorizers.append(vectorizer.fit(texts))
        except ValueError:  # no words
            vectorizers.append(vectorizer.fit(["none"]))

    def vectors(rows: Any) -> Any:
        of_texts = [vectorizer.transform(texts) for vectorizer, texts in zip(vectorizers, _columns(rows), strict=True)]
        return hstack(of_texts).tocsr()

    model, answers, score = best_fit(train, vectors(train.rows), tune, vectors(tune.rows), task, _TFIDF_STRENGTHS)
    return Fitted(model, lambda rows, tokens: model(vectors(rows)), answers, score)


def _columns(rows: Any) -> list[list[str]]:
    return [list(rows[name][:]) for name in ("text", "text_pair") if name in rows.column_names]


class Encoder:
    """The untrained encoder, mean-pooled. With `bf16=None` it computes in fp32 until `settle` chooses."""

    def __init__(self, source: str, task: Task, *, environment: Environment, max_length: int, prefix: str = "") -> None:
        import torch

        self.environment = environment
        self.model = loading.load_model(source, task, pooling="mean").model.to(environment.device)
        self.model.classifier = torch.nn.Identity()
        self.model.config.problem_type = "regression"
        set_join(self.model, ("mean",))  # for rows in windows
        self.tokenizer = loading.load_tokenizer(source, prefix)
        self.max_length = max_length
        self._of_rows: dict[int, Logits] = {}
        self._of_texts: dict[str, Logits] = {}

    def settle(self, tokens: Any) -> None:
        pad_id = self.tokenizer.pad_token_id
        self.environment = settle(self.environment, self.model, Rows([tokens]), pad_id=pad_id, trains=False)

    def forget(self) -> None:
        self._of_rows.clear()
        self._of_texts.clear()

    def vectors(self, rows: Any, tokens: Any, *, apart: bool, keep: bool = False) -> NDArray[np.float32]:
        """Vectors (rows, features), cached if `keep`.

        `apart` gives a pair's two vectors, their product and absolute difference (Conneau et al. 2017, arXiv
        1705.02364, section 3.1).
        """
        if not apart:
            if not keep:
                return self._encode(tokens)
            return _of_each(tokens["row"][:], self._of_rows, lambda _, new: self._encode(tokens.select(new)))
        of_texts = self._of_texts if keep else {}
        first, second = (
            _of_each(texts, of_texts, lambda new, _: self._encode(self._tokens(new))) for texts in _columns(rows)
        )
        return np.concatenate([first, second, first * second, np.abs(first - second)], axis=1)

    def _encode(self, tokens: Any) -> NDArray[np.float32]:
        with answering(self.environment):
            return predict(self.model, Rows([tokens]), pad_id=self.tokenizer.pad_token_id)

    def _tokens(self, texts: list[str]) -> Any:
        import datasets

        encoded = dict(self.tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False))
        lengths = [len(ids) for ids in encoded["input_ids"]]
        return datasets.Dataset.from_dict({**encoded, "row": list(range(len(texts))), "length": lengths})


def _of_each(keys: Sequence[Any], known: dict[Any, Logits], encode: Callable[[list[Any], list[int]], Logits]) -> Logits:
    positions = {key: position for position, key in enumerate(keys) if key not in known}
    if positions:
        known |= zip(positions, encode(list(positions), list(positions.values())), strict=True)
    return np.stack([known[key] for key in keys])


def fit_probe(encoder: Encoder, train: Sample, tune: Sample, task: Task, *, apart: bool = False) -> Fitted:
    """A linear model on a frozen encoder (Alain and Bengio 2016, arXiv 1610.01644).

    Nearly constant features are not scaled up: int8, with one scale per row, would round the others to zero.
    """
    vectors = encoder.vectors(train.rows, train.tokens, apart=apart, keep=True)
    mean, spread = vectors.mean(0), vectors.std(0)
    spread = np.maximum(spread, max(_LEAST_SPREAD * np.median(spread), 1e-6))
    tuned = encoder.vectors(tune.rows, tune.tokens, apart=apart, keep=True)
    features, tune_features = ((each - mean) / spread for each in (vectors, tuned))
    scaled, _, score = best_fit(train, features, tune, tune_features, task, _PROBE_STRENGTHS)
    weight = scaled.weight / spread  # the head reads unscaled vectors
    model = Linear(weight, scaled.bias - weight @ mean)
    return Fitted(model, lambda rows, tokens: model(encoder.vectors(rows, tokens, apart=apart)), model(tuned), score)


def with_head(model: Any, head: Linear) -> Any:
    import torch

    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head.weight))
        model.classifier.bias.copy_(torch.from_numpy(head.bias))
    return model


def best_fit(
    train: Sample, features: Any, tune: Sample, tune_features: Any, task: Task, strengths: Iterable[float]
) -> tuple[Linear, Logits, float]:
    """The model that scores best on the tuning set by the first metric, its logits and its score."""
    metric, tried = task.metrics[0], []
    for strength in strengths:
        model = fit(features, train.labels, task, strength)
        answers = model(tune_features)
        tried.append((model, answers, metrics.compute(answers, tune.labels, task.kind, (metric,))[metric]))
    return max(tried, key=lambda fitted: fitted[2])


def fit(features: Any, labels: NDArray[np.generic], task: Task, strength: float) -> Linear:
    """Logistic regression, or ridge regression on standardised labels.

    Args:
        features: (rows, features), dense or sparse.
        strength: scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    if not task.traits.has_labels:
        ridge = Ridge(alpha=1 / strength).fit(features, (labels.astype(np.float64) - task.center) / task.spread)
        return Linear(ridge.coef_[None].astype(np.float32), np.array([ridge.intercept_], dtype=np.float32))
    if task.traits.has_lists:
        two = task.model_copy(update={"kind": "classification", "labels": ("no", "yes")})
        parts = [fit(features, column.astype(np.int64), two, strength) for column in labels.T]
        weights, biases = np.stack([part.weight for part in parts]), np.stack([part.bias for part in parts])
        return Linear(weights[:, 1] - weights[:, 0], biases[:, 1] - biases[:, 0])
    weight = np.zeros((task.outputs, features.shape[1]), dtype=np.float32)
    bias = np.full(task.outputs, _NEVER, dtype=np.float32)
    present = np.unique(labels.astype(np.int64))
    if len(present) == 1:
        bias[present] = 0.0
        return Linear(weight, bias)
    # TF-IDF gradients start small: a tolerance of 1e-3 cost 5.6 points on SST-2.
    logistic = LogisticRegression(C=strength, max_iter=1000, tol=_TOLERANCE).fit(features, labels)
    if len(present) == 2:  # two classes share one output
        weight[present], bias[present] = np.array([[-0.5], [0.5]]) * logistic.coef_, [-0.5, 0.5] * logistic.intercept_
    else:
        weight[present], bias[present] = logistic.coef_, logistic.intercept_
    return Linear(weight, bias)


def majority(labels: NDArray[np.generic], rows: int, task: Task) -> Logits:
    """Logits (rows, outputs) that always give the majority label or the mean."""
    if not task.traits.has_labels:
        return np.zeros((rows, 1), dtype=np.float32)
    label = task.traits.majority(labels.astype(np.int64))
    logits = 2 * label - 1 if task.traits.has_lists else np.arange(task.outputs) == label
    return np.tile(logits.astype(np.float32), (rows, 1))
