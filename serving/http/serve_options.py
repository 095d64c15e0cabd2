from kdc.artifact.artifact_options import ALLOW_FAILED, VARIANT, VERIFY_KEY
from kdc.common.command_options import settings

SERVE = (
    *settings(
        "",
        None,
        ("workers", int, "Worker processes, which share the port (default 1)."),
        ("device", str, "Where to run: auto (default; CUDA if it starts, else the CPU), cpu, cuda or tensorrt."),
        ("threads", int, "Threads of a worker's forward passes together (default: usable cores / workers)."),
        ("api-key-env", str, "Environment variable with the bearer token that requests must bring (default: none)."),
        ("grpc-address", str, "[HOST:]PORT of the Open Inference Protocol over gRPC, e.g. 9000 (default: no gRPC)."),
        ("answers", str, "NAME,... of artifacts that answer every decision question whose options are their labels."),
        ("expect-sha256", str, "The manifest's SHA-256, of several artifacts NAME=SHA256,...; others are refused."),
        ("drain-delay", float, "Seconds of 503 answers between SIGTERM and the end (default 2).", "drain_delay_s"),
    ),
    VERIFY_KEY,
    VARIANT,
    ALLOW_FAILED,
    *settings(
        "",
        "In front of a decision model",
        (
            "upstream",
            str,
            "URL of a decision model: it answers what no artifact is sure of. Its key: KDC_UPSTREAM_KEY.",
        ),
        ("forward-key", bool, "Send the caller's own key upstream."),
        ("when-upstream-fails", str, "error (default), or answer: locally, marked x_below_threshold."),
        ("resume", bool, "Let artifacts answer again that an audit has stopped."),
    ),
    *settings(
        "",
        "Limits",
        ("max-body-bytes", int, "Largest request body, in bytes (default 2 MiB)."),
        ("max-bodies-bytes", int, "Largest sum of the bodies held at one time, in bytes (default 128 MiB)."),
        ("max-unsent-bytes", int, "Largest sum of replies that clients have not read yet, in bytes (default 16 MiB)."),
        ("max-text-chars", int, "Longest text, in characters (default 200000)."),
        ("max-texts", int, "Most texts in a request (default 1024)."),
        ("max-queue-tokens", int, "Most tokens that may wait for a forward pass; beyond, 429 (default 65536)."),
        ("max-queue", float, "Longest expected wait, in seconds; beyond, 429 (default 1).", "max_queue_s"),
        ("max-batch-tokens", int, "Most tokens of a pass, padding included (default: 256 on a CPU, 4096 on a GPU)."),
        ("max-requests", int, "Most concurrent requests (default 1024)."),
        ("timeout", float, "Seconds until a request is given up (default 10).", "timeout_s"),
    ),
)
