"""`cocoon worker enrol`: a worker key for whoever proves a TON wallet.

The wallet signs for the domain of the gateway that it is sent to (`--gateway-url`), never for one that an answer names:
a gateway in the middle could otherwise pass another network's challenge on.
"""

import json
import ssl
import sys
import urllib.parse
from pathlib import Path
from typing import TextIO, TypeVar, cast

import click
import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.private_files import PrivateFileError, read_private, write_private
from cocoon.clock import Clock, SystemClock
from cocoon.enrolment import STAKE_TERMS_PATH, StakeTermsAnswer
from cocoon.errors import CocoonError
from cocoon.mnemonic import read_words, wallet_key
from cocoon.ton_proof import sign_proof
from cocoon.wallet_enrolment import (
    CHALLENGE_PATH,
    KEEP_S_MAX,
    WALLET_KEY_PATH,
    WalletChallenge,
    WalletKeyAnswer,
    WalletKeyRequest,
)
from cocoon.wallets import KINDS, WalletKind, address_of, encode_state_init, state_init_of

CALL_S_MAX = 30.0
ANSWER_BYTES_MAX = 64 * 1024
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
T = TypeVar("T")


class EnrolError(CocoonError):
    """The wallet could not be enrolled."""

    code = "enrolment_failed"


class Gateway:
    """The calls of an enrolment. `ca` is a file of private certificates; `plain` lets HTTP go anywhere."""

    def __init__(self, url: str, ca: Path | None, *, plain: bool = False) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EnrolError(f"{url} is not the URL of a gateway")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not plain:
            raise EnrolError("a gateway elsewhere must be https: the worker key comes from it")
        self.domain = parts.hostname
        context = ssl.create_default_context()
        try:
            if ca is not None:
                context.load_verify_locations(ca)
        except OSError as error:
            raise EnrolError(f"{ca}: {error.strerror}") from error
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._context = context

    def challenge(self) -> WalletChallenge:
        """Something to sign."""
        return self._post(CHALLENGE_PATH, b"", WalletChallenge)

    def key(self, asked: WalletKeyRequest) -> WalletKeyAnswer:
        """The worker key for a proof."""
        return self._post(WALLET_KEY_PATH, msgspec.json.encode(asked), WalletKeyAnswer)

    def stake_terms(self) -> StakeTermsAnswer:
        """What a stake has to say to count there."""
        return self._call("GET", STAKE_TERMS_PATH, b"", StakeTermsAnswer)

    def _post(self, path: str, body: bytes, kind: type[T]) -> T:
        return self._call("POST", path, body, kind)

    def _call(self, method: str, path: str, body: bytes, kind: type[T]) -> T:
        try:
            with httpx.Client(
                base_url=self._base, timeout=CALL_S_MAX, verify=self._context, trust_env=False
            ) as client:  # fmt: skip
                answer = client.request(method, path, content=body, headers={"content-type": "application/json"})
        except httpx.HTTPError as error:
            raise EnrolError(f"the gateway cannot be reached: {type(error).__name__}") from error
        if answer.is_success:
            try:
                return msgspec.json.decode(answer.content, type=kind)
            except msgspec.DecodeError as error:
                raise EnrolError("the gateway's answer is not understood") from error
        raise EnrolError(f"the gateway refused: {_reason(answer)}")


def sign_request(
    key: Ed25519PrivateKey, kind: WalletKind, challenge: WalletChallenge, *, domain: str, clock: Clock, keep_s: int = 0
) -> WalletKeyRequest:
    """What a wallet app would answer to this challenge, and the gateway is sent."""
    state_init = state_init_of(kind, key.public_key().public_bytes_raw(), global_id=challenge.global_id)
    address = address_of(state_init)
    proof = sign_proof(
        key, address, domain=domain, timestamp=int(clock.now().timestamp()), payload=challenge.payload
    )  # fmt: skip
    return WalletKeyRequest(
        address=str(address), state_init=encode_state_init(state_init), proof=proof, network=str(challenge.global_id),
        keep_s=keep_s,
    )  # fmt: skip


def enrol_by_mnemonic(
    gateway: Gateway, mnemonic: str, key_file: Path, *, kind: WalletKind = "v5r1", keep_s: int = 0,
    clock: Clock | None = None,
) -> WalletKeyAnswer:  # fmt: skip
    """Sign with the wallet's own key, and keep the worker key in `key_file` (mode 0600).

    Raises:
        MalformedError: not a mnemonic.
        EnrolError: the gateway cannot be reached, or refuses.
    """
    key = wallet_key(read_words(mnemonic))
    asked = sign_request(
        key, kind, gateway.challenge(), domain=gateway.domain, clock=clock or SystemClock(), keep_s=keep_s
    )  # fmt: skip
    return _kept(gateway.key(asked), key_file)


def ton_connect_link(challenge: WalletChallenge, manifest_url: str) -> tuple[str, str]:
    """What a TON Connect wallet is asked, as a link and as JSON. The wallet signs for the manifest's host."""
    request = json.dumps(
        {"manifestUrl": manifest_url,
         "items": [{"name": "ton_addr"}, {"name": "ton_proof", "payload": challenge.payload}]},
        separators=(",", ":"),
    )  # fmt: skip
    return "tc://?" + urllib.parse.urlencode({"v": "2", "r": request, "ret": "none"}), request


