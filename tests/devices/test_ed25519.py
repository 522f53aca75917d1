"""Ed25519 verification: the RFC's vectors, an independent signer, and what must be refused."""

from __future__ import annotations

import random

import pytest

from devices.ed25519 import verify

# RFC 8032, section 7.1: public key, message, signature.
RFC = {
    "empty": (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "one byte": (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "two bytes": (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "SHA(abc)": (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}
KEY, MESSAGE, SIGNATURE = map(bytes.fromhex, RFC["two bytes"])
ORDER = 2**252 + 27742317777372353535851937790883648493
P = 2**255 - 19
# All points of order 1, 2, 4 and 8, by their encoding; the last two are not the canonical ones.
SMALL = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("vector", RFC.values(), ids=RFC)
def test_the_vectors_of_the_rfc_hold(vector: tuple[str, str, str]) -> None:
    assert verify(*map(bytes.fromhex, vector))


def test_what_openssl_signs_is_accepted_and_no_bit_of_it_can_be_changed() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    rng = random.Random(1)
    for length in (0, 1, 63, 64, 1000):
        private = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
        parts = [private.public_key().public_bytes_raw(), rng.randbytes(length)]
        parts.append(private.sign(parts[1]))
        assert verify(*parts)
        for index in range(3):
            for _ in range(4 if parts[index] else 0):
                changed = bytearray(parts[index])
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
                assert not verify(*parts[:index], bytes(changed), *parts[index + 1 :])


@pytest.mark.parametrize("times", [1, 2, 15])
def test_an_s_that_is_not_below_the_order_is_refused(times: int) -> None:
    """It satisfies the equation, so that whoever has one signature could make others of the same message."""
    s = int.from_bytes(SIGNATURE[32:], "little") + times * ORDER

    assert not verify(KEY, MESSAGE, SIGNATURE[:32] + s.to_bytes(32, "little"))


@pytest.mark.parametrize("encoded", SMALL)
def test_a_key_of_small_order_is_refused(encoded: str) -> None:
    """With such a key, R = B and S = 1 would be a signature of one message in eight, whatever it says."""
    key = bytes.fromhex(encoded)
    base = (4 * pow(5, P - 2, P) % P).to_bytes(32, "little")
    for message in range(32):
        assert not verify(key, bytes([message]), base + (1).to_bytes(32, "little"))
        assert not verify(key, bytes([message]), key + bytes(32))


@pytest.mark.parametrize("encoded", SMALL)
def test_an_r_of_small_order_is_refused(encoded: str) -> None:
    assert not verify(KEY, MESSAGE, bytes.fromhex(encoded) + SIGNATURE[32:])
    assert not verify(KEY, MESSAGE, bytes.fromhex(encoded) + bytes(32))


@pytest.mark.parametrize(
    "key",
    [
        P.to_bytes(32, "little"),  # y = 0, not as the RFC writes it
        (P + 3).to_bytes(32, "little"),
        (2**255 - 1).to_bytes(32, "little"),
        (2).to_bytes(32, "little"),  # on no point: (y**2 - 1) / (d y**2 + 1) is no square
        (1 | 1 << 255).to_bytes(32, "little"),  # x = 0 has no sign
    ],
    ids=["p", "p + 3", "all ones", "no point", "minus zero"],
)
def test_a_key_that_is_no_point_or_not_written_as_one_is_refused(key: bytes) -> None:
    assert not verify(key, MESSAGE, SIGNATURE)


@pytest.mark.parametrize("length", [0, 31, 63, 65, 128])
def test_another_length_is_refused(length: int) -> None:
    data = (SIGNATURE * 2)[:length]

    assert not verify(KEY, MESSAGE, data)
    if length != 32:
        assert not verify(data, MESSAGE, SIGNATURE)


def test_nothing_but_zeros_is_refused() -> None:
    assert not verify(KEY, MESSAGE, bytes(64))
    assert not verify(bytes(32), b"", bytes(64))


def test_the_halves_of_a_signature_cannot_be_swapped_nor_belong_to_another_key_or_message() -> None:
    other_key, other_message, other = map(bytes.fromhex, RFC["one byte"])

    assert not verify(KEY, MESSAGE, SIGNATURE[32:] + SIGNATURE[:32])
    assert not verify(KEY, MESSAGE, SIGNATURE[:32] + other[32:])
    assert not verify(other_key, MESSAGE, SIGNATURE)
    assert not verify(KEY, other_message, SIGNATURE)
