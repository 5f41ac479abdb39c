#!/usr/bin/env bash
# dlms-cosem 25.1.0: an association response (AARE) whose content has 128 bytes or more is refused: the long form of a BER
# length (61 81 nn) is not read. The error is a KeyError that speaks of the application context (at 128) or a ValueError
# that speaks of the length byte (above). With HLS by GMAC and a ciphered InitiateResponse it is so as soon as the meter's
# challenge has 39 bytes; a meter may take 8 to 64, and the client has no say in it.
# Expected: the AARE is BER, where lengths from 128 on have the long form only (X.690, 8.1.3.5). The guess was that a
# library which reads 81 nn in its ciphered APDUs reads it here, too.
#
# Where two meet: gurux-dlms 1.0.203 and pydlms-client 0.1.0 read the same AARE at each length of the challenge.
#
# What hurts: a change of the meter's firmware or of its policy that makes challenges longer: meters that were read
# yesterday do not associate today. Keys and counters are right, and they are what one looks for in an error at association:
# the meter has accepted, has counted the InitiateRequest, and has sent its title and a good InitiateResponse under the
# right key.
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
import contextlib, io, logging
from importlib.metadata import version

import structlog
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from dlms_cosem.connection import DlmsConnection
from dlms_cosem.security import HighLevelSecurityGmacAuthentication
from gurux_dlms import GXByteBuffer, GXReplyData
from gurux_dlms.enums import Authentication, InterfaceType, Security
from gurux_dlms.secure import GXDLMSSecureClient
from pydlms.apdu.acse import AARE
from pydlms.security.ciphering import unwrap
from pydlms.security.context import SecurityContext

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
print(*(f"{name} {version(name)}" for name in ("dlms-cosem", "gurux-dlms", "pydlms-client")), sep=", ")

CLIENT, METER = b"HEWATEST", bytes.fromhex("4D4D4D0000BC614E")
EK, AK = bytes(range(16)), bytes(range(0xD0, 0xE0))
INITIATE_RESPONSE = bytes.fromhex("0800065F1F0400001E1D04C80007")


def ber(tag, content):
    length = [len(content)] if len(content) < 128 else [0x81, len(content)]
    return bytes([tag, *length]) + content


def aare(challenge):
    """Context LN with ciphering, accepted, authentication required, title, HLS by GMAC, challenge, InitiateResponse."""
    header = b"\x30" + (1).to_bytes(4, "big")
    gcm = Cipher(algorithms.AES(EK), modes.GCM(METER + header[1:])).encryptor()
    gcm.authenticate_additional_data(header[:1] + AK)
    sealed = header + gcm.update(INITIATE_RESPONSE) + gcm.finalize() + gcm.tag[:12]
    fields = bytes.fromhex("A109060760857405080103" + "A203020100" + "A305A10302010E") + ber(0xA4, ber(4, METER))
    fields += bytes.fromhex("88020780" + "890760857405080205") + ber(0xAA, ber(0x80, challenge))
    return ber(0x61, fields + ber(0xBE, ber(4, ber(0x28, sealed))))


def by_dlms_cosem(apdu):
    connection = DlmsConnection(
        authentication=HighLevelSecurityGmacAuthentication(),
        client_system_title=CLIENT,
        global_encryption_key=EK,
        global_authentication_key=AK,
    )
    connection.send(connection.get_aarq())
    connection.receive_data(apdu)
    try:
        connection.next_event()
    except (KeyError, ValueError) as error:
        return error
    return connection.meter_to_client_challenge


def by_gurux(apdu):
    client, reply = GXDLMSSecureClient(True, 16, 1, Authentication.HIGH_GMAC, None, InterfaceType.PDU), GXReplyData()
    client.ciphering.security = Security.AUTHENTICATION_ENCRYPTION
    client.ciphering.systemTitle = CLIENT
    client.ciphering.blockCipherKey, client.ciphering.authenticationKey = EK, AK
    client.aarqRequest()
    with contextlib.redirect_stdout(io.StringIO()):
        client.getData(GXByteBuffer(apdu), reply, GXReplyData())
        client.parseAareResponse(reply.data)
    assert client.maxReceivePDUSize == 0x04C8
    return bytes(client.settings.getStoCChallenge())


def by_pydlms(apdu):
    read = AARE.from_bytes(apdu)
    context = SecurityContext(encryption_key=EK, authentication_key=AK, server_system_title=METER)
    assert unwrap(context, read.user_information).plaintext == INITIATE_RESPONSE
    return read.responding_authentication_value


for length in (8, 32, 38, 39, 40, 64):
    challenge = bytes(range(0x40, 0x40 + length))
    apdu = aare(challenge)
    seen = by_dlms_cosem(apdu)
    print(f"challenge of {length} bytes, {apdu[:3].hex()}...: dlms-cosem: {'read' if seen == challenge else repr(seen)}")
    assert by_gurux(apdu) == by_pydlms(apdu) == challenge
    if length <= 38:
        assert len(apdu) <= 129 and seen == challenge
    else:
        assert apdu[:2] == b"\x61\x81" and isinstance(seen, KeyError if length == 39 else ValueError)
print("as described: gurux-dlms and pydlms-client read all of them, dlms-cosem those below 128 bytes")
PYTHON
venv/bin/python look.py
