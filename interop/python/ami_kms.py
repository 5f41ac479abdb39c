"""A client of `ami.kms.v1` in Python: a worked example, small enough to copy.

    with Kms.connect("localhost:7443", ca="ca.pem", certificate="hes.pem", private_key="hes.key") as kms:
        opened = kms.decrypt(apdu)
        if opened.authenticated:
            use(opened.plaintext)

The stubs come from generate.py; this module adds what they do not have: the channel, the packing of
columns, pages, errors with their reason words, and what is to be done when a peer is silent or a connection
breaks. Every call and every item of a stream has a deadline, always.
"""

import collections
import itertools
import pathlib
import random
import sys
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "generated"))

import grpc  # noqa: E402
from ami.kms.v1 import ciphering_pb2, ciphering_pb2_grpc  # noqa: E402
from ami.kms.v1 import meters_pb2, meters_pb2_grpc  # noqa: E402
from ami.kms.v1 import site_pb2, site_pb2_grpc  # noqa: E402
from ami.kms.v1 import types_pb2  # noqa: E402
from google.rpc import error_details_pb2  # noqa: E402
from grpc_status import rpc_status  # noqa: E402

# Bits of the column `flags`.
AUTHENTICATED = 1
DUPLICATE = 2
# The server's default for rpc.limits.batch_items_max.
BATCH_ITEMS_MAX = 16_384
# Batches of a stream that are sent and not answered.
IN_FLIGHT_MAX = 4
# No wait between two tries is longer, in seconds.
BACKOFF_MAX_S = 2.0

# Each of these is needed. grpc's defaults ask a silent peer nothing, stop asking after two questions, wait a
# minute for the answer, try one address for 20 s, and look a name up again only after 30 s.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
]
# What grpc says when the transport broke and the service said nothing.
BROKEN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
}


@dataclass(frozen=True)
class Item:
    """One APDU to open or to check, and what is known of whose it is."""

    apdu: bytes
    meter_id: str = ""
    system_title: bytes = b""
    # e in 0.0.43.0.e.255; None: each in turn.
    security_setup: int | None = None


class Opened(NamedTuple):
    """What became of one item. Only `verdict == "OK"` is authenticated."""

    verdict: str
    plaintext: bytes = b""
    authenticated: bool = False
    encryption_key_version: int = 0
    authentication_key_version: int = 0
    reason: str = ""
    # The same message was opened before: a call that was sent again.
    duplicate: bool = False


