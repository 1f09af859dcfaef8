"""No octet of evidence can be altered without the verdict being a refusal, and nothing that is read ends in a crash."""

import functools

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from attestation.evidence import Endorsements, Evidence
from attestation.nvidia.report import parse_report
from attestation.nvidia.xmldsig import parse_xml
from attestation.policy import TEE
from attestation.snp.report import parse_snp_report
from attestation.tdx.quote import parse_quote
from cocoon.errors import CocoonError, MalformedError
from cocoon.statement import Statement
from tests.attested import Scene, machine, scene


@functools.cache
def shown_by(kind: TEE) -> Scene:
    return scene(kind=kind)


def altered(raw: bytes, offset: int, mask: int) -> bytes:
    return raw[:offset] + bytes((raw[offset] ^ mask,)) + raw[offset + 1 :]


def accepted_offsets(shown: Scene, field: str, step: int = 1) -> list[int]:
    raw: bytes = getattr(shown.evidence, field)
    # Which bit is flipped goes round with the offset, so that all eight are.
    return [
        offset
        for offset in range(0, len(raw), step)
        if shown.showing(**{field: altered(raw, offset, 1 << offset % 8)}).verdict().accepted
    ]


@pytest.mark.parametrize("version", [4, 5])
def test_every_octet_of_a_tdx_quote_counts(version: int) -> None:
    shown = scene(machine(gpus=0)).quoting(lambda domain: msgspec.structs.replace(domain, version=version))

    assert shown.verdict().accepted
    assert accepted_offsets(shown, "quote") == []


@pytest.mark.parametrize(
    ("kind", "field"), [("sev-snp", "quote"), ("tdx", "statement"), ("tdx", "keyset"), ("sev-snp", "statement")]
)
def test_every_octet_of_the_rest_counts(kind: TEE, field: str) -> None:
    shown = scene(machine(gpus=0), kind=kind)

    assert shown.verdict().accepted
    assert accepted_offsets(shown, field) == []


def test_every_octet_of_gpu_evidence_counts() -> None:
    assert accepted_offsets(scene(), "gpu", step=11) == []


def test_what_follows_a_quote_may_only_be_zeros() -> None:
    shown = scene()
    raw = shown.evidence.quote

    assert shown.showing(quote=raw + bytes(70)).verdict().accepted
    assert not shown.showing(quote=raw + bytes(69) + b"\x01").verdict().accepted
    assert not shown.showing(quote=raw + bytes(2000)).verdict().accepted
    for length in (0, 1, 47, 48, 631, 632, 1000, len(raw) - 1):
        assert not shown.showing(quote=raw[:length]).verdict().accepted


@hypothesis.given(raw=st.binary(max_size=3000))
def test_no_bytes_crash_a_parser(raw: bytes) -> None:
    for parse in (parse_quote, parse_report, parse_snp_report, parse_xml, Statement.decode, Evidence.decode,
                  Endorsements.decode):  # fmt: skip
        try:
            parse(raw)
        except MalformedError:
            continue


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_alteration_of_what_a_worker_sends_crashes_the_judge(data: st.DataObject) -> None:
    kind: TEE = data.draw(st.sampled_from(["tdx", "sev-snp"]))
    shown = shown_by(kind)
    field = data.draw(st.sampled_from(["quote", "keyset", "statement", "gpu", "chain"]))
    raw: bytes = getattr(shown.evidence, field) or b"x"
    cut = data.draw(st.integers(0, len(raw)))
    inserted = data.draw(st.binary(max_size=20))
    dropped = data.draw(st.integers(0, 20))
    changed = raw[:cut] + inserted + raw[cut + dropped :]
    hypothesis.assume(changed != getattr(shown.evidence, field))

    verdict = shown.showing(**{field: changed}).verdict()

    # Zeros may follow a TDX quote.
    harmless = kind == "tdx" and field == "quote" and changed.rstrip(b"\0") == raw.rstrip(b"\0")
    assert verdict.accepted is False or harmless


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_alteration_of_endorsements_crashes_the_judge(data: st.DataObject) -> None:
    shown = shown_by("tdx")
    raw = shown.endorsements.encode()
    changed = altered(raw, data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(1, 255)))
    try:
        endorsements = Endorsements.decode(changed)
    except CocoonError:
        return
    assert shown.endorsed(
        collateral=endorsements.collateral, rims=endorsements.rims, crls=endorsements.crls
    ).verdict().judged_at > 0  # fmt: skip
