"""Worlds from which `verdicts.py` draws evaluation sets with a known true drop."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics

_TEACHER = 0.85  # share of right classes; for numbers, the correlation
_POPULATION = 200_000
_LABELS_A_ROW = (0.5, 0.25, 0.12, 0.08, 0.05)
_ROUNDING = 1e-12
_SLIPS = 0.03  # share of wrong labels

Drawn = tuple[NDArray, NDArray, NDArray, NDArray | None]  # labels, both logits, groups


@dataclass(frozen=True)
class World:
    """`classes` are label shares. `losses_only` students differ only in lost rows; others in `disagreement` percent of
    rows. Groups have 1 to `group` rows.
    """

    metric: str
    rows: int
    limit: float  # points
    disagreement: float = 0.0  # percent of rows; in regression, of the errors' correlation that is missing
    classes: tuple[float, ...] = (0.5, 0.5)
    losses_only: bool = False
    group: int = 1
    mixed: bool = False  # groups share whether the student differs, not labels
    labels: tuple[float, ...] = ()  # each one's share
    # How often a row shares its group's fate, with many classes.
    fate: float | None = None
    rare_only: bool = False  # loses only the rarer half

    @property
    def kind(self) -> str:
        if self.labels:
            return "multilabel"
        return "regression" if self.metric in ("pearson", "spearman") else "classification"


class Source(Protocol):
    def draw(self, random: np.random.Generator) -> Drawn:
        """One evaluation set."""


def source_of(world: World, drop: float) -> Source:
    """A source with this true `drop` in points; an impossible drop raises ValueError."""
    if world.fate is not None:
        return Many(world, drop)
    return (Numbers if world.kind == "regression" else SeveralLabels if world.labels else Classes)(world, drop)


def bisected(drop_of: Callable[[float], float], drop: float) -> float:
    """The share of lost rows that gives this true drop; ValueError if none does."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if drop_of(middle) < drop:
            low = middle
        else:
            high = middle
    if abs(drop_of(low) - drop) > 0.05:
        raise ValueError("so large a drop is not possible with so few differing rows")
    return low


def grouped(world: World, random: np.random.Generator) -> NDArray | None:
    """Group numbers (rows,); None for single rows."""
    if world.group == 1:
        return None
    sizes = random.integers(1, world.group + 1, world.rows)
    return np.repeat(np.arange(world.rows), sizes)[: world.rows]


class Classes:
    """Cells of (label, teacher's answer, student's answer)."""

    def __init__(self, world: World, drop: float) -> None:
        self._world = world
        count = len(world.classes)
        cells = np.array(list(product(range(count), repeat=3)))
        self.truth, self.teacher, self.student = cells.T
        lost = bisected(lambda share: self._drop(self._probabilities(share)), drop)
        self.probabilities = self._probabilities(lost) / self._probabilities(lost).sum()

    def _probabilities(self, lost: float) -> NDArray[np.float64]:
        """A share `lost` of the differing rows is lost; the rest is won if possible."""
        world, count = self._world, len(self._world.classes)
        differing = lost if world.losses_only else world.disagreement / 100
        to_lose = differing * (1.0 if world.losses_only else lost)
        to_win = differing - to_lose
        labels = np.array(world.classes)[self.truth]
        teacher_right, student_right = self.teacher == self.truth, self.student == self.truth
        others = 1 / (count - 1)
        teacher = np.where(teacher_right, _TEACHER, (1 - _TEACHER) * others)
        loses, wins = min(1.0, to_lose / _TEACHER), min(1.0, to_win / (1 - _TEACHER))
        right = np.where(student_right, 1 - loses, loses * others)
        wrong = np.where(student_right, wins, np.where(self.student == self.teacher, 1 - wins, 0.0))
        return labels * teacher * np.where(teacher_right, right, wrong)

    def _drop(self, probabilities: NDArray[np.float64]) -> float:
        scores = [
            metrics.METRICS[self._world.metric].scorer(self.truth, each)(probabilities[None])[0]
            for each in (self.teacher, self.student)
        ]
        return 100 * float(scores[0] - scores[1])

    def draw(self, random: np.random.Generator) -> Drawn:
        """Groups copy one row. All rows of a mixed group are drawn from differing cells, or all from equal cells."""
        rows, groups = self._world.rows, grouped(self._world, random)
        if groups is None or not self._world.mixed:
            cells = random.choice(len(self.truth), rows, p=self.probabilities)
            cells = cells if groups is None else cells[groups]
        else:
            differ = self.teacher != self.student
            share = self.probabilities[differ].sum()
            of_group = random.random(rows) < share
            drawn = [
                random.choice(len(self.truth), rows, p=np.where(which, self.probabilities, 0) / part)
                if part > _ROUNDING
                else np.zeros(rows, dtype=np.int64)
                for which, part in ((~differ, 1 - share), (differ, share))
            ]
            cells = np.where(of_group[groups], drawn[1], drawn[0])
        one_hot = np.eye(len(self._world.classes))
        return self.truth[cells], one_hot[self.teacher[cells]], one_hot[self.student[cells]], groups


