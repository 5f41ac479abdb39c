#!/usr/bin/env bash
# gurux-dlms 1.0.203 (Python): two of 256 EC private keys can't be loaded: those whose first byte is 03 or 30. PKCS #8 and
# the older "EC PRIVATE KEY", P-256 and P-384 alike; its own PEM text of such a key, too. The error is a ValueError about
# pad counts or types, and does not say that a key was read.
# Expected: the private key is an octet string of the curve's size, whatever is in it (RFC 5915, section 3). The guess was
# that a reader which loads one key of a file format loads them all.
#
# The reader looks into each octet string and, where it begins like a bit string or a sequence, reads it as ASN.1. The key
# inside PKCS #8 is in such a wrapping, the private key itself is not. Where two meet: cryptography 50.0.2, which
# pydlms-client uses for these keys, loads all of them; the keys below were written by it.
#
# What hurts: the head-end system's own signing and key agreement keys for security suites 1 and 2, a pair for each client
# and purpose, and those of simulated meters, of which there are thousands: eight of a thousand are refused, and the test
# keys that everybody shares are not among them. A rehearsal with one key proves nothing. The key is good: make no new one,
# load it as raw bytes (GXPrivateKey.fromRawBytes takes each).
#
# Needs: python3 with venv, PyPI. Prints what it saw; fails if the behaviour is another one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps gurux-dlms==1.0.203 cffi==2.1.1 cryptography==50.0.2 \
  pycparser==3.12

cat > look.py <<'PYTHON'
from importlib.metadata import version

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from gurux_dlms.asn.GXPkcs8 import GXPkcs8
from gurux_dlms.ecdsa.GXPrivateKey import GXPrivateKey

print(*(f"{name} {version(name)}" for name in ("gurux-dlms", "cryptography")), sep=", ")


def from_pkcs8(pem):
    return GXPkcs8.fromPem(pem).privateKey


def loaded(read, pem):
    try:
        return bytes(read(pem).rawValue)
    except ValueError as error:
        return error


FORMS = (
    ("PKCS #8", PrivateFormat.PKCS8, from_pkcs8),
    ("EC PRIVATE KEY", PrivateFormat.TraditionalOpenSSL, GXPrivateKey.fromPem),
)
for curve in (ec.SECP256R1(), ec.SECP384R1()):
    size = curve.key_size // 8
    for name, form, read in FORMS:
        refused = {}
        for first in range(256):
            raw = bytes([first]) + bytes(range(0x61, 0x60 + size))
            value = int.from_bytes(raw, "big")
            pem = ec.derive_private_key(value, curve).private_bytes(Encoding.PEM, form, NoEncryption())
            assert load_pem_private_key(pem, None).private_numbers().private_value == value
            seen = loaded(read, pem.decode())
            if seen != raw:
                refused[f"{first:02X}"] = seen
            assert bytes(GXPrivateKey.fromRawBytes(raw).rawValue) == raw
        print(f"{curve.name}, {name}: {refused}")
        assert set(refused) == {"03", "30"}
        assert all(isinstance(error, ValueError) for error in refused.values())

for first in (0x02, 0x03, 0x30):
    key = GXPrivateKey.fromRawBytes(bytes([first]) + bytes(range(0x61, 0x80)))
    seen = loaded(GXPrivateKey.fromPem, key.toPem())
    print(f"written by itself, first byte {first:02X}: {'read' if seen == key.rawValue else repr(seen)}")
    assert (seen == key.rawValue) == (first == 0x02)
print("as described: a private key that begins with 03 or 30 is not loaded")
PYTHON
venv/bin/python look.py
