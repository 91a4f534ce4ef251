"""What a resource server accepts and, line by line, what it refuses: every service of the suite checks with this code."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import ECKey
from modelworks.kit.errors import Unauthenticated, Unavailable
from modelworks.kit.tokens import TokenVerifier, fetch_over_http

ISSUER = "https://issuer.test"


def new_key(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": "ES256"})


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def es256(key: ECKey) -> Callable[[bytes], bytes]:
    private = key.private_key
    assert private is not None

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(private.sign(message, ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def forge(header: Any, claims: Any, sign: Callable[[bytes], bytes]) -> str:
    """A token with any header and claims: no library stands in the way of what an attacker may send."""
    message = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{message}.{b64(sign(message.encode()))}"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Issuer:
    """An issuer whose keys, health and clock a test decides."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.key = new_key("key-1")
        self.published: list[Mapping[str, Any]] = [self.key.as_dict(private=False)]
        self.reads = 0
        self.down = False

    async def fetch(self) -> Mapping[str, Any]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable("the issuer does not answer")
        return {"keys": list(self.published)}

    def verifier(self, **options: Any) -> TokenVerifier:
        return TokenVerifier(issuer=ISSUER, audience="api", fetch_keys=self.fetch, clock=self.clock, **options)

    def header(self, **changes: Any) -> dict[str, Any]:
        return without_none({"alg": "ES256", "typ": "at+jwt", "kid": self.key.kid, **changes})

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(self.clock())
        return without_none(
            {
                "iss": ISSUER, "sub": "alice", "client_id": "alice", "aud": "api", "iat": now, "exp": now + 600,
                "jti": "token-1", "scope": "predict admin", "roles": ["consumer"], **changes,
            }
        )  # fmt: skip

    def token(self, header: Mapping[str, Any] | None = None, key: ECKey | None = None, **claims: Any) -> str:
        return forge(self.header(**(header or {})), self.claims(**claims), es256(key or self.key))


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@pytest.fixture
def its() -> Issuer:
    return Issuer()


CONTROLS: dict[str, Callable[[Issuer], str]] = {
    "plain": lambda its: its.token(),
    "audience list that holds ours": lambda its: its.token(aud=["kafka", "api"]),
    "media type with its prefix": lambda its: its.token({"typ": "application/at+jwt"}),
    "expired within the leeway": lambda its: its.token(exp=int(its.clock()) - 3),
    "issued within the leeway": lambda its: its.token(iat=int(its.clock()) + 3),
    "nbf in the past": lambda its: its.token(nbf=int(its.clock()) - 10),
    "fractional times": lambda its: its.token(exp=its.clock() + 60.5),
    "no roles": lambda its: its.token(roles=None),
    "no scope": lambda its: its.token(scope=None),
}


@pytest.mark.parametrize("make", CONTROLS.values(), ids=CONTROLS.keys())
async def test_well_formed_token_of_the_issuer_is_accepted(its: Issuer, make: Callable[[Issuer], str]) -> None:
    principal = await its.verifier().verify(make(its))

    assert principal.id == "alice"
    assert principal.token_id == "token-1"


async def test_principal_carries_roles_and_scopes_of_the_token(its: Issuer) -> None:
    principal = await its.verifier().verify(its.token())

    assert principal.roles == {"consumer"}
    assert principal.scopes == {"predict", "admin"}


async def test_token_without_scope_has_no_scopes(its: Issuer) -> None:
    assert (await its.verifier().verify(its.token(scope=None))).scopes == frozenset()


def _hs256_with_public_key(its: Issuer) -> str:
    pem = its.key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return forge(its.header(alg="HS256"), its.claims(), lambda text: hmac.digest(pem, text, hashlib.sha256))


def _embedded_key(its: Issuer) -> str:
    stranger = new_key("key-1")
    return its.token({"jwk": stranger.as_dict(private=False)}, stranger)


