"""Tiny random classifiers of several architectures, saved as a merged student would be, with a word-level tokenizer."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PretrainedConfig, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(90)]
MAX_LENGTH = 48
# Above the usual 0.02, so that logits exceed 1: parity of numbers near 0 proves nothing.
SPREAD = 0.6

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_FEW_TOKENS = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
_COMMON: dict[str, object] = {"vocab_size": 100, "max_position_embeddings": 64, "initializer_range": SPREAD}
# Architecture -> (configuration class, its own settings, id of padding).
ARCHITECTURES: dict[str, tuple[str, dict[str, object], int]] = {
    "bert": ("BertConfig", _SIZES, 0),
    "distilbert": ("DistilBertConfig", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, 0),
    "roberta": ("RobertaConfig", _SIZES | {"type_vocab_size": 1}, 1),
    "deberta-v2": (
        "DebertaV2Config",
        _SIZES
        | {
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 8,
            "max_relative_positions": -1,
            "type_vocab_size": 0,
            "pooler_hidden_size": 16,
        },
        0,
    ),
    "electra": ("ElectraConfig", _SIZES | {"embedding_size": 16}, 0),
    "mpnet": ("MPNetConfig", _SIZES, 1),
}
# Those whose feed-forward parts are gated, so that they cannot be made narrower.
GATED: dict[str, tuple[str, dict[str, object], int]] = {
    # Every third layer sees all tokens, the others four on either side.
    "modernbert": ("ModernBertConfig", _SIZES | {"num_hidden_layers": 4, "local_attention": 8} | _FEW_TOKENS, 0),
}
# What is tried in the slow tests alone. The decoders read a text's last token.
_LAST_TOKEN: dict[str, object] = {"bos_token_id": 2, "eos_token_id": 3}
_GROUPED = _SIZES | _LAST_TOKEN | {"num_key_value_heads": 2}
OTHERS: dict[str, tuple[str, dict[str, object], int]] = {
    "xlm-roberta": ("XLMRobertaConfig", _SIZES | {"type_vocab_size": 1}, 1),
    "camembert": ("CamembertConfig", _SIZES | {"type_vocab_size": 1}, 1),
    "deberta": (
        "DebertaConfig",
        _SIZES
        | {
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "max_relative_positions": -1,
            "type_vocab_size": 0,
            "pooler_hidden_size": 16,
        },
        0,
    ),
    "ernie": ("ErnieConfig", _SIZES, 0),
    "convbert": ("ConvBertConfig", _SIZES | {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3}, 0),
    "nomic_bert": ("NomicBertConfig", _SIZES, 0),
    "eurobert": ("EuroBertConfig", _GROUPED, 0),
    "big_bird": ("BigBirdConfig", _SIZES | _FEW_TOKENS | {"attention_type": "original_full"}, 0),
    "albert": ("AlbertConfig", _SIZES | {"embedding_size": 16}, 0),
    "longformer": ("LongformerConfig", _SIZES | _FEW_TOKENS | {"attention_window": [8, 8]}, 1),
    "xlnet": ("XLNetConfig", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}, 0),
    "bart": (
        "BartConfig",
        {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "decoder_start_token_id": 2,
        }
        | _LAST_TOKEN,
        0,
    ),
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64} | _LAST_TOKEN, 0),
    "llama": ("LlamaConfig", _GROUPED, 0),
    "qwen3": ("Qwen3Config", _GROUPED | {"head_dim": 8}, 0),
}
TYPED = ("bert", "electra", "deberta-v2", "deberta", "ernie", "convbert", "nomic_bert", "big_bird", "albert", "xlnet")


def build(architecture: str, folder: Path, outputs: int = 3, seed: int = 0) -> tuple[Any, str]:
    """Save model and tokenizer into `folder`; returns the model in evaluation mode and the padding token."""
    class_name, settings, pad_id = (ARCHITECTURES | GATED | OTHERS)[architecture]
    torch.manual_seed(seed)
    config: PretrainedConfig = getattr(transformers, class_name)(
        **(_COMMON | settings), pad_token_id=pad_id, num_labels=outputs
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    typed = architecture in TYPED
    build_tokenizer(pad_id, typed=typed).save_pretrained(folder)
    return model, "[PAD]"


def build_tokenizer(pad_id: int = 0, *, typed: bool = True) -> PreTrainedTokenizerFast:
    """Words to ids; [CLS] a [SEP] b [SEP]. Its file carries a fixed padding and a truncation, as all-MiniLM's does."""
    special = ["[PAD]", "[UNK]"] if pad_id == 0 else ["[UNK]", "[PAD]"]
    vocabulary = {word: number for number, word in enumerate([*special, "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    second = 1 if typed else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if typed else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=names,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
