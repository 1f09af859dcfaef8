"""A manifest names a model's files and nothing else: one bit, one file more or less, and it is another model."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli.main import main
from cocoon.errors import MalformedError
from cocoon.manifest import (
    FORMAT,
    Manifest,
    ManifestFile,
    ManifestMismatchError,
    Source,
    is_plain_path,
    manifest_digest,
    read_digest,
)
from workers.agent.gguf import read_gguf
from workers.agent.served_manifest import read_served
from workers.agent.settings import Settings, SettingsError, parse_settings
from workers.agent.weights import Hasher, WeightsError, describe, model_files, require_weights

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "manifest.json").read_text())
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder in the layout of Hugging Face."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model-00001.safetensors").write_bytes(bytes(range(256)) * 64)
    (folder / "sub" / "extra.bin").write_bytes(b"x")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("not the model's")
    return folder


def built(path: Path, **told: object) -> Manifest:
    return describe(path, **{"source": None, "engine_image": None, "arguments": (), **told})  # type: ignore[arg-type]


def test_a_folder_is_described_whole(model: Path) -> None:
    manifest = built(model, source=Source("org/model", "0123abc"), arguments=("--tp", "2"))
    assert [file.path for file in manifest.files] == [
        "config.json", "model-00001.safetensors", "sub/extra.bin", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert manifest.quantisation == "bfloat16"
    assert manifest.tokenizer_sha256 == hashlib.sha256(b"{}").digest()
    assert manifest.chat_template_sha256 == hashlib.sha256(TEMPLATE.encode()).digest()
    assert Manifest.decode(manifest.encode()) == manifest
    require_weights(manifest, model, Hasher())


def test_a_quantised_folder_and_a_separate_template_are_understood(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    (model / "chat_template.jinja").write_text("another")
    manifest = built(model)
    assert (manifest.quantisation, manifest.chat_template_sha256) == ("awq", hashlib.sha256(b"another").digest())
    assert built(model, quantisation="fp8").quantisation == "fp8"


# Attacks


def test_a_changed_bit_is_another_model(model: Path) -> None:
    manifest = built(model)
    weights = model / "model-00001.safetensors"
    raw = bytearray(weights.read_bytes())
    for bit in (0, 8 * 5000 + 3, 8 * len(raw) - 1):
        raw[bit // 8] ^= 1 << bit % 8
        weights.write_bytes(raw)
        with pytest.raises(ManifestMismatchError, match="safetensors has another content"):
            require_weights(manifest, model, Hasher())
        raw[bit // 8] ^= 1 << bit % 8
    weights.write_bytes(raw)
    require_weights(manifest, model, Hasher())


@pytest.mark.parametrize("name", ["modeling_evil.py", ".hidden", "sub/other.bin"])
def test_a_file_more_is_another_model(model: Path, name: str) -> None:
    manifest = built(model)
    (model / name).write_text("code")
    with pytest.raises(ManifestMismatchError, match="is in the model and not in the manifest"):
        require_weights(manifest, model, Hasher())


def test_a_file_less_or_of_another_length_is_another_model(model: Path) -> None:
    manifest = built(model)
    (model / "sub" / "extra.bin").write_bytes(b"xy")
    with pytest.raises(ManifestMismatchError, match="another size"):
        require_weights(manifest, model, Hasher())
    (model / "sub" / "extra.bin").unlink()
    with pytest.raises(ManifestMismatchError, match="is in the manifest and not in the model"):
        require_weights(manifest, model, Hasher())


def test_what_was_hashed_in_this_run_is_read_again_when_it_changes(model: Path) -> None:
    hasher = Hasher()
    weights = model / "model-00001.safetensors"
    before = hasher.sha256(weights)
    assert hasher.sha256(weights) == before
    raw = bytearray(weights.read_bytes())
    raw[0] ^= 1
    times = weights.stat()
    while weights.stat().st_ctime_ns == times.st_ctime_ns:  # the file system's clock has ticks
        weights.write_bytes(raw)
    # Whoever sets the clock of the file back does not set back its time of change.
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hasher.sha256(weights) != before


def test_links_are_followed_to_files_and_not_to_folders(model: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    (model / "linked.bin").symlink_to(blob)
    assert ManifestFile("linked.bin", hashlib.sha256(b"weights").digest(), 7) in model_files(model, Hasher())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (model / "folder").symlink_to(elsewhere)
    with pytest.raises(WeightsError, match="link to a folder"):
        model_files(model, Hasher())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no model"):
        built(tmp_path / "empty")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="No such file"):
        built(tmp_path / "pipe")
    (tmp_path / "rubbish.gguf").write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match="no model that is understood"):
        built(tmp_path / "rubbish.gguf")


# The document


@pytest.mark.parametrize(
    "paths", [(), ("b", "a"), ("a", "a"), ("../a",), ("/a",), ("a//b",), ("a/./b",), ("a\\b",), ("a\nb",)]
)
def test_paths_are_plain_in_order_and_once(paths: tuple[str, ...]) -> None:
    files = tuple(ManifestFile(path, bytes(32), 1) for path in paths)
    raw = Manifest(format=FORMAT, files=files, quantisation="f16", arguments=()).encode()
    with pytest.raises(MalformedError):
        Manifest.decode(raw)


@given(st.text(max_size=20))
def test_plain_paths_never_leave_their_folder(path: str) -> None:
    if is_plain_path(path):
        assert os.path.normpath(path) == path
        assert not path.startswith(("/", ".."))


@pytest.mark.parametrize("text", ["", "00", "0" * 63, "0" * 65, "G" * 64, "A" * 64, " " + "0" * 64])
def test_a_digest_has_one_spelling(text: str) -> None:
    with pytest.raises(MalformedError):
        read_digest(text)


@pytest.mark.parametrize("vector", VECTORS["manifests"], ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, str]) -> None:
    raw = vector["canonical"].encode()
    assert Manifest.decode(raw).encode() == raw
    assert manifest_digest(raw).hex() == vector["sha256"]
    assert read_digest(vector["sha256"]) == manifest_digest(raw)


@pytest.mark.parametrize("text", VECTORS["malformed"])
def test_other_spellings_are_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        Manifest.decode(text.encode())


# The agent


def _settings(**variables: str) -> Settings:
    return parse_settings(
        {"COCOON_ENV": "development", "COCOON_GATEWAY_URL": "http://127.0.0.1:1", "COCOON_SERVED_MODEL": "m",
         "COCOON_WORKER_KEY": "wk-cocoon-" + "A" * 43, **variables}
    )  # fmt: skip


def test_an_agent_holds_its_engine_to_the_manifest_or_does_not_start(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(built(model, arguments=("--tp", "2")).encode())
    told = {"COCOON_WORKER_MANIFEST": str(file), "COCOON_ENGINE": "sglang", "COCOON_ENGINE_MODEL_PATH": str(model)}
    served = read_served(_settings(**told, COCOON_ENGINE_ARGS="--tp 2"))
    assert served.digest == manifest_digest(file.read_bytes())
    served.require(str(model))
    (model / "added.py").write_text("code")
    with pytest.raises(ManifestMismatchError):
        served.require(str(model))
    for arguments in ("", "--tp 2 --trust-remote-code", "--tp 4"):
        with pytest.raises(SettingsError, match="different launch arguments"):
            read_served(_settings(**told, COCOON_ENGINE_ARGS=arguments))
    with pytest.raises(SettingsError, match="an engine that the agent launches"):
        read_served(_settings(**{**told, "COCOON_ENGINE": "http://127.0.0.1:9"}))
    assert read_served(_settings()).digest == b""


# GGUF


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _gguf(*entries: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries)


ENTRIES = (
    _text("general.file_type") + struct.pack("<II", 4, 7),
    _text("general.alignment") + struct.pack("<If", 6, 1.0),
    _text("tokenizer.ggml.model") + struct.pack("<I", 8) + _text("gpt2"),
    _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("b"),
    _text("tokenizer.ggml.scores") + struct.pack("<IIQff", 9, 6, 2, 0.5, 1.5),
    _text("tokenizer.chat_template") + struct.pack("<I", 8) + _text(TEMPLATE),
)


def test_a_gguf_file_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(_gguf(*ENTRIES) + b"tensors")
    manifest = built(path)
    assert [file.path for file in manifest.files] == ["m.gguf"]
    assert manifest.quantisation == "q8_0"
    assert manifest.tokenizer_sha256 == hashlib.sha256(b"".join(ENTRIES[2:5])).digest()
    assert manifest.chat_template_sha256 == hashlib.sha256(TEMPLATE.encode()).digest()


@pytest.mark.parametrize(
    "raw",
    [
        _gguf(version=1),
        _gguf()[:-1],
        b"GGUF" + struct.pack("<IQQ", 3, 0, 10**9),
        _gguf(struct.pack("<Q", 2**60)),
        _gguf(_text("k") + struct.pack("<IQ", 8, 2**60)),
        _gguf(_text("k") + struct.pack("<IIQ", 9, 4, 2**40)),
        _gguf(_text("k") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 4, 0)),
        _gguf(_text("k") + struct.pack("<I", 99)),
        _gguf(struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 1)),
    ],
)
def test_a_hostile_gguf_file_is_malformed_at_once(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with path.open("rb") as file, pytest.raises(MalformedError):
        read_gguf(file)


# The command


def test_the_command_builds_and_checks(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    told = ["--repo", "org/model", "--commit", "0123abcd", "--engine-image", "sha256:" + "0" * 64, "--arg", "--tp=2"]
    done = CliRunner().invoke(main, ["manifest", "build", str(model), *told, "-o", str(file)])
    assert done.exit_code == 0, done.output
    manifest = Manifest.decode(file.read_bytes())
    assert manifest.arguments == ("--tp=2",)
    assert manifest_digest(file.read_bytes()).hex() in done.output
    done = CliRunner().invoke(main, ["manifest", "check", str(model), str(file)])
    assert (done.exit_code, manifest_digest(file.read_bytes()).hex() in done.output) == (0, True)
    (model / "added.py").write_text("code")
    done = CliRunner().invoke(main, ["manifest", "check", str(model), str(file)])
    assert done.exit_code == 1
    assert "added.py is in the model and not in the manifest [weights_mismatch]" in done.output


@pytest.mark.parametrize(
    "told", [["--engine-image", "latest"], ["--commit", "0123abcd"], ["--repo", "x", "--commit", "main"]]
)
def test_the_command_refuses_what_names_nothing_exactly(model: Path, told: list[str]) -> None:
    assert CliRunner().invoke(main, ["manifest", "build", str(model), *told]).exit_code != 0
