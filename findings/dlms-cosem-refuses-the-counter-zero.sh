#!/usr/bin/env bash
# dlms-cosem 25.1.0: the first APDU of a meter is refused if its invocation counter is 0. The receive floor of a new
# connection is 0 and a counter has to be greater; there is no state "nothing was received yet".
# Expected: every counter is good under a key of which nothing was received: a counter begins at 0 with each new key.
#
# Where two meet: pydlms-client 0.1.0 sends 0 first by default (gurux-dlms begins at 1). Its first general-glo-ciphering APDU
# is refused by dlms-cosem with both at their defaults, the second one is taken. A floor of -1 is the way out: it is
# accepted although the field stands for an unsigned counter.
#
# What hurts: after a key change the first answer of a meter is lost, and it is the one that says whether the change was
# carried out. A floor needs a value for "none yet", in the database and on the wire, too.
#
# Needs: python3 with venv, PyPI. Prints what it saw; fails if the behaviour is another one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps dlms-cosem==25.1.0 pydlms-client==0.1.0 \
  construct==2.10.70 asn1crypto==1.5.1 attrs==26.1.0 cffi==2.1.1 cryptography==50.0.2 pycparser==3.12 pyserial==3.5 \
  python-dateutil==4.0.0 structlog==26.1.0 typing_extensions==4.16.0

cat > look.py <<'PYTHON'
import logging
from importlib.metadata import version

from dlms_cosem.connection import DlmsConnection
from dlms_cosem.exceptions import LocalDlmsProtocolError
from dlms_cosem.protocol.xdlms import GeneralGlobalCipher
from dlms_cosem.security import HighLevelSecurityGmacAuthentication
from pydlms.security.ciphering import wrap_general_glo
from pydlms.security.context import SecurityContext

logging.disable(logging.CRITICAL)
print(*(f"{name} {version(name)}" for name in ("dlms-cosem", "pydlms-client")), sep=", ")

TITLE = bytes.fromhex("4D4D4D0000BC614E")
KEYS = bytes(range(16)), bytes(range(0xD0, 0xE0))
# A data-notification without a date: structure { 5, 1 }, each double-long-unsigned.
NOTIFICATION = bytes.fromhex("0F00000001000202060000000506" + "00000001")


def connection(**floor):
    opened = DlmsConnection(
        authentication=HighLevelSecurityGmacAuthentication(),
        client_system_title=b"HEWATEST",
        global_encryption_key=KEYS[0],
        global_authentication_key=KEYS[1],
        **floor,
    )
    opened.meter_system_title = TITLE
    return opened


def received(by, apdu):
    try:
        return type(by.unprotect(GeneralGlobalCipher.from_bytes(apdu))).__name__
    except LocalDlmsProtocolError as error:
        return type(error).__name__


meter = SecurityContext(encryption_key=KEYS[0], authentication_key=KEYS[1], client_system_title=TITLE)
apdus = [wrap_general_glo(meter, NOTIFICATION) for _ in range(2)]
counters = [GeneralGlobalCipher.from_bytes(apdu).invocation_counter for apdu in apdus]
client, told = connection(), connection(meter_invocation_counter=-1)
by_default = [received(client, apdu) for apdu in apdus]
by_minus_one = [received(told, apdu) for apdu in apdus]
for counter, apdu, default, minus_one in zip(counters, apdus, by_default, by_minus_one):
    print(f"counter {counter}: {apdu.hex()}")
    print(f"  floor by default: {default}; floor -1: {minus_one}")
assert counters == [0, 1]
assert by_default == ["LocalDlmsProtocolError", "DataNotification"]
assert by_minus_one == ["DataNotification", "DataNotification"]
print("as described: a first counter of 0 is refused")
PYTHON
venv/bin/python look.py
