"""`cocoon manifest`: describe a model's files, and check files against a description."""

from pathlib import Path

import click
import msgspec

from cocoon.enrolment import MANIFEST_BYTES_MAX
from cocoon.errors import CocoonError, MalformedError
from cocoon.manifest import Manifest, Source, manifest_digest
from workers.agent.weights import Hasher, describe, require_weights

_MODEL = click.Path(path_type=Path, exists=True)


class ManifestFileError(CocoonError):
    """The manifest's file cannot be used."""

    code = "manifest_unusable"


@click.group()
def command() -> None:
    """Say exactly which files a worker serves, and check that it does."""


@command.command("build")
@click.argument("path", type=_MODEL)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Where to; default its output.")
@click.option("--repo", help="Where the files were published.")
@click.option("--commit", help="The commit there; needs --repo.")
@click.option("--engine-image", help="Digest of the engine's image, sha256:...")
@click.option("--arg", "arguments", multiple=True, help="A launch argument of the engine; repeat in order.")
@click.option("--quantisation", help="Where the files do not say it.")
def build_command(
    path: Path, output: Path | None, repo: str | None, commit: str | None, engine_image: str | None,
    arguments: tuple[str, ...], quantisation: str | None,
) -> None:  # fmt: skip
    """Write the manifest of the model at PATH, a folder or a GGUF file, and its digest on standard error."""
    if (repo is None) != (commit is None):
        raise click.UsageError("--repo and --commit go together")
    source = None if repo is None or commit is None else Source(repo, commit)
    manifest = describe(
        path, source=source, engine_image=engine_image, arguments=arguments, quantisation=quantisation
    )  # fmt: skip
    raw = manifest.encode()
    try:
        Manifest.decode(raw)
    except MalformedError as error:
        detail = error.__cause__ if isinstance(error.__cause__, msgspec.MsgspecError) else error
        raise ManifestFileError(f"these values make no manifest: {detail}") from error
    if output is None:
        click.echo(raw, nl=False)
    else:
        try:
            output.write_bytes(raw)
        except OSError as error:
            raise ManifestFileError(f"{output}: {error.strerror}") from error
    click.echo(f"sha256 {manifest_digest(raw).hex()}, {len(manifest.files)} files", err=True)


@command.command("check")
@click.argument("path", type=_MODEL)
@click.argument("manifest", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def check_command(path: Path, manifest: Path) -> None:
    """Check that the model at PATH is the one of MANIFEST; exit status 1 and the first difference if not."""
    raw = read_manifest(manifest)
    require_weights(Manifest.decode(raw), path, Hasher())
    click.echo(f"{path} is the model of the manifest {manifest_digest(raw).hex()}")


def read_manifest(path: Path) -> bytes:
    """The bytes of a manifest's file, which nobody has judged yet.

    Raises:
        ManifestFileError: it cannot be read, or is too long to be one.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise ManifestFileError(f"{path}: {error.strerror}") from error
    if len(raw) > MANIFEST_BYTES_MAX:
        raise ManifestFileError(f"{path} is too long to be a manifest")
    return raw
