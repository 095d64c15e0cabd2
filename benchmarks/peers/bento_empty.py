"""A BentoML service that does nothing: how long BentoML alone takes to be ready."""

import bentoml


@bentoml.service(logging={"access": {"enabled": False}})
class Empty:
    """One API, no model."""

    @bentoml.api
    def nothing(self) -> str:
        """Answer nothing."""
        return ""
