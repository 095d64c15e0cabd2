"""Which inputs an exported graph has: stock runtimes send token types of pairs alone."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
import torch

from kdc.pipeline.graphs.exporting import write_graph

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
TYPED = ("bert", "electra")  # in the fast tests


def inputs_of(folder: Path, *, is_pair: bool) -> list[str]:
    """Of the graph; the tokenizer's file says the same."""
    _, info = write_graph(folder, folder, exporter="torch", is_pair=is_pair, max_length=48, long=None)
    inputs = [value.name for value in onnx.load(folder / "model.onnx").graph.input]
    assert list(info.input_names) == inputs
    assert json.loads((folder / "tokenizer_info.json").read_text())["token_type_ids"] == ("token_type_ids" in inputs)
    return inputs


@pytest.mark.parametrize("architecture", TYPED)
def test_a_graph_for_single_texts_takes_no_token_types_and_looks_none_up(architecture: str, tmp_path: Path) -> None:
    """The oracle is the torch model with types of zeros. Would catch another type than 0."""
    model, _ = tiny_models.build(architecture, tmp_path)
    assert inputs_of(tmp_path, is_pair=False) == INPUTS[:2]
    graph = onnx.load(tmp_path / "model.onnx").graph
    tables = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    assert [node.input[1] for node in graph.node if node.op_type == "Gather" and node.input[0] in tables] == INPUTS[:1]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for rows, tokens in ((1, 3), (3, 11), (2, 48)):
        ids = np.random.default_rng(rows).integers(4, 90, (rows, tokens))
        mask = np.ones_like(ids)
        mask[1:, tokens // 2 :] = 0
        with torch.inference_mode():
            parts = [torch.from_numpy(each) for each in (ids, mask, np.zeros_like(ids))]
            expected = model(**dict(zip(INPUTS, parts, strict=True))).logits.numpy()
        (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", TYPED)
def test_a_graph_for_pairs_takes_token_types(architecture: str, tmp_path: Path) -> None:
    tiny_models.build(architecture, tmp_path)
    assert inputs_of(tmp_path, is_pair=True) == INPUTS


def test_single_texts_whose_special_tokens_have_a_type_of_their_own_keep_types(tmp_path: Path) -> None:
    """As XLNet's. Would catch a graph in which every token has type 0."""
    tiny_models.build("bert", tmp_path)
    file = tmp_path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["post_processor"]["single"][-1]["SpecialToken"]["type_id"] = 1
    file.write_text(json.dumps(tokenizer))
    assert inputs_of(tmp_path, is_pair=False) == INPUTS
