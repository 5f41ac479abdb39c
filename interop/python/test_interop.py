#!/usr/bin/env python3
"""The example against a running server. Run by scripts/test-interop.sh, which makes the site:

    python test_interop.py SITE EXPECTED

EXPECTED: JSON lines with `id`, `apdu`, `meter`, `verdict` and `plaintext`: what must come out.
"""

import json
import os
import pathlib
import re
import socket
import struct
import sys
import threading
import time
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from ami_kms import AUTHENTICATED, DUPLICATE, Item, Kms, KmsError, Opened, ciphering_pb2, pack, unpack

HERE = pathlib.Path(__file__).resolve().parent
DOCUMENT = HERE.parent.parent / "docs" / "INTEROP.md"
SITE = pathlib.Path(os.environ.get("AMI_SITE", "."))
EXPECTED = pathlib.Path(os.environ.get("AMI_EXPECTED", "expected.jsonl"))


def server_port():
    return int((SITE / "port").read_text())


def connect(caller, port=None, **more):
    certificates = SITE / "certificates"
    return Kms.connect(
        f"localhost:{port or server_port()}",
        ca=certificates / "ca.pem",
        certificate=certificates / f"{caller}.pem",
        private_key=certificates / f"{caller}.key",
        **more,
    )


class Proxy:
    """In front of the server; its first connection is treated badly after so many bytes of one way."""

    def __init__(self, way=None, after=0, manner=None):
        self.fault, self.connections, self.passed, self.open = (way, after, manner), 0, {"up": 0, "down": 0}, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", server_port()))
            number, self.connections = self.connections, self.connections + 1
            self.open += [client, server]
            for way, source, target in (("up", client, server), ("down", server, client)):
                threading.Thread(target=self._carry, args=(number, way, source, target), daemon=True).start()

    def _carry(self, number, way, source, target):
        bad_way, left, manner = self.fault
        bad = number == 0 and way == bad_way
        try:
            while data := source.recv(16_384 if not bad else max(1, min(16_384, left))):
                if bad and left <= 0:
                    if manner == "swallow":
                        continue
                    if manner == "silent":
                        return
                    for end in (source, target):
                        if manner == "reset":
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                            end.close()
                        else:
                            end.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(data)
                left -= len(data)
                if number == 0:
                    self.passed[way] += len(data)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        self.listener.close()
        for end in self.open:
            end.close()


def expected():
    return [json.loads(line) for line in EXPECTED.read_text().splitlines() if line]


def item(line):
    return Item(bytes.fromhex(line["apdu"]), meter_id=line.get("meter", ""))


def tampered(apdu):
    return apdu[:-1] + bytes([apdu[-1] ^ 1])


class Columns(unittest.TestCase):
    """Packing, without a server."""

    def test_columns_that_say_nothing_are_left_out(self):
        batch = pack([Item(b"\x01\x02"), Item(b""), Item(b"\x03")])
        self.assertEqual((batch.apdus, list(batch.lengths)), (b"\x01\x02\x03", [2, 0, 1]))
        self.assertEqual((batch.system_titles, list(batch.meter_ids)), (b"", []))
        self.assertEqual(list(batch.security_setups_plus_one), [])

    def test_a_column_that_one_item_needs_has_an_entry_for_each(self):
        batch = pack([Item(b"\x01", meter_id="m"), Item(b"\x02", system_title=b"12345678"), Item(b"", security_setup=0)])
        self.assertEqual(list(batch.meter_ids), ["m", "", ""])
        self.assertEqual(batch.system_titles, bytes(8) + b"12345678" + bytes(8))
        self.assertEqual(list(batch.security_setups_plus_one), [0, 0, 1])

    def test_a_short_title_is_refused_here(self):
        self.assertRaises(ValueError, pack, [Item(b"", system_title=b"1234")])

    def test_items_come_out_of_their_columns(self):
        answer = ciphering_pb2.DecryptBatchResponse(
            plaintexts=b"abc", lengths=[1, 0, 2], verdicts=bytes([1, 3, 99]), flags=bytes([AUTHENTICATED | DUPLICATE, 0, 0])
        )
        first, second, third = unpack(answer)
        self.assertEqual(first, Opened("OK", b"a", authenticated=True, duplicate=True))
        self.assertEqual(second, Opened("MIC_FAILURE"))
        # A verdict of a later version keeps its number.
        self.assertEqual(third, Opened("99", b"bc"))

    def test_columns_of_different_lengths_are_no_answer(self):
        for bad in (
            ciphering_pb2.DecryptBatchResponse(plaintexts=b"a", lengths=[1], verdicts=b"\1\1", flags=b"\1\1"),
            ciphering_pb2.DecryptBatchResponse(plaintexts=b"a", lengths=[2], verdicts=b"\1", flags=b"\1"),
        ):
            self.assertRaises(ValueError, unpack, bad)


    def test_an_answer_of_many_items_takes_as_long_as_its_length_says(self):
        def seconds(count):
            answer = ciphering_pb2.DecryptBatchResponse(
                plaintexts=bytes(150 * count), lengths=[150] * count, verdicts=b"\1" * count, flags=b"\1" * count
            )
            begun = time.perf_counter()
            self.assertEqual(len(unpack(answer)), count)
            return time.perf_counter() - begun

        short, long = (min(seconds(count) for _ in range(3)) for count in (1_000, 16_000))
        # 16 times the items: 16 times the time, not 256 times.
        self.assertLess(long, 64 * max(short, 0.0005))


