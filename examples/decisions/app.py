"""An application that asks a decision model by OpenAI's client: `python app.py rows.csv 200`.

`OPENAI_BASE_URL` and `OPENAI_API_KEY` say which model.
"""

import csv
import json
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from openai import OpenAI

QUESTION = json.loads(Path(__file__).with_name("question.json").read_text(encoding="utf-8"))


def main(file: str, count: int) -> None:
    with open(file, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows = random.Random(0).sample(rows, count)
    client, seconds, same, sources = OpenAI(), [], 0, Counter[str]()
    for row in rows:
        began = time.perf_counter()
        decision = client.decisions.create(model="hosted", input=row["text"], questions=[QUESTION])
        seconds.append(time.perf_counter() - began)
        answer = decision.answers[0]
        assert answer.type == "choice"
        same += answer.choice == row["label"]
        sources[(answer.model_extra or {}).get("x_source", "hosted")] += 1
    middle = 1000 * statistics.median(seconds)
    print(f"{len(rows)} sentences, median {middle:.1f} ms, {same} answered as the hosted model does")
    print("answered by", dict(sources))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
