"""The kinds of students, and all that depends on a student's kind.

A new kind is a subclass of `StudentKind` and an entry in `KINDS`. Settings are read without torch, so a kind imports
its code from `kdc.pipeline.models` only when it makes or checks a student.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

UNCUT = "teacher"  # the spec of the student that is the teacher itself
UNCUT_NAME = "the teacher itself, uncut"  # in the lineage of its artifact


def _models(module: str) -> Any:
    """A module of `kdc.pipeline.models`."""
    return import_module(f"kdc.pipeline.models.{module}")


@dataclass(frozen=True)
class OwnTraining:
    """How students without layers are trained: most of them begins at random, and their steps cost little."""

    steps: int  # how many times the least steps of a student with layers
    learning_rate: float
    head_learning_rate: float


class StudentKind:
    """Students of one kind. Methods take a `spec`, the student as `--student` names it, and a `teacher`, id or path.
    The methods here are right for a kind without sizes that is made of the teacher."""

    name = ""  # the spec, up to a colon
    is_of_teacher = True  # whether it reads the teacher's tokens, and may have a part of its vocabulary
    has_sizes: bool | None = None  # whether a spec has a colon and sizes after it; None: it may
    is_trained = True
    own_training: OwnTraining | None = None  # None for a kind with layers

    @property
    def has_layers(self) -> bool:
        """Whether there are layers for adapters, and for checkpoints of gradients between them."""
        return self.own_training is None

    def is_named(self, spec: str) -> bool:
        """Whether a spec names a student of this kind."""
        name, colon, _ = spec.partition(":")
        return name == self.name and self.has_sizes in (None, bool(colon))

    def canonical(self, spec: str, teacher: str) -> str:
        """The shortest of all specs that name the same student."""
        return spec

    def fingerprint(self, spec: str, teacher: str) -> Any:
        """What of a student goes into the fingerprints of stages, as JSON can hold it."""
        return spec

    def check(self, spec: str, teacher: str) -> None:
        """Raise `InputError`, before anything is trained, if the spec is wrong or cannot be made of the teacher."""

    def make(self, spec: str, whole: Any, importance: Callable[..., Any]) -> tuple[Any, tuple[str, ...]]:
        """The student before training, and the names of its modules that start at random; of the whole teacher as
        `Loaded`, and an `Importance` of its neurons and heads (`models/units.py`)."""
        raise NotImplementedError

    def model_class(self, config: Any) -> Any:
        """The class whose `from_pretrained` opens a saved student; None if the config is of another kind, or names an
        architecture of transformers."""
        return None

    def tried(self, teacher: str) -> Sequence[str]:
        """Specs that a search measures untrained, which takes seconds to minutes each; the largest student first."""
        return [self.name]

    def curve(self, teacher: str) -> Sequence[str]:
        """Specs that a frontier trains in full."""
        return self.tried(teacher)

    def training(self, epochs: float, min_steps: int, kept_step: str, *, beside: "StudentKind") -> dict[str, Any]:
        """Settings in which this kind is trained otherwise than another (`beside`), which is trained with these."""
        own, other = self.own_training, beside.own_training
        if own is None or own == other:
            return {}
        settings = {
            "method": "full",
            "batch_size": 64,
            "gradient_checkpointing": False,
            "learning_rate": own.learning_rate,
            "head_learning_rate": own.head_learning_rate,
            "epochs": epochs if other else 3 * epochs,
            "min_steps": own.steps * min_steps // (other.steps if other else 1),
        }
        if other is None and kept_step == "score":  # the default; any other rule was asked for, or is the recipe's
            settings["kept_step"] = "loss"
        return settings

    def short_name(self, spec: str) -> str:
        """The student in a plot."""
        return spec.rsplit("/", 1)[-1]

    def title(self, spec: str, cut_from: str) -> str:
        """The student in its artifact's lineage, made of the "finetuned" or "pretrained" teacher."""
        return f"{spec} of the {cut_from} teacher" if self.is_of_teacher else spec