class Ciphering(unittest.TestCase):
    """As the head-end system."""

    def assert_says(self, error, details):
        """An error's metadata: these details, and the id under which the server's log has the call."""
        self.assertRegex(error.metadata.get("request_id", ""), r"^[0-9a-f]{16}$")
        self.assertEqual({k: v for k, v in error.metadata.items() if k != "request_id"}, details)

    def setUp(self):
        self.kms = connect("hes-1")
        self.addCleanup(self.kms.channel.close)
        self.lines = expected()

    def test_each_telegram_opens_to_its_published_plaintext(self):
        self.assertTrue(any(line["verdict"] == "OK" for line in self.lines))
        for line in self.lines:
            opened = self.kms.decrypt(bytes.fromhex(line["apdu"]), meter_id=line.get("meter", ""))
            self.assertEqual(opened.verdict, line["verdict"], line["id"])
            self.assertEqual(opened.plaintext.hex().upper(), line["plaintext"].upper(), line["id"])
            self.assertEqual(opened.authenticated, line["verdict"] == "OK", line["id"])

    def test_a_batch_says_the_same_and_one_bad_item_fails_nobody_else(self):
        bad = [Item(b""), Item(b"\xff\xff"), Item(tampered(bytes.fromhex(self.tagged()["apdu"])))]
        items = [item(line) for line in self.lines] + bad + [item(line) for line in self.lines]
        opened = self.kms.decrypt_batch(items)
        wanted = [(line["verdict"], line["plaintext"].upper()) for line in self.lines]
        got = [(one.verdict, one.plaintext.hex().upper()) for one in opened]
        self.assertEqual(got[: len(wanted)], wanted)
        self.assertEqual(got[len(wanted) + len(bad) :], wanted)
        refused = opened[len(wanted) : len(wanted) + len(bad)]
        self.assertEqual([one.verdict for one in refused], ["MALFORMED", "MALFORMED", "MIC_FAILURE"])
        self.assertFalse(any(one.plaintext or one.authenticated for one in refused))

    def test_streamed_batches_come_back_in_order(self):
        batches = [[item(line)] * (1 + index) for index, line in enumerate(self.lines)] * 3
        for items, opened in zip(batches, self.kms.decrypt_stream(batches), strict=True):
            self.assertEqual(len(opened), len(items))
        self.assertEqual(len(batches), 3 * len(self.lines))

    def test_a_mic_is_verified_without_a_plaintext(self):
        line = self.tagged()
        apdu, meter = bytes.fromhex(line["apdu"]), line.get("meter", "")
        self.assertEqual(self.kms.verify_mic(apdu, meter_id=meter), "OK")
        self.assertEqual(self.kms.verify_mic(tampered(apdu), meter_id=meter), "MIC_FAILURE")

    def test_an_unknown_meter_is_a_verdict_and_no_error(self):
        self.assertEqual(self.kms.decrypt(bytes.fromhex(self.tagged()["apdu"]), meter_id="nobody").verdict, "UNKNOWN_METER")

    def test_a_call_that_is_not_granted_says_which_and_to_whom(self):
        with self.assertRaises(KmsError) as raised:
            list(self.kms.list_meters())
        error = raised.exception
        self.assertEqual((error.code, error.reason), (grpc.StatusCode.PERMISSION_DENIED, "NOT_GRANTED"))
        self.assert_says(error, {"caller": "hes-1", "verb": "Meters/ListMeters"})
        self.assertIsNone(error.retry_after_s)

    def test_columns_that_do_not_fit_are_refused_with_the_column(self):
        batch = ciphering_pb2.ApduBatch(apdus=b"abc", lengths=[1])
        with self.assertRaises(KmsError) as raised:
            self.kms._call(self.kms._ciphering.DecryptBatch, batch)
        self.assertEqual((raised.exception.code, raised.exception.reason), (grpc.StatusCode.INVALID_ARGUMENT, "BAD_COLUMN"))
        self.assert_says(raised.exception, {"column": "lengths"})

    def test_a_batch_over_the_limit_is_refused_for_good_and_at_once(self):
        with self.assertRaises(KmsError) as raised:
            self.kms._call(self.kms._ciphering.DecryptBatch, pack([Item(b"")] * 16_385))
        error = raised.exception
        self.assertEqual((error.code, error.reason), (grpc.StatusCode.RESOURCE_EXHAUSTED, "BATCH_TOO_LARGE"))
        self.assert_says(error, {"what": "items", "limit": "16384"})
        # No time to come back: the same batch would be refused again.
        self.assertIsNone(error.retry_after_s)

    def tagged(self):
        return next(line for line in self.lines if line["verdict"] == "OK")


