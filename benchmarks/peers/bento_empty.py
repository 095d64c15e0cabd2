"""An empty BentoML service: how long BentoML alone takes to start."""

import bentoml


@bentoml.service(logging={"access": {"enabled": False}})
class Empty:
    """No model."""

    @bentoml.api
    def nothing(self) -> str:
        """Answer nothing."""
        return ""
