"""Refuses students, teachers and windows that cannot be trained as the settings say, before anything is trained."""

from kdc.artifact.manifest import Kind
from kdc.common.errors import InputError
from kdc.pipeline.config.data_settings import LongSettings
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings
from kdc.pipeline.models import architectures, loading
from kdc.pipeline.training.finetuning import check_class_weights


def check_plan(teacher: TeacherSettings, student: StudentSettings, task: Task) -> None:
    """Refuse now what a later stage would refuse after hours of training.

    Raises:
        InputError: weights of unknown classes, or a black box beside other teachers.
    """
    if teacher.scores is not None and teacher.more:
        raise InputError(
            "a black box cannot be averaged with a second teacher",
            given=", ".join(teacher.more),
            remedy="drop teacher.scores, or all --teacher but the first",
        )
    for settings in (teacher, student):
        check_class_weights(settings.class_weights, task)


def check_windows(long: LongSettings, kind: Kind, losses: tuple[str, ...]) -> None:
    """Refuse windows that cannot be joined so, or trained with these losses.

    Raises:
        InputError: noisy-or of a regression, or losses of windows where rows are cut.
    """
    if kind == "regression" and long.join == "noisy-or":
        raise InputError(
            "a window's number is no chance, of which noisy-or could be taken",
            given="data.kind=regression, long.join=noisy-or",
            remedy="--set long.join=mean, max or first",
        )
    if long.mode == "cut" and "each" in losses:
        raise InputError(
            "there are no windows that could have losses of their own",
            given="window_loss=each",
            remedy="--long windows, or drop it",
        )


def check_student(student: StudentSettings, teacher: TeacherSettings, *, is_searched: bool) -> None:
    """Refuse a student that cannot be.

    Raises:
        InputError: an architecture that can only be a teacher; layers or widths that the teacher does not have; the
            teacher itself if there are several or a black box; sizes or ways of training that a student without layers
            does not have.
    """
    kind = student.kind
    if not kind.has_layers:
        _check_without_layers(student)
    elif not is_searched:
        _check_architecture(student, teacher.model)
    kind.check(student.model, teacher.model)
    if not student.has_all_pieces and not kind.is_of_teacher:
        raise InputError(
            "only a student that is made of the teacher can have a part of its vocabulary",
            given=f"student.vocabulary={student.vocabulary}, student.model={student.model}",
            remedy="--student layers:first-and-last, conv, static or teacher; or drop student.vocabulary",
        )
    if not kind.is_trained and (teacher.scores is not None or teacher.more):
        raise InputError(
            "the student can be the teacher itself only where there is one, with its weights",
            given=f"student.model={student.model}",
            remedy="drop teacher.scores and further teachers, or name another --student",
        )


def _check_without_layers(student: StudentSettings) -> None:
    wrong = ["student.method=lora"] * (student.method == "lora")
    wrong += ["student.gradient_checkpointing=true"] * student.gradient_checkpointing
    if wrong:
        raise InputError(
            "a student without layers has nothing for adapters or for checkpoints between layers",
            given=", ".join(wrong),
            remedy="drop that, or name a student with layers: --student layers:first-and-last",
        )


def _check_architecture(student: StudentSettings, teacher: str) -> None:
    source = loading.config_at_hand(teacher if student.kind.is_of_teacher else student.model)
    if source is not None:
        adapters = student.method == "lora" and student.kind.is_trained
        architectures.check_student(source, f"--student {student.model}", adapters=adapters)
