#!/usr/bin/env bash
# gurux-dlms 1.0.203 (Python): under which key a ciphered APDU was sealed is not read from its tag. In an association with a
# dedicated key the client opens everything with that key, so general-glo-ciphering (DB) and glo-get-response (CC) of the
# same meter end with "Invalid Command."; without the dedicated key the same bytes are read.
# Expected: the tag says it: DB and CC under the global key, general-ded-ciphering (DC) and ded-get-response (D4) under the
# dedicated one, in one association side by side.
#
# What hurts: a meter that pushes or sends an event under its global key while a client with a dedicated key reads it. The
# push is lost with an error that speaks of a command and not of a key. Have pushes read by a client of their own without
# dedicated key, and do not take this error for a sign of wrong keys in the KMS.
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
import contextlib, io
from importlib.metadata import version

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from gurux_dlms import GXByteBuffer, GXReplyData
from gurux_dlms.enums import Authentication, InterfaceType, Security
from gurux_dlms.secure import GXDLMSSecureClient

print("gurux-dlms", version("gurux-dlms"))

METER = bytes.fromhex("4D4D4D0000BC614E")
GLOBAL, DEDICATED, AUTHENTICATION = (bytes(range(n, n + 16)) for n in (0x00, 0x30, 0xD0))
# A data-notification without a date: structure { 5, 1 }; a get-response of 5.
NOTIFICATION = bytes.fromhex("0F0000000100020206000000050600000001")
GET_RESPONSE = bytes.fromhex("C401C1000600000005")
# An initiateResponse, and before it in the AARE: context LN with ciphering, accepted, no diagnostic, the meter's title.
INITIATE_RESPONSE = bytes.fromhex("0800065F1F0400001E1D04C80007")
ACCEPTED = bytes.fromhex("A109060760857405080103A203020100A305A103020100A40A0408") + METER


def string(content):
    return bytes([len(content)]) + content


def sealed(tag, key, counter, apdu):
    """Authenticated and encrypted, security suite 0; the general-... tags name the meter."""
    gcm = Cipher(algorithms.AES(key), modes.GCM(METER + counter.to_bytes(4, "big"))).encryptor()
    gcm.authenticate_additional_data(b"\x30" + AUTHENTICATION)
    content = b"\x30" + counter.to_bytes(4, "big") + gcm.update(apdu) + gcm.finalize() + gcm.tag[:12]
    return bytes([tag]) + (string(METER) if tag in (0xDB, 0xDC) else b"") + string(content)


def associated(dedicated):
    client = GXDLMSSecureClient(True, 16, 1, Authentication.NONE, None, InterfaceType.PDU)
    client.ciphering.security = Security.AUTHENTICATION_ENCRYPTION
    client.ciphering.systemTitle = b"HEWATEST"
    client.ciphering.blockCipherKey, client.ciphering.authenticationKey = GLOBAL, AUTHENTICATION
    client.ciphering.dedicatedKey = dedicated
    client.aarqRequest()
    user_information = b"\xbe" + string(b"\x04" + string(sealed(0x28, GLOBAL, 1, INITIATE_RESPONSE)))
    reply = GXReplyData()
    with contextlib.redirect_stdout(io.StringIO()):
        client.getData(GXByteBuffer(b"\x61" + string(ACCEPTED + user_information)), reply, GXReplyData())
        client.parseAareResponse(reply.data)
    return client


def read(client, apdu):
    reply, push = GXReplyData(), GXReplyData()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            client.getData(GXByteBuffer(apdu), reply, push)
    except ValueError as error:
        return repr(error)
    return bytes((push if apdu[0] in (0xDB, 0xDC) else reply).data.array()).hex()


LOST = "ValueError('Invalid Command.')"
PUSHED, ANSWERED = NOTIFICATION[6:].hex(), GET_RESPONSE[4:].hex()
for name, tag, key, apdu, with_dedicated, without in (
    ("general-glo-ciphering", 0xDB, GLOBAL, NOTIFICATION, LOST, PUSHED),
    ("glo-get-response", 0xCC, GLOBAL, GET_RESPONSE, LOST, ANSWERED),
    ("general-ded-ciphering", 0xDC, DEDICATED, NOTIFICATION, PUSHED, None),
    ("ded-get-response", 0xD4, DEDICATED, GET_RESPONSE, ANSWERED, None),
):
    telegram = sealed(tag, key, 9, apdu)
    seen = read(associated(DEDICATED), telegram)
    print(f"{name} {telegram.hex()}: {seen}")
    assert seen == with_dedicated
    if without is not None:
        seen = read(associated(None), telegram)
        print(f"  in an association without dedicated key: {seen}")
        assert seen == without
print("as described: the session has the say, not the tag")
PYTHON
venv/bin/python look.py
