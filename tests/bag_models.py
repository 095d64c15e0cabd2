"""Artifacts whose answers numpy can compute too: the logits are sums over words, and words are split at spaces."""

import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.manifest import Kind, Lineage, Manifest, TaskInfo, TokenizerInfo, Variant
from kdc.artifact.question import Question

PAD_ID = 1  # as RoBERTa's; with 0 a test would not notice a forgotten pad id
WORDS = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{n}": n + 4 for n in range(20)}
IDS = 64  # of tokens; more than there are words, for other tokenizers
TABLE = np.random.default_rng(0).normal(size=(IDS, 3)).astype(np.float32)
SINGLE = TaskInfo(name="mood", kind="classification", text="sentence", labels=("bad", "so so", "good"))
PAIR = TaskInfo(name="nli", kind="classification", text="premise", text_pair="hypothesis", labels=("a", "b", "c"))
INFO = TokenizerInfo(max_length=8, pad_id=PAD_ID, pad_token="[PAD]", token_type_ids=False)
TYPED = INFO.model_copy(update={"token_type_ids": True})
CARD = """---
pipeline_tag: text-classification
---
# mood

## Use

kdc try . hello

The folder is a Hugging Face model too. `from_pretrained(FOLDER, {subfolder: ""})`

## Limits

Few.
"""


def table(outputs: int) -> NDArray[np.float32]:
    """What each token adds to the logits, (tokens, outputs)."""
    if outputs <= TABLE.shape[1]:
        return TABLE[:, :outputs]
    return np.random.default_rng(0).normal(size=(IDS, outputs)).astype(np.float32)


def make_graph(path: Path, scale: float = 1.0, *, typed: bool = False, outputs: int = 3) -> Path:
    """Write an ONNX graph: logits = sum over unmasked tokens of scale * TABLE[id] * (1 + token type)."""
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if typed else [])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["rows", "mask3"], ["kept"]),
    ]
    if typed:
        nodes += [
            helper.make_node("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["types", "one"], ["weight"]),
            helper.make_node("Unsqueeze", ["weight", "last"], ["weight3"]),
            helper.make_node("Mul", ["kept", "weight3"], ["weighted"]),
        ]
    nodes.append(helper.make_node("ReduceSum", ["weighted" if typed else "kept", "axis"], ["logits"], keepdims=0))
    constants = {
        "table": table(outputs) * scale,
        "last": np.array([-1]),
        "axis": np.array([1]),
        "one": np.float32(1),
    }
    graph = helper.make_graph(
        nodes,
        "bag",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def make_tokenizer(path: Path) -> Path:
    """Write a tokenizer: [CLS] words [SEP] words [SEP]. Like some public ones it also pads to 7 and cuts at 4."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=7, pad_id=0)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(path))
    return path


def make_word_pieces(path: Path) -> Path:
    """Write a WordPiece tokenizer of letters: the longer a word is, the longer it takes."""
    pieces = [f"{before}{letter}" for before in ("", "##") for letter in string.ascii_lowercase]
    vocabulary = {piece: place for place, piece in enumerate(["[UNK]", *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(path))
    return path


def expected_logits(*parts: str, scale: float = 1.0, typed: bool = False) -> NDArray[np.float32]:
    """The graph's logits by numpy, for one row of texts that need no cut: float32 (outputs,)."""
    ids, types = [2], [0]
    for number, part in enumerate(parts):
        words = [WORDS.get(word, 0) for word in part.split()]
        ids += [*words, 3]
        types += [number] * (len(words) + 1)
    weights = 1 + np.array(types) if typed else np.ones(len(ids))
    return (TABLE[ids] * scale * weights[:, None]).sum(axis=0).astype(np.float32)


def many_labels(count: int, kind: Kind = "classification") -> TaskInfo:
    """A task of so many labels."""
    return TaskInfo(name="intents", kind=kind, labels=tuple(f"intent number {place}" for place in range(count)))


def write_artifact(
    folder: Path,
    task: TaskInfo = SINGLE,
    info: TokenizerInfo = INFO,
    *,
    scale: float = 1.0,
    temperature: float = 2.0,
    outputs: int = 3,
    tokenizer: Path | None = None,
    questions: tuple[Question, ...] = (),
) -> Path:
    """Write an artifact: fp32 with `scale`, and int8 with 1.01 times that, which is what the CPU loads. It has a copy
    of `tokenizer`, by default one of `WORDS`."""
    folder.mkdir(parents=True, exist_ok=True)
    typed = info.token_type_ids
    make_graph(folder / "model.onnx", scale, typed=typed, outputs=outputs)
    make_graph(folder / "model.int8.onnx", scale * 1.01, typed=typed, outputs=outputs)
    if tokenizer is None:
        make_tokenizer(folder / "tokenizer.json")
    else:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    lineage = Lineage(
        teacher="t", student="s", recipe="best", data_fingerprint="d", seed=0, packages={}, cpu="c", trained=""
    )
    manifest = Manifest(
        kdc_version="0",
        task=task,
        questions=questions,
        lineage=lineage,
        tokenizer=info,
        input_names=info.input_names,
        temperature=temperature,
        files=describe_files(folder, ["model.onnx", "model.int8.onnx", "tokenizer.json"]),
        variants={
            "fp32": Variant(file="model.onnx", size_bytes=1, opset=17, ir=8),
            "int8": Variant(file="model.int8.onnx", size_bytes=1, opset=17, ir=8),
        },
        providers={"CPUExecutionProvider": "int8", "CUDAExecutionProvider": "fp32"},
        created="now",
    )
    write_manifest(folder, manifest)
    return folder


def write_hub_artifact(
    folder: Path, task: TaskInfo = SINGLE, info: TokenizerInfo = INFO, *, own: Any = None, **how: Any
) -> Path:
    """A bag of words as a Hugging Face folder that says to be a BERT, with `own` fields of its config."""
    manifest = load_manifest(write_artifact(folder, task, info, **how))
    several = task.kind == "multilabel"
    config = {
        "model_type": "bert",
        "id2label": dict(enumerate(task.labels)),
        "problem_type": f"{'multi' if several else 'single'}_label_classification",
        **(own or {}),
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": info.max_length,
        "pad_token": "[PAD]",
        "padding_side": "right",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    added = describe_files(folder, ["config.json", "tokenizer_config.json", "README.md"])
    write_manifest(folder, manifest.model_copy(update={"files": manifest.files | added}))
    return folder
