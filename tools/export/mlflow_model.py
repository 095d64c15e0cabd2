"""The model for MLflow, which runs a copy of this file."""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from kdc.artifact.contract.text import refuse_failed
from kdc.serving.engine.engine import Engine


class Classifier(PythonModel):
    def load_context(self, context: Any) -> None:
        """Refuses an artifact that failed its contract."""
        self.engine = Engine.load(context.artifacts["artifact"])
        assert self.engine.manifest is not None
        refuse_failed(self.engine.manifest.contract, allow=False)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """`label` and every `score_LABEL`, or a regression's `number`. Input columns are named as in training."""
        task = self.engine.task
        columns = [name for name in (task.text, task.text_pair) if name is not None]
        rows = model_input[columns].itertuples(index=False, name=None)
        scores = self.engine.predict([row if len(row) == 2 else row[0] for row in rows])
        if not task.traits.has_labels:
            return pd.DataFrame({"number": scores[:, 0]})
        return pd.DataFrame(
            {"label": self.engine.decided(scores)}
            | {f"score_{name}": column for name, column in zip(task.labels, scores.T, strict=True)}
        )


set_model(Classifier())
