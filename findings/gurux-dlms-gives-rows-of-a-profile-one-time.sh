#!/usr/bin/env bash
# gurux-dlms 1.0.203 (Python): rows of a load profile whose clock is null-data (00: one capture period after the row before)
# are stamped by the period that the object holds. If nobody has read it, it holds 0, and all rows get the time of the first
# one, as dates like any other: no None, no error, no warning.
# Expected: a time that can't be known is not given; or the period is asked for. The guess was None for these rows until the
# capture period (attribute 4) is there.
#
# Where two meet: pydlms-client 0.1.0 leaves None for such a row, and given a period and the order of the rows fills in what
# gurux-dlms has with the period set.
#
# What hurts: a profile that a meter pushes (attribute 2 alone, in a data-notification), or one that is read by a list of
# objects kept from last year: a day of 96 rows at one and the same quarter of an hour. A table with meter and time as its
# key keeps one of them, and the other 95 are "duplicates". The telegram opens under the right key, and every check passes.
# Set capturePeriod before the buffer is given to the object, and refuse a profile with two rows of one time.
#
# Needs: python3 with venv, PyPI. Prints what it saw; fails if the behaviour is another one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps gurux-dlms==1.0.203 pydlms-client==0.1.0 construct==2.10.70 \
  cffi==2.1.1 cryptography==50.0.2 pycparser==3.12

cat > look.py <<'PYTHON'
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

from gurux_dlms import GXByteBuffer, GXDLMSClient, GXReplyData
from gurux_dlms.enums import Authentication, InterfaceType
from gurux_dlms.objects import GXDLMSCaptureObject, GXDLMSClock, GXDLMSProfileGeneric, GXDLMSRegister
from pydlms.apdu.xdlms import decode_apdu
from pydlms.cosem.model import SortMethod
from pydlms.cosem.profile import typed_rows
from pydlms.obis import ObisCode

print(*(f"{name} {version(name)}" for name in ("gurux-dlms", "pydlms-client")), sep=", ")

# Four quarters of an hour from 2026-11-29, 11:00 UTC+1 on, the clock in the first row only; each with a reading.
FIRST = "0202 090C07EA0B1D070B000000FFC400 0600000064"
PUSHED = bytes.fromhex("0F0000000100" + "0104" + FIRST + "0202 00 0600000066" + "0202 00 0600000067" + "0202 00 0600000069")
START = datetime(2026, 11, 29, 10, 0, tzinfo=timezone.utc)
QUARTERS = [START + timedelta(minutes=15 * n) for n in range(4)]


def by_gurux(period):
    profile = GXDLMSProfileGeneric("1.0.99.1.0.255")
    if period is not None:
        profile.capturePeriod = period
    for item in (GXDLMSClock("0.0.1.0.0.255"), GXDLMSRegister("1.0.1.8.0.255")):
        profile.captureObjects.append((item, GXDLMSCaptureObject(2, 0)))
    client, push = GXDLMSClient(True, 16, 1, Authentication.NONE, None, InterfaceType.PDU), GXReplyData()
    client.getData(GXByteBuffer(PUSHED), GXReplyData(), push)
    client.updateValue(profile, 2, push.value)
    assert [row[1] for row in profile.buffer] == [100, 102, 103, 105]
    return [row[0].value.astimezone(timezone.utc) for row in profile.buffer]


def by_pydlms(**fill):
    columns = [(8, ObisCode.parse("0.0.1.0.0.255"), 2, 0), (3, ObisCode.parse("1.0.1.8.0.255"), 2, 0)]
    rows = typed_rows(columns, [row.value for row in decode_apdu(PUSHED).body.value], **fill)
    return [row[0] and row[0].to_datetime().astimezone(timezone.utc) for row in rows]


def shown(times):
    return [time and time.strftime("%H:%M") for time in times]


unread, read = by_gurux(None), by_gurux(900)
unfilled, filled = by_pydlms(), by_pydlms(fill_timestamps=True, capture_period=900, sort_method=SortMethod.FIFO)
print(f"gurux-dlms, period not read: {shown(unread)}; with capturePeriod 900: {shown(read)}")
print(f"pydlms-client, no period: {shown(unfilled)}; with a period of 900: {shown(filled)}")
assert unread == [START] * 4
assert read == filled == QUARTERS
assert unfilled == [START, None, None, None]
print("as described: without the period each row has the time of the first")
PYTHON
venv/bin/python look.py
