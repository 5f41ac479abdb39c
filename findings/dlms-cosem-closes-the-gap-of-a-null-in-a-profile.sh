#!/usr/bin/env bash
# dlms-cosem 25.1.0: ProfileGenericBufferParser leaves out each value that is null-data (00). The row gets shorter, and what
# stands behind moves up: the import register has the value of the export register, with no error. Only the clock keeps its
# place.
# Expected: a row of the buffer is a structure with one element for each capture object; null-data holds the place of a
# value that was not captured, or that is the one of the row before, and stays None or is filled in (Blue Book, Profile
# generic). The parser does check that the row that came in is as long as the list of capture objects. The guess was that a
# row that goes out is, too.
#
# Where two meet: gurux-dlms 1.0.203 and pydlms-client 0.1.0 keep the place of the null (None), pydlms-client repeats the
# value before if it is asked to (fill_values).
#
# What hurts: a load profile of a meter that spares bytes (a status, a register that stands still at night): who writes rows
# into columns bills export as import, and it looks like a reading, not like a wrong key or a broken telegram. Each value
# has its attribute beside it: go by that, never by the place, and compare the length of the row with the capture objects.
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
from importlib.metadata import version

from dlms_cosem.cosem import CosemAttribute, Obis
from dlms_cosem.enumerations import CosemInterface
from dlms_cosem.parsers import ProfileGenericBufferParser
from gurux_dlms import GXByteBuffer, GXDLMSClient, GXReplyData
from gurux_dlms.enums import Authentication, InterfaceType
from gurux_dlms.objects import GXDLMSCaptureObject, GXDLMSClock, GXDLMSData, GXDLMSProfileGeneric, GXDLMSRegister
from pydlms.apdu.xdlms import decode_apdu
from pydlms.cosem.profile import typed_rows
from pydlms.obis import ObisCode

print(*(f"{name} {version(name)}" for name in ("dlms-cosem", "gurux-dlms", "pydlms-client")), sep=", ")

CLOCK, STATUS, IMPORT, EXPORT = COLUMNS = "0.0.1.0.0.255", "0.0.96.10.1.255", "1.0.1.8.0.255", "1.0.2.8.0.255"
CLASSES = 8, 1, 3, 3
# Three hours: clock, status, import, export. 00 is null-data: the clock goes on by the period, the rest is as before.
BUFFER = bytes.fromhex(
    "0103"
    + "0204 090C07EA0B1D070B0000008000FF 1100 0600000064 0600000007"
    + "0204 00 1108 0600000066 0600000009"
    + "0204 00 00 0600000067 0600000009"
)
GET_RESPONSE = bytes.fromhex("C401C100") + BUFFER


def by_dlms_cosem():
    objects = [CosemAttribute(CosemInterface(kind), Obis.from_string(name), 2) for kind, name in zip(CLASSES, COLUMNS)]
    rows = ProfileGenericBufferParser(objects, 60).parse_bytes(BUFFER)
    return [[(value.attribute.instance.to_string(), value.value) for value in row] for row in rows]


def by_gurux():
    profile = GXDLMSProfileGeneric("1.0.99.1.0.255")
    for make, name in zip((GXDLMSClock, GXDLMSData, GXDLMSRegister, GXDLMSRegister), COLUMNS):
        profile.captureObjects.append((make(name), GXDLMSCaptureObject(2, 0)))
    client, reply = GXDLMSClient(True, 16, 1, Authentication.NONE, None, InterfaceType.PDU), GXReplyData()
    client.getData(GXByteBuffer(GET_RESPONSE), reply, GXReplyData())
    client.updateValue(profile, 2, reply.value)
    return profile.buffer


def by_pydlms(**fill):
    columns = [(kind, ObisCode.parse(name), 2, 0) for kind, name in zip(CLASSES, COLUMNS)]
    rows = decode_apdu(bytes.fromhex("0F0000000100") + BUFFER).body.value
    return typed_rows(columns, [row.value for row in rows], **fill)


rows = by_dlms_cosem()
others = by_gurux(), by_pydlms(), by_pydlms(fill_values=True)
for number, row in enumerate(rows):
    read = ", ".join(repr([str(value) for value in other[number][1:]]) for other in others)
    print(f"row {number}: dlms-cosem {[str(value) for _, value in row[1:]]}, the others {read}")

assert [len(row) for row in rows] == [4, 4, 3]
assert [value for _, value in rows[2][1:]] == [103, 9] and rows[2][2] == (rows[0][3][0], 9)
assert [[str(value) for value in other[2][1:]] for other in others] == [["None", "103", "9"]] * 2 + [["8", "103", "9"]]
assert all(len(row) == 4 for other in others for row in other)
print("as described: where the import belongs stands the export, behind a null")
PYTHON
venv/bin/python look.py