def read_wallet_answer(text: str, keep_s: int = 0) -> WalletKeyRequest:
    """The request in a wallet's answer: the `connect` event of the protocol, or the `wallet` object of its SDK.

    Raises:
        EnrolError: neither, or without an address and a proof.
    """
    try:
        answer = msgspec.json.decode(text, type=dict[str, object])
        account, proof = _event_parts(answer) if "payload" in answer else _sdk_parts(answer)
        return msgspec.convert(
            {
                "address": account["address"],
                "network": str(account.get("network") or account.get("chain") or "") or None,
                "state_init": account["walletStateInit"],
                "proof": proof,
                "keep_s": keep_s,
            },
            WalletKeyRequest,
        )
    except (msgspec.MsgspecError, KeyError, TypeError, StopIteration) as error:
        raise EnrolError("this is not a wallet's answer with its address (ton_addr) and its ton_proof") from error


def _event_parts(answer: dict[str, object]) -> tuple[dict[str, object], object]:
    payload = cast("dict[str, list[dict[str, object]]]", answer["payload"])
    items = {item["name"]: item for item in payload["items"]}
    return items["ton_addr"], items["ton_proof"]["proof"]


def _sdk_parts(answer: dict[str, object]) -> tuple[dict[str, object], object]:
    items = cast("dict[str, dict[str, object]]", answer["connectItems"])
    return cast("dict[str, object]", answer["account"]), items["tonProof"]["proof"]


def _reason(answer: httpx.Response) -> str:
    try:
        error = cast("dict[str, dict[str, object]]", answer.json())["error"]
        return f"{error['message']} [{error['code']}]"
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


def _kept(issued: WalletKeyAnswer, key_file: Path) -> WalletKeyAnswer:
    try:
        write_private(key_file, issued.key.encode() + b"\n")
    except PrivateFileError as error:
        # The secret is known to nobody else and must not be lost with the file: asking again gives another.
        raise EnrolError(f"{error}; nothing was kept, enrol again") from error
    return issued


@click.command("enrol", short_help="Prove a TON wallet and get a worker key for it.")
@click.option("--gateway-url", envvar="COCOON_GATEWAY_URL", required=True, help="Where to enrol. [COCOON_GATEWAY_URL]")
@click.option(
    "--gateway-ca", envvar="COCOON_GATEWAY_CA", type=click.Path(path_type=Path),
    help="Certificates (PEM) of a private authority. [COCOON_GATEWAY_CA]",
)  # fmt: skip
@click.option(
    "--key-file", envvar="COCOON_WORKER_KEY_FILE", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="Where the worker key is written, for its owner only. [COCOON_WORKER_KEY_FILE]",
)  # fmt: skip
@click.option(
    "--mnemonic-file", type=click.Path(path_type=Path, dir_okay=False),
    help="24 words of the wallet, in a file that only you may read; they stay on this machine.",
)  # fmt: skip
@click.option("--wallet", type=click.Choice(KINDS), default="v5r1", show_default=True, help="The mnemonic's wallet.")
@click.option("--ton-connect", is_flag=True, help="Print what a TON Connect wallet must sign, and read its answer.")
@click.option(
    "--answer", type=click.File("r"), help="With --ton-connect: a file with the wallet's answer; default its input."
)
@click.option("--manifest-url", help="With --ton-connect: your TON Connect manifest, on the gateway's domain.")
@click.option(
    "--keep", type=click.IntRange(0, KEEP_S_MAX), default=0, show_default=True,
    help="Seconds for which the wallet's earlier worker key still works.",
)  # fmt: skip
def command(
    gateway_url: str, gateway_ca: Path | None, key_file: Path, mnemonic_file: Path | None, wallet: WalletKind,
    answer: TextIO | None, manifest_url: str | None, keep: int, *, ton_connect: bool,
) -> None:  # fmt: skip
    """Prove a TON wallet to the gateway and keep the worker key that it gives for it in a file.

    One wallet has one worker key; enrolling again replaces it (see --keep).
    """
    if (mnemonic_file is None) != ton_connect:
        raise click.UsageError("give either --mnemonic-file or --ton-connect")
    gateway = Gateway(gateway_url, gateway_ca)
    if mnemonic_file is not None:
        issued = enrol_by_mnemonic(gateway, read_private(mnemonic_file), key_file, kind=wallet, keep_s=keep)
    else:
        text = _asked(gateway, manifest_url) if answer is None else answer.read(ANSWER_BYTES_MAX)
        issued = _kept(gateway.key(read_wallet_answer(text, keep)), key_file)
    what = "has a new worker key" if issued.rotated else "is enrolled"
    click.echo(f"Wallet {issued.address} {what}. The key is in {key_file}; run `cocoon worker --key-file {key_file}`.")


def _asked(gateway: Gateway, manifest_url: str | None) -> str:
    """Show the wallet's owner what to sign; the wallet's answer as it is pasted or piped in."""
    challenge = gateway.challenge()
    manifest = manifest_url or f"https://{gateway.domain}/tonconnect-manifest.json"
    link, request = ton_connect_link(challenge, manifest)
    click.echo(f"Open this link with a TON Connect wallet:\n\n  {link}\n", err=True)
    click.echo(f"or send it this connect request:\n\n  {request}\n", err=True)
    click.echo("Then give the wallet's JSON answer here, and end it with Ctrl-D:", err=True)
    return sys.stdin.read(ANSWER_BYTES_MAX)
