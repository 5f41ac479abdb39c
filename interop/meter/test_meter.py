#!/usr/bin/env python3
"""Clients of two other stacks change the keys of the simulated meter: associate by GMAC, transfer, read under the new.

    test_meter.py BRIDGE

BRIDGE is the example `bridge` of the crate `simulated-meter`.
"""

import os
import socket
import struct
import subprocess
import sys

METER, CLIENT = b"SIM\x00\x00\x00\x00\x07", b"HES\x00\x00\x00\x00\x01"
LABEL, SETUP, COUNTER = "0.0.96.1.0.255", "0.0.43.0.0.255", "0.0.43.1.0.255"
UNICAST, BROADCAST, AUTHENTICATION, KEK = range(4)


class Meter:
    """The bridge as a process: a port, and what is asked of it besides."""

    def __init__(self, bridge, suite):
        self.suite = suite
        self.length = 32 if suite == 2 else 16
        self.keys = [os.urandom(self.length) for _ in range(4)]
        words = [str(suite), METER.hex(), CLIENT.hex(), *(key.hex() for key in self.keys)]
        self.process = subprocess.Popen(
            [bridge, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self.process.stdout.readline().split()[1])

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def has(self):
        return [bytes.fromhex(key) for key in self.ask("keys").split()]

    def new_keys(self, ids):
        return {kind: os.urandom(self.length) for kind in ids}

    def check(self, new):
        """The meter has these, and else what it had."""
        expected = [new.get(kind, key) for kind, key in enumerate(self.keys)]
        assert self.has() == expected, (self.has(), expected)
        self.keys = expected

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(10)


def pydlms_client(meter, counter):
    from pydlms import DlmsClient, Mechanism, SecurityContext

    unicast, broadcast, authentication, kek = meter.keys
    security = SecurityContext(
        encryption_key=unicast,
        authentication_key=authentication,
        broadcast_key=broadcast,
        master_key=kek,
        client_system_title=CLIENT,
        invocation_counter=counter,
        suite=meter.suite,
    )
    return DlmsClient.tcp(
        "127.0.0.1", meter.port, client_sap=1, mechanism=Mechanism.HLS_GMAC, security=security
    )


def pydlms(meter):
    """Each key by itself, two at once, the KEK, and a push; old keys no longer do."""
    from pydlms import DlmsClient, SecurityContext
    from pydlms.security.ciphering import unwrap

    with DlmsClient.tcp("127.0.0.1", meter.port, client_sap=16) as public:
        assert public.get(COUNTER, 1, 2).value == 0
    counter = 1
    for ids in ([UNICAST], [AUTHENTICATION], [UNICAST, AUTHENTICATION], [BROADCAST], [KEK], [UNICAST]):
        new = meter.new_keys(ids)
        with pydlms_client(meter, counter) as client:
            assert client.get(LABEL, 1, 2).value == "as delivered"
            client.transfer_keys(new)
        old = list(meter.keys)
        meter.check(new)
        # One line of counters for all keys: above each one's mark.
        counter += 100
        if set(ids) & {UNICAST, AUTHENTICATION}:
            current, meter.keys = meter.keys, old
            try:
                with pydlms_client(meter, counter) as client:
                    client.get(LABEL, 1, 2)
                raise AssertionError("the old keys still do")
            except AssertionError:
                raise
            except Exception as refused:  # whatever that stack says of it
                print(f"    under the old keys: {type(refused).__name__}")
            meter.keys = current
            counter += 100
    push = bytes.fromhex(meter.ask("push"))
    security = SecurityContext(meter.keys[UNICAST], meter.keys[AUTHENTICATION], suite=meter.suite)
    opened = unwrap(security, push)
    assert opened.authenticated and opened.plaintext[0] == 0x0F


class Gurux:
    """gurux-dlms makes and reads bytes; the connection is ours."""

    def __init__(self, meter, counter):
        from gurux_dlms.enums import Authentication, InterfaceType, Security
        from gurux_dlms.secure import GXDLMSSecureClient

        self.client = GXDLMSSecureClient(True, 1, 1, Authentication.HIGH_GMAC, None, InterfaceType.WRAPPER)
        ciphering = self.client.ciphering
        ciphering.security = Security.AUTHENTICATION_ENCRYPTION
        ciphering.systemTitle = CLIENT
        ciphering.blockCipherKey = meter.keys[UNICAST]
        ciphering.authenticationKey = meter.keys[AUTHENTICATION]
        ciphering.invocationCounter = counter
        self.stream = socket.create_connection(("127.0.0.1", meter.port), 10)

    def exchange(self, frames):
        from gurux_dlms import GXByteBuffer, GXReplyData

        reply = GXReplyData()
        for frame in frames if isinstance(frames, list) else [frames]:
            self.stream.sendall(bytes(frame))
            header = self.stream.recv(8, socket.MSG_WAITALL)
            body = self.stream.recv(struct.unpack(">H", header[6:])[0], socket.MSG_WAITALL)
            self.client.getData(GXByteBuffer(header + body), reply, None)
        return reply

    def associate(self):
        self.client.parseAareResponse(self.exchange(self.client.aarqRequest()).data)
        reply = self.exchange(self.client.getApplicationAssociationRequest())
        self.client.parseApplicationAssociationResponse(reply.data)


def gurux(meter):
    from gurux_dlms.objects import GXDLMSData, GXDLMSSecuritySetup

    counter = 1
    for ids in ([UNICAST], [AUTHENTICATION], [UNICAST, AUTHENTICATION]):
        new = meter.new_keys(ids)
        gurux = Gurux(meter, counter)
        gurux.associate()
        frames = gurux.client.read(GXDLMSData(LABEL), 2)
        assert str(gurux.exchange(frames).value) in ("as delivered", "b'as delivered'")
        setup = GXDLMSSecuritySetup(SETUP)
        reply = gurux.exchange(setup.globalKeyTransfer(gurux.client, meter.keys[KEK], list(new.items())))
        assert reply.error == 0, reply.error
        gurux.stream.close()
        meter.check(new)
        counter += 100


def main():
    bridge = sys.argv[1]
    for client, suites in ((pydlms, (0, 1, 2)), (gurux, (0,))):
        for suite in suites:
            print(f"{client.__name__}, suite {suite}")
            with Meter(bridge, suite) as meter:
                client(meter)
    print("meter: two stacks changed its keys, and read under them")


if __name__ == "__main__":
    main()
