"""Keys and certificates from a seed. The same seed gives the same roots, so that a configuration can name them."""

import datetime as dt
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

MARK = "SIMULATION ONLY"
NOT_BEFORE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NOT_AFTER = dt.datetime(2046, 1, 1, tzinfo=dt.UTC)
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


def derive(seed: bytes, label: str, length: int) -> bytes:
    """Bytes that only this seed has for this label."""
    return HKDF(hashes.SHA256(), length, salt=b"cocoon/simulation/1", info=label.encode()).derive(seed)


def p256(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key of the seed."""
    return ec.derive_private_key(int.from_bytes(derive(seed, label, 48), "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def p384(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """A P-384 key of the seed."""
    return ec.derive_private_key(int.from_bytes(derive(seed, label, 64), "big") % (_P384_ORDER - 1) + 1, ec.SECP384R1())


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Both numbers side by side, each as long as the curve's order; hashed to the curve's strength; deterministic."""
    width = key.key_size // 8
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(_hash(key), deterministic_signing=True)))
    return r.to_bytes(width, "big") + s.to_bytes(width, "big")


def raw_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Both coordinates side by side."""
    numbers, width = key.public_key().public_numbers(), key.key_size // 8
    return numbers.x.to_bytes(width, "big") + numbers.y.to_bytes(width, "big")


class Authority:
    """A key and its certificate, which may issue others."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.key = key
        self.certificate = certificate

    @staticmethod
    def root(key: ec.EllipticCurvePrivateKey, name: str) -> "Authority":
        """A self-signed root."""
        return Authority(key, _issue(name, key, name, key, ca=True, extensions=()))

    def issue(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: str,
        *,
        ca: bool,
        extensions: Sequence[tuple[str, bytes]] = (),
        not_after: dt.datetime = NOT_AFTER,
    ) -> "Authority":
        """A certificate for `key`; `extensions` are pairs of dotted OID and DER, none critical."""
        certificate = _issue(
            name, key, common_name(self.certificate), self.key, ca=ca, extensions=extensions, not_after=not_after
        )
        return Authority(key, certificate)

    def crl(self, start: dt.datetime, end: dt.datetime, revoked: Sequence[x509.Certificate] = ()) -> bytes:
        """DER of the revocation list of this authority."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(start)
            .next_update(end)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(start)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, _hash(self.key), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def pem(*authorities: Authority) -> str:
    """The certificates as one PEM text, in this order."""
    return "".join(authority.certificate.public_bytes(Encoding.PEM).decode() for authority in authorities)


def common_name(certificate: x509.Certificate) -> str:
    """The subject's common name."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _name(name: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, MARK)
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), organisation])


def _hash(key: ec.EllipticCurvePrivateKey) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA256() if key.key_size == 256 else hashes.SHA384()  # noqa: PLR2004  the two curves there are


def _issue(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    extensions: Sequence[tuple[str, bytes]],
    not_after: dt.datetime = NOT_AFTER,
) -> x509.Certificate:
    # Serial numbers follow from the key, so that a certificate is the same whenever it is made.
    serial = int.from_bytes(x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[:18], "big") | 1
    usage = x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    uri = x509.UniformResourceIdentifier("https://simulation.invalid/crl")
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.CRLDistributionPoints([x509.DistributionPoint([uri], None, None, None)]), critical=False)
    )
    for oid, der in extensions:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), der)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, _hash(issuer_key), ecdsa_deterministic=True)
