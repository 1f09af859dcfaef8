"""Tokens of workers: only ours, only for workers, only for a while."""

import base64
import datetime as dt
import json
import uuid

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from workers.errors import TokenRefusedError
from workers.tokens import TOKEN_SECONDS, WorkerTokens, token_seconds

SECRET = bytes(range(32))
NOW = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
WORKER_ID = uuid.UUID(int=5)
DIGEST = bytes(range(32))


@pytest.fixture
def tokens() -> WorkerTokens:
    return WorkerTokens(SECRET)


def _claims(**changes: object) -> dict[str, object]:
    issued = int(NOW.timestamp())
    claims: dict[str, object] = {
        "iss": "cocoon-gateway",
        "aud": "cocoon-worker",
        "sub": str(WORKER_ID),
        "iat": issued,
        "exp": issued + 60,
        "keyset": base64.urlsafe_b64encode(DIGEST).decode(),
    }
    claims.update(changes)
    return {name: value for name, value in claims.items() if value is not None}


def _signed(tokens: WorkerTokens, claims: dict[str, object]) -> str:
    return jwt.encode(claims, tokens._private, algorithm="EdDSA")


def test_a_token_of_one_replica_is_good_at_another(tokens: WorkerTokens) -> None:
    claims = WorkerTokens(SECRET).verify(tokens.mint(WORKER_ID, DIGEST, NOW), NOW)

    assert claims.worker_id == WORKER_ID
    assert claims.keyset_digest == DIGEST
    assert claims.expires_at == NOW + dt.timedelta(seconds=TOKEN_SECONDS)


def test_a_token_ends_at_its_expiry_by_the_given_clock(tokens: WorkerTokens) -> None:
    token = tokens.mint(WORKER_ID, DIGEST, NOW, ttl_s=60)
    tokens.verify(token, NOW + dt.timedelta(seconds=59))

    with pytest.raises(TokenRefusedError):
        tokens.verify(token, NOW + dt.timedelta(seconds=60))


def test_a_token_from_the_far_future_is_refused(tokens: WorkerTokens) -> None:
    with pytest.raises(TokenRefusedError):
        tokens.verify(tokens.mint(WORKER_ID, DIGEST, NOW + dt.timedelta(minutes=5)), NOW)


def test_the_forged_claims_below_would_be_good_if_they_were_right(tokens: WorkerTokens) -> None:
    assert tokens.verify(_signed(tokens, _claims()), NOW).worker_id == WORKER_ID


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "cocoon-admin"},
        {"aud": ["cocoon-worker", "other"]},
        {"iss": "somebody"},
        {"aud": None},
        {"iss": None},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"keyset": None},
        {"sub": "not-a-uuid"},
        {"keyset": base64.urlsafe_b64encode(bytes(31)).decode()},
        {"keyset": "é"},
        {"keyset": 5},
        {"exp": "soon"},
        {"exp": 10**30},
        {"exp": float("nan")},
    ],
)
def test_a_token_for_something_else_or_without_a_claim_is_refused(
    tokens: WorkerTokens, changes: dict[str, object]
) -> None:
    with pytest.raises(TokenRefusedError):
        tokens.verify(_signed(tokens, _claims(**changes)), NOW)


def test_a_token_of_another_key_is_refused(tokens: WorkerTokens) -> None:
    other = WorkerTokens(bytes(32))

    with pytest.raises(TokenRefusedError):
        tokens.verify(other.mint(WORKER_ID, DIGEST, NOW), NOW)
    with pytest.raises(TokenRefusedError):
        tokens.verify(jwt.encode(_claims(), Ed25519PrivateKey.generate(), algorithm="EdDSA"), NOW)


def test_an_unsigned_token_is_refused(tokens: WorkerTokens) -> None:
    with pytest.raises(TokenRefusedError):
        tokens.verify(jwt.encode(_claims(), "", algorithm="none"), NOW)


def test_the_public_key_is_not_accepted_as_an_hmac_secret(tokens: WorkerTokens) -> None:
    public = tokens._public.public_bytes(Encoding.Raw, PublicFormat.Raw)

    with pytest.raises(TokenRefusedError):
        tokens.verify(jwt.encode(_claims(), public, algorithm="HS256"), NOW)


def test_the_header_does_not_choose_the_algorithm(tokens: WorkerTokens) -> None:
    _, payload, signature = tokens.mint(WORKER_ID, DIGEST, NOW).split(".")
    for algorithm in ("none", "HS256", "RS256"):
        header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).rstrip(b"=").decode()
        with pytest.raises(TokenRefusedError):
            tokens.verify(f"{header}.{payload}.{signature}", NOW)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é.é.é", "x" * 1025, "\x00"])
def test_rubbish_is_refused(tokens: WorkerTokens, token: str) -> None:
    with pytest.raises(TokenRefusedError):
        tokens.verify(token, NOW)


def test_a_token_lives_for_minutes_and_no_longer_than_its_keyset(tokens: WorkerTokens) -> None:
    now = int(NOW.timestamp())
    assert TOKEN_SECONDS <= 15 * 60
    assert token_seconds(NOW, now + 6 * 3600) == TOKEN_SECONDS
    assert token_seconds(NOW, now + 42) == 42
    assert token_seconds(NOW, now - 1) == 0
    with pytest.raises(TokenRefusedError):
        tokens.verify(tokens.mint(WORKER_ID, DIGEST, NOW, token_seconds(NOW, now - 1)), NOW)


def test_a_token_of_the_earlier_kind_for_heartbeats_alone_is_refused(tokens: WorkerTokens) -> None:
    with pytest.raises(TokenRefusedError):
        tokens.verify(_signed(tokens, _claims(aud="cocoon-heartbeat")), NOW)