class Numbers:
    def __init__(self, world: World, drop: float) -> None:
        self._world = world
        scores = np.array([_TEACHER, _TEACHER - drop / 100])
        if world.metric == "spearman":  # Pearson 1907, normal distribution
            scores = 2 * np.sin(np.pi * scores / 6)
        teacher, student = scores
        shared = 1 - world.disagreement / 100  # correlation of the models' errors
        between = teacher * student + shared * math.sqrt((1 - teacher**2) * (1 - student**2))
        matrix = np.array([[1, teacher, student], [teacher, 1, between], [student, between, 1]])
        self._root = np.linalg.cholesky(matrix)

    def draw(self, random: np.random.Generator) -> Drawn:
        groups = grouped(self._world, random)
        labels, teacher, student = self._root @ random.standard_normal((3, self._world.rows))
        if groups is not None:
            labels, teacher, student = labels[groups], teacher[groups], student[groups]
        return labels, teacher[:, None], student[:, None], groups


class SeveralLabels:
    """Independent labels. A student errs in `disagreement` percent of rows as often as its teacher, on other labels."""

    def __init__(self, world: World, drop: float) -> None:
        self._world = world
        self._shares = np.array(world.labels)
        self._lost = bisected(lambda share: 100 * (self._score(0.0) - self._score(share)), drop)

    def _score(self, lost: float) -> float:
        wrong = (1 - lost) * _SLIPS + lost * (1 - _SLIPS)
        hits, alarms = self._shares * (1 - wrong), (1 - self._shares) * wrong
        return float((2 * hits / (hits + alarms + self._shares)).mean())

    def draw(self, random: np.random.Generator) -> Drawn:
        rows, groups = self._world.rows, grouped(self._world, random)
        shape = (rows, len(self._shares))
        labels = random.random(shape) < self._shares
        teacher, other = (labels ^ (random.random(shape) < _SLIPS) for _ in range(2))
        unit = np.arange(rows) if groups is None else groups
        fate = random.random(rows)[unit, None]
        is_lost, differs = fate < self._lost, fate > 1 - self._world.disagreement / 100
        student = np.where(is_lost, ~teacher, np.where(differs, other, teacher))
        return labels.astype(np.int64), teacher - 0.5, student - 0.5, groups


class Many:
    """Many classes, or up to five of many labels a row: draws whole groups from a population.

    Half of a group's rows repeat its first row's labels. In lost rows, random other labels replace the (rare) labels.
    """

    def __init__(self, world: World, drop: float) -> None:
        self._world, self._random = world, np.random.default_rng(0)
        shares = np.array(world.labels or world.classes)
        sizes = self._random.choice(np.arange(1, world.group + 1), _POPULATION, p=_heavy(world.group))
        sizes = sizes[: np.searchsorted(sizes.cumsum(), _POPULATION)]
        self._starts, self._sizes = sizes.cumsum() - sizes, sizes
        self._group = np.repeat(np.arange(len(sizes)), sizes)
        rows = len(self._group)
        count = self._random.choice(5, rows, p=_LABELS_A_ROW) + 1 if world.labels else np.ones(rows, dtype=int)
        own = _lowest(self._random.exponential(size=(rows, len(shares))) / shares, count)  # without replacement
        self._labels = np.where((self._random.random(rows) < 0.5)[:, None], own, own[self._starts[self._group]])
        self._teacher, again = (self._answers((self._fates() > _TEACHER)[:, None] & self._labels) for _ in range(2))
        self._fate = self._fates()
        self._other = np.where((self._fate > 1 - world.disagreement / 100)[:, None], again, self._teacher)
        lost = self._labels & (shares < np.median(shares)) if world.rare_only else self._labels
        self._lost = self._answers(lost)
        self._touched = lost.any(axis=1)
        self._share = bisected(lambda share: self._score(0.0) - self._score(share), drop)
        self._student = self._answered(self._share)

    def _fates(self) -> NDArray[np.float64]:
        """(rows,) from 0 to 1. Some rows copy their group's fate."""
        shared = self._random.random(len(self._group)) < (self._world.fate or 0.0)
        return np.where(shared, self._random.random(len(self._sizes))[self._group], self._random.random(len(shared)))

    def _answers(self, lost: NDArray[np.bool_]) -> NDArray[np.bool_]:
        others = np.where(self._labels, 2.0, self._random.random(self._labels.shape))
        return (self._labels & ~lost) | _lowest(others, lost.sum(axis=1))

    def _answered(self, share: float) -> NDArray[np.bool_]:
        loses = (self._fate < share) & self._touched
        return np.where(loses[:, None], self._lost, self._other)

    def _score(self, share: float) -> float:
        answers, labels = self._answered(share), self._labels
        counts = [each.sum(axis=0, dtype=np.float64)[None] for each in (answers & labels, answers, labels)]
        cost = metrics.METRICS[self._world.metric].unseen_cost
        assert callable(cost)  # of macro F1
        return 100 * float(cost(*counts)[0])

    def draw(self, random: np.random.Generator) -> Drawn:
        chosen = random.integers(0, len(self._sizes), self._world.rows)
        chosen = chosen[: np.searchsorted(self._sizes[chosen].cumsum(), self._world.rows) + 1]
        sizes = self._sizes[chosen]
        groups = np.repeat(np.arange(len(chosen)), sizes)
        rows = np.arange(len(groups)) - np.repeat(sizes.cumsum() - sizes, sizes) + self._starts[chosen][groups]
        labels, teacher, student = (each[rows] for each in (self._labels, self._teacher, self._student))
        labels = labels.astype(np.int64) if self._world.labels else labels.argmax(axis=1)
        return labels, teacher - 0.5, student - 0.5, groups if self._world.group > 1 else None