class Broken(unittest.TestCase):
    """Connections that break, and peers that say nothing."""

    def setUp(self):
        self.lines = expected()
        self.batches = [[item(self.lines[index % len(self.lines)])] * (1 + index % 3) for index in range(100)]

    def stream(self, proxy):
        """All batches through a proxy: what came back, and the longest wait for an answer."""
        self.addCleanup(proxy.close)
        kms = connect("hes-1", proxy.port)
        self.addCleanup(kms.channel.close)
        answers, slowest, at = [], 0.0, time.monotonic()
        for opened in kms.decrypt_stream(self.batches):
            answers.append(opened)
            slowest, at = max(slowest, time.monotonic() - at), time.monotonic()
        return answers, slowest

    def test_each_batch_of_a_broken_stream_is_answered_once_and_in_time(self):
        whole = Proxy()
        wanted, _ = self.stream(whole)
        self.assertEqual([len(opened) for opened in wanted], [len(batch) for batch in self.batches])
        for way in ("up", "down"):
            for manner in ("reset", "close", "silent", "swallow"):
                for share in (0.3, 0.8):
                    proxy = Proxy(way, int(whole.passed[way] * share), manner)
                    answers, slowest = self.stream(proxy)
                    self.assertEqual(answers, wanted, (way, manner, share))
                    self.assertGreater(proxy.connections, 1, (way, manner, share))
                    self.assertLess(slowest, 12, (way, manner, share))

    def test_calls_go_on_over_a_new_connection(self):
        line = next(line for line in self.lines if line["verdict"] == "OK")
        for manner in ("reset", "close", "swallow"):
            proxy = Proxy("down", 9_000, manner)
            self.addCleanup(proxy.close)
            kms = connect("hes-1", proxy.port)
            self.addCleanup(kms.channel.close)
            begun = time.monotonic()
            while proxy.connections < 2 and time.monotonic() - begun < 60:
                opened = kms.decrypt(bytes.fromhex(line["apdu"]), meter_id=line.get("meter", ""))
                self.assertEqual(opened.verdict, "OK")
            self.assertEqual(proxy.connections, 2, manner)

    def test_nobody_waits_beyond_the_deadline_for_a_listener_that_says_nothing(self):
        with socket.create_server(("127.0.0.1", 0)) as mute:
            kms = connect("hes-1", mute.getsockname()[1], deadline_s=3.0)
            self.addCleanup(kms.channel.close)
            for ask in (lambda: kms.decrypt(b"\xdb\x08"), lambda: list(kms.decrypt_stream([[Item(b"")]]))):
                begun = time.monotonic()
                self.assertRaises(KmsError, ask)
                self.assertLess(time.monotonic() - begun, 6)

    def test_what_the_caller_raises_in_his_own_batches_reaches_him(self):
        def batches():
            yield self.batches[0]
            raise LookupError("no more")

        kms = connect("hes-1")
        self.addCleanup(kms.channel.close)
        taken = []
        with self.assertRaises(LookupError):
            for opened in kms.decrypt_stream(batches()):
                taken.append(opened)
        self.assertEqual(len(taken), 1)

    def test_a_stream_that_nobody_reads_to_its_end_leaves_nothing_behind(self):
        kms = connect("hes-1")
        self.addCleanup(kms.channel.close)
        before = threading.active_count()
        for _ in range(5):
            stream = kms.decrypt_stream(iter(lambda: self.batches[0], None))
            next(stream)
            stream.close()
        begun = time.monotonic()
        while threading.active_count() > before + 2 and time.monotonic() - begun < 5:
            time.sleep(0.05)
        self.assertLessEqual(threading.active_count(), before + 2)