class KmsError(Exception):
    """A call that failed as a whole. `reason` is the word of google.rpc.ErrorInfo: for programs."""

    def __init__(self, code, reason, message, metadata, retry_after_s):
        super().__init__(f"{code.name} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.metadata = metadata
        # Seconds after which to try again, as the service asks for.
        self.retry_after_s = retry_after_s

    @property
    def may_pass(self):
        """Whether the same call may succeed later. Who speaks counts, not the code alone: the service gives
        its word, and a time to come back where that helps; a broken transport gives neither."""
        if self.reason:
            return self.retry_after_s is not None or self.reason == "MESSAGE_TOO_SLOW"
        return self.code in BROKEN

    @classmethod
    def of(cls, error):
        """Out of what grpc raised."""
        reason, metadata, retry_after_s = "", {}, None
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == "ami.kms.v1":
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        return cls(error.code(), reason, error.details(), metadata, retry_after_s)


_KNOWN = types_pb2.Verdict.DESCRIPTOR.values_by_number
# A verdict is a byte; a look-up for each item would cost more than all the rest.
_VERDICTS = [_KNOWN[number].name if number in _KNOWN else str(number) for number in range(256)]


def verdict_name(number):
    """A verdict's name; of one that this version does not know, its number."""
    return _VERDICTS[number] if 0 <= number < 256 else str(number)


def pack(items, tag=0):
    """Columns of a batch. A column that says nothing of any item is left out."""
    items = list(items)
    batch = ciphering_pb2.ApduBatch(
        apdus=b"".join(item.apdu for item in items),
        lengths=[len(item.apdu) for item in items],
        tag=tag,
    )
    if any(item.system_title for item in items):
        for item in items:
            if len(item.system_title) not in (0, 8):
                raise ValueError("a system title has 8 bytes")
        batch.system_titles = b"".join(item.system_title or bytes(8) for item in items)
    if any(item.meter_id for item in items):
        batch.meter_ids.extend(item.meter_id for item in items)
    if any(item.security_setup is not None for item in items):
        batch.security_setups_plus_one.extend(
            0 if item.security_setup is None else item.security_setup + 1 for item in items
        )
    return batch


def unpack(answer):
    """The items of a DecryptBatchResponse. Columns of different lengths are an error, never a guess."""
    # Once each: every look at a field of the message copies it whole.
    plaintexts, verdicts, flags = answer.plaintexts, answer.verdicts, answer.flags
    lengths, count = list(answer.lengths), len(answer.verdicts)
    if not len(lengths) == len(flags) == count:
        raise ValueError("columns of different lengths")
    if sum(lengths) != len(plaintexts):
        raise ValueError("the lengths are not those of the plaintexts")
    encryption = list(answer.encryption_key_versions) or [0] * count
    authentication = list(answer.authentication_key_versions) or [0] * count
    if not len(encryption) == len(authentication) == count:
        raise ValueError("columns of different lengths")
    reasons = [""] * count
    for reason in answer.reasons:
        if reason.index < count:
            reasons[reason.index] = reason.reason
    ends = itertools.accumulate(lengths)
    return list(
        map(
            Opened,
            map(_VERDICTS.__getitem__, verdicts),
            [plaintexts[end - length : end] for end, length in zip(ends, lengths)],
            [flag & AUTHENTICATED != 0 for flag in flags],
            encryption,
            authentication,
            reasons,
            [flag & DUPLICATE != 0 for flag in flags],
        )
    )


class _Stream:
    """A stream over as many connections as it takes: what was not answered is sent again, in order."""

    def __init__(self, open_call, batches, deadline_s):
        self._open_call = open_call
        self._deadline_s = deadline_s
        self._changed = threading.Condition()
        # (tag, message), oldest first.
        self._pending = collections.deque()
        self._input_ended = False
        self._input_error = None
        self._closed = False
        self._call = None
        self._overdue = False
        # When the oldest became due: it was handed in, or the one before it was answered.
        self._since = time.monotonic()
        for work in (lambda: self._feed(batches), self._watch):
            threading.Thread(target=work, daemon=True).start()

    def _feed(self, batches):
        """The input, in a thread of its own: it may be slow, and it outlives connections."""
        try:
            for tag, items in enumerate(batches):
                message = pack(items, tag=tag)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._pending) < IN_FLIGHT_MAX)
                    if self._closed:
                        return
                    if not self._pending:
                        self._since = time.monotonic()
                    self._pending.append((tag, message))
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001  the caller's own; it is raised where he takes answers
            self._input_error = error
        finally:
            with self._changed:
                self._input_ended = True
                self._changed.notify_all()

    def _watch(self):
        """Ends the call whose oldest batch is overdue."""
        with self._changed:
            while not self._closed:
                self._changed.wait(0.1)
                late = time.monotonic() - self._since > self._deadline_s
                if self._pending and late and self._call is not None:
                    self._overdue = True
                    self._call.cancel()

    def _requests(self, number):
        """What one call sends: all that is not answered, then what comes."""
        with self._changed:
            next_tag = self._pending[0][0]
        while True:
            with self._changed:
                ready = lambda: [entry for entry in self._pending if entry[0] >= next_tag]  # noqa: E731
                self._changed.wait_for(
                    lambda: self._closed or number != self._number or ready() or self._input_ended
                )
                waiting = ready()
                if self._closed or number != self._number or not waiting:
                    return
            for tag, message in waiting:
                yield message
                next_tag = tag + 1

    def answers(self):
        self._number, tries = 0, 0
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._pending or self._input_ended)
                    if not self._pending:
                        break
                    self._number += 1
                    call = self._call = self._open_call(self._requests(self._number))
                try:
                    for answer in call:
                        yield self._taken(answer)
                        tries = 0
                    # It ended in order. If something is left, the server was about to go.
                    if self._pending:
                        wait = backoff(tries)
                    else:
                        continue
                except grpc.RpcError as error:
                    failed = KmsError.of(error)
                    wait = backoff(tries, failed.retry_after_s)
                    ends_in_time = time.monotonic() + wait < self._since + self._deadline_s
                    if self._overdue or not failed.may_pass or not ends_in_time:
                        raise (late() if self._overdue else failed) from error
                tries += 1
                time.sleep(wait)
            if self._input_error is not None:
                raise self._input_error
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            if self._call is not None:
                self._call.cancel()

    def _taken(self, answer):
        with self._changed:
            tag, message = self._pending[0] if self._pending else (None, None)
            if answer.tag != tag or len(answer.verdicts) != len(message.lengths):
                raise ValueError("the answer is not that of the batch")
            self._pending.popleft()
            self._since = time.monotonic()
            self._changed.notify_all()
        return unpack(answer)


