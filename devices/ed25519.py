"""
Ed25519, verification alone, in Python integers: RFC 8032, section 5.1.

A board has no cryptography package.  Verifying handles nothing secret, so time may depend on the values; it takes some
milliseconds, once for each release.

The curve is -x**2 + y**2 = 1 + d x**2 y**2 over the integers modulo p.  A point is (X, Y, Z, T) with x = X/Z, y = Y/Z
and x y = T/Z, so that adding needs no division.
"""

from __future__ import annotations

import hashlib

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493  # order of the base point
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT_OF_MINUS_1 = pow(2, (_P - 1) // 4, _P)

Point = tuple[int, int, int, int]
_NEUTRAL: Point = (0, 1, 1, 0)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """
    Whether `signature` is that of `message` by the owner of `public_key`.

    Strict where the RFC leaves room: False also for a key or an R that is not encoded as the RFC encodes it, for an S
    that is not below the group's order (else one signature could be turned into another), and for a key of small order
    (which would accept one signature for many messages).
    """
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    key = _decode(public_key)
    s = int.from_bytes(signature[32:], "little")
    if key is None or s >= _L or _is_neutral(_multiply(8, key)):
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % _L
    # S B = R + k A, solved for R; comparing bytes refuses every other way to write the same R.
    x, y, z, t = _multiply(k, key)
    return _encode(_add(_multiply(s, _BASE), (_P - x, y, z, _P - t))) == signature[:32]


def _add(a: Point, b: Point) -> Point:
    """Section 5.1.4; complete: it also doubles, and adds the neutral point."""
    low = (a[1] - a[0]) * (b[1] - b[0]) % _P
    high = (a[1] + a[0]) * (b[1] + b[0]) % _P
    c = 2 * a[3] * b[3] * _D % _P
    d = 2 * a[2] * b[2] % _P
    e, f, g, h = high - low, d - c, d + c, high + low
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiply(n: int, point: Point) -> Point:
    result = _NEUTRAL
    while n:
        if n & 1:
            result = _add(result, point)
        point = _add(point, point)
        n >>= 1
    return result


def _is_neutral(point: Point) -> bool:
    return point[0] % _P == 0 and (point[1] - point[2]) % _P == 0


def _encode(point: Point) -> bytes:
    inverse = pow(point[2], _P - 2, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decode(data: bytes) -> Point | None:
    """Section 5.1.3: y and the sign of x; None where that is no point, or not the one way to write it."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= _P:
        return None
    # x**2 = (y**2 - 1) / (d y**2 + 1); p is 5 modulo 8, so a root is a power, or that times the root of -1.
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT_OF_MINUS_1 % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


_decoded_base = _decode((4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little"))
assert _decoded_base
_BASE: Point = _decoded_base
