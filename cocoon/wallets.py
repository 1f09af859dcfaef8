"""The wallets whose owners may enrol workers: v3r2, v4r2 and v5r1; their code, state inits and addresses.

A wallet's address is the hash of its state init: its code and its first data, which hold the owner's public key. So
who shows the state init of an address shows the key of a wallet that was never changed. Code is TON's own
(github.com/ton-blockchain: wallet-contract v3r2 and v4r2, wallet-contract-v5), named by its hash.
"""

import base64
import functools
from typing import ClassVar, Literal

import msgspec

from cocoon.addresses import Address
from cocoon.cells import Cell, cell_of, read_boc, write_boc
from cocoon.errors import CocoonError, MalformedError

WalletKind = Literal["v3r2", "v4r2", "v5r1"]
STATE_INIT_BYTES_MAX = 8192
SUBWALLET = 698983191
"""The subwallet number that wallets of v3 and v4 use (0x29a9a317)."""
_KEY_BITS = 256
_STATE_INIT_BITS = 5
_CODE_AND_DATA = 0b00110
"""No split depth, not special, code, data, no library."""
_W5_CLIENT_CONTEXT = 1 << 31
"""A W5 client's context of workchain, version and subwallet 0; XOR the network, it is the wallet id."""

_V3R2 = (
    "te6ccgEBAQEAcQAA3v8AIN0gggFMl7ohggEznLqxn3Gw7UTQ0x/THzHXC//jBOCk8mCDCNcYINMf0x/TH/gjE7vyY+1E0NMf0x/T/9FRMrryoVFE"
    "uvKiBPkBVBBV+RDyo/gAkyDXSpbTB9QC+wDo0QGkyMsfyx/L/8ntVA=="
)
_V4R2 = (
    "te6ccgECFAEAAtQAART/APSkE/S88sgLAQIBIAIPAgFIAwYC5tAB0NMDIXGwkl8E4CLXScEgkl8E4ALTHyGCEHBsdWe9IoIQZHN0cr2wkl8F4AP6"
    "QDAg+kQByMoHy//J0O1E0IEBQNch9AQwXIEBCPQKb6Exs5JfB+AF0z/IJYIQcGx1Z7qSODDjDQOCEGRzdHK6kl8G4w0EBQB4AfoA9AQw+CdvIjBQ"
    "CqEhvvLgUIIQcGx1Z4MesXCAGFAEywUmzxZY+gIZ9ADLaRfLH1Jgyz8gyYBA+wAGAIpQBIEBCPRZMO1E0IEBQNcgyAHPFvQAye1UAXKwjiOCEGRz"
    "dHKDHrFwgBhQBcsFUAPPFiP6AhPLassfyz/JgED7AJJfA+ICASAHDgIBIAgNAgFYCQoAPbKd+1E0IEBQNch9AQwAsjKB8v/ydABgQEI9ApvoTGAC"
    "ASALDAAZrc52omhAIGuQ64X/wAAZrx32omhAEGuQ64WPwAARuMl+1E0NcLH4AFm9JCtvaiaECAoGuQ+gIYRw1AgIR6STfSmRDOaQPp/5g3gSgBt4"
    "EBSJhxWfMYQE+PKDCNcYINMf0x/THwL4I7vyZO1E0NMf0x/T//QE0VFDuvKhUVG68qIF+QFUEGT5EPKj+AAkpMjLH1JAyx9SMMv/UhD0AMntVPgP"
    "AdMHIcAAn2xRkyDXSpbTB9QC+wDoMOAhwAHjACHAAuMAAcADkTDjDQOkyMsfEssfy/8QERITAG7SB/oA1NQi+QAFyMoHFcv/ydB3dIAYyMsFywIi"
    "zxZQBfoCFMtrEszMyXP7AMhAFIEBCPRR8qcCAHCBAQjXGPoA0z/IVCBHgQEI9FHyp4IQbm90ZXB0gBjIywXLAlAGzxZQBPoCFMtqEssfyz/Jc/sA"
    "AgBsgQEI1xj6ANM/MFIkgQEI9Fnyp4IQZHN0cnB0gBjIywXLAlAFzxZQA/oCE8tqyx8Syz/Jc/sAAAr0AMntVA=="
)
_V5R1 = (
    "te6ccgECFAEAAoEAART/APSkE/S88sgLAQIBIAINAgFIAwQC3NAg10nBIJFbj2Mg1wsfIIIQZXh0br0hghBzaW50vbCSXwPgghBleHRuuo60gCDX"
    "IQHQdNch+kAw+kT4KPpEMFi9kVvg7UTQgQFB1yH0BYMH9A5voTGRMOGAQNchcH/bPOAxINdJgQKAuZEw4HDiEA8CASAFDAIBIAYJAgFuBwgAGa3O"
    "dqJoQCDrkOuF/8AAGa8d9qJoQBDrkOuFj8ACAUgKCwAXsyX7UTQcdch1wsfgABGyYvtRNDXCgCAAGb5fD2omhAgKDrkPoCwBAvIOAR4g1wsfghBz"
    "aWduuvLgin8PAeaO8O2i7fshgwjXIgKDCNcjIIAg1yHTH9Mf0x/tRNDSANMfINMf0//XCgAK+QFAzPkQmiiUXwrbMeHywIffArNQB7Dy0IRRJbry"
    "4IVQNrry4Ib4I7vy0IgikvgA3gGkf8jKAMsfAc8Wye1UIJL4D95w2zzYEAP27aLt+wL0BCFukmwhjkwCIdc5MHCUIccAs44tAdcoIHYeQ2wg10nA"
    "CPLgkyDXSsAC8uCTINcdBscSwgBSMLDy0InXTNc5MAGk6GwShAe78uCT10rAAPLgk+1V4tIAAcAAkVvg69csCBQgkXCWAdcsCBwS4lIQseMPINdK"
    "ERITAJYB+kAB+kT4KPpEMFi68uCR7UTQgQFB1xj0BQSdf8jKAEAEgwf0U/Lgi44UA4MH9Fvy4Iwi1woAIW4Bs7Dy0JDiyFADzxYS9ADJ7VQAcjDX"
    "LAgkji0h8uCS0gDtRNDSAFETuvLQj1RQMJExnAGBAUDXIdcKAPLgjuLIygBYzxbJ7VST8sCN4gAQk1vbMeHXTNA="
)


