"""kdc's engine in a plain BentoML service with its adaptive batcher: `POST /classify {"texts": [[...]]}`.

Reads the artifact's path from `PEER_ARTIFACT`. Access log off, as in `kdc serve`; otherwise BentoML's defaults.
"""

import os

import bentoml

from kdc.serving.engine.engine import Engine, Text


@bentoml.service(logging={"access": {"enabled": False}})
class Batchable:
    """Classifies single texts or pairs."""

    def __init__(self) -> None:
        self.engine = Engine.load(os.environ["PEER_ARTIFACT"], device="cpu")
        self.engine.warm_up()

    @bentoml.api(batchable=True)
    def classify(self, texts: list[list[str]]) -> list[list[float]]:
        """Probabilities, in the order of the artifact's labels."""
        rows: list[Text] = [(row[0], row[1]) if len(row) == 2 else row[0] for row in texts]
        return self.engine.predict(rows).tolist()
