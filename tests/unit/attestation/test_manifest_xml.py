"""Canonical XML and reference manifests, down to what nobody would send in good faith."""

import datetime as dt
import re

import pytest

from attestation.findings import Code, RefusedError
from attestation.nvidia.rim import RIM, compare
from attestation.nvidia.xmldsig import DEPTH_MAX, XML_BYTES_MAX, canonical_xml, check_enveloped_signature, parse_xml
from attestation.simulation.certificates import Authority, p256, p384
from attestation.simulation.gpu import sign_manifest
from cocoon.errors import MalformedError
from tests.attested import NOW, machine, scene


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("<a/>", "<a></a>"),
        ("<?xml version='1.0'?>\n<a  b='1'   a='2' ></a >\n", '<a a="2" b="1"></a>'),
        ("<a b='&lt;&amp;&quot;&#9;&#10;&#13;&gt;'/>", '<a b="&lt;&amp;&quot;&#x9;&#xA;&#xD;>"></a>'),
        ("<a>&lt;&gt;&amp;&quot;&#13;\n</a>", '<a>&lt;&gt;&amp;"&#xD;\n</a>'),
        ("<a><![CDATA[<x>]]></a>", "<a>&lt;x&gt;</a>"),
        # Every declaration in scope is written where it is made (inclusive), default first, prefixes in order.
        ("<a xmlns:z='u:z' xmlns:b='u:b' xmlns='u:d'/>", '<a xmlns="u:d" xmlns:b="u:b" xmlns:z="u:z"></a>'),
        # A declaration that says nothing new is left out.
        ("<a xmlns='u:d'><b xmlns='u:d'/></a>", '<a xmlns="u:d"><b></b></a>'),
        ("<a xmlns='u:d'><b xmlns=''/></a>", '<a xmlns="u:d"><b xmlns=""></b></a>'),
        # Attributes go by namespace and local name: none first, then the URIs.
        (
            "<a xmlns:x='u:2' xmlns:y='u:1' x:a='1' y:b='2' c='3'/>",
            '<a xmlns:x="u:2" xmlns:y="u:1" c="3" y:b="2" x:a="1"></a>',
        ),
    ],
)
def test_canonical_xml(raw: str, canonical: str) -> None:
    assert canonical_xml(parse_xml(raw.encode())).decode() == canonical


def test_a_part_is_canonical_in_the_scope_it_stands_in() -> None:
    root = parse_xml(b"<a xmlns='u:d' xmlns:p='u:p'><b q='1'><c/></b></a>")

    assert canonical_xml(root.elements()[0]) == b'<b xmlns="u:d" xmlns:p="u:p" q="1"><c></c></b>'
    assert canonical_xml(root, without=root.elements()[0]) == b'<a xmlns="u:d" xmlns:p="u:p"></a>'


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"<a>", b"<a></b>", b"text", b"<a/><b/>", b"<a b='1' b='2'/>",
        b"<!DOCTYPE a><a/>", b"<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>", b"<a>&unknown;</a>",
        b"<?pi?><a/>", b"<!-- c --><a/>", b"<a><!-- c --></a>",
        b"<a>" * (DEPTH_MAX + 1) + b"</a>" * (DEPTH_MAX + 1),
        b"<a>" + b"<b/>" * 20_000 + b"</a>",
        b"<a>" + b" " * XML_BYTES_MAX + b"</a>",
    ],
)  # fmt: skip
def test_what_no_manifest_has_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_xml(raw)


@pytest.mark.parametrize(
    "raw", [b"<p:a/>", b"<a p:b='1'/>", b"<a xml:lang='en'/>", b"<a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>"]
)
def test_prefixes_that_stand_for_nothing_or_for_too_much_are_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        canonical_xml(parse_xml(raw))


def signed_again(change: str, by: str) -> Code:
    """The refusal of a driver manifest that the vendor itself signed with something odd in it."""
    gpus, (driver, vbios) = machine().gpus, scene().endorsements.rims
    content = re.sub(r"<Signature .*", "", driver.decode(), flags=re.DOTALL)
    assert re.search(change, content)
    raw = sign_manifest(re.sub(change, by, content, count=1), gpus._rim_signer, gpus._rim_root)
    return scene().endorsed(rims=(raw, vbios)).refusal()


@pytest.mark.parametrize(
    ("change", "by"),
    [
        ('index="8"', 'index="9"'),
        ('index="8"', 'index="9999999999"'),
        ('index="8"', 'index="-1"'),
        ('index="8"', 'index="٣"'),
        ('alternatives="1"', 'alternatives="65"'),
        ('active="True"', 'active="maybe"'),
        (' s:Hash0="(?!0000)[0-9a-f]+"', ' s:Hash0="00"'),
        (' s:Hash0="(?!0000)[0-9a-f]+"', f' s:Hash0="{"zz" * 48}"'),
        ("<Meta ", "<Meta/><Meta "),
        ("<Payload>", "<Payload/><Payload>"),
    ],
)
def test_a_manifest_that_is_signed_but_makes_no_sense_is_malformed(change: str, by: str) -> None:
    assert signed_again(change, by) == Code.MALFORMED


def rim(golden: dict[int, frozenset[bytes]]) -> RIM:
    return RIM(product="GH100", version="1", golden=golden, valid_until=NOW + dt.timedelta(days=1))


ONE, TWO = frozenset({b"1"}), frozenset({b"2", b"3"})


def test_a_measurement_may_have_alternatives() -> None:
    for value in (b"2", b"3"):
        compare({1: b"1", 2: value}, rim({0: ONE}), rim({1: TWO}), nvdec0_disabled=False)


@pytest.mark.parametrize(
    ("measured", "driver", "vbios", "code"),
    [
        ({1: b"1", 2: b"4"}, {0: ONE}, {1: TWO}, Code.RIM_MISMATCH),
        ({1: b"1"}, {0: ONE}, {1: TWO}, Code.RIM_MISMATCH),
        ({1: b"1"}, {0: ONE}, {0: ONE}, Code.RIM_INVALID),
        ({1: b"1"}, {0: ONE}, {}, Code.RIM_INVALID),
        ({1: b"1"}, {}, {0: ONE}, Code.RIM_INVALID),
        ({36: b"x", 1: b"1"}, {0: ONE}, {35: ONE}, Code.RIM_MISMATCH),
    ],
)
def test_other_measurements_than_expected_are_refused(
    measured: dict[int, bytes], driver: dict[int, frozenset[bytes]], vbios: dict[int, frozenset[bytes]], code: Code
) -> None:
    with pytest.raises(RefusedError) as refused:
        compare(measured, rim(driver), rim(vbios), nvdec0_disabled=False)

    assert refused.value.finding == code


def test_the_video_decoder_counts_only_while_it_is_on() -> None:
    compare({36: b"x", 1: b"1"}, rim({0: ONE}), rim({35: ONE}), nvdec0_disabled=True)


def test_a_manifest_signed_with_another_curve_is_refused() -> None:
    root = parse_xml(scene().endorsements.rims[0])
    for key in (p256(bytes(32), "x"), p384(bytes(32), "x")):
        with pytest.raises(RefusedError) as refused:
            check_enveloped_signature(root, (Authority.root(key, "x").certificate,))
        assert refused.value.finding == Code.RIM_INVALID
