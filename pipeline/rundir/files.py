"""Names of files that one stage writes into its folder and others read."""

PIECES = "pieces"  # stage vocabulary: the tokenizer with a part of the teacher's pieces
BASELINE_LOGITS = "logits.npz"  # stage baselines: "<split>/<baseline>", logits on the tuning and evaluation splits
PROBE = "probe.npz"  # stage baselines: a linear head for the teacher's encoder, read by the mean of its token vectors
SCORES = "scores.npy"  # stage teacher: a black box's answers as logits, (rows, outputs) float32, by row id
TEACHER_LOGITS = "logits.npy"  # stage targets: (rows, outputs) float32, by row id
CONTROLS = {  # stage controls: folder, and whose tokens
    "student_without_kd": "student",
    "student_without_kd_by_score": "student",
    "student_without_kd_by_loss": "student",
    "student_without_unlabeled": "student",
    "teacher_lora": "teacher",
}
EVALUATION = "evaluation.npz"  # stage evaluate: what the artifact keeps of the evaluation rows
BASELINE_SUFFIX = "_logits_to_beat"  # in `EVALUATION`, after the name of a baseline that is better than the teacher
ALL_LOGITS = "logits.npz"  # stage evaluate: "<split>/<model>", logits of all models on all evaluation splits
# Stage package: of the run that ended with its artifact, since a later start may leave other settings and stages.
SETTINGS = "config.json"
MADE_FROM = "stages.json"  # fingerprints of the stages, by name