class _Checkpoint(StudentKind):
    """A checkpoint of its own, id or path."""

    is_of_teacher = False

    def fingerprint(self, spec: str, teacher: str) -> Any:
        return _models("loading").fingerprint(spec)


class _Uncut(StudentKind):
    """The teacher itself."""

    name = UNCUT
    has_sizes = False
    is_trained = False

    def make(self, spec: str, whole: Any, importance: Callable[..., Any]) -> tuple[Any, tuple[str, ...]]:
        return whole.model, whole.new_modules

    def short_name(self, spec: str) -> str:
        return "teacher, uncut"

    def title(self, spec: str, cut_from: str) -> str:
        return UNCUT_NAME


class _Layers(StudentKind):
    """Some of the teacher's layers, which may be narrower."""

    name = "layers"
    has_sizes = True

    def canonical(self, spec: str, teacher: str) -> str:
        return str(self._cut(spec, teacher))

    def fingerprint(self, spec: str, teacher: str) -> Any:
        return asdict(self._cut(spec, teacher))

    def check(self, spec: str, teacher: str) -> None:
        _models("possible_cuts").check_cut(spec, teacher)

    def make(self, spec: str, whole: Any, importance: Callable[..., Any]) -> tuple[Any, tuple[str, ...]]:
        cutting = _models("cutting")
        return cutting.cut(whole.model, cutting.parse_cut(spec, whole.model.config), importance), whole.new_modules

    def tried(self, teacher: str) -> Sequence[str]:
        return _models("possible_cuts").cuts_of_search(teacher)

    def curve(self, teacher: str) -> Sequence[str]:
        return _models("possible_cuts").cuts_of_curve(teacher)

    def short_name(self, spec: str) -> str:
        layers, *widths = re.split(",(?=ffn=|heads=)", spec)
        depth = layers.count(",") + 1
        return f"{depth} layer{'s' * (depth > 1)}" + "".join(f", {width.replace('=', ' ')}" for width in widths)

    def _cut(self, spec: str, teacher: str) -> Any:
        return _models("cutting").parse_cut(spec, _models("loading").load_config(teacher))


class _Shallow(StudentKind):
    """The teacher's token vectors, without a layer."""

    def __init__(self, name: str, own_training: OwnTraining) -> None:
        self.name, self.own_training = name, own_training

    def canonical(self, spec: str, teacher: str) -> str:
        parse_shape = _models("shallow").parse_shape
        return self.name if parse_shape(spec) == parse_shape(self.name) else spec

    def fingerprint(self, spec: str, teacher: str) -> Any:
        return asdict(_models("shallow").parse_shape(spec))

    def check(self, spec: str, teacher: str) -> None:
        _models("shallow").check_shape(spec, _models("loading").config_at_hand(teacher))

    def make(self, spec: str, whole: Any, importance: Callable[..., Any]) -> tuple[Any, tuple[str, ...]]:
        shallow = _models("shallow")
        return shallow.shallow_over(whole.model, shallow.parse_shape(spec))

    def model_class(self, config: Any) -> Any:
        return _models("shallow").ShallowClassifier if getattr(config, "kdc_shallow", None) is not None else None


CHECKPOINT = _Checkpoint()
_BAG = OwnTraining(steps=2, learning_rate=1e-3, head_learning_rate=2e-3)
_SUM = OwnTraining(steps=1, learning_rate=3e-3, head_learning_rate=5e-3)  # it soon knows its rows by heart
# By name. Searches and frontiers try them in this order.
KINDS: dict[str, StudentKind] = {
    kind.name: kind
    for kind in (_Uncut(), _Layers(), _Shallow("conv", _BAG), _Shallow("static", _BAG), _Shallow("linear", _SUM))
}


def kind_of(spec: str) -> StudentKind:
    """The kind of a student, `CHECKPOINT` unless the spec names another."""
    return next((kind for kind in KINDS.values() if kind.is_named(spec)), CHECKPOINT)
