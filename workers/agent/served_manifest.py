"""The manifest that this agent was told to serve, and the weights that it starts its engine from.

The files are hashed before every start of the engine (those that did not change within this run, once), and an engine
whose files are others is not started. Between the hash and the engine's own reading, the files are the machine's; what
closes that gap is the read-only, verified volume of a measured image.
"""

from pathlib import Path

import structlog

from cocoon.enrolment import MANIFEST_BYTES_MAX
from cocoon.errors import MalformedError
from cocoon.manifest import Manifest, manifest_digest
from workers.agent.settings import Settings, SettingsError
from workers.agent.weights import Hasher, require_weights

_log: structlog.stdlib.BoundLogger = structlog.get_logger()
_VARIABLE = "COCOON_WORKER_MANIFEST"


class ServedManifest:
    """`raw` and `digest` are empty where the operator names no manifest."""

    def __init__(self, raw: bytes = b"") -> None:
        self.raw = raw
        self.digest = manifest_digest(raw) if raw else b""
        self._manifest = Manifest.decode(raw) if raw else None
        self._hasher = Hasher()

    def require(self, model: str) -> None:
        """Hash the engine's model, a file or a folder; blocks for as long as the disk takes.

        Raises:
            WeightsError: it cannot be read.
            ManifestMismatchError: it is not the manifest's.
        """
        if self._manifest is not None:
            require_weights(self._manifest, Path(model), self._hasher)
            _log.info("weights_verified", manifest=self.digest.hex(), files=len(self._manifest.files))


def read_served(settings: Settings) -> ServedManifest:
    """The manifest that the settings name.

    Raises:
        SettingsError: it cannot be read, is none, or says what this agent cannot hold an engine to.
    """
    path = settings.manifest_file
    if path is None:
        return ServedManifest()
    try:
        with path.open("rb") as file:
            served = ServedManifest(file.read(MANIFEST_BYTES_MAX + 1))
        manifest = Manifest.decode(served.raw)
    except OSError as error:
        raise SettingsError(f"{_VARIABLE} cannot be read: {error.strerror}") from error
    except MalformedError as error:
        raise SettingsError(f"{_VARIABLE} is not a manifest of `cocoon manifest build`: {error}") from error
    if settings.engine_url is not None:
        raise SettingsError(f"{_VARIABLE} needs an engine that the agent launches: what others serve is not known")
    if manifest.arguments != settings.engine_args:
        raise SettingsError(f"{_VARIABLE} and COCOON_ENGINE_ARGS name different launch arguments")
    return served
