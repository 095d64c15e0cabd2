"""Refuse impossible settings early. docs/reference/architectures.md lists tested students."""

from transformers import PretrainedConfig

from kdc.artifact.task_kinds import KINDS, Kind
from kdc.common.errors import InputError
from kdc.pipeline.config.data_settings import LongSettings
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings
from kdc.pipeline.models import loading
from kdc.pipeline.training.finetuning import check_class_weights

# No exporter makes their graph with our inputs.
_WITHOUT_GRAPH = ("longformer", "xlnet")
# GPT-2's layers are not torch.nn.Linear; ALBERT's share weights.
_WITHOUT_ADAPTERS = ("albert", "gpt2")


def has_graph(config: PretrainedConfig) -> bool:
    """Whether the student's graph can be exported; True for untested architectures."""
    # Encoder-decoders read the last end token; some check rows lack it.
    return config.model_type not in _WITHOUT_GRAPH and not getattr(config, "is_encoder_decoder", False)


def check_windows(long: LongSettings, kind: Kind, losses: tuple[str, ...]) -> None:
    if not KINDS[kind].has_labels and long.join == "noisy-or":
        raise InputError(
            "noisy-or combines probabilities, and a regression has none",
            given="data.kind=regression, long.join=noisy-or",
            remedy="--set long.join=mean, max or first",
        )
    if long.mode == "cut" and "each" in losses:
        raise InputError(
            "rows are cut, so there are no windows to take losses of",
            given="window_loss=each",
            remedy="--long windows, or drop it",
        )


def check_models(student: StudentSettings, teacher: TeacherSettings, task: Task, *, is_searched: bool) -> None:
    for settings in (teacher, student):
        check_class_weights(settings.class_weights, task)
    if teacher.scores is not None and teacher.more:
        raise InputError(
            "a black box cannot be averaged with a second teacher",
            given=", ".join(teacher.more),
            remedy="drop teacher.scores, or all --teacher but the first",
        )
    kind = student.kind
    needs_layers = ["student.method=lora"] * (student.method == "lora")
    needs_layers += ["student.gradient_checkpointing=true"] * student.gradient_checkpointing
    if needs_layers and not kind.has_layers:
        raise InputError(
            "a student without layers can have no adapters and no gradient checkpointing",
            given=", ".join(needs_layers),
            remedy="drop that, or name a student with layers: --student layers:first-and-last",
        )
    if kind.has_layers and not is_searched:
        _check_architecture(student, teacher.model)
    kind.check(student.model, teacher.model)
    if not student.has_all_pieces and not kind.is_of_teacher:
        raise InputError(
            "only a student made of the teacher can have a part of its vocabulary",
            given=f"student.vocabulary={student.vocabulary}, student.model={student.model}",
            remedy="--student layers:first-and-last, conv, static or teacher; or drop student.vocabulary",
        )
    if not kind.is_trained and (teacher.scores is not None or teacher.more):
        raise InputError(
            "the student can be the teacher itself only if there is one, with its weights",
            given=f"student.model={student.model}",
            remedy="drop teacher.scores and further teachers, or name another --student",
        )


def _check_architecture(student: StudentSettings, teacher: str) -> None:
    config = loading.config_at_hand(teacher if student.kind.is_of_teacher else student.model)
    if config is None:
        return
    given = f"--student {student.model}, a {config.model_type}"
    if not has_graph(config):
        raise InputError(
            "this architecture can be a teacher, but not a student: it has no ONNX graph to serve",
            given=given,
            remedy="--student conv, static or linear, or a checkpoint of another architecture",
        )
    if student.method == "lora" and student.kind.is_trained and config.model_type in _WITHOUT_ADAPTERS:
        raise InputError(
            "this architecture has no linear modules inside its layers that adapters could change",
            given=given,
            remedy="--set student.method=full, or a checkpoint of another architecture",
        )
