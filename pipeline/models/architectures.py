"""Which architectures cannot be a student, though they can be a teacher. docs/architectures.md has the table of those
that went the whole way; any other is tried, and told of where it fails."""

from transformers import PretrainedConfig

from kdc.common.errors import InputError

# No exporter makes a graph of them that takes the inputs of ours.
_WITHOUT_GRAPH = ("longformer", "xlnet")
# GPT-2's layers are not torch's linear modules, beside which adapters stand; ALBERT's share theirs.
_WITHOUT_ADAPTERS = ("albert", "gpt2")


def has_graph(config: PretrainedConfig) -> bool:
    """Whether a classifier of this config can be exported; True where nobody tried."""
    # Encoder-decoders answer at a text's last end token, and fail on a row of the checks that has none.
    return config.model_type not in _WITHOUT_GRAPH and not getattr(config, "is_encoder_decoder", False)


def check_student(config: PretrainedConfig, given: str, *, adapters: bool) -> None:
    """Refuse, before anything is trained, a student of an architecture that cannot be one.

    Args:
        config: of the checkpoint that the student is, or is cut from.
        given: the student as it was named, for the message.
        adapters: whether it is to be trained through adapters.

    Raises:
        InputError: it cannot be a student, or not with adapters.
    """
    name = f"{given}, a {config.model_type}"
    if not has_graph(config):
        raise InputError(
            "this architecture can be a teacher, but no student: it has no ONNX graph that could be served",
            given=name,
            remedy="--student conv, static or linear, or a checkpoint of another architecture",
        )
    if adapters and config.model_type in _WITHOUT_ADAPTERS:
        raise InputError(
            "this architecture has no layers with linear modules of their own, beside which adapters could stand",
            given=name,
            remedy="--set student.method=full, or a checkpoint of another architecture",
        )
