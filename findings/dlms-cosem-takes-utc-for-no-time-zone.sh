#!/usr/bin/env bash
# dlms-cosem 25.1.0: a date-time whose deviation is 0 (0000: local time is UTC) is read like one whose deviation is not
# specified (8000), as a datetime without a time zone. Any other deviation is read right.
# Expected: 0 is a deviation as good as -60; only 8000 says that there is none (Blue Book 4.1.6.1, which the library's own
# comment quotes). The guess was an aware time in UTC, as it is an aware one for -60.
#
# Where two meet: gurux-dlms 1.0.203 and pydlms-client 0.1.0 keep the two apart. dlms-cosem writes what it has read as 8000,
# so the zone is lost on the way, too; a time in UTC of one's own is written right.
#
# What hurts: meters whose clock runs in UTC (all winter in Great Britain, Ireland and Portugal; all year where the head-end
# system wants UTC): Python takes a time without zone for the host's local time, so the same push is nine hours off on a
# host in Tokyo, and one hour off every winter on one in Berlin, with no error: load profiles land in other intervals, a
# push looks older than the key change it followed. Beside times of another meter it can't even be sorted (TypeError).
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
import os, time
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

from dlms_cosem.protocol.xdlms import DataNotification
from dlms_cosem.time import datetime_from_bytes, datetime_to_bytes
from gurux_dlms import GXByteBuffer, GXDLMSClient, GXReplyData
from gurux_dlms.enums import Authentication, InterfaceType
from pydlms.apdu.xdlms import decode_apdu
from pydlms.cosem.time import CosemDateTime

print(*(f"{name} {version(name)}" for name in ("dlms-cosem", "gurux-dlms", "pydlms-client")), sep=", ")
os.environ["TZ"] = "JST-9"
time.tzset()


def pushed(deviation):
    """A data-notification of 2026-11-29, 11:10, a Sunday: structure { 5, 1 }, each double-long-unsigned."""
    when = bytes.fromhex("07EA0B1D070B0A0000") + deviation + b"\0"
    return bytes.fromhex("0F000000010C") + when + bytes.fromhex("0202060000000506" + "00000001")


def by_dlms_cosem(apdu):
    return DataNotification.from_bytes(apdu).date_time


def by_gurux(apdu):
    client, push = GXDLMSClient(True, 16, 1, Authentication.NONE, None, InterfaceType.PDU), GXReplyData()
    client.getData(GXByteBuffer(apdu), GXReplyData(), push)
    return push.time.value


def by_pydlms(apdu):
    return CosemDateTime.from_bytes(decode_apdu(apdu).date_time).to_datetime()


def minutes_from_utc(when):
    return None if when.utcoffset() is None else when.utcoffset() // timedelta(minutes=1)


HERE = datetime(2026, 11, 29, 11, 10)
for name, deviation, offset in (("UTC", "0000", 0), ("UTC+1", "FFC4", 60), ("not specified", "8000", None)):
    apdu = pushed(bytes.fromhex(deviation))
    seen = {read.__name__[3:]: read(apdu) for read in (by_dlms_cosem, by_gurux, by_pydlms)}
    offsets = {who: minutes_from_utc(when) for who, when in seen.items()}
    print(f"deviation {deviation} ({name}): minutes from UTC as read {offsets}")
    assert all(when.replace(tzinfo=None) == HERE for when in seen.values())
    assert (offsets["gurux"], offsets["pydlms"]) == (offset, offset)
    assert offsets["dlms_cosem"] == (offset or None)

utc = by_dlms_cosem(pushed(b"\0\0"))
off = HERE.replace(tzinfo=timezone.utc).timestamp() - utc.timestamp()
again = datetime_to_bytes(datetime_from_bytes(bytes.fromhex("07EA0B1D070B0A0000" + "0000" + "00"))[0])
print(f"on a host in Tokyo the push in UTC is {off / 3600:.0f} hours off; written again: {again.hex()}")
assert off == 9 * 3600
assert again.hex() == "07ea0b1dff0b0a0000" + "8000" + "00"
assert datetime_to_bytes(HERE.replace(tzinfo=timezone.utc)).hex()[18:22] == "0000"
try:
    print(sorted([utc, by_dlms_cosem(pushed(bytes.fromhex("FFC4")))]))
    raise SystemExit("the two times were sorted")
except TypeError as error:
    print(f"sorted beside a time of UTC+1: {error!r}")
print("as described: UTC is taken for no time zone")
PYTHON
venv/bin/python look.py
