"""Prometheus metrics over all workers, which write into `PROMETHEUS_MULTIPROC_DIR`.

Labels take few values, whatever clients send. `kdc_predictions` counts rows by label: a multi-label row under each of
its labels, an abstention as `abstained`.
"""

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from kdc.artifact.decision import ABSTAINED
from kdc.artifact.manifest import Manifest
from kdc.serving.engine.deciding import label_counts
from kdc.serving.http import patches
from kdc.serving.http.model import SECOND, Answer, Model
from kdc.serving.http.queue import BatchReport
from kdc.serving.upstream.record import Standing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FRESH_S = 1.0  # the text is kept: anyone may ask
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Most characters of a model's label names: the largest manifest fits twice. Series outlive reloads.
_MOST_NAMES, _A_NAME = 4 << 20, 100  # the latter is added for each name
OTHER = "other"  # stands for all further labels
Ended = Literal["refused", "idle", "unread"]

log = logging.getLogger("kdc.serve")


def _counts(method: Callable[..., None]) -> Callable[..., None]:

    @functools.wraps(method)
    def counting(self: "Metrics", *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except (OSError, ValueError, IndexError) as error:  # the latter two: a file could not grow
            if not self.incomplete:
                log.error("the metrics are incomplete from now on: %s", error)
            self.incomplete = True

    return counting


class Metrics(Collector):
    def __init__(self) -> None:
        patches.allocate_metrics()
        self.incomplete = False  # a count was lost, as on a full disk
        self.models: Mapping[str, Model] = {}  # read at each `exposition`
        self._labels: dict[str, tuple[set[str], int]] = {}  # by model: labels with series, their size
        self._told, self._told_at, self._fresh_s = b"", -math.inf, 0.0
        self._telling = threading.Lock()
        self._shared = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        try:
            self._make()
        except OSError as error:
            log.error("the metrics are of this worker alone, since they cannot be written: %s", error)
            patches.keep_metrics_in_memory()
            self._shared, self.incomplete = False, True
            self._make()
        if self._shared:
            _forget_the_dead(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
        else:
            self.registry.register(self)

    def _make(self) -> None:
        self.registry = own = CollectorRegistry()
        counter = functools.partial(Counter, registry=own)
        histogram = functools.partial(Histogram, registry=own)
        seconds = functools.partial(histogram, buckets=_SECONDS)
        gauge = functools.partial(Gauge, registry=own, multiprocess_mode="livesum")
        model = ["model"]
        self.requests = counter("kdc_requests", "Requests answered.", ["route", "status"])
        self.seconds = seconds("kdc_request_seconds", "Seconds of a request.", ["route"])
        self.queued = seconds("kdc_queue_seconds", "Seconds that a batch's oldest row waited.", model)
        self.inference = seconds("kdc_inference_seconds", "Seconds of a forward pass.", model)
        self.batch_tokens = histogram("kdc_batch_tokens", "Tokens of a pass, with padding.", model, buckets=_TOKENS)
        self.batch_rows = histogram("kdc_batch_rows", "Rows of a forward pass.", model, buckets=_ROWS)
        self.queue_tokens = gauge("kdc_queue_tokens", "Tokens that wait for a forward pass.", model)
        refused = "1 while a worker keeps the old artifact because the new one is refused, gone or unreadable."
        self.refused = gauge("kdc_artifact_refused", refused, model, multiprocess_mode="livemax")
        self.connections = gauge("kdc_connections", "Connections that are open.")
        self.ended: dict[Ended, Counter] = {
            "refused": counter("kdc_refused_connections", "Connections refused: there were too many."),
            "idle": counter("kdc_idle_connections_closed", "Idle connections closed, as another one came."),
            "unread": counter("kdc_unread_connections_closed", "Connections closed, as clients did not read replies."),
        }
        self.truncated = counter("kdc_truncated_texts", "Texts that were cut.", model)
        self.rows = counter("kdc_rows", "Rows answered.", model)
        self.predictions = counter("kdc_predictions", "Rows by predicted label.", ["model", "label"])
        self.decisions = counter("kdc_decisions", "Questions, by who answers and why.", [*model, "source", "reason"])
        self.upstream = seconds("kdc_upstream_seconds", "Seconds of a request to the upstream.", ["outcome"])
        self.audits = counter("kdc_audits", "Known questions that were audited.", [*model, "outcome"])
        newest = functools.partial(gauge, multiprocess_mode="livemostrecent")
        differs = "Share of a model's questions that it answers unlike the upstream: audited, with a 95 % interval."
        self.disagreement = newest("kdc_disagreement", differs, [*model, "bound"])
        self.budget = newest("kdc_disagreement_budget", "Bound on the disagreement, by the artifact's deferral.", model)
        self.stopped = newest("kdc_stopped", "1 if an audit has stopped the artifact: all goes upstream.", model)
        self.saved = counter("kdc_saved_usd", "USD that local answers saved, by KDC_UPSTREAM_PRICE.")

    @_counts
    def answered(self, route: str, status: object, seconds: float) -> None:
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(seconds)

    @_counts
    def connected(self, connections: int, ended: Ended | None = None) -> None:
        self.connections.set(connections)
        if ended is not None:
            self.ended[ended].inc()

    @_counts
    def reloaded(self, model: str, refused: bool) -> None:
        self.refused.labels(model).set(refused)

    @_counts
    def queue(self, model: str, tokens: int) -> None:
        self.queue_tokens.labels(model).set(tokens)

    @_counts
    def observe_batch(self, model: str, report: BatchReport) -> None:
        self.queued.labels(model).observe(report.queued_seconds)
        self.inference.labels(model).observe(report.seconds)
        self.batch_tokens.labels(model).observe(report.tokens)
        self.batch_rows.labels(model).observe(report.rows)
        self.queue(model, report.queued_tokens)

    @_counts
    def predicted(self, model: Model, answer: Answer) -> None:
        labels = model.engine.labels
        self.rows.labels(model.name).inc(len(answer.logits))
        if labels:
            counts = label_counts(answer.probabilities, model.engine.task)
            for label, count in zip(labels, counts.tolist(), strict=True):
                if count:
                    self._of_label(model.name, label).inc(count)
            if model.engine.task.abstain is not None:
                self.predictions.labels(model.name, ABSTAINED).inc(len(answer.logits) - int(counts.sum()))
        if any(answer.truncated):
            self.truncated.labels(model.name).inc(sum(answer.truncated))

    @_counts
    def decided(self, model: str, source: str, reason: str, price: float = 0.0) -> None:
        """`price`: what the upstream would charge, in USD."""
        self.decisions.labels(model, source, reason).inc()
        if source == "local":
            self.saved.inc(price)

    @_counts
    def asked_upstream(self, outcome: str, seconds: float) -> None:
        self.upstream.labels(outcome).observe(seconds)

    @_counts
    def audited(self, model: str, outcome: str) -> None:
        self.audits.labels(model, outcome).inc()

    @_counts
    def stands(self, model: str, standing: Standing) -> None:
        for source, reason in (("local", "sure"), ("upstream", "unsure")):  # begin at 0, as in `_begin`
            self.decisions.labels(model, source, reason)
        for bound in ("estimate", "low", "high"):
            self.disagreement.labels(model, bound).set(getattr(standing, bound))
        self.stopped.labels(model).set(standing.stopped is not None)
        if standing.budget is not None:
            self.budget.labels(model).set(standing.budget)

    def told(self) -> bytes | None:
        return self._told if time.monotonic() - self._told_at < self._fresh_s else None

    def _of_label(self, model: str, label: str) -> Counter:
        """`OTHER` replaces a label beyond the limit, or reloads could make series without end."""
        known, size = self._labels.get(model, (set(), 0))
        if label not in known and (size := size + _A_NAME + len(label)) <= _MOST_NAMES:
            known.add(label)
            self._labels[model] = known, size
        return self.predictions.labels(model, label if label in known else OTHER)

    def exposition(self) -> bytes:
        """The metrics as text, kept for 1 s, or longer: ten times what it took."""
        with self._telling:
            if (told := self.told()) is None:
                began = time.monotonic()
                told = self._told = self._tell()
                self._told_at = time.monotonic()
                self._fresh_s = max(FRESH_S, 10 * (self._told_at - began))
            return told

    @_counts
    def _begin(self) -> None:
        # Prometheus sees no increase in a series that begins at 1, and cannot divide by a missing one.
        for name, model in list(self.models.items()):
            for metric in (self.rows, self.truncated, self.queue_tokens, self.refused):
                metric.labels(name)
            for label in model.engine.labels:
                self._of_label(name, label)
            if model.engine.task.abstain is not None:
                self.predictions.labels(name, ABSTAINED)
            if model.engine.second is not None:
                for of_second in (self.queue_tokens, self.batch_rows):
                    of_second.labels(name + SECOND)

    def _tell(self) -> bytes:
        self._begin()
        if not self._shared:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)
        together.register(self)
        return generate_latest(together)

    def collect(self) -> Iterator[Metric]:
        """The loaded artifacts. Gauges' files would keep the labels of replaced ones. One worker answers for all."""
        info = "1 for the artifact that answers: the beginning of its manifest's SHA-256."
        answers = GaugeMetricFamily("kdc_artifact_info", info, labels=["model", "artifact", "variant", "provider"])
        share = "Share of the training rows that carry a label, or of held-out rows that get it if thresholds decide."
        family = GaugeMetricFamily("kdc_training_label_share", share, labels=["model", "label"])
        for name, model in list(self.models.items()):
            answers.add_metric([name, model.artifact, model.engine.variant, model.engine.provider], 1)
            if model.engine.manifest is not None:
                for label, expected in _expected_shares(model.engine.manifest).items():
                    family.add_metric([name, label], expected)
        yield from (answers, family)


def _expected_shares(manifest: Manifest) -> dict[str, float]:
    labels, shares, abstain = manifest.task.labels, manifest.lineage.label_share, manifest.task.abstain
    if abstain is not None:
        known = dict(zip(labels, abstain.shares, strict=False))
        return known and known | {ABSTAINED: max(0.0, 1 - sum(abstain.shares))}
    expected = {} if shares is None else dict(zip(labels, shares, strict=True))
    for point in manifest.task.points:
        if point.tuning is None or not (rows := point.tuning.recall.of + point.tuning.false_alarms.of):
            continue
        share = point.tuning.precision.of / rows
        expected[point.label] = share
        if manifest.task.traits.is_exclusive:
            expected |= {label: 1 - share for label in labels if label != point.label}
    return expected


def _forget_the_dead(folder: Path) -> None:
    """Remove the gauges of killed workers, or they would add up for ever."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid, str(folder))
        except PermissionError:  # another user's process has the id
            continue