class WalletError(CocoonError):
    """Not the state init of a wallet that we know."""

    code: ClassVar[str] = "wallet_refused"


class UnknownWalletError(WalletError):
    """The state init is not that of a wallet v3r2, v4r2 or v5r1 (wallet code unknown)."""

    code: ClassVar[str] = "wallet_code_unknown"


class WalletForm(msgspec.Struct, frozen=True):
    """How one kind of wallet keeps its data: `bits` in all, the owner's key from `key_offset` on."""

    kind: WalletKind
    code: str
    code_hash: bytes
    key_offset: int
    bits: int


FORMS = (
    WalletForm(
        "v3r2", _V3R2, bytes.fromhex("84dafa449f98a6987789ba232358072bc0f76dc4524002a5d0918b9a75d2d599"), 64, 320
    ),
    WalletForm(
        "v4r2", _V4R2, bytes.fromhex("feb5ff6820e2ff0d9483e7e0d62c817d846789fb4ae580c878866d959dabd5c0"), 64, 321
    ),
    WalletForm(
        "v5r1", _V5R1, bytes.fromhex("20834b7b72b112147e1b2fb457b84e74d1a30f04f737d4f62a668e9552d2b72f"), 65, 322
    ),
)
KINDS: tuple[WalletKind, ...] = tuple(form.kind for form in FORMS)


class StateInit(msgspec.Struct, frozen=True):
    """What a wallet was deployed with: `account` is the hash that its address must have."""

    kind: WalletKind
    account: bytes
    public_key: bytes


def is_known_code(code_hash: bytes) -> bool:
    """Whether this is the code of a wallet that we know."""
    return any(form.code_hash == code_hash for form in FORMS)


def read_state_init(raw: bytes) -> StateInit:
    """What a bag of cells says as the state init of a wallet.

    Raises:
        UnknownWalletError: its code is none of those that we know.
        WalletError: malformed, or a wallet that does not obey its key alone.
    """
    try:
        if len(raw) > STATE_INIT_BYTES_MAX:
            raise MalformedError("it is too long")
        root = read_boc(raw)
        if root.bits != _STATE_INIT_BITS or root.read(0, _STATE_INIT_BITS) != _CODE_AND_DATA:
            raise MalformedError("it has other parts than code and data")
        code, data = root.refs
    except (MalformedError, ValueError) as error:
        raise WalletError(f"not the state init of a wallet: {error}") from error
    form = next((form for form in FORMS if form.code_hash == code.hash), None)
    if form is None:
        raise UnknownWalletError
    # Plugins of v4 and extensions of v5 act without the key; who starts with some is not alone in command.
    if data.bits != form.bits or data.refs:
        raise WalletError(f"the data is not that of a new wallet {form.kind}")
    if form.kind == "v5r1" and not data.read(0, 1):
        raise WalletError("the wallet does not obey signatures")
    key = data.read(form.key_offset, _KEY_BITS).to_bytes(_KEY_BITS // 8, "big")
    return StateInit(form.kind, root.hash, key)


def owner_key(code_hash: bytes, data: Cell) -> bytes | None:
    """The key that a deployed wallet obeys now; None where it is none that we know, or obeys no signature.

    Plugins and extensions that were added since stand in references; they do not matter to whose wallet it is.
    """
    form = next((form for form in FORMS if form.code_hash == code_hash), None)
    if form is None or data.bits != form.bits or (form.kind == "v5r1" and not data.read(0, 1)):
        return None
    return data.read(form.key_offset, _KEY_BITS).to_bytes(_KEY_BITS // 8, "big")


def state_init_of(kind: WalletKind, public_key: bytes, *, global_id: int) -> Cell:
    """The state init of the wallet that common wallet apps make for a key. Only v5r1 depends on the network."""
    key = int.from_bytes(public_key, "big"), _KEY_BITS
    match kind:
        case "v3r2":
            data = cell_of((0, 32), (SUBWALLET, 32), key)
        case "v4r2":
            data = cell_of((0, 32), (SUBWALLET, 32), key, (0, 1))
        case "v5r1":
            wallet_id = (global_id ^ _W5_CLIENT_CONTEXT) & 0xFFFFFFFF
            data = cell_of((1, 1), (0, 32), (wallet_id, 32), key, (0, 1))
    return cell_of((_CODE_AND_DATA, _STATE_INIT_BITS), refs=(_code(kind), data))


def address_of(state_init: Cell) -> Address:
    """Where the contract of this state init lives, in workchain 0."""
    return Address(0, state_init.hash)


def encode_state_init(state_init: Cell) -> bytes:
    """The bag of cells that `read_state_init` takes."""
    return write_boc(state_init)


@functools.lru_cache(maxsize=len(FORMS))
def _code(kind: WalletKind) -> Cell:
    form = next(form for form in FORMS if form.kind == kind)
    cell = read_boc(base64.b64decode(form.code))
    assert cell.hash == form.code_hash, "the tests compare both with pytoniq"
    return cell