def _lowest(values: NDArray[np.float64], count: NDArray[np.integer]) -> NDArray[np.bool_]:
    last = np.sort(values.astype(np.float32), axis=1)[np.arange(len(values)), np.maximum(count, 1) - 1]
    return (values.astype(np.float32) <= last[:, None]) & (count > 0)[:, None]


def _heavy(most: int) -> NDArray[np.float64]:
    """Shares of groups with 1 to `most` rows: mean 1.8 for 80."""
    shares = np.arange(1.0, most + 1) ** -2.2
    return shares / shares.sum()


def zipf(count: int) -> tuple[float, ...]:
    """Class shares: the k-th is 1/k of the first."""
    shares = 1 / np.arange(1, count + 1)
    return tuple((shares / shares.sum()).tolist())


RARE = (0.95, 0.05)
FEW_OF_SOME = (0.4, 0.3, 0.2, 0.07, 0.03)
SEVERAL = ((0.5, 0.5, 0.5, 0.5), (0.25,) * 10, (0.3, 0.1, 0.05))


_ZIPF = {count: zipf(count) for count in (20, 35, 48)}
# Rarest class: 11 rows of 20 classes and 800 rows, 7 of 35 and 1,000, 6 of 48 and 400.
MANY = (
    World("macro_f1", 800, 2.0, 0, _ZIPF[20], fate=0.0, rare_only=True),
    World("macro_f1", 800, 2.0, 10, _ZIPF[20], fate=0.3, group=80, rare_only=True),
    World("macro_f1", 800, 2.0, 10, _ZIPF[20], fate=1.0, group=80, rare_only=True),
    World("macro_f1", 800, 2.0, 10, _ZIPF[20], fate=1.0, group=80),
    World("macro_f1", 1000, 2.0, 10, _ZIPF[35], fate=0.3, group=80, rare_only=True),
    World("macro_f1", 1000, 3.0, 0, _ZIPF[35], fate=1.0, group=80),
    World("macro_f1", 800, 1.0, 10, labels=_ZIPF[20], fate=0.0, rare_only=True),
    World("macro_f1", 400, 3.0, 10, labels=_ZIPF[48], fate=0.0),
    World("macro_f1", 800, 2.0, 10, labels=_ZIPF[20], fate=1.0, group=80),
    World("macro_f1", 1000, 2.0, 0, labels=_ZIPF[35], fate=0.3, group=80, rare_only=True),
)


def worlds(names: Iterable[str], rows: Iterable[int]) -> list[World]:
    """The name "many" gives worlds of many classes."""
    names = list(names)
    found = list(MANY) if "many" in names else []
    names = [name for name in names if name != "many"]
    for name, count in product(names, rows):
        if name == "accuracy":
            for limit in (0.5, 1.0, 2.0, 5.0):
                found.append(World(name, count, limit, losses_only=True))
                found += [World(name, count, limit, disagreement) for disagreement in (1, 2, 4, 10, 20)]
            found += [World(name, count, 2.0, share, group=size) for size in (2, 4) for share in (4, 10)]
            found += [World(name, count, 2.0, losses_only=True, group=size) for size in (2, 4)]
        elif name in ("pearson", "spearman"):
            found += [World(name, count, limit, share) for limit in (1.0, 3.0) for share in (5, 20)]
            found.append(World(name, count, 2.0, 20, group=3))
        else:
            shares = ((0.5, 0.5), RARE) if name == "f1" else ((0.5, 0.5), RARE, FEW_OF_SOME)
            for classes, limit in product(shares, (1.0, 3.0, 5.0)):
                found.append(World(name, count, limit, classes=classes, losses_only=True))
                found += [World(name, count, limit, share, classes) for share in (4, 10)]
            found.append(World(name, count, 3.0, 10, shares[1], group=3))
            for limit, share in product((2.0, 5.0), (0, 10)):
                world = World(name, count, limit, share, losses_only=share == 0, group=4, mixed=True)
                found += [world, replace(world, classes=shares[-1])]
            if name == "macro_f1":
                for labels, limit, share in product(SEVERAL, (1.0, 3.0), (0, 10)):
                    world = World(name, count, limit, share, losses_only=share == 0, labels=labels)
                    found += [world, replace(world, group=4)]
    return found
