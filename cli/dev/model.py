"""The development model's manifest: made at every start, from the weights as they lie here."""

from pathlib import Path

from cli.dev.state import DevError
from cocoon.manifest import Manifest
from workers.agent.engines.ports import EngineStartError
from workers.agent.engines.xllamacpp import bundled_model
from workers.agent.weights import WeightsError, describe


def development_manifest(model_path: str | None) -> Manifest:
    """The manifest of the model that the workers will serve. Its source is not known from the files, so none is named.

    Raises:
        DevError: there is no model, or it cannot be read.
    """
    try:
        return describe(Path(model_path or bundled_model()), source=None, engine_image=None, arguments=())
    except (EngineStartError, WeightsError) as error:
        raise DevError(f"the development model has no manifest: {error}") from error
