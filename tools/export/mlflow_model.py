"""The model that MLflow loads: this file is copied beside the artifact, and run when the model is loaded."""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from kdc.artifact.contract.text import refuse_failed
from kdc.serving.engine.engine import Engine


class Classifier(PythonModel):
    """Answers rows of texts through the engine, as `kdc predict` does."""

    def load_context(self, context: Any) -> None:
        """Load the artifact, whose hashes are checked."""
        self.engine = Engine.load(context.artifacts["artifact"])
        if self.engine.manifest is not None:
            refuse_failed(self.engine.manifest.contract, allow=False)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Of each row `label`, and as `score_LABEL` the probability of each; or regression's `number`.

        Args:
            context: MLflow's; not used.
            model_input: a column for each text, named as in training.
            params: none are known.
        """
        task = self.engine.task
        columns = [task.text] + ([task.text_pair] if task.text_pair is not None else [])
        rows = model_input[columns].itertuples(index=False, name=None)
        scores = self.engine.predict([row if len(row) == 2 else row[0] for row in rows])
        if task.kind == "regression":
            return pd.DataFrame({"number": scores[:, 0]})
        return pd.DataFrame(
            {"label": self.engine.decided(scores)}
            | {f"score_{name}": scores[:, place] for place, name in enumerate(task.labels)}
        )


set_model(Classifier())
