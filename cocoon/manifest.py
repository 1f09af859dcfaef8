"""Model manifests: exactly which files, read in which way, answer under a model's name.

A manifest is a canonical document; its digest is the plain SHA-256 of its bytes, as its field's name in keysets and
receipts says and as the log makes its entries. What keeps it apart from the digest of anything else is the label in the
document, `format`. Whoever pins a digest pins weights, tokenizer, chat template and launch arguments together.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import msgspec

from cocoon import canonical
from cocoon.enrolment import MANIFEST_BYTES_MAX, Digest
from cocoon.errors import CocoonError, MalformedError

FORMAT: Literal["cocoon/manifest/1"] = "cocoon/manifest/1"
FILES_MAX = 2048
_HEX = re.compile(r"[0-9a-f]{64}")

Text = Annotated[str, msgspec.Meta(max_length=256)]


class ManifestMismatchError(CocoonError):
    """These are not the files that the manifest names."""

    code: ClassVar[str] = "weights_mismatch"


class ManifestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a model: its path below the model's folder with `/` between names, its bytes and their SHA-256."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    sha256: Digest
    size: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the files were published: a repository's name, and the full name of a commit in it."""

    repo: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    commit: Annotated[str, msgspec.Meta(min_length=7, max_length=64, pattern=r"\A[0-9a-f]+\Z")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a worker serves. Fields with a default are left out; absent means not known, never none.

    `tokenizer_sha256` and `chat_template_sha256` name parts of the files that people compare across models (see
    docs/manifest.md). `arguments` are the operator's own for the engine, and an agent launches it with no others.
    `verity_root` is the root hash of a dm-verity volume with the files.
    """

    format: Literal["cocoon/manifest/1"]
    files: Annotated[tuple[ManifestFile, ...], msgspec.Meta(min_length=1, max_length=FILES_MAX)]
    quantisation: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    arguments: Annotated[tuple[Text, ...], msgspec.Meta(max_length=256)]
    source: Source | None = None
    tokenizer_sha256: Digest | None = None
    chat_template_sha256: Digest | None = None
    engine_image: Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")] | None = None
    verity_root: Digest | None = None

    def encode(self) -> bytes:
        """The canonical bytes that are digested and carried."""
        return canonical.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "Manifest":
        """The manifest in its carried bytes.

        Raises:
            MalformedError: not the canonical encoding of a manifest, too long, or its files are not in order.
        """
        if len(raw) > MANIFEST_BYTES_MAX:
            raise MalformedError("the manifest is too long")
        manifest = canonical.decode(raw, Manifest)
        paths = [file.path for file in manifest.files]
        if paths != sorted(set(paths)) or not all(map(is_plain_path, paths)):
            raise MalformedError("a manifest's files have plain paths, each once and in order")
        return manifest


def manifest_digest(raw: bytes) -> bytes:
    """The digest of a manifest's exact bytes, which keysets, receipts and clients name it by."""
    return hashlib.sha256(raw).digest()


def read_digest(text: str) -> bytes:
    """A digest as clients write it, 64 hexadecimal digits in lower case.

    Raises:
        MalformedError: something else.
    """
    if _HEX.fullmatch(text) is None:
        raise MalformedError("a model manifest is named by the 64 hexadecimal digits of its SHA-256")
    return bytes.fromhex(text)


def is_plain_path(path: str) -> bool:
    """Whether a path stays below its folder, in one spelling."""
    return all(part not in {"", ".", ".."} and "\\" not in part and part.isprintable() for part in path.split("/"))


def require_same_files(manifest: Manifest, found: Iterable[ManifestFile]) -> None:
    """Compare with what lies in the model's folder: nothing more, nothing less, nothing else.

    Raises:
        ManifestMismatchError: naming one file that is missing, not in the manifest, or another one.
    """
    wanted = {file.path: file for file in manifest.files}
    present = {file.path: file for file in found}
    for path in sorted(wanted.keys() | present.keys()):
        if path not in present:
            raise ManifestMismatchError(f"{path} is in the manifest and not in the model")
        if path not in wanted:
            raise ManifestMismatchError(f"{path} is in the model and not in the manifest")
        if wanted[path] != present[path]:
            what = "size" if wanted[path].size != present[path].size else "content"
            raise ManifestMismatchError(f"{path} has another {what} than the manifest says")
