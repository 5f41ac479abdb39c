"""A client of `ami.kms.v1` in Python: a worked example, small enough to copy.

    with Kms.connect("localhost:7443", ca="ca.pem", certificate="hes.pem", private_key="hes.key") as kms:
        opened = kms.decrypt(apdu)
        if opened.authenticated:
            use(opened.plaintext)

The stubs come from generate.py; this module adds what they do not have: the channel, the packing of
columns, pages, and errors with their reason words.
"""

import pathlib
import sys
from dataclasses import dataclass

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
# The server's default for rpc.limits.batch_items_max.
BATCH_ITEMS_MAX = 16_384


@dataclass(frozen=True)
class Item:
    """One APDU to open or to check, and what is known of whose it is."""

    apdu: bytes
    meter_id: str = ""
    system_title: bytes = b""
    # e in 0.0.43.0.e.255; None: each in turn.
    security_setup: int | None = None


@dataclass(frozen=True)
class Opened:
    """What became of one item. Only `verdict == "OK"` is authenticated."""

    verdict: str
    plaintext: bytes = b""
    authenticated: bool = False
    encryption_key_version: int = 0
    authentication_key_version: int = 0
    reason: str = ""


class KmsError(Exception):
    """A call that failed as a whole. `reason` is the word of google.rpc.ErrorInfo: for programs."""

    def __init__(self, code, reason, message, metadata, retry_after_s):
        super().__init__(f"{code.name} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.metadata = metadata
        # Seconds after which to try again; None: trying again does not help.
        self.retry_after_s = retry_after_s

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


def verdict_name(number):
    """A verdict's name; of one that this version does not know, its number."""
    known = types_pb2.Verdict.DESCRIPTOR.values_by_number
    return known[number].name if number in known else str(number)


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
    count = len(answer.verdicts)
    if not len(answer.lengths) == len(answer.flags) == count:
        raise ValueError("columns of different lengths")
    if sum(answer.lengths) != len(answer.plaintexts):
        raise ValueError("the lengths are not those of the plaintexts")
    reasons = {reason.index: reason.reason for reason in answer.reasons}
    encryption = answer.encryption_key_versions or [0] * count
    authentication = answer.authentication_key_versions or [0] * count
    opened, at = [], 0
    for index, length in enumerate(answer.lengths):
        flags = answer.flags[index]
        opened.append(
            Opened(
                verdict=verdict_name(answer.verdicts[index]),
                plaintext=answer.plaintexts[at : at + length],
                authenticated=bool(flags & AUTHENTICATED),
                encryption_key_version=encryption[index],
                authentication_key_version=authentication[index],
                reason=reasons.get(index, ""),
            )
        )
        at += length
    return opened


class Kms:
    """The calls, each with a deadline."""

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
        options = [
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.max_send_message_length", 16 << 20),
            # The server allows a question every 30 s.
            ("grpc.keepalive_time_ms", 30_000),
        ]
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        return cls(grpc.secure_channel(address, credentials, options), deadline_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def _call(self, method, request):
        try:
            return method(request, timeout=self.deadline_s)
        except grpc.RpcError as error:
            raise KmsError.of(error) from error

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
        """Batches of items in, lists of Opened out, in order. The cheapest way for millions."""
        packed = (pack(items, tag=index) for index, items in enumerate(batches))
        try:
            for answer in self._ciphering.DecryptStream(packed, timeout=self.deadline_s):
                yield unpack(answer)
        except grpc.RpcError as error:
            raise KmsError.of(error) from error

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