def _flipped_bit(its: Issuer) -> str:
    head, body, signature = its.token().split(".")
    claims = bytearray(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    claims[claims.index(b"alice")] ^= 1
    return f"{head}.{b64(bytes(claims))}.{signature}"


def _flipped_signature_bit(its: Issuer) -> str:
    head, body, signature = its.token().split(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[40] ^= 1
    return f"{head}.{body}.{b64(bytes(raw))}"


def _raw_claims(its: Issuer, claims: bytes) -> str:
    message = f"{b64(json.dumps(its.header()).encode())}.{b64(claims)}"
    return f"{message}.{b64(es256(its.key)(message.encode()))}"


def _der_signature(its: Issuer) -> str:
    private = its.key.private_key
    assert private is not None
    return forge(its.header(), its.claims(), lambda text: private.sign(text, ECDSA(SHA256())))


NEGATIVES: dict[str, Callable[[Issuer], str]] = {
    # The sixteen that every JWT verifier must refuse.
    "alg none": lambda its: forge(its.header(alg="none"), its.claims(), lambda _: b""),
    "HS256 signed with the public key": _hs256_with_public_key,
    "key embedded in the header": _embedded_key,
    "typ JWT: an ID token is no access token": lambda its: its.token({"typ": "JWT"}),
    "typ missing": lambda its: its.token({"typ": None}),
    "another audience": lambda its: its.token(aud="kafka"),
    "issuer with a slash more": lambda its: its.token(iss=ISSUER + "/"),
    "expired": lambda its: its.token(exp=int(its.clock()) - 6),
    "issued in the future": lambda its: its.token(iat=int(its.clock()) + 60),
    "not valid yet": lambda its: its.token(nbf=int(its.clock()) + 60),
    "exp missing": lambda its: its.token(exp=None),
    "exp a text": lambda its: its.token(exp=str(int(its.clock()) + 600)),
    "unknown critical extension": lambda its: its.token({"crit": ["urn:ours"], "urn:ours": 1}),
    "flipped bit in the claims": _flipped_bit,
    "sub missing": lambda its: its.token(sub=None),
    "jti missing": lambda its: its.token(jti=None),
    # And more of the kind.
    "flipped bit in the signature": _flipped_signature_bit,
    "no signature": lambda its: its.token().rsplit(".", 1)[0] + ".",
    "two parts": lambda its: its.token().rsplit(".", 1)[0],
    "four parts": lambda its: its.token() + ".x",
    "alg None in capitals": lambda its: forge(its.header(alg="NONE"), its.claims(), lambda _: b""),
    "signature in DER": _der_signature,
    "signed by another key under our kid": lambda its: its.token(key=new_key("key-1")),
    "kid missing": lambda its: its.token({"kid": None}),
    "kid no text": lambda its: its.token({"kid": ["key-1"]}),
    "kid unknown": lambda its: its.token({"kid": "key-9"}),
    "kid a path": lambda its: its.token({"kid": "../../dev/null"}),
    "crit empty": lambda its: its.token({"crit": []}),
    "crit b64": lambda its: its.token({"crit": ["b64"], "b64": False}),
    "algorithm of another curve": lambda its: its.token({"alg": "ES384"}),
    "iat missing": lambda its: its.token(iat=None),
    "iat true": lambda its: its.token(iat=True),
    "nbf a text": lambda its: its.token(nbf="0"),
    "exp NaN, which never expires": lambda its: its.token(exp=float("nan")),
    "exp infinite": lambda its: its.token(exp=float("inf")),
    "exp with 400 digits": lambda its: its.token(exp=10**400),
    "iss missing": lambda its: its.token(iss=None),
    "aud missing": lambda its: its.token(aud=None),
    "aud list without ours": lambda its: its.token(aud=["kafka", "objects"]),
    "aud an object": lambda its: its.token(aud={"api": True}),
    "sub empty": lambda its: its.token(sub=""),
    "sub a number": lambda its: its.token(sub=7),
    "sub longer than an audit event may name": lambda its: its.token(sub="a" * 201),
    "roles a text": lambda its: its.token(roles="administrator"),
    "roles of numbers": lambda its: its.token(roles=[1]),
    "scope a list": lambda its: its.token(scope=["x admin y"]),
    "claims no object": lambda its: forge(its.header(), ["alice"], es256(its.key)),
    "claims no text": lambda its: _raw_claims(its, bytes([0xFF, 0xFE])),
    "header no object": lambda its: forge(["ES256"], its.claims(), es256(its.key)),
    "header nested deep": lambda its: b64(b"[" * 3000) + ".e30.e30",
    "claims nested deep": lambda its: _raw_claims(its, b"[" * 3000),
    "no JWT at all": lambda its: "hunter2",
    "empty": lambda its: "",
    "not ASCII": lambda its: "\udcff.é.\u0000",
    "100 kB": lambda its: its.token(pad="a" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("make", NEGATIVES.values(), ids=NEGATIVES.keys())
async def test_forged_foreign_or_malformed_token_is_refused(its: Issuer, make: Callable[[Issuer], str]) -> None:
    verifier = its.verifier()

    with pytest.raises(Unauthenticated) as refused:
        await verifier.verify(make(its))

    assert refused.value.reason == "token-invalid"
    assert 'error="invalid_token"' in refused.value.headers["WWW-Authenticate"]


async def test_refusal_never_repeats_the_token(its: Issuer) -> None:
    token = its.token({"kid": "key-9"})

    with pytest.raises(Unauthenticated) as refused:
        await its.verifier().verify(token)

    assert token not in refused.value.message
    assert token.split(".")[2] not in str(refused.value.data)


async def test_token_of_100_kb_is_refused_before_keys_are_asked_for(its: Issuer) -> None:
    with pytest.raises(Unauthenticated, match="8192 characters"):
        await its.verifier().verify(its.token(pad="a" * 100_000))

    assert its.reads == 0


async def test_second_use_of_a_token_is_answered_until_it_expires(its: Issuer) -> None:
    verifier = its.verifier()
    token = its.token(exp=int(its.clock()) + 60)
    first = await verifier.verify(token)

    its.clock.now += 30
    assert await verifier.verify(token) is first

    its.clock.now += 36
    with pytest.raises(Unauthenticated, match="expired"):
        await verifier.verify(token)


# --- keys


async def test_two_keys_of_one_kid_verify_nothing(its: Issuer) -> None:
    other = new_key("key-1")
    its.published = [its.key.as_dict(private=False), other.as_dict(private=False), new_key("b").as_dict(private=False)]
    verifier = its.verifier()

    for key in (its.key, other):
        with pytest.raises(Unauthenticated, match="does not publish"):
            await verifier.verify(its.token(key=key))


async def test_same_key_published_twice_verifies(its: Issuer) -> None:
    its.published = its.published * 2

    assert (await its.verifier().verify(its.token())).id == "alice"


@pytest.mark.parametrize(
    "entry",
    [
        "text", {"kty": "EC"}, {"kty": "EC", "crv": "P-256", "kid": "x", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "kid": ["x"], "x": "AA", "y": "AA"}, {"kty": "oct", "k": "AA", "kid": "key-1"},
        {"kty": "EC", "crv": "P-256", "kid": "x", "x": 1, "y": None}, {"kty": "EC", "crv": "P-256", "kid": "x"},
    ],
    ids=str,
)  # fmt: skip
async def test_malformed_key_in_the_jwks_does_not_harm_the_others(its: Issuer, entry: Any) -> None:
    its.published = [entry, *its.published]

    assert (await its.verifier().verify(its.token())).id == "alice"


@pytest.mark.parametrize("change", [{"use": "enc"}, {"alg": "ES512"}, {"alg": "HS256"}], ids=str)
async def test_key_published_for_another_use_does_not_verify(its: Issuer, change: dict[str, str]) -> None:
    its.published = [{**its.key.as_dict(private=False), **change}, new_key("other").as_dict(private=False)]

    with pytest.raises(Unauthenticated):
        await its.verifier().verify(its.token())


async def test_flood_of_unknown_kids_asks_for_keys_at_most_once_in_30_seconds(its: Issuer) -> None:
    verifier = its.verifier()
    await verifier.verify(its.token())
    assert its.reads == 1

    for number in range(310):
        its.clock.now += 0.1  # 31 seconds in all
        with pytest.raises(Unauthenticated):
            await verifier.verify(its.token({"kid": f"forged-{number}"}))
    assert its.reads == 2

    floods = [verifier.verify(its.token({"kid": f"forged-{number}"})) for number in range(300)]
    assert all(isinstance(answer, Unauthenticated) for answer in await asyncio.gather(*floods, return_exceptions=True))
    assert its.reads == 2


async def test_flood_of_unknown_kids_while_the_issuer_is_down_asks_no_more_often(its: Issuer) -> None:
    verifier = its.verifier()
    await verifier.verify(its.token())
    its.down = True

    for number in range(310):
        its.clock.now += 0.1
        with pytest.raises(Unauthenticated):
            await verifier.verify(its.token({"kid": f"forged-{number}"}))

    assert its.reads == 2


async def test_new_key_is_picked_up_by_the_first_token_that_names_it(its: Issuer) -> None:
    verifier = its.verifier()
    await verifier.verify(its.token())
    successor = new_key("key-2")
    its.published = [*its.published, successor.as_dict(private=False)]
    its.clock.now += 31

    principal = await verifier.verify(its.token({"kid": "key-2"}, successor))

    assert principal.id == "alice"


async def test_retired_key_stops_verifying_after_refresh_max_also_for_tokens_seen_before(its: Issuer) -> None:
    verifier = its.verifier(refresh_max=timedelta(minutes=10))
    token = its.token(exp=int(its.clock()) + 3600)
    await verifier.verify(token)
    its.published = [new_key("key-2").as_dict(private=False)]

    its.clock.now += 599
    assert (await verifier.verify(token)).id == "alice"

    its.clock.now += 2
    with pytest.raises(Unauthenticated, match="does not publish"):
        await verifier.verify(token)


async def test_retired_key_stops_verifying_at_once_when_another_token_brought_the_news(its: Issuer) -> None:
    verifier = its.verifier()
    token = its.token()
    await verifier.verify(token)
    successor = new_key("key-2")
    its.published = [successor.as_dict(private=False)]
    its.clock.now += 31

    await verifier.verify(its.token({"kid": "key-2"}, successor))

    with pytest.raises(Unauthenticated):
        await verifier.verify(token)


async def test_clock_that_jumps_back_does_not_keep_old_keys_alive(its: Issuer) -> None:
    verifier = its.verifier()
    token = its.token()
    await verifier.verify(token)
    its.published = [new_key("key-2").as_dict(private=False)]

    its.clock.now -= 7200

    with pytest.raises(Unauthenticated):
        await verifier.verify(token)


async def test_issuer_down_at_start_is_unavailable_and_heals(its: Issuer) -> None:
    its.down = True
    verifier = its.verifier()
    with pytest.raises(Unavailable):
        await verifier.verify(its.token())

    its.down = False
    its.clock.now += 1.1

    assert (await verifier.verify(its.token())).id == "alice"


async def test_issuer_down_at_start_is_asked_once_a_second_at_most(its: Issuer) -> None:
    its.down = True
    verifier = its.verifier()

    answers = await asyncio.gather(*(verifier.verify(its.token()) for _ in range(100)), return_exceptions=True)

    assert all(isinstance(answer, Unavailable) for answer in answers)
    assert its.reads == 1


async def test_issuer_without_usable_keys_is_unavailable(its: Issuer) -> None:
    its.published = []

    with pytest.raises(Unavailable):
        await its.verifier().verify(its.token())


async def test_issuer_down_later_is_bridged_for_twice_refresh_max_and_no_longer(its: Issuer) -> None:
    verifier = its.verifier(refresh_max=timedelta(minutes=10))
    await verifier.verify(its.token())
    its.down = True

    its.clock.now += 1100
    assert (await verifier.verify(its.token())).id == "alice"
    asked = its.reads
    for _ in range(50):
        await verifier.verify(its.token())
    assert its.reads == asked

    its.clock.now += 150
    with pytest.raises(Unavailable):
        await verifier.verify(its.token())


async def test_many_first_requests_read_the_keys_once(its: Issuer) -> None:
    verifier = its.verifier()

    await asyncio.gather(*(verifier.verify(its.token(jti=str(number))) for number in range(50)))

    assert its.reads == 1


async def test_memory_of_seen_tokens_is_bounded(its: Issuer) -> None:
    verifier = its.verifier(cache_size=10)

    for number in range(50):
        await verifier.verify(its.token(jti=str(number)))

    assert len(verifier._cache) == 10


# --- over HTTP


@asynccontextmanager
async def serving(body: bytes, *, head: bytes = b"", status: bytes = b"200 OK") -> AsyncIterator[str]:
    """A server that answers everything with `body`."""
    sent = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n" % len(body) + head + b"\r\n")
        try:
            for start in range(0, len(body), 65536):
                writer.write(body[start : start + 65536])
                await writer.drain()
                sent += 65536
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
    finally:
        server.close()


async def test_keys_are_read_over_http(its: Issuer) -> None:
    async with serving(json.dumps({"keys": its.published}).encode()) as url:
        verifier = TokenVerifier(issuer=ISSUER, audience="api", fetch_keys=fetch_over_http(url))

        assert (await verifier.verify(its.token())).id == "alice"


async def test_jwks_of_10_mb_is_refused_without_reading_it(its: Issuer) -> None:
    huge = json.dumps({"keys": its.published, "pad": "a" * 10_000_000}).encode()

    async with serving(huge) as url:
        with pytest.raises(Unavailable, match="larger than 65536 bytes"):
            await fetch_over_http(url)()


async def test_compressed_jwks_is_not_unpacked() -> None:
    import gzip

    bomb = gzip.compress(b"a" * 10_000_000)
    async with serving(bomb, head=b"Content-Encoding: gzip\r\n") as url:
        with pytest.raises(Unavailable, match="could not be read"):
            await fetch_over_http(url)()


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"<html>", b"200 OK"), (b"[]", b"200 OK"), (b'{"keys": 1}', b"200 OK"), (b"\xff", b"200 OK"),
     (b"[" * 60_000, b"200 OK"), (b'{"keys": []}', b"500 Oops"), (b"", b"302 Found")],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
async def test_answer_that_is_no_jwks_is_unavailable(body: bytes, status: bytes) -> None:
    async with serving(body, status=status) as url:
        with pytest.raises(Unavailable):
            await fetch_over_http(url)()


async def test_issuer_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    with pytest.raises(Unavailable, match=str(unused_tcp_port)):
        await fetch_over_http(f"http://127.0.0.1:{unused_tcp_port}/jwks.json")()
