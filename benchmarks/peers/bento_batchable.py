"""kdc's engine behind BentoML's adaptive batcher: `POST /classify {"texts": [[...]]}`.

Reads `PEER_ARTIFACT`.
"""

import os

import bentoml

from kdc.serving.engine.engine import Engine, Text


@bentoml.service(logging={"access": {"enabled": False}})
class Batchable:
    def __init__(self) -> None:
        self.engine = Engine.load(os.environ["PEER_ARTIFACT"], device="cpu")
        self.engine.warm_up()

    @bentoml.api(batchable=True)
    def classify(self, texts: list[list[str]]) -> list[list[float]]:
        rows: list[Text] = [(row[0], row[1]) if len(row) == 2 else row[0] for row in texts]
        return self.engine.predict(rows).tolist()
