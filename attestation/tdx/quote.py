"""TDX quotes, versions 4 and 5, to the byte.

Source: Intel TDX DCAP Quoting Library API, appendix A.3 (v4) and A.4 (v5). What a signature does not cover (lengths,
the text of the PCK chain, padding) may have one form only, so that no two byte strings mean the same quote.
"""

from typing import Final

import msgspec

from attestation.certificates import Chain, load_exact_pem_chain
from attestation.reading import Reader
from cocoon.errors import MalformedError

QUOTE_BYTES_MAX: Final = 16 * 1024
_PADDING_BYTES_MAX: Final = 1024
_ECDSA_P256: Final = 2
_TEE_TDX: Final = 0x81
_INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_REPORT_10: Final = 584
_REPORT_15: Final = 648
_BODY_SIZES: Final = {2: _REPORT_10, 3: _REPORT_15}
_QE_REPORT_CERTIFICATION: Final = 6
_PCK_CHAIN: Final = 5
_V4: Final = 4
_V5: Final = 5


class TDReport(msgspec.Struct, frozen=True):
    """The measured state of one trust domain; hashes have 48 bytes, `report_data` 64."""

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes
    mr_servicetd: bytes

    @property
    def debug(self) -> bool:
        """Whether the host may read the domain's memory (any bit of the TUD byte)."""
        return self.td_attributes[0] != 0


class TDXQuote(msgspec.Struct, frozen=True):
    """A quote whose structure is sound; no signature has been checked."""

    version: int
    report: TDReport
    pck_chain: Chain


def parse_quote(raw: bytes) -> TDXQuote:
    """Parse a quote of version 4, or of version 5 with a TD report of version 1.0 or 1.5.

    Raises:
        MalformedError: anything that is not exactly such a quote.
    """
    if len(raw) > QUOTE_BYTES_MAX:
        raise MalformedError("the quote is too long")
    reader = Reader(raw, "the quote")
    version = _header(reader)
    size = _REPORT_10 if version == _V4 else _body_size(reader)
    report = _report(Reader(reader.take(size), "the TD report"))
    signed = Reader(reader.take(reader.integer(4)), "the quote's signature data")
    padding = reader.take(reader.left)
    # Quoting services pad with zeros up to the size they announced.
    if len(padding) > _PADDING_BYTES_MAX or any(padding):
        raise MalformedError("the quote is followed by other bytes")
    return TDXQuote(version=version, report=report, pck_chain=_pck_chain(signed))


def _header(reader: Reader) -> int:
    version = reader.integer(2)
    key_type, tee = reader.integer(2), reader.integer(4)
    if version not in (_V4, _V5) or key_type != _ECDSA_P256 or tee != _TEE_TDX:
        raise MalformedError("not a TDX quote of version 4 or 5 with an ECDSA key")
    reader.take(4)  # SVNs of the quoting enclave and of the PCE, judged by the collateral
    if reader.take(16) != _INTEL_QE:
        raise MalformedError("the quote is not from Intel's quoting enclave")
    reader.take(20)
    return version


def _body_size(reader: Reader) -> int:
    kind, size = reader.integer(2), reader.integer(4)
    if _BODY_SIZES.get(kind) != size:
        raise MalformedError("the quote's body is of an unknown type or size")
    return size


def _report(reader: Reader) -> TDReport:
    svn, mrseam, mrsignerseam = reader.take(16), reader.take(48), reader.take(48)
    seam_attributes, td_attributes, xfam = reader.take(8), reader.take(8), reader.take(8)
    mrtd, mrconfigid, mrowner, mrownerconfig = (reader.take(48) for _ in range(4))
    rtmr0, rtmr1, rtmr2, rtmr3 = (reader.take(48) for _ in range(4))
    report_data = reader.take(64)
    svn2, servicetd = (reader.take(16), reader.take(48)) if reader.left else (bytes(16), bytes(48))
    reader.end()
    return TDReport(
        tee_tcb_svn=svn, mrseam=mrseam, mrsignerseam=mrsignerseam, seam_attributes=seam_attributes,
        td_attributes=td_attributes, xfam=xfam, mrtd=mrtd, mrconfigid=mrconfigid, mrowner=mrowner,
        mrownerconfig=mrownerconfig, rtmrs=(rtmr0, rtmr1, rtmr2, rtmr3), report_data=report_data,
        tee_tcb_svn2=svn2, mr_servicetd=servicetd,
    )  # fmt: skip


def _pck_chain(reader: Reader) -> Chain:
    reader.take(64 + 64)  # signature over header and body, and the attestation key
    if reader.integer(2) != _QE_REPORT_CERTIFICATION:
        raise MalformedError("the quote does not carry the quoting enclave's report")
    inner = Reader(reader.take(reader.integer(4)), "the quoting enclave's certification")
    reader.end()
    inner.take(384 + 64)  # the enclave's report and the signature over it
    inner.take(inner.integer(2))
    if inner.integer(2) != _PCK_CHAIN:
        raise MalformedError("the quote does not carry the chain of its PCK certificate")
    text = inner.take(inner.integer(4))
    inner.end()
    return load_exact_pem_chain(text.removesuffix(b"\0"), "the PCK chain")  # some services send a C string
