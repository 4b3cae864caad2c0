import hmac
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.byte_rows import Seconds, byte_rows
from optimizer.errors import InvalidSettings, InvalidToken
from serving.tokens import (
    ID_AT,
    PROPENSITY_AT,
    TIME_AT,
    VERSION_AT,
    Decision,
    TokenBatch,
    TokenSigner,
    token_text,
)

KEY, OTHER_KEY = "00" * 16, "11" * 32
DECISION = Decision(0, bytes(range(16)), 1.5e9, b"armarmar", 0.25, 7, 42, "chat", b"\x00<" * 5)


@given(
    st.builds(
        Decision,
        role=st.integers(0, 5),
        decision_id=st.binary(min_size=16, max_size=16),
        decided_at=st.floats(0, 4e9),
        arm_id=st.binary(min_size=8, max_size=8),
        propensity=st.floats(0, 1, exclude_min=True),
        policy_version=st.integers(0, 2**63),
        schema_id=st.integers(0, 2**32 - 1),
        decision_point=st.text(min_size=1, max_size=60).filter(lambda s: len(s.encode()) < 256),
        features=st.binary(max_size=64).map(lambda b: b[: len(b) // 2 * 2]),
        epoch=st.integers(0, 2**32 - 1),
        unit=st.binary(min_size=8, max_size=8),
    )
)
def test_a_token_carries_its_decision_exactly(decision: Decision) -> None:
    signer = TokenSigner([KEY])
    raw, token = signer.sign(decision)
    assert signer.verify(token) == (raw, decision)


def test_a_token_of_the_first_format_is_still_read() -> None:
    """As it was made before tokens told epoch and unit."""
    content = struct.pack(
        ">BB16sd8sdQIBH", 1, 0, bytes(range(16)), 1.5e9, b"armarmar", 0.25, 7, 42, 4, 5
    )
    content += b"chat" + b"\x00<" * 5
    raw = content + hmac.digest(bytes.fromhex(KEY), content, "sha256")[:16]
    told = msgspec.structs.replace(DECISION, unit=DECISION.decision_id[:8])
    assert TokenSigner([KEY]).verify(token_text(raw).decode()) == (raw, told)


@pytest.mark.parametrize("length", [16, 64, 65, 200])
def test_the_signature_is_the_standard_one(length: int) -> None:
    key = bytes(range(length % 256)).ljust(length, b"k")
    raw, _ = TokenSigner([key.hex()]).sign(DECISION)
    assert raw[-16:] == hmac.digest(key, raw[:-16], "sha256")[:16]


def test_many_tokens_are_those_made_one_by_one() -> None:
    signer = TokenSigner([KEY])
    batch = TokenBatch("chat", 42, 1.5e9, b"\x00<" * 5 + b"\x01<" * 5, 3)
    ids = bytes(range(32))
    made = signer.sign_many(
        batch, [0, 2], [b"armarmar", b"mraarmra"], [0.25, 1.0], [7, 8], [b"unitunit", None], ids
    )
    first, second = (signer.verify(token_text(raw).decode())[1] for raw in made)
    assert first == msgspec.structs.replace(
        DECISION, decision_id=ids[:16], epoch=3, unit=b"unitunit"
    )
    assert (second.role, second.arm_id, second.propensity) == (2, b"mraarmra", 1.0)
    assert (second.policy_version, second.unit) == (8, ids[16:24])
    assert second.features == b"\x01<" * 5


def test_what_the_log_stores_is_what_the_token_says() -> None:
    raw, _ = TokenSigner([KEY]).sign(DECISION)
    assert raw[ID_AT] == DECISION.decision_id
    assert struct.unpack(">d", raw[TIME_AT]) == (DECISION.decided_at,)
    assert struct.unpack(">d", raw[PROPENSITY_AT]) == (DECISION.propensity,)
    assert struct.unpack(">q", raw[VERSION_AT]) == (DECISION.policy_version,)


def test_rows_are_cut_from_records() -> None:
    records = [struct.pack(">dI", at, number) for number, at in enumerate((1e9, 1e9 + 0.25))]
    rows = byte_rows(records, [b"-", Seconds(slice(0, 8), 1e9 - 1), slice(8, 12)])
    assert rows == struct.pack(">cqIcqI", b"-", 1_000_000, 0, b"-", 1_250_000, 1)


@given(st.integers(0), st.integers(1, 255))
def test_any_changed_byte_is_refused(position: int, change: int) -> None:
    signer = TokenSigner([KEY])
    raw, _ = signer.sign(DECISION)
    forged = bytearray(raw)
    forged[position % len(raw)] ^= change
    from base64 import urlsafe_b64encode

    with pytest.raises(InvalidToken, match="signature"):
        signer.verify(urlsafe_b64encode(bytes(forged)).rstrip(b"=").decode())


@given(st.integers(0, 200))
def test_a_truncated_token_is_refused(length: int) -> None:
    signer = TokenSigner([KEY])
    _, token = signer.sign(DECISION)
    with pytest.raises(InvalidToken):
        signer.verify(token[: min(length, len(token) - 1)])


@given(st.text(max_size=100))
def test_garbage_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        TokenSigner([KEY]).verify(text)
    assert caught.value.field == "decision_id"


def test_keys_rotate() -> None:
    _, old = TokenSigner([KEY]).sign(DECISION)
    rotated = TokenSigner([OTHER_KEY, KEY])
    assert rotated.verify(old)[1] == DECISION
    _, new = rotated.sign(DECISION)
    with pytest.raises(InvalidToken):
        TokenSigner([KEY]).verify(new)
    with pytest.raises(InvalidToken):
        TokenSigner([OTHER_KEY]).verify(old)


@pytest.mark.parametrize("keys", [[], ["00"], ["not hexadecimal"]])
def test_weak_keys_are_refused(keys: list[str]) -> None:
    with pytest.raises(InvalidSettings, match="token_keys"):
        TokenSigner(keys)


def test_tokens_of_different_decisions_differ() -> None:
    signer = TokenSigner([KEY])
    other = msgspec.structs.replace(DECISION, propensity=0.5)
    assert signer.sign(DECISION)[1] != signer.sign(other)[1]
