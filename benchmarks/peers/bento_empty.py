"""An empty BentoML service, to time its start."""

import bentoml


@bentoml.service(logging={"access": {"enabled": False}})
class Empty:
    @bentoml.api
    def nothing(self) -> str:
        return ""