def backoff(tries, at_least_s=None):
    """Seconds to wait before the next try: random, so that the clients of one outage do not come at once."""
    span = min(0.05 * 2 ** min(tries, 16), BACKOFF_MAX_S)
    return (at_least_s or 0.0) + span * random.uniform(0.5, 1.0)


def late():
    """What is raised where the deadline passed here."""
    return KmsError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "no answer within the deadline", {}, None)


class Kms:
    """The calls, each with a deadline. All of them are reads, so that each is made again where that can help:
    the connection broke, or the service asks to come back. The deadline is that of all tries together."""

    def __init__(self, channel, deadline_s=10.0):
        self.channel = channel
        self.deadline_s = deadline_s
        self._ciphering = ciphering_pb2_grpc.CipheringStub(channel)
        self._meters = meters_pb2_grpc.MetersStub(channel)
        self._site = site_pb2_grpc.SiteStub(channel)

    @classmethod
    def connect(cls, address, *, ca, certificate, private_key, server_name=None, deadline_s=10.0):
        """Mutual TLS. All three are paths of PEM files."""
        read = lambda path: pathlib.Path(path).read_bytes()  # noqa: E731
        credentials = grpc.ssl_channel_credentials(
            root_certificates=read(ca), private_key=read(private_key), certificate_chain=read(certificate)
        )
        options = list(CHANNEL_OPTIONS)
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        return cls(grpc.secure_channel(address, credentials, options), deadline_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def _call(self, method, request):
        until = time.monotonic() + self.deadline_s
        for tries in itertools.count():
            try:
                return method(request, timeout=max(until - time.monotonic(), 0.001))
            except grpc.RpcError as error:
                failed = KmsError.of(error)
                wait = backoff(tries, failed.retry_after_s)
                if not failed.may_pass or time.monotonic() + wait >= until:
                    raise failed from error
            time.sleep(wait)

    def decrypt(self, apdu, *, meter_id="", system_title=b"", security_setup=None):
        """Opens one APDU. For many, decrypt_batch costs a fraction."""
        request = ciphering_pb2.DecryptRequest(
            apdu=apdu, meter_id=meter_id, system_title=system_title, security_setup=security_setup
        )
        answer = self._call(self._ciphering.Decrypt, request)
        return Opened(
            verdict=verdict_name(answer.verdict),
            plaintext=answer.plaintext,
            authenticated=answer.authenticated,
            encryption_key_version=answer.encryption_key_version,
            authentication_key_version=answer.authentication_key_version,
            reason=answer.reason,
            duplicate=answer.duplicate,
        )

    def decrypt_batch(self, items):
        """Opens many, in order; one bad item fails nobody else."""
        items = list(items)
        opened = []
        for start in range(0, len(items), BATCH_ITEMS_MAX):
            batch = pack(items[start : start + BATCH_ITEMS_MAX], tag=start)
            answer = self._call(self._ciphering.DecryptBatch, batch)
            if answer.tag != start or len(answer.verdicts) != len(batch.lengths):
                raise ValueError("the answer is not that of the batch")
            opened.extend(unpack(answer))
        return opened

    def decrypt_stream(self, batches):
        """Batches of items in, lists of Opened out, in order. The cheapest way for millions. A connection that
        breaks is replaced and each batch answered once; `deadline_s` is that of a batch, not of the stream."""
        open_call = lambda requests: self._ciphering.DecryptStream(requests)  # noqa: E731
        yield from _Stream(open_call, batches, self.deadline_s).answers()

    def verify_mic(self, apdu, *, meter_id="", system_title=b"", security_setup=None):
        """The verdict on one APDU's MIC; no plaintext comes back."""
        request = ciphering_pb2.VerifyMicRequest(
            apdu=apdu, meter_id=meter_id, system_title=system_title, security_setup=security_setup
        )
        return verdict_name(self._call(self._ciphering.VerifyMic, request).verdict)

    def get_meter(self, meter_id):
        """One meter, with everything about its keys but the keys."""
        return self._call(self._meters.GetMeter, meters_pb2.GetMeterRequest(meter_id=meter_id)).meter

    def list_meters(self, page_size=100):
        """All meters in order of their ids, a page at a time."""
        after = ""
        while True:
            request = meters_pb2.ListMetersRequest(after=after, page_size=page_size)
            page = self._call(self._meters.ListMeters, request)
            yield from page.meters
            if not page.next:
                return
            after = page.next

    def status(self):
        """How the site is doing; `faults` is empty when nothing is known to be wrong."""
        return self._call(self._site.GetStatus, site_pb2.GetStatusRequest())
