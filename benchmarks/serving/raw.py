"""Forward passes alone, over tokenised rows sorted by length in equal batches: the limit.

Single rows keep their order: ONNX Runtime is faster with repeated shapes, which no service can count on.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from kdc.serving.engine.engine import Engine


def main() -> None:
    artifact, file, size, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    engine = Engine.load(artifact, device="cpu")
    engine.warm_up()
    rows = json.loads(file.read_text(encoding="utf-8"))
    encodings = engine.encode([row if isinstance(row, str) else tuple(row) for row in rows])
    if size > 1:
        encodings.sort(key=len)
    batches = [encodings[start : start + size] for start in range(0, len(encodings), size)]
    for batch in batches:
        engine.run(batch)
    times: list[float] = []
    while sum(times) < seconds:
        for batch in batches:
            began = time.perf_counter()
            engine.run(batch)
            times.append(time.perf_counter() - began)
    p50, p95, p99 = (1000 * float(value) for value in np.percentile(times, [50, 95, 99]))
    passes = len(times) / len(batches)
    figures = {
        "requests_per_second": len(times) / sum(times),
        "rows_per_second": passes * len(rows) / sum(times),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "errors": 0,
    }
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main()
