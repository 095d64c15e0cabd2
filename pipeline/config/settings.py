"""The settings of one run: frozen models, one section for each stage. `kdc config` prints the descriptions.

`resolve.py` makes them from flags, `--set`, a file and presets.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from kdc.artifact.contract.terms import Against, Conditions, Contract, Evidence, Limits, Proof, Texts
from kdc.artifact.manifest import MOST_WINDOWS, Join, Kind, LongTexts
from kdc.common.frozen import Frozen
from kdc.pipeline.config.aims import parse_abstain, parse_aim
from kdc.pipeline.config.presets import without_layers

_SPECIAL = 4  # tokens that belong to no text, at most: those of a pair in RoBERTa
KeptStep = Literal["score", "loss", "last"]  # by what the step whose weights are kept is chosen
UNCUT = "teacher"  # the student that is the teacher itself
SHALLOW = ("conv", "static", "linear")  # the students that have the teacher's token vectors and none of its layers


def is_shallow(student: str) -> bool:
    """Whether a student is one of `SHALLOW`, in whatever sizes."""
    return student.partition(":")[0] in SHALLOW


def is_of_teacher(student: str) -> bool:
    """Whether a student is made of the teacher: of all of it, its layers, or its token vectors; otherwise it is a
    checkpoint of its own."""
    return student == UNCUT or student.startswith("layers:") or is_shallow(student)


class Section(Frozen):
    """A group of settings that knows no other group."""

    # Defaults are validated too: 32 for a float becomes 32.0, as it does where a person gives it. Otherwise the two
    # would have different fingerprints, and a stage would be done again for nothing.
    model_config = ConfigDict(validate_default=True)


class RunSettings(Section):
    """Settings of the whole run."""

    out: Path | None = Field(None, description="run directory (default: runs/<task>)")
    family: Literal["bert", "roberta", "deberta", "minilm", "modernbert", "ettin"] | None = Field(
        None, description="model family that gives teacher and student (default: bert, unless teacher.model is set)"
    )
    recipe: Literal["best", "paper", "paper-as-described"] = Field(
        "best",
        description="distillation recipe: best (what measured best here), paper (KD-LoRA by its authors' published "
        "script) or paper-as-described (by the paper's text)",
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="random seed of splits, initialisation, order of rows and dropout"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device to train on; auto is CUDA if there is a GPU"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="number format of training; auto is bf16 on CUDA, and on a CPU what is faster there",
    )
    controls: bool = Field(
        False,
        description="also train the student without distillation, and without unlabelled texts; and the LoRA teacher",
    )


class DataSettings(Section):
    """Stage `data`: where the rows come from, and what they hold."""

    task: str | None = Field(None, description="name of a GLUE task, or pydocs; `kdc tasks` lists them")
    data: Path | None = Field(
        None, description="folder with the rows: GLUE's TSV files, a save_to_disk folder, or train and dev files"
    )
    train: Path | None = Field(None, description="your own training file: .csv, .tsv, .jsonl or .parquet")
    eval: Path | None = Field(
        None, description="your own evaluation file (default: a stratified tenth of the training file)"
    )
    unlabeled: Path | None = Field(None, description="file with further texts, which only the teacher labels")
    max_unlabeled_rows: int | None = Field(
        None, ge=1, description="of these texts so many at most, drawn at random (default: all)"
    )
    text: str | None = Field(None, description="column with the (first) text (default: the task's)")
    text_pair: str | None = Field(None, description="column with the second text of a pair (default: the task's)")
    label: str | None = Field(None, description="column with the label (default: the task's; label for your own files)")
    kind: Literal["auto", "classification", "multilabel", "regression"] = Field(
        "auto", description="what the label column holds; auto finds it out from the training rows of your own files"
    )
    separator: str | None = Field(None, description="separator between the labels of a multi-label cell")
    group: str | None = Field(
        None, description="column of what makes rows belong together (a user, a document): no split parts them"
    )
    time: str | None = Field(
        None, description="column with the time of a row, a number or ISO 8601: the last rows are the evaluation"
    )
    max_train_rows: int | None = Field(None, ge=20, description="rows to train on at most (default: all)")
    max_length: int | None = Field(
        None, ge=4, le=8192, description="tokens after which a text is cut (default: the task's)"
    )

    @model_validator(mode="after")
    def _at_most_of_what_is_there(self) -> Self:
        if self.max_unlabeled_rows is not None and self.unlabeled is None:
            raise ValueError(
                f"max_unlabeled_rows={self.max_unlabeled_rows} is of unlabelled texts, and no file has them: set "
                "unlabeled too, or drop it"
            )
        return self


class LongSettings(Section):
    """What becomes of rows with more tokens than `data.max_length`."""

    mode: Literal["cut", "windows"] = Field(
        "cut", description="cut them, or answer them by windows of that length, whose answers become one"
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="tokens from the beginning of one window to that of the next (default: three quarters of a window, "
        "less what is kept)",
    )
    windows: int = Field(8, ge=2, le=MOST_WINDOWS, description="windows of a row at most; what is longer is cut")
    keep: int = Field(0, ge=0, description="first tokens of a text, such as its title, that stand in every window")
    join: Literal["auto"] | Join = Field(
        "auto",
        description="how the windows' answers become one: mean, max, first, noisy-or, or auto: trained with the mean, "
        "of a multi-label task with max, then what gives the teacher the least loss on the tuning slice (there "
        "for each label)",
    )

    @model_validator(mode="after")
    def _says_nothing_of_windows_where_rows_are_cut(self) -> Self:
        given = {name: value for name, value in self.model_dump(exclude_defaults=True).items() if name != "mode"}
        if self.mode == "cut" and given:
            listed = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"{listed} is of windows, and rows are cut: set mode=windows (--long windows), or drop it")
        return self

    def trained_join(self, kind: Kind) -> tuple[Join, ...] | None:
        """How the windows of a teacher's rows are joined in its training; None where rows are cut. A label of several
        is there where any window has it: by the mean those without it would outvote that one."""
        if self.mode == "cut":
            return None
        if self.join != "auto":
            return (self.join,)
        return ("max" if kind == "multilabel" else "mean",)

    def of(self, max_length: int, join: tuple[Join, ...] = ("mean",)) -> LongTexts | None:
        """The windows of so many tokens; None where rows are cut."""
        if self.mode == "cut":
            return None
        room = max_length - self.keep
        stride = self.stride or max(1, min(3 * room // 4, room - _SPECIAL))
        return LongTexts(stride=stride, windows=self.windows, keep=self.keep, join=join)


class LoraSettings(Section):
    """Low-rank adapters (LoRA). The names are those of PEFT's `LoraConfig`."""

    r: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float = Field(32, gt=0, description="scale of the adapters: their updates are multiplied by alpha / r")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="dropout rate before the adapters, 0 to 1 (a student of recipe best: 0)"
    )
    targets: Literal["all-linear", "query-value"] | tuple[str, ...] = Field(
        "all-linear", description="linear layers of the encoder to adapt: all-linear, query-value, or their names"
    )
    rslora: bool = Field(False, description="use the rank-stabilised scale alpha / sqrt(r)")
    dora: bool = Field(False, description="use weight-decomposed adapters (DoRA)")
    init: str = Field(
        "default", description="how adapters begin: default, gaussian, pissa, pissa_niter_N, olora, orthogonal, ..."
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("all-linear", "query-value"):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value


class TrainSettings(Section):
    """The settings that the trainings of teacher and student share."""

    epochs: float = Field(3, gt=0, description="passes over the training rows")
    min_steps: int = Field(0, ge=0, description="steps to train at least, even if they are more than the epochs give")
    batch_size: int = Field(32, ge=1, description="rows in one step")
    accumulate: int = Field(1, ge=1, description="steps whose gradients are added up for one update of the weights")
    learning_rate: float = Field(5e-5, gt=0, description="highest learning rate")
    head_learning_rate: float | None = Field(
        None,
        gt=0,
        description="highest learning rate of what starts at random, such as a new head (default: learning_rate; for a "
        "teacher 20 times that, at most 2e-3)",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again instead of keeping them: less memory, about a third slower"
    )
    warmup: float = Field(
        0.06, ge=0, lt=1, description="share of the steps during which the learning rate rises, 0 to 1"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    evaluations: int = Field(8, ge=1, description="evaluations on the tuning slice during training")
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one (default: never)"
    )
    kept_step: KeptStep = Field(
        "score",
        description="the step whose weights are kept: that of the best score on the tuning slice (or the last one, "
        "where that is within a standard error of it), that of the least loss there, or the last one",
    )
    dropout: Literal["own"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        "own", description="rate of all dropout but the adapters', 0 to 1; own: the checkpoint's"
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="hours that the training may take; its rate falls so that it is done by then (default: no limit)",
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none", description="weights of the classes in the cross-entropy: none, balanced, or a table of them by label"
    )
    window_loss: Literal["row", "each"] = Field(
        "row",
        description="of a row in windows (--long windows): the loss of the answer that is made of all (row), or of "
        "each window's, as if its label were the row's (each)",
    )

    @model_validator(mode="after")
    def _patience_needs_a_best_step(self) -> Self:
        if self.patience is not None and self.kept_step == "last":
            raise ValueError(
                f"patience={self.patience} waits for a better step, and kept_step=last, as recipe paper sets it, keeps "
                "the last: set kept_step too, or no patience"
            )
        return self

    @property
    def dropout_rate(self) -> float | None:
        """The rate of all dropout; None: the checkpoint's own rates."""
        return None if self.dropout == "own" else self.dropout

    @property
    def new_modules_rate(self) -> float:
        """The highest learning rate of modules that start at random."""
        return self.head_learning_rate or self.learning_rate


class TeacherSettings(TrainSettings):
    """Stage `teacher`: fine-tune a teacher, or check one that is fine-tuned already."""

    model: str = Field("google-bert/bert-base-uncased", description="teacher: hub id or path")
    more: tuple[str, ...] | None = Field(
        None, description="further teachers, separated by commas; the logits of all are averaged (default: none)"
    )
    scores: Path | None = Field(
        None, description="file with a black box's answers to all rows; they take the teacher's place (default: none)"
    )
    pooling: Literal["auto", "first", "mean"] = Field(
        "auto",
        description="what a new head reads: the first token by the architecture's own head (first), the mean of the "
        "token vectors (mean), or what the checkpoint was made for (auto)",
    )
    from_probe: Literal["auto", "off"] = Field(
        "auto",
        description="where the fine-tuned teacher is not better than the best baseline beyond chance, also fine-tune "
        "from the linear probe's head, and take the best of these two and the probe itself (auto), or not (off)",
    )
    search: Literal["off", "quick"] = Field(
        "off",
        description="find the learning rates of encoder and head by short trainings first, of at most a third of the "
        "steps together (quick), or not (off)",
    )
    min_steps: int = Field(500, ge=0, description="steps to train at least, even if they are more than the epochs give")
    finetuned: bool = Field(False, description="the teacher is fine-tuned for this task already: only check it")
    labels: tuple[str, ...] | None = Field(
        None, description="label names, in order, of a teacher that calls them LABEL_0, LABEL_1, ..."
    )
    method: Literal["full", "lora"] = Field("full", description="what to train: all weights (full) or adapters (lora)")
    lora: LoraSettings = LoraSettings()

    @property
    def new_modules_rate(self) -> float:
        """A head that starts at random has far to go: at the rate of pretrained weights it would lag behind them."""
        return self.head_learning_rate or max(self.learning_rate, min(20 * self.learning_rate, 2e-3))

    @property
    def sources(self) -> tuple[str, ...]:
        """All teachers. A student that is cut is cut from the first one."""
        return (self.model, *(self.more or ()))

    @field_validator("labels", "more", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


class BaselinesSettings(Section):
    """Stage `baselines`: what is cheap to beat."""

    enabled: bool = Field(True, description="fit the baselines and put them beside the models in every table")
    max_rows: int = Field(20_000, ge=20, description="training rows that they are fitted to at most, drawn at random")


class TargetsSettings(Section):
    """Stage `targets`: what the student learns from."""

    weights: Literal["score", "equal"] = Field(
        "score", description="weights of several teachers: their score on the tuning slice, or equal"
    )
    calibrate: bool = Field(
        False,
        description="divide the teacher's logits by the temperature at which the tuning slice's labels are likeliest",
    )


class StudentSettings(TrainSettings):
    """Stage `student`: distil the teacher into a student."""

    model: str = Field(
        "layers:first-and-last",
        description="student: hub id, path, the teacher's layers to keep: layers:0,1,5 (by number), or half of them "
        "by layers:first-and-last, layers:first-half or layers:every-second, each with ,ffn=768 for so many neurons of "
        "their feed-forward parts, those that matter most; conv, static or linear: its token vectors "
        "under convolutions, in a bag, or added up, in sizes of their own by conv:channels=128,window=5; or teacher: "
        "the teacher itself, which is not trained again",
    )
    vocabulary: Literal["all", "auto"] | Annotated[int, Field(ge=1)] = Field(
        "all",
        description="pieces of the teacher's vocabulary that a student made of it keeps: all; auto, those that the "
        "training and unlabelled texts use, and what all characters can be written with; or a number, these and the "
        "most frequent others up to so many",
    )
    cut_from: Literal["finetuned", "pretrained"] = Field(
        "finetuned", description="whether a student is cut from the fine-tuned or the pretrained teacher"
    )
    method: Literal["full", "lora"] = Field("lora", description="what to train: adapters (lora) or all weights (full)")
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")
    min_steps: int = Field(
        1500, ge=0, description="steps to train at least, even if they are more than the epochs give"
    )
    kept_step: KeptStep = Field("loss", description=str(TrainSettings.model_fields["kept_step"].description))
    dropout: Literal["own"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="rate of all dropout but the adapters', 0 to 1; own: the checkpoint's"
    )
    alpha: float = Field(
        0.9, ge=0, le=1, description="weight of the teacher in the loss, 0 to 1; the labels have 1 - alpha"
    )
    temperature: float = Field(
        2.0, gt=0, description="temperature that softens the distributions of teacher and student"
    )
    allow_majority: bool = Field(
        False, description="warn of a student that is no better than the majority class, instead of failing"
    )
    lora: LoraSettings = LoraSettings()

    def of(self, model: str) -> Self:
        """These settings for another student, as a search tries it. One without layers, where the configured one has
        some, is trained in its own way."""
        is_another = is_shallow(model) and not is_shallow(self.model)
        own = without_layers(model, self.epochs, self.min_steps) if is_another else {}
        return self.model_copy(update=own | {"model": model})


class ExportSettings(Section):
    """Stage `export`: write the student as ONNX."""

    exporter: Literal["auto", "optimum", "torch"] = Field(
        "auto", description="what writes the ONNX file; auto is torch, and Optimum where onnxscript is not installed"
    )
    fp16: bool = Field(True, description="also make an fp16 variant, for CUDA")
    teacher: bool = Field(
        True,
        description="also export the uncut teacher, in fp32 and int8, and put it beside the student in every table",
    )
    formats: tuple[Literal["onnx", "hf"], ...] = Field(
        ("onnx", "hf"),
        description="what the artifact is, separated by commas: onnx, which kdc serves, and hf, a Hugging Face folder "
        "besides, with config, tokenizer and weights for transformers, Optimum and transformers.js",
    )

    @field_validator("formats", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("formats")
    @classmethod
    def _can_be_served(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "onnx" not in value:
            raise ValueError("an artifact is always onnx: give onnx, or onnx,hf")
        return tuple(name for name in ("onnx", "hf") if name in value)


class QuantizeSettings(Section):
    """Stage `quantize`: make int8 candidates and choose one."""

    enabled: bool = Field(True, description="make int8 candidates and judge them")
    max_int8_drop: float = Field(
        1.0, ge=0, description="points of the metric that int8 may lose against the fp32 ONNX file"
    )
    free_drop: float = Field(
        0.3,
        ge=0,
        description="points of the metric that int8 may lose before further candidates are tried",
    )
    vector_bits: Literal[8, 4] = Field(
        8,
        description="bits of each number of the token vectors in an int8 file: 8, or 4, with which the vectors take "
        "little more than half as much (where 32 divides their width)",
    )
    calibration_rows: int = Field(256, ge=8, description="training rows that set the ranges of the activations")
    invariance_rows: int = Field(
        500, ge=2, description="rows whose answers alone and in random batches of 16 are compared; at least 500"
    )
    rounds: int = Field(20, ge=1, description="rounds of timing, in turns over all candidates; the median counts")


class OperatingSettings(Section):
    """From which probability on the artifact gives a label, answers a row, or has a label in the row's set, chosen on
    the tuning slice."""

    aims: Texts = Field(
        (),
        description="what thresholds are chosen by: f1, matthews, precision>=0.95, recall>=0.99, fpr<=0.01 or the "
        "threshold itself, for one label LABEL:recall>=0.9 (default: f1 for each label of a multi-label task)",
    )
    evidence: Evidence = Field(
        "interval",
        description="when an aim's bound is kept: interval (the tuning slice shows, with an error of 5 %, that it is "
        "on other rows) or point (it is on the tuning slice)",
    )
    abstain: str | None = Field(
        None,
        description="which rows of several classes are answered: accuracy>=0.98, the most of which that share is shown "
        "to be right, or the least probability of an answer (default: all)",
    )
    sets: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="probability, such as 0.95, with which a row's set of labels holds the true one; of three classes "
        "or more (default: no sets)",
    )

    @field_validator("aims")
    @classmethod
    def _can_be_read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_aim(text)
        return value

    @field_validator("abstain", mode="before")
    @classmethod
    def _says_when(cls, value: Any) -> Any:
        if value is None:
            return None
        parse_abstain(str(value))
        return str(value)


class CascadeSettings(Section):
    """Stage `cascade`: a second model for the rows that the student is not sure of."""

    second: Literal["off", "auto"] | Path | None = Field(
        None,
        description="the second model: auto, the teacher itself, uncut; the artifact of another run on the same rows; "
        "or off (default: auto where a contract's student is searched for, else off); taken only where it gains",
    )
    max_drop: float = Field(
        0.1,
        ge=0,
        description="points of the metric that the two may lose against the second model alone, on the tuning slice; "
        "a contract with max_drop asks for half of that against what it compares with",
    )


class EvaluateSettings(Section):
    """Stage `evaluate`: measure every model on the evaluation rows."""

    latency_rows: int = Field(100, ge=10, description="rows that are timed one by one (p50, p95)")
    throughput_rows: int = Field(256, ge=32, description="rows that are timed in batches of 32")
    rounds: int = Field(3, ge=1, description="rounds of timing, in turns over all models; the median counts")
    memory: bool = Field(True, description="measure the peak memory of each model, in a process of its own")


class ContractSettings(Section, Proof, Limits):
    """The contract that the artifact must keep. Nothing is judged unless a limit is set."""

    search: Literal["quick", "full", "off"] = Field(
        "quick",
        description="search for the student that keeps the contract: quick (short trainings of the three most "
        "promising that can keep latency and size), full (of all that can) or off (train student.model; the default if "
        "that is set); the teacher itself, where it can keep them, is a candidate without training",
    )
    max_hours: float | None = Field(
        None, gt=0, description="hours that the short trainings may take; after that the best student so far is taken"
    )
    against: Against = Field("best", description=Proof.model_fields["against"].description)
    at: Conditions = Conditions()

    @property
    def terms(self) -> Contract | None:
        """The contract as the artifact's manifest has it; None where no limit is set."""
        if not self.any:
            return None
        limits = Limits(**self.model_dump(include=set(Limits.model_fields)))
        return Contract(limits=limits, at=self.at, **self.model_dump(include=set(Proof.model_fields)))


class ReportSettings(Section):
    """The report, which is written after the last stage."""

    examples: bool = Field(True, description="quote some rows on which teacher and student disagree")


class Config(Section):
    """Everything one run needs."""

    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    long: LongSettings = LongSettings()
    baselines: BaselinesSettings = BaselinesSettings()
    teacher: TeacherSettings = TeacherSettings()
    targets: TargetsSettings = TargetsSettings()
    student: StudentSettings = StudentSettings()
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    cascade: CascadeSettings = CascadeSettings()
    operating: OperatingSettings = OperatingSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    contract: ContractSettings = ContractSettings()
    report: ReportSettings = ReportSettings()

    @property
    def has_one_teacher(self) -> bool:
        """Whether there is one teacher, with its weights: neither several, nor a black box."""
        return self.teacher.scores is None and len(self.teacher.sources) == 1

    @property
    def measures_first(self) -> bool:
        """Whether candidates are measured before anything is trained: a limit on costs is set."""
        return bool({*self.contract.set_ones} - {"max_drop", "require"})

    @property
    def cascades(self) -> bool:
        """Whether a second model is looked for."""
        second = self.cascade.second
        if second is not None:
            return second != "off"
        return self.searches and self.export.teacher and self.has_one_teacher and self.student.vocabulary == "all"

    @property
    def searches(self) -> bool:
        """Whether the stage `search` chooses the student."""
        return self.measures_first and self.contract.search != "off"
