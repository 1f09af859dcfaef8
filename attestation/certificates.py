"""X.509 chains against a pinned root: signatures, constraints, dates and revocation; nothing is fetched."""

import datetime as dt
import hashlib
import itertools
import warnings
from collections.abc import Collection, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from attestation.findings import Code, RefusedError
from cocoon.errors import MalformedError

CHAIN_LENGTH_MAX = 8
CHAIN_BYTES_MAX = 64 * 1024
CRL_BYTES_MAX = 8 * 1024 * 1024
_BASIC_CONSTRAINTS = x509.ObjectIdentifier("2.5.29.19")
_KEY_USAGE = x509.ObjectIdentifier("2.5.29.15")
# What a critical extension may be without our looking away from something that restricts the certificate.
_UNDERSTOOD = {_BASIC_CONSTRAINTS, _KEY_USAGE}

# Everything that the library raises about bytes it cannot make sense of.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

Chain = tuple[x509.Certificate, ...]


def load_pem_chain(pem: bytes, what: str) -> Chain:
    """The certificates of a PEM text, leaf first.

    Raises:
        MalformedError: not 1 to `CHAIN_LENGTH_MAX` certificates.
    """
    if len(pem) > CHAIN_BYTES_MAX:
        raise MalformedError(f"{what} is too long")
    try:
        with warnings.catch_warnings():
            # AMD numbers every VCEK 0, which the library means to refuse one day.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            chain = tuple(map(_read, x509.load_pem_x509_certificates(pem)))
    except _UNREADABLE as error:
        raise MalformedError(f"{what} is not a chain of certificates") from error
    if not 1 <= len(chain) <= CHAIN_LENGTH_MAX:
        raise MalformedError(f"{what} has {len(chain)} certificates")
    return chain


def load_exact_pem_chain(pem: bytes, what: str) -> Chain:
    """As `load_pem_chain`, of the one text that these certificates have: for where nothing signs the text itself.

    Raises:
        MalformedError: also where white space or line lengths differ.
    """
    chain = load_pem_chain(pem, what)
    if pem_of(chain) != pem:
        raise MalformedError(f"{what} is not written as it should be")
    return chain


def load_der_chain(ders: Sequence[bytes], what: str) -> Chain:
    """As `load_pem_chain`, of single DER certificates."""
    if not 1 <= len(ders) <= CHAIN_LENGTH_MAX or sum(map(len, ders)) > CHAIN_BYTES_MAX:
        raise MalformedError(f"{what} is too long or empty")
    try:
        return tuple(_read(x509.load_der_x509_certificate(der)) for der in ders)
    except _UNREADABLE as error:
        raise MalformedError(f"{what} is not a chain of certificates") from error


def load_crl(der: bytes) -> x509.CertificateRevocationList:
    """A revocation list.

    Raises:
        MalformedError: not DER of a CRL, or too long.
    """
    try:
        if len(der) > CRL_BYTES_MAX:
            raise MalformedError("a revocation list is too long")
        crl = x509.load_der_x509_crl(der)
        _ = (crl.issuer, crl.last_update_utc, crl.next_update_utc, crl.extensions)
    except _UNREADABLE as error:
        raise MalformedError("not a revocation list") from error
    return crl


def pem_of(chain: Chain) -> bytes:
    """The one PEM text that we accept where the text itself is not signed."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


def sha256_hex(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER, as pins name it."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def says_simulation(certificate: x509.Certificate) -> bool:
    """Whether the issuer's name says that it is a simulation. A mark for people, never a reason to trust."""
    return "SIMULATION" in certificate.issuer.rfc4514_string()


def verify_chain(chain: Chain, *, roots: Collection[str], at: dt.datetime, what: str) -> None:
    """Check that each certificate is issued by the next and that the last is one of the pinned `roots` (SHA-256).

    Raises:
        RefusedError: foreign root, wrong signature or constraint, or a certificate that is not valid `at` this time.
    """
    if sha256_hex(chain[-1]) not in roots:
        raise RefusedError(Code.FOREIGN_ROOT, f"{what} does not end in a root that the policy trusts")
    for depth, certificate in enumerate(chain):
        _check_certificate(certificate, depth, at, what)
    # The root itself is trusted by its digest; its signature over itself would say nothing.
    for certificate, issuer in itertools.pairwise(chain):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, *_UNREADABLE) as error:
            raise RefusedError(Code.CHAIN_INVALID, f"a signature in {what} does not verify") from error


def check_revocation(chain: Chain, crls: Sequence[x509.CertificateRevocationList], *, at: dt.datetime) -> bool:
    """Check every certificate below the root against the list of its issuer; False where a list is missing.

    Raises:
        RefusedError: a certificate is revoked, or a list is not signed by the issuer or not current `at` this time.
    """
    complete = True
    for certificate, issuer in itertools.pairwise(chain):
        lists = [crl for crl in crls if crl.issuer == issuer.subject]
        complete = complete and bool(lists)
        for crl in lists:
            _check_crl(crl, issuer, at)
            if _revokes(crl, certificate):
                raise RefusedError(Code.CERTIFICATE_REVOKED, "a certificate has been revoked by its issuer")
    return complete


def _read(certificate: x509.Certificate) -> x509.Certificate:
    """Parse what the library leaves for later, so that nothing is found unreadable after this."""
    _ = (certificate.issuer, certificate.subject, certificate.extensions, certificate.serial_number)
    _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.public_key())
    return certificate


def _revokes(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    try:
        return crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    except _UNREADABLE as error:
        raise RefusedError(Code.CRL_INVALID, "a revocation list cannot be read") from error


def _check_certificate(certificate: x509.Certificate, depth: int, at: dt.datetime, what: str) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise RefusedError(Code.CERTIFICATE_EXPIRED, f"a certificate in {what} is not valid at the time of judgement")
    extensions = certificate.extensions
    by_oid = {extension.oid: extension for extension in extensions}
    if any(extension.critical and extension.oid not in _UNDERSTOOD for extension in extensions):
        raise RefusedError(Code.CHAIN_INVALID, f"a certificate in {what} has a critical extension that we do not know")
    if depth == 0:
        return
    constraints = by_oid.get(_BASIC_CONSTRAINTS)
    if constraints is None or not isinstance(constraints.value, x509.BasicConstraints) or not constraints.value.ca:
        raise RefusedError(Code.CHAIN_INVALID, f"an issuer in {what} is not a certificate authority")
    length = constraints.value.path_length
    if length is not None and depth - 1 > length:
        raise RefusedError(Code.CHAIN_INVALID, f"{what} is longer than one of its issuers allows")
    usage = by_oid.get(_KEY_USAGE)
    if usage is not None and isinstance(usage.value, x509.KeyUsage) and not usage.value.key_cert_sign:
        raise RefusedError(Code.CHAIN_INVALID, f"an issuer in {what} may not sign certificates")


def _check_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate, at: dt.datetime) -> None:
    key = issuer.public_key()
    try:
        signed = crl.is_signature_valid(key)  # pyright: ignore[reportArgumentType]  other keys raise TypeError
    except _UNREADABLE as error:
        raise RefusedError(Code.CRL_INVALID, "a revocation list cannot be verified") from error
    if not signed:
        raise RefusedError(Code.CRL_INVALID, "a revocation list is not signed by the issuer it names")
    next_update = crl.next_update_utc
    if next_update is None or not crl.last_update_utc <= at <= next_update:
        raise RefusedError(Code.COLLATERAL_STALE, "a revocation list is not current at the time of judgement")
