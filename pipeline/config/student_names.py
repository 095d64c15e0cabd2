"""What a student's name says: whether it is made of the teacher, and of what of it."""

UNCUT = "teacher"  # the student that is the teacher itself
SHALLOW = ("conv", "static", "linear")  # the students that have the teacher's token vectors and none of its layers

STUDENT_KINDS = (UNCUT, "layers", *SHALLOW)  # what a student's name begins with, unless it is a checkpoint's


def kind_of(student: str) -> str:
    """One of `STUDENT_KINDS`, or the name itself of a checkpoint of its own."""
    kind = student.partition(":")[0]
    return kind if kind in STUDENT_KINDS else student


def is_shallow(student: str) -> bool:
    """Whether a student is one of `SHALLOW`, in whatever sizes."""
    return student.partition(":")[0] in SHALLOW


def is_of_teacher(student: str) -> bool:
    """Whether a student is made of the teacher: of all of it, its layers, or its token vectors; otherwise it is a
    checkpoint of its own."""
    return student == UNCUT or student.startswith("layers:") or is_shallow(student)
