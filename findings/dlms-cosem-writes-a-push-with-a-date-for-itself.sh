#!/usr/bin/env bash
# dlms-cosem 25.1.0: a data-notification with a date is written with 01 before the twelve bytes of the date, where their
# length 0C belongs. It reads its own ones (anything but 00 is "there is a date" to it), so a test against itself goes well.
# Expected: date-time is an octet string in the data-notification, a length and then so many bytes (IEC 62056-5-3, ASN.1 of
# the APDUs); 01 for "present" stands before OPTIONAL fields alone. The guess was 0C, as without a date it is 00.
#
# Where two meet: gurux-dlms 1.0.203 and pydlms-client 0.1.0 take one byte for the date and the next for the type of the
# body, and refuse the telegram; with 0C in that place both read date and body. Ciphered it is the same, behind a tag that
# is good.
#
# What hurts: a simulated meter made of dlms-cosem that pushes with a date, as real ones do: the key service opens what it
# sends, the tag is good, and the reader behind it says that the data is of no type, which looks like a wrong key that got
# through. Put 0C there before it is sealed, and do not look for this error among the keys.
#
# Needs: python3 with venv, PyPI. Prints what it saw; fails if the behaviour is another one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps dlms-cosem==25.1.0 gurux-dlms==1.0.203 \
  pydlms-client==0.1.0 construct==2.10.70 asn1crypto==1.5.1 attrs==26.1.0 cffi==2.1.1 cryptography==50.0.2 \
  pycparser==3.12 pyserial==3.5 python-dateutil==4.0.0 structlog==26.1.0 typing_extensions==4.16.0

cat > look.py <<'PYTHON'
import contextlib, io
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from dlms_cosem.protocol.xdlms import DataNotification
from dlms_cosem.protocol.xdlms.data_notification import LongInvokeIdAndPriority
from gurux_dlms import GXByteBuffer, GXReplyData
from gurux_dlms.enums import Authentication, InterfaceType, Security
from gurux_dlms.secure import GXDLMSSecureClient
from pydlms.cosem.time import CosemDateTime
from pydlms.exceptions import DlmsError
from pydlms.push import PushDecoder
from pydlms.security.context import SecurityContext

print(*(f"{name} {version(name)}" for name in ("dlms-cosem", "gurux-dlms", "pydlms-client")), sep=", ")

TITLE, EK, AK = bytes.fromhex("4D4D4D0000BC614E"), bytes(range(16)), bytes(range(0xD0, 0xE0))
WHEN = datetime(2026, 11, 29, 11, 10, tzinfo=timezone(timedelta(hours=1)))
# Structure { 5, 1 }, each double-long-unsigned.
BODY = bytes.fromhex("0202" + "0600000005" + "0600000001")


def sealed(apdu):
    header = b"\x30" + (7).to_bytes(4, "big")
    gcm = Cipher(algorithms.AES(EK), modes.GCM(TITLE + header[1:])).encryptor()
    gcm.authenticate_additional_data(header[:1] + AK)
    content = header + gcm.update(apdu) + gcm.finalize() + gcm.tag[:12]
    return b"\xdb\x08" + TITLE + bytes([len(content)]) + content


def by_gurux(apdu):
    client, push = GXDLMSSecureClient(True, 16, 1, Authentication.NONE, None, InterfaceType.PDU), GXReplyData()
    client.ciphering.security = Security.AUTHENTICATION_ENCRYPTION
    client.ciphering.systemTitle, client.settings.sourceSystemTitle = b"HEWATEST", TITLE
    client.ciphering.blockCipherKey, client.ciphering.authenticationKey = EK, AK
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            client.getData(GXByteBuffer(apdu), GXReplyData(), push)
    except ValueError as error:
        return error
    return push.time and push.time.value, push.value


def by_pydlms(apdu):
    decoder = PushDecoder(framing="raw", security=SecurityContext(encryption_key=EK, authentication_key=AK))
    try:
        (message,) = decoder.feed(apdu)
    except DlmsError as error:
        return error
    notification = message.notification
    when = notification.date_time and CosemDateTime.from_bytes(notification.date_time).to_datetime()
    return when, notification.body.to_python()


written = DataNotification(LongInvokeIdAndPriority(1), WHEN, BODY).to_bytes()
itself = DataNotification.from_bytes(written)
print(f"{written.hex()} read by dlms-cosem: {itself.date_time}, {itself.body.hex()}")
assert (itself.date_time, itself.body) == (WHEN, BODY)
assert written[5:6] == b"\x01"

mended = written[:5] + b"\x0c" + written[6:]
dateless = DataNotification(LongInvokeIdAndPriority(1), None, BODY).to_bytes()
for name, plain, expected in (("as written", written, None), ("with 0C", mended, WHEN), ("without a date", dateless, None)):
    for form, apdu in (("plain", plain), ("ciphered", sealed(plain))):
        seen = by_gurux(apdu), by_pydlms(apdu)
        texts = [repr(one) if isinstance(one, Exception) else f"{one[0]}, {one[1]}" for one in seen]
        print(f"{name}, {form}: {'; '.join(texts)}")
        if plain is written:
            assert all(isinstance(one, Exception) for one in seen)
        else:
            assert all(one == (expected, [5, 1]) for one in seen)
print("as described: a push with a date is read by its writer alone")
PYTHON
venv/bin/python look.py
