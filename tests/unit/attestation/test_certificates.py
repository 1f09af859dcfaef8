"""Chains: what an issuer may do, dates, revocation; with certificates that no vendor would make."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestation.certificates import (
    CHAIN_LENGTH_MAX,
    Chain,
    check_revocation,
    load_crl,
    load_der_chain,
    load_exact_pem_chain,
    load_pem_chain,
    pem_of,
    sha256_hex,
    verify_chain,
)
from attestation.findings import Code, RefusedError
from attestation.simulation.certificates import Authority, p256
from cocoon.errors import MalformedError

AT = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
KEYS = [p256(bytes(32), f"test/{number}") for number in range(3)]
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


def certificate(
    depth: int,
    *,
    ca: bool,
    path_length: int | None = None,
    signs: bool = True,
    issuer: int | None = None,
    start: dt.datetime = AT - DAY,
    extension: x509.ExtensionType | None = None,
    constrained: bool = True,
) -> x509.Certificate:
    """Number `depth`, signed with the key of number `issuer` (the next one)."""
    above = depth + 1 if issuer is None else issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{depth}")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{above}")]))
        .public_key(KEYS[depth].public_key())
        .serial_number(depth + 1)
        .not_valid_before(start)
        .not_valid_after(start + 30 * DAY)
    )
    if constrained:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if not signs:
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = builder.add_extension(usage, critical=True)
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(KEYS[above], hashes.SHA256())


LEAF = certificate(0, ca=False)
MIDDLE = certificate(1, ca=True)
ROOT = certificate(2, ca=True, issuer=2)


def check(chain: Chain, at: dt.datetime = AT) -> None:
    verify_chain(chain, roots={sha256_hex(chain[-1])}, at=at, what="the chain")


def refusal(chain: Chain, at: dt.datetime = AT) -> Code:
    with pytest.raises(RefusedError) as refused:
        check(chain, at)
    return refused.value.finding


def test_a_chain_in_order_holds() -> None:
    check((LEAF, MIDDLE, ROOT))
    check((ROOT,))


def test_a_root_is_trusted_by_its_digest_alone() -> None:
    with pytest.raises(RefusedError) as refused:
        verify_chain((LEAF, MIDDLE, ROOT), roots={sha256_hex(MIDDLE)}, at=AT, what="the chain")

    assert refused.value.finding == Code.FOREIGN_ROOT


@pytest.mark.parametrize(
    "chain",
    [
        (LEAF, certificate(1, ca=False), ROOT),
        (LEAF, certificate(1, ca=True, constrained=False), ROOT),
        (LEAF, certificate(1, ca=True, signs=False), ROOT),
        (LEAF, MIDDLE, certificate(2, ca=True, issuer=2, path_length=0)),
        (LEAF, certificate(1, ca=True, extension=UNKNOWN), ROOT),
        (certificate(0, ca=False, extension=UNKNOWN), MIDDLE, ROOT),
        (LEAF, ROOT),  # a step is missing
        (MIDDLE, LEAF, ROOT),
        (certificate(0, ca=False, issuer=0), MIDDLE, ROOT),
    ],
)
def test_an_issuer_that_may_not_issue_is_refused(chain: Chain) -> None:
    assert refusal(chain) == Code.CHAIN_INVALID


def test_a_certificate_with_another_key_under_the_same_name_is_refused() -> None:
    stranger = Authority.root(ec.generate_private_key(ec.SECP256R1()), "1").certificate

    assert refusal((LEAF, stranger)) == Code.CHAIN_INVALID


@pytest.mark.parametrize("at", [AT - 2 * DAY, AT + 40 * DAY])
def test_a_certificate_out_of_its_time_is_refused(at: dt.datetime) -> None:
    assert refusal((LEAF, MIDDLE, ROOT), at) == Code.CERTIFICATE_EXPIRED


def revocations(
    number: int, signer: int, start: dt.datetime = AT - DAY, *serials: int
) -> x509.CertificateRevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{number}")]))
        .last_update(start)
        .next_update(start + 7 * DAY)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
        builder = builder.add_revoked_certificate(entry)
    return load_crl(builder.sign(KEYS[signer], hashes.SHA256()).public_bytes(Encoding.DER))


def test_revocation_is_known_only_where_every_issuer_has_its_list() -> None:
    chain = (LEAF, MIDDLE, ROOT)

    assert check_revocation(chain, [revocations(1, 1), revocations(2, 2)], at=AT)
    assert not check_revocation(chain, [revocations(2, 2)], at=AT)
    assert not check_revocation(chain, [], at=AT)


@pytest.mark.parametrize(
    ("crl", "code"),
    [
        (revocations(1, 1, AT - DAY, LEAF.serial_number), Code.CERTIFICATE_REVOKED),
        (revocations(2, 2, AT - DAY, MIDDLE.serial_number), Code.CERTIFICATE_REVOKED),
        (revocations(1, 0), Code.CRL_INVALID),
        (revocations(1, 1, AT - 8 * DAY), Code.COLLATERAL_STALE),
        (revocations(1, 1, AT + DAY), Code.COLLATERAL_STALE),
    ],
)
def test_a_revoked_certificate_or_a_wrong_list_is_refused(crl: x509.CertificateRevocationList, code: Code) -> None:
    with pytest.raises(RefusedError) as refused:
        check_revocation((LEAF, MIDDLE, ROOT), [crl], at=AT)

    assert refused.value.finding == code


def test_only_one_text_of_a_chain_is_exact() -> None:
    pem = pem_of((LEAF, MIDDLE))

    assert load_exact_pem_chain(pem, "the chain") == (LEAF, MIDDLE)
    for other in (b"\n" + pem, pem + b"\n", pem.replace(b"\n", b"\r\n"), b"name\n" + pem):
        assert load_pem_chain(other, "the chain") == (LEAF, MIDDLE)
        with pytest.raises(MalformedError):
            load_exact_pem_chain(other, "the chain")


def test_what_is_no_chain_is_malformed() -> None:
    der = LEAF.public_bytes(Encoding.DER)
    for pem in (b"", b"-----BEGIN CERTIFICATE-----", pem_of((LEAF,) * (CHAIN_LENGTH_MAX + 1)), b"x" * 100_000):
        with pytest.raises(MalformedError):
            load_pem_chain(pem, "the chain")
    for ders in ([], [der] * (CHAIN_LENGTH_MAX + 1), [der[:-1]], [b""]):
        with pytest.raises(MalformedError):
            load_der_chain(ders, "the chain")
    for crl in (b"", der, b"\x30" * 9_000_000):
        with pytest.raises(MalformedError):
            load_crl(crl)
