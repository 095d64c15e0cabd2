"""The kinds of students: subclasses of `StudentKind`, listed in `KINDS`.

Settings load without torch, so kinds import `kdc.pipeline.models` lazily.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

from kdc.pipeline.config.tasks import Task

UNCUT = "teacher"
UNCUT_NAME = "the teacher itself, uncut"  # in the lineage
# Without layers, a few hundred steps learn noisy labels by heart.
_PATIENCE = 6  # evaluations


def _models(module: str) -> Any:
    return import_module(f"kdc.pipeline.models.{module}")


@dataclass(frozen=True)
class OwnTraining:
    """For students without layers: most weights are random, and steps are cheap."""

    steps: int  # multiple of a layered student's `min_steps`
    learning_rate: float
    head_learning_rate: float


class StudentKind(ABC):
    """`spec` is `--student`'s value, `teacher` an id or path."""

    name = ""  # spec before the colon
    is_of_teacher = True  # reads the teacher's tokens
    has_sizes: bool | None = None  # after a colon; None: optional
    is_trained = True
    own_training: OwnTraining | None = None  # None if it has layers

    @property
    def has_layers(self) -> bool:
        """Whether LoRA and gradient checkpointing apply."""
        return self.own_training is None

    def is_named(self, spec: str) -> bool:
        name, colon, _ = spec.partition(":")
        return name == self.name and self.has_sizes in (None, bool(colon))

    def canonical(self, spec: str, teacher: str) -> str:
        """The shortest equivalent spec."""
        return spec

    def fingerprint(self, spec: str, teacher: str) -> Any:
        """As JSON."""
        return spec

    def check(self, spec: str, teacher: str) -> None:  # noqa: B027 - most kinds have nothing to refuse
        """Raise InputError if the spec is wrong or does not fit the teacher."""

    @abstractmethod
    def make(self, spec: str, task: Task, teacher: Callable[[], Any], importance: Callable[..., Any]) -> Any:
        """The untrained student as `Loaded`, as `teacher` returns; for `importance` see `models/units.py`."""

    def model_class(self, config: Any) -> Any:
        """The class that opens a saved student; None for others and for transformers' own."""
        return None

    def tried(self, teacher: str) -> Sequence[str]:
        """Specs for a search, largest first."""
        return [self.name]

    def curve(self, teacher: str) -> Sequence[str]:
        """For a frontier."""
        return self.tried(teacher)

    def training(self, given: Any, *, beside: "StudentKind") -> dict[str, Any]:
        """Changes to `given`, the `StudentSettings` of kind `beside`."""
        own, other = self.own_training, beside.own_training
        if own is None or own == other:
            return {}
        settings = {
            "method": "full",
            "batch_size": 64,
            "gradient_checkpointing": False,
            "learning_rate": own.learning_rate,
            "head_learning_rate": own.head_learning_rate,
            "epochs": given.epochs if other else 3 * given.epochs,
            "min_steps": own.steps * given.min_steps // (other.steps if other else 1),
        }
        if other is None and given.kept_step == "score":  # any other rule was chosen on purpose
            settings["kept_step"] = "loss"
        if given.kept_step != "last":
            settings["patience"] = given.patience or _PATIENCE
        return settings

    def short_name(self, spec: str) -> str:
        """For plots."""
        return spec.rsplit("/", 1)[-1]

    def title(self, spec: str, cut_from: str) -> str:
        """For the lineage; `cut_from` is "finetuned" or "pretrained"."""
        return f"{spec} of the {cut_from} teacher" if self.is_of_teacher else spec


class _Checkpoint(StudentKind):
    is_of_teacher = False

    def fingerprint(self, spec: str, teacher: str) -> Any:
        return _models("loading").fingerprint(spec)

    def make(self, spec: str, task: Task, teacher: Callable[[], Any], importance: Callable[..., Any]) -> Any:
        return _models("loading").load_model(spec, task)


class _Uncut(StudentKind):
    name = UNCUT
    has_sizes = False
    is_trained = False

    def make(self, spec: str, task: Task, teacher: Callable[[], Any], importance: Callable[..., Any]) -> Any:
        return teacher()

    def short_name(self, spec: str) -> str:
        return "teacher, uncut"

    def title(self, spec: str, cut_from: str) -> str:
        return UNCUT_NAME


class _Layers(StudentKind):
    name = "layers"
    has_sizes = True

    def canonical(self, spec: str, teacher: str) -> str:
        return str(self._cut(spec, teacher))

    def fingerprint(self, spec: str, teacher: str) -> Any:
        return asdict(self._cut(spec, teacher))

    def check(self, spec: str, teacher: str) -> None:
        _models("possible_cuts").check_cut(spec, teacher)

    def make(self, spec: str, task: Task, teacher: Callable[[], Any], importance: Callable[..., Any]) -> Any:
        cutting, whole = _models("cutting"), teacher()
        wanted = cutting.parse_cut(spec, whole.model.config)
        return replace(whole, model=cutting.cut(whole.model, wanted, importance))

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
    def __init__(self, name: str, own_training: OwnTraining) -> None:
        self.name, self.own_training = name, own_training

    def canonical(self, spec: str, teacher: str) -> str:
        parse_shape = _models("shallow").parse_shape
        return self.name if parse_shape(spec) == parse_shape(self.name) else spec

    def fingerprint(self, spec: str, teacher: str) -> Any:
        return asdict(_models("shallow").parse_shape(spec))

    def check(self, spec: str, teacher: str) -> None:
        _models("shallow").check_shape(spec, _models("loading").config_at_hand(teacher))

    def make(self, spec: str, task: Task, teacher: Callable[[], Any], importance: Callable[..., Any]) -> Any:
        shallow = _models("shallow")
        model, new_modules = shallow.shallow_over(teacher().model, shallow.parse_shape(spec))
        return _models("loading").Loaded(model, new_modules)

    def model_class(self, config: Any) -> Any:
        return _models("shallow").ShallowClassifier if getattr(config, "kdc_shallow", None) is not None else None


CHECKPOINT = _Checkpoint()
_BAG = OwnTraining(steps=2, learning_rate=1e-3, head_learning_rate=2e-3)
_SUM = OwnTraining(steps=1, learning_rate=3e-3, head_learning_rate=5e-3)  # overfits early
# In search order.
KINDS: dict[str, StudentKind] = {
    kind.name: kind
    for kind in (_Uncut(), _Layers(), _Shallow("conv", _BAG), _Shallow("static", _BAG), _Shallow("linear", _SUM))
}


def kind_of(spec: str) -> StudentKind:
    """`CHECKPOINT` by default."""
    return next((kind for kind in KINDS.values() if kind.is_named(spec)), CHECKPOINT)
