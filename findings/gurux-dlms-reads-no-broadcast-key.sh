#!/usr/bin/env bash
# gurux-dlms 1.0.203 (Python): its client reads no telegram under the broadcast key, its own ones included. With bit 6 of the
# security control byte set (50, 60, 70) getData ends with an AttributeError, although the broadcast key is configured.
# Expected: the broadcast key is taken where the bit says so, and what the library writes it reads.
#
# The writer is right: the telegrams below are made by its ciphering and equal those of plain AES-GCM, the bit part of the
# additional data. The same content under the unicast key is read.
#
# What hurts: this library is the usual reader against which a KMS is tried. For broadcast telegrams (multicast commands,
# clock and tariff pushes of a concentrator) it says nothing about the telegram: its error is not a wrong key. Try these
# with dlms-cosem, which reads 70 with the key that is handed to it.
#
# Needs: python3 with venv, PyPI. Prints what it saw; fails if the behaviour is another one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps dlms-cosem==25.1.0 gurux-dlms==1.0.203 \
  asn1crypto==1.5.1 attrs==26.1.0 cffi==2.1.1 cryptography==50.0.2 pycparser==3.12 pyserial==3.5 \
  python-dateutil==4.0.0 structlog==26.1.0 typing_extensions==4.16.0

cat > look.py <<'PYTHON'
import contextlib, io
from importlib.metadata import version

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from dlms_cosem.protocol.xdlms import GeneralGlobalCipher
from gurux_dlms import GXByteBuffer, GXReplyData
from gurux_dlms.AesGcmParameter import AesGcmParameter
from gurux_dlms.enums import Authentication, Command, InterfaceType, Security
from gurux_dlms.GXDLMSChippering import GXDLMSChippering
from gurux_dlms.secure import GXDLMSSecureClient

print(*(f"{name} {version(name)}" for name in ("gurux-dlms", "dlms-cosem")), sep=", ")

TITLE, COUNTER = bytes.fromhex("4D4D4D0000BC614E"), 5
UNICAST, BROADCAST, AUTHENTICATION = (bytes(range(n, n + 16)) for n in (0x00, 0x30, 0xD0))
# A data-notification without a date: structure { 5, 1 }, each double-long-unsigned.
NOTIFICATION = bytes.fromhex("0F0000000100020206000000050600000001")


def by_hand(control, key):
    """general-ciphering with the global key, by AES-GCM alone."""
    gcm = Cipher(algorithms.AES(key), modes.GCM(TITLE + COUNTER.to_bytes(4, "big"))).encryptor()
    if control & 0x10:
        gcm.authenticate_additional_data(
            bytes([control]) + AUTHENTICATION + (b"" if control & 0x20 else NOTIFICATION)
        )
    body = gcm.update(NOTIFICATION) if control & 0x20 else NOTIFICATION
    gcm.finalize()
    content = bytes([control]) + COUNTER.to_bytes(4, "big") + body + (gcm.tag[:12] if control & 0x10 else b"")
    return b"\xdb\x08" + TITLE + bytes([len(content)]) + content


def by_gurux(control, key):
    settings = AesGcmParameter(Command.GENERAL_GLO_CIPHERING, TITLE, key, AUTHENTICATION)
    settings.security = Security(control & 0x30)
    settings.broadcast, settings.invocationCounter = bool(control & 0x40), COUNTER
    return bytes(GXDLMSChippering.encryptAesGcm(settings, NOTIFICATION))


def read_by_gurux(apdu):
    client = GXDLMSSecureClient(True, 16, 1, Authentication.NONE, None, InterfaceType.PDU)
    client.ciphering.security = Security.AUTHENTICATION_ENCRYPTION
    client.ciphering.systemTitle, client.settings.sourceSystemTitle = b"HEWATEST", TITLE
    client.ciphering.blockCipherKey = UNICAST
    client.ciphering.broadcastBlockCipherKey = BROADCAST
    client.ciphering.authenticationKey = AUTHENTICATION
    push = GXReplyData()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            client.getData(GXByteBuffer(apdu), GXReplyData(), push)
    except AttributeError as error:
        return error
    return bytes(push.data.array())


for control in (0x10, 0x20, 0x30, 0x50, 0x60, 0x70):
    key = BROADCAST if control & 0x40 else UNICAST
    apdu = by_gurux(control, key)
    assert apdu == by_hand(control, key)
    read = read_by_gurux(apdu)
    print(f"{control:02X} {apdu.hex()}: {read.hex() if isinstance(read, bytes) else repr(read)}")
    if control & 0x40:
        assert isinstance(read, AttributeError)
    else:
        assert read == NOTIFICATION[6:]
other = GeneralGlobalCipher.from_bytes(by_gurux(0x70, BROADCAST)).to_plain_apdu(BROADCAST, AUTHENTICATION)
print(f"70 by dlms-cosem: {other.hex()}")
assert other == NOTIFICATION
print("as described: gurux-dlms writes telegrams under the broadcast key and reads none")
PYTHON
venv/bin/python look.py
