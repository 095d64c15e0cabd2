"""The model card: the results of a run as the artifact's README.md, in Markdown."""

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.text import sentence, table
from kdc.artifact.decision import decision_table, sets_table
from kdc.artifact.inspection import cells
from kdc.artifact.manifest import Manifest
from kdc.common.tables import code, markdown, plain
from kdc.pipeline.config.student_kinds import UNCUT_NAME
from kdc.pipeline.packaging.hugging_face import CONFIG, WEIGHTS
from kdc.pipeline.results.artifact import QuantizeResult


def model_card(
    manifest: Manifest, int8: QuantizeResult, judgement: Judgement | None, example: str, *, teacher: str, adapted: bool
) -> str:
    """The card: what the model answers, what was measured, how to use it, and its limits.

    Args:
        manifest: of the artifact.
        int8: how its int8 variant came about, and what was measured of each candidate.
        judgement: how it kept its contract; None where nothing was asked of it.
        example: arguments for `kdc try`, quoted for a shell.
        teacher: what a person should know of the teacher; "" where all is well.
        adapted: whether the student was trained through adapters.
    """
    task, lineage = manifest.task, manifest.lineage
    columns = code(task.text) if task.text_pair is None else f"the pair {code(task.text)}, {code(task.text_pair)}"
    answers = ", ".join(map(code, task.labels)) or "a number"
    row = '"a text"' if task.text_pair is None else '("first text", "second text")'
    loads = "; ".join(f"{variant} on {provider}" for provider, variant in manifest.providers.items())
    untouched = "On the evaluation split, which nothing was chosen by."
    if judgement is not None and int8.chosen and judgement.variant == "fp32":
        untouched = "On the evaluation split, by which nothing was chosen but fp32 in place of int8, for the contract."
    contract = "" if judgement is None else f"{markdown(table(judgement))}\n\n{plain(sentence(judgement))}\n\n"
    way = "with KD-LoRA, adapters merged" if adapted else "by training all weights"
    how = f"Distilled from {code(lineage.teacher)} into {plain(lineage.student)} {way}"
    if lineage.student.startswith(UNCUT_NAME):
        how = f"{code(lineage.teacher)}, {plain('fine-tuned and uncut' + lineage.student.removeprefix(UNCUT_NAME))}"
    note = plain(int8.note or f"int8 is the candidate {int8.winner}.")
    note += f"\nOf the teacher: {plain(teacher)}." if teacher else ""
    if manifest.second is not None:
        note += f"\nA second model answers rows of which the student is not sure: {plain(manifest.second.text)}."
    return f"""# {plain(task.name)}: a compressed text classifier

Takes {columns}; answers {answers}. {how} (recipe
{code(lineage.recipe)}, seed {lineage.seed}), exported to ONNX.

## Measured

{markdown(cells(manifest.metrics, task.metric))}

{contract}{_candidates(int8, task.metric)}
{untouched} ONNX rows ran through the engine that serves. Latency is of one
row, tokenising included; rows/s at batch 32; size is the model file, or both of a cascade, plus `tokenizer.json`.
CPU: {plain(lineage.cpu)}. {note} Loaded by provider: {loads}.
`evaluation.npz` holds the logits of every evaluation row.

## Use

```
kdc try . {example}
```

```python
import kdc

engine = kdc.load(".")
probabilities = engine.predict([{row}])  # (rows, {task.outputs}), columns {list(task.labels) or "the number"}
```
{_decisions(manifest)}{_sets(manifest)}{_elsewhere(manifest)}
## Limits

It answers what its training rows were like; texts of another kind, language or length may be answered badly and with
confidence. {_of_long_texts(manifest)} Its labels mean what they meant in the training data (fingerprint
`{lineage.data_fingerprint[:16]}`), no more.
"""


def _of_long_texts(manifest: Manifest) -> str:
    """What becomes of texts of more tokens than it takes at once."""
    long, length = manifest.tokenizer.long, manifest.tokenizer.max_length
    return f"Texts of more than {length} tokens are {'cut' if long is None else f'answered by {long.text}'}."


def _decisions(manifest: Manifest) -> str:
    """From which probability on labels are given, or rows answered; empty where there is no threshold."""
    table = decision_table(manifest.task.points, manifest.task.abstain)
    if not table:
        return ""
    what = "A label is given" if manifest.task.points else "A row is answered, by its most probable label,"
    rates = "Precision, recall and false alarms" if manifest.task.points else "The shares of rows"
    return f"""
## Decisions

{what} from a probability on that was chosen on rows held out of training, or set by hand. {rates} are of the
evaluation rows, by which it was not chosen, with exact 95 % intervals.

{markdown(table)}
"""


def _sets(manifest: Manifest) -> str:
    """How often sets of labels hold the true one; empty where there are none."""
    if manifest.task.sets is None:
        return ""
    return f"""
## Sets of labels

`engine.label_sets(probabilities)` gives each row's: the most probable label, and all others from a probability on that
was chosen on rows held out of training. The shares are of the evaluation rows, by which it was not chosen, with exact
95 % intervals.

{markdown(sets_table(manifest.task.sets))}
"""


def _elsewhere(manifest: Manifest) -> str:
    """How other libraries open the artifact; empty where it is no Hugging Face folder."""
    if CONFIG not in manifest.files:
        return ""
    task = manifest.task
    smallest = manifest.variants.get("int8", manifest.variants["fp32"]).file
    dtype = smallest.removesuffix(".onnx").removeprefix("model").removeprefix("_") or "fp32"
    torch = """no class of transformers reads what this model does, so that
`AutoModelForSequenceClassification` refuses it, and the two others open it"""
    if WEIGHTS in manifest.files:
        torch = "`AutoModelForSequenceClassification.from_pretrained(FOLDER)`"
    function = "softmax" if task.kind == "classification" else "sigmoid"
    same = f"`{function}(logits / {manifest.temperature!r})`"
    if task.kind == "regression":
        same = f"`number * {task.spread!r} + {task.center!r}`"
    in_windows = manifest.tokenizer.long is not None
    cut = "to the first window of those that `kdc` answers by" if in_windows else "as this model was trained"
    of_what = " to a text of one window" if in_windows else ""
    return f"""
The folder is a Hugging Face model too. `AutoTokenizer.from_pretrained(FOLDER)` cuts rows, with `truncation=True`,
{cut}; {same} is what `kdc` answers{of_what}.

- transformers: {torch}.
- Optimum: `ORTModelForSequenceClassification.from_pretrained(FOLDER, file_name="{smallest}")`.
- transformers.js: `AutoModelForSequenceClassification.from_pretrained(FOLDER, {{subfolder: "", dtype: "{dtype}"}})`.
"""


def _candidates(int8: QuantizeResult, metric: str) -> str:
    """The table of int8 candidates that could be measured; empty where there is none."""
    rows = [["int8 candidates, on the tuning slice", metric, "batch-invariant", "latency against fp32"]]
    for name, candidate in int8.candidates.items():
        if candidate.tune is not None:
            mark = " (chosen)" if name == int8.chosen else ""
            invariant = "yes" if candidate.batch_invariant else f"no, {candidate.max_probability_difference or 0.0:.2g}"
            if candidate.batch_invariant is None:
                invariant = "not compared" if candidate.static else "no, by design"
            latency = f"{candidate.latency_against_fp32:.2f}"
            rows.append([f"{name}{mark}", f"{candidate.tune[metric]:.2f}", invariant, latency])
    return f"{markdown(rows)}\n" if len(rows) > 1 else ""
