"""Collateral from Intel's certification service or a cache of it (PCCS), API version 4.

The one module of this package that talks to anybody. Nothing it fetches is trusted: signatures and dates are judged
where the collateral is used. The signed documents are cut out of the answers byte for byte, never re-encoded.
"""

import urllib.parse
from typing import ClassVar, Final

import httpx
import msgspec

from attestation.tdx.collateral import Collateral, Family, validity_of
from cocoon.errors import CocoonError, MalformedError

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
TIMEOUT_S: Final = 20.0
_SIGNATURE_HEX: Final = 128


class CollateralUnavailableError(CocoonError):
    """The collateral service cannot be reached, or does not answer as it should."""

    code: ClassVar[str] = "collateral_unavailable"
    transient: ClassVar[bool] = True


class _TCBInfo(msgspec.Struct):
    document: msgspec.Raw = msgspec.field(name="tcbInfo")
    signature: str


class _Identity(msgspec.Struct):
    document: msgspec.Raw = msgspec.field(name="enclaveIdentity")
    signature: str


class PCCSCollateralSource:
    """`client` decides about proxies and TLS roots; `base_url` is a service or a local cache of it, without a path."""

    def __init__(self, client: httpx.AsyncClient, base_url: str) -> None:
        self._client = client
        self._base_url = base_url.rstrip("/")

    async def fetch(self, family: Family) -> Collateral:
        """The four answers that make collateral, as of now.

        Raises:
            CollateralUnavailableError: one of them cannot be had, or is not what it should be.
        """
        sgx, tdx = "/sgx/certification/v4", "/tdx/certification/v4"
        tcb, tcb_chain = await self._get(f"{tdx}/tcb?fmspc={family.fmspc}", "TCB-Info-Issuer-Chain")
        identity, identity_chain = await self._get(f"{tdx}/qe/identity", "SGX-Enclave-Identity-Issuer-Chain")
        crl, crl_chain = await self._get(f"{sgx}/pckcrl?ca={family.ca}&encoding=der", "SGX-PCK-CRL-Issuer-Chain")
        root_crl, _ = await self._get(f"{sgx}/rootcacrl", None)
        try:
            info, enclave = msgspec.json.decode(tcb, type=_TCBInfo), msgspec.json.decode(identity, type=_Identity)
            collateral = Collateral(
                pck_crl_issuer_chain=crl_chain, root_ca_crl=bytes.fromhex(root_crl.decode("ascii")), pck_crl=crl,
                tcb_info_issuer_chain=tcb_chain, tcb_info=bytes(info.document).decode(),
                tcb_info_signature=_signature(info.signature), qe_identity_issuer_chain=identity_chain,
                qe_identity=bytes(enclave.document).decode(), qe_identity_signature=_signature(enclave.signature),
            )  # fmt: skip
            validity_of(collateral)
        except (msgspec.MsgspecError, MalformedError, ValueError) as error:
            raise CollateralUnavailableError("the collateral service gave something else than collateral") from error
        return collateral

    async def _get(self, path: str, header: str | None) -> tuple[bytes, str]:
        body = bytearray()
        try:
            async with self._client.stream("GET", self._base_url + path, timeout=TIMEOUT_S) as response:
                response.raise_for_status()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        raise CollateralUnavailableError("the collateral service gives too long an answer")
                chain = urllib.parse.unquote(response.headers.get(header, "")) if header else ""
        except httpx.HTTPError as error:
            raise CollateralUnavailableError from error
        if header and not chain:
            raise CollateralUnavailableError(f"the collateral service leaves out {header}")
        return bytes(body), chain


def _signature(text: str) -> bytes:
    if len(text) != _SIGNATURE_HEX:
        raise MalformedError("a signature of the collateral has another length")
    return bytes.fromhex(text)