class MetersAndSite(unittest.TestCase):
    """As the operator."""

    def setUp(self):
        self.kms = connect("admin-1")
        self.addCleanup(self.kms.channel.close)

    def test_pages_of_one_list_the_same_meters_as_one_page(self):
        ids = [meter.meter_id for meter in self.kms.list_meters()]
        self.assertGreaterEqual(len(ids), 2)
        self.assertEqual(ids, sorted(ids))
        self.assertEqual([meter.meter_id for meter in self.kms.list_meters(page_size=1)], ids)

    def test_a_meter_shows_its_keys_check_values_and_no_key(self):
        for meter in self.kms.list_meters():
            self.assertEqual(self.kms.get_meter(meter.meter_id), meter)
            self.assertTrue(meter.keys)
            for key in meter.keys:
                self.assertEqual((len(key.key_id), len(key.kcv)), (16, 5))
            self.assertNotIn("clear_value", str(meter))

    def test_a_meter_that_there_is_not_is_not_found(self):
        with self.assertRaises(KmsError) as raised:
            self.kms.get_meter("nobody")
        self.assertEqual((raised.exception.code, raised.exception.reason), (grpc.StatusCode.NOT_FOUND, "METER_NOT_FOUND"))

    def test_the_site_is_well(self):
        status = self.kms.status()
        self.assertEqual(list(status.faults), [])
        self.assertTrue(status.token.reachable and status.store.reachable)
        self.assertEqual(status.store.meters, len(list(self.kms.list_meters())))
        self.assertEqual(len(status.domain_id), 16)


class ReflectionV1:
    """grpcio-reflection speaks v1alpha, the server that and v1: the same messages under another name."""

    def __init__(self, channel):
        self.ServerReflectionInfo = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )


class Standard(unittest.TestCase):
    """Reflection and health, as tools use them."""

    def setUp(self):
        self.kms = connect("auditor-1")
        self.addCleanup(self.kms.channel.close)

    def test_the_documented_calls_are_those_that_the_server_describes(self):
        v1alpha, v1 = (ProtoReflectionDescriptorDatabase(self.kms.channel) for _ in range(2))
        v1._stub = ReflectionV1(self.kms.channel)
        described = set()
        for database, own in ((v1alpha, "v1alpha"), (v1, "v1")):
            services = set(database.get_services())
            self.assertIn(f"grpc.reflection.{own}.ServerReflection", services)
            for name in services:
                file = database.FindFileContainingSymbol(name)
                service = next(one for one in file.service if f"{file.package}.{one.name}" == name)
                described |= {f"{name}/{method.name}" for method in service.method}
        text = DOCUMENT.read_text().split("<!-- calls -->")[1].split("<!-- end -->")[0]
        documented = set(re.findall(r"`([a-z0-9.]+\.[A-Z]\w+/[A-Z]\w+)`", text))
        self.assertEqual(documented, described)

    def test_health_says_serving_for_the_process_and_each_service(self):
        stub = health_pb2_grpc.HealthStub(self.kms.channel)
        for service in ("", "ami.kms.v1.Ciphering", "ami.kms.v1.Meters", "ami.kms.v1.Site"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING, service)


class Strangers(unittest.TestCase):
    def test_a_client_without_a_certificate_does_not_get_through(self):
        ca = (SITE / "certificates/ca.pem").read_bytes()
        channel = grpc.secure_channel(
            f"localhost:{(SITE / 'port').read_text().strip()}", grpc.ssl_channel_credentials(root_certificates=ca)
        )
        self.addCleanup(channel.close)
        with self.assertRaises(KmsError) as raised:
            Kms(channel, deadline_s=3).status()
        self.assertIn(raised.exception.code, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    SITE, EXPECTED = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
