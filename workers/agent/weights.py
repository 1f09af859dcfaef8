"""The files of a model as they lie on this machine: hashed, described, and held against a manifest.

A model is one file (GGUF) or a folder. In a folder every file counts, whatever its name: an engine may load code from
any of them. Only `.git` and `.cache` at the top, which download tools leave behind, are not part of a model.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, cast

from cocoon.errors import CocoonError, MalformedError
from cocoon.manifest import FILES_MAX, FORMAT, Manifest, ManifestFile, Source, is_plain_path, require_same_files
from workers.agent.gguf import read_gguf

NOT_THE_MODELS = frozenset({".git", ".cache"})
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_SMALL_BYTES_MAX = 64 * 1024 * 1024


class WeightsError(CocoonError):
    """The model's files cannot be read, or are not what a model consists of."""

    code: ClassVar[str] = "weights_unreadable"


class Hasher:
    """SHA-256 of files; one that is still the same inode, size and time of change is not read twice.

    For one run only: between runs, time stamps prove nothing.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], bytes] = {}

    def sha256(self, path: Path) -> tuple[bytes, int]:
        """Digest and size of a file.

        Raises:
            WeightsError: it cannot be read, is no plain file, or was changed while it was read.
        """
        try:
            with path.open("rb") as file:
                before = _identity(os.fstat(file.fileno()))
                known = self._known.get(before)
                digest = known or hashlib.file_digest(file, "sha256").digest()
                if _identity(os.fstat(file.fileno())) != before:
                    raise WeightsError(f"{path} was changed while it was read")
        except OSError as error:
            raise WeightsError(f"{path}: {error.strerror}") from error
        self._known[before] = digest
        return digest, before[2]


def model_files(path: Path, hasher: Hasher) -> tuple[ManifestFile, ...]:
    """Every file of the model at `path`, hashed, in the order of a manifest.

    Raises:
        WeightsError: a file cannot be read, or there are none, too many, or some with impossible names.
    """
    root = path.parent if path.is_file() else path
    paths = sorted([path.name] if path.is_file() else _walk(path))
    if not paths:
        raise WeightsError(f"there is no model at {path}")
    found: list[ManifestFile] = []
    for name in paths:
        if not is_plain_path(name):
            raise WeightsError(f"{path} has a file whose name cannot be in a manifest: {name!r}")
        digest, size = hasher.sha256(root / name)
        found.append(ManifestFile(name, digest, size))
    return tuple(found)


def require_weights(manifest: Manifest, path: Path, hasher: Hasher) -> None:
    """Hash the model at `path` and hold it against `manifest`.

    Raises:
        WeightsError: it cannot be read.
        ManifestMismatchError: it has other files.
    """
    require_same_files(manifest, model_files(path, hasher))


def describe(
    path: Path, *, source: Source | None, engine_image: str | None, arguments: tuple[str, ...],
    quantisation: str | None = None, hasher: Hasher | None = None,
) -> Manifest:  # fmt: skip
    """The manifest of the model at `path`. What cannot be known from its files is told by the caller.

    Raises:
        WeightsError: it cannot be read.
    """
    files = model_files(path, hasher or Hasher())
    try:
        found, tokenizer, template = _gguf_facts(path) if path.is_file() else _folder_facts(path, files)
    except (MalformedError, ValueError, OSError) as error:
        raise WeightsError(f"{path} is no model that is understood: {error}") from error
    return Manifest(
        format=FORMAT,
        files=files,
        quantisation=quantisation or found,
        arguments=arguments,
        source=source,
        tokenizer_sha256=tokenizer,
        chat_template_sha256=None if template is None else hashlib.sha256(template.encode()).digest(),
        engine_image=engine_image,
    )


def _gguf_facts(path: Path) -> tuple[str, bytes | None, str | None]:
    with path.open("rb") as file:
        facts = read_gguf(file)
    return facts.quantisation, facts.tokenizer_sha256, facts.chat_template


def _folder_facts(path: Path, files: tuple[ManifestFile, ...]) -> tuple[str, bytes | None, str | None]:
    digests = {file.path: file.sha256 for file in files}
    tokenizer = next((digests[name] for name in _TOKENIZERS if name in digests), None)
    config, tokens = _json(path / "config.json"), _json(path / "tokenizer_config.json")
    separate = path / "chat_template.jinja"
    template = separate.read_text("utf-8") if separate.is_file() else tokens.get("chat_template")
    quantised = config.get("quantization_config")
    named = cast("dict[str, object]", quantised).get("quant_method") if isinstance(quantised, dict) else None
    kind = named or config.get("torch_dtype") or config.get("dtype") or "unknown"
    return str(kind)[:64], tokenizer, template if isinstance(template, str) else None


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _SMALL_BYTES_MAX:
        raise MalformedError(f"{path.name} is too long")
    document: object = json.loads(path.read_text("utf-8"))
    return cast("dict[str, object]", document) if isinstance(document, dict) else {}


def _walk(folder: Path) -> Iterator[str]:
    """Paths below `folder`. Links are followed to files (as download tools' snapshots need) and never to folders."""
    count = 0
    for parent, folders, names in os.walk(folder, followlinks=False, onerror=_refuse):
        here = Path(parent)
        if here == folder:
            folders[:] = [name for name in folders if name not in NOT_THE_MODELS]
        if linked := next((name for name in folders if (here / name).is_symlink()), None):
            raise WeightsError(f"{here / linked} is a link to a folder; a model's folders are its own")
        for name in names:
            count += 1
            if count > FILES_MAX:
                raise WeightsError(f"{folder} has more than {FILES_MAX} files")
            yield (here / name).relative_to(folder).as_posix()


def _refuse(error: OSError) -> None:
    raise WeightsError(f"{error.filename}: {error.strerror}") from error


def _identity(info: os.stat_result) -> tuple[int, ...]:
    if not stat.S_ISREG(info.st_mode):
        raise WeightsError("a model consists of plain files")
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
