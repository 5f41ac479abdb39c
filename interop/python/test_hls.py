#!/usr/bin/env python3
"""HLS with meters of two other stacks, over the wire. Run by scripts/test-interop.sh, which imports the meters:

    python test_hls.py SITE

Each meter reads what the service answers with its own code, and the service what the meter answers.
"""

import pathlib
import sys
import unittest

import grpc
from gurux_dlms.AesGcmParameter import AesGcmParameter
from gurux_dlms.GXByteBuffer import GXByteBuffer
from gurux_dlms.GXDLMSChippering import GXDLMSChippering
from gurux_dlms.GXSecure import GXSecure
from gurux_dlms.enums import Authentication, Security
from pydlms.security import ciphering as pydlms_ciphering
from pydlms.security import hls as pydlms_hls
from pydlms.security.context import SecurityContext

from ami_kms import CHANNEL_OPTIONS, ciphering_pb2, ciphering_pb2_grpc

SITE = pathlib.Path(".")
EK = bytes.fromhex("4B1D8E5C92A7F03366C1D4E8195A7B20")
AK = bytes.fromhex("91C3E5F7082A4C6E7F5D3B1928374655")
SECRET = bytes.fromhex("5A17C09B44E2D6318F60A2937C15BE4D")
CLIENT = bytes.fromhex("414D494845530001")
STOC = b"P6wRJ21FP6wRJ21G"
REPLY = bytes.fromhex("C301C1000F0000280000FF010109")
MIC_FAILURE, OK, POLICY_REFUSED = 3, 1, 7


class Gurux:
    """A meter by gurux-dlms."""

    title = bytes.fromhex("4855524858580001")

    class _Settings:
        pass

    def _parameter(self, title, counter=0):
        p = AesGcmParameter(0, bytearray(title), bytearray(EK), bytearray(AK))
        p.security, p.invocationCounter = Security.AUTHENTICATION_ENCRYPTION, counter
        return p

    def gmac(self, title, counter, challenge):
        settings, cipher = self._Settings(), self._Settings()
        settings.authentication = Authentication.HIGH_GMAC
        cipher.blockCipherKey, cipher.authenticationKey, cipher.securitySuite = bytearray(EK), bytearray(AK), 0
        return bytes(GXSecure.secure(settings, cipher, counter, bytearray(challenge), bytearray(title)))

    def digest(self, mechanism, own, other, received, sent):
        kind = {2: "HIGH", 3: "HIGH_MD5", 4: "HIGH_SHA1", 6: "HIGH_SHA256"}[mechanism]
        settings = self._Settings()
        settings.authentication = getattr(Authentication, kind)
        secret = SECRET + own + other + received + sent if mechanism == 6 else SECRET
        data = b"" if mechanism == 6 else received
        return bytes(GXSecure.secure(settings, None, 0, bytearray(data), bytearray(secret)))

    def read(self, apdu):
        p = self._parameter(CLIENT)
        plain = bytes(GXDLMSChippering.decryptAesGcm(None, p, GXByteBuffer(bytearray(apdu))))
        return plain, p.invocationCounter

    def send(self, plain, counter):
        p = self._parameter(self.title, counter)
        p.tag = 0xCF
        return bytes(GXDLMSChippering.encryptAesGcm(p, bytearray(plain)))


class Pydlms:
    """A meter by pydlms-client."""

    title = bytes.fromhex("5059444C4D530002")

    def _context(self, counter=0):
        # Its own title is the one that it sends as.
        return SecurityContext(EK, AK, self.title, CLIENT, invocation_counter=counter)

    def gmac(self, title, counter, challenge):
        return pydlms_hls.hls_gmac(EK, AK, title, counter, challenge)

    def digest(self, mechanism, own, other, received, sent):
        if mechanism == 6:
            return pydlms_hls.hls_sha256(SECRET, own, other, received, sent)
        made = {2: pydlms_hls.hls_manufacturer_aes, 3: pydlms_hls.hls_md5, 4: pydlms_hls.hls_sha1}[mechanism]
        return made(received, SECRET)

    def read(self, apdu):
        return pydlms_ciphering.unwrap(self._context(), apdu).plaintext, int.from_bytes(apdu[3:7], "big")

    def send(self, plain, counter):
        apdu = pydlms_ciphering.wrap(self._context(counter), plain)
        assert int.from_bytes(apdu[3:7], "big") == counter, "the meter's own counter"
        return apdu


def response(answer):
    return bytes.fromhex("C701C1000100") + bytes([0x09, len(answer)]) + answer


class Hls(unittest.TestCase):
    def setUp(self):
        read = lambda name: (SITE / "certificates" / name).read_bytes()  # noqa: E731
        credentials = grpc.ssl_channel_credentials(read("ca.pem"), read("dev.key"), read("dev.pem"))
        port = int((SITE / "port").read_text())
        channel = grpc.secure_channel(f"localhost:{port}", credentials, list(CHANNEL_OPTIONS))
        self.addCleanup(channel.close)
        self.kms = ciphering_pb2_grpc.CipheringStub(channel)

    def begin(self, meter, mechanism):
        request = ciphering_pb2.BeginHlsRequest(system_title=meter.title, mechanism=mechanism)
        begun = self.kms.BeginHls(request, timeout=10)
        self.assertEqual((begun.verdict, begun.client_system_title), (OK, CLIENT), begun.reason)
        return begun

    def answer(self, begun, challenge=STOC, action=None):
        request = ciphering_pb2.AnswerHlsChallengeRequest(
            association=begun.association, challenge=challenge, action=action
        )
        return self.kms.AnswerHlsChallenge(request, timeout=10)

    def verify(self, begun, **given):
        request = ciphering_pb2.VerifyHlsAnswerRequest(association=begun.association, **given)
        return self.kms.VerifyHlsAnswer(request, timeout=10)

    def test_mechanism_5_both_ways_with_two_counters(self):
        for meter in (Gurux(), Pydlms()):
            highest = 0
            for counter in (10, 20, 30):
                with self.subTest(meter=type(meter).__name__, counter=counter):
                    begun = self.begin(meter, 5)
                    action = ciphering_pb2.HlsAction(
                        invoke_id_and_priority=0xC1, form=ciphering_pb2.CIPHERING_FORM_GLO
                    )
                    answered = self.answer(begun, action=action)
                    self.assertEqual((answered.verdict, answered.answer), (OK, b""), answered.reason)
                    plain, outer = meter.read(answered.apdu)
                    self.assertEqual(plain[:15], REPLY + bytes([17]))
                    inner = int.from_bytes(plain[16:20], "big")
                    self.assertEqual(plain[15:], meter.gmac(CLIENT, inner, STOC))
                    self.assertEqual((inner, outer), (answered.invocation_counter, answered.apdu_invocation_counter))
                    self.assertTrue(highest < inner < outer)
                    highest = outer
                    # The meter's: its answer bears the lower counter.
                    answer = meter.gmac(meter.title, counter, begun.challenge)
                    apdu = meter.send(response(answer), counter + 1)
                    verified = self.verify(begun, apdu=apdu)
                    self.assertEqual(verified.verdict, OK, verified.reason)
                    self.assertEqual(
                        (verified.invocation_counter, verified.apdu_invocation_counter), (counter, counter + 1)
                    )
                    # It is used up, whatever comes.
                    with self.assertRaises(grpc.RpcError) as raised:
                        self.verify(begun, apdu=apdu)
                    self.assertEqual(raised.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)

    def test_mechanisms_with_a_secret_both_ways(self):
        for meter in (Gurux(), Pydlms()):
            for mechanism in (2, 3, 4, 6):
                with self.subTest(meter=type(meter).__name__, mechanism=mechanism):
                    begun = self.begin(meter, mechanism)
                    answered = self.answer(begun)
                    expected = meter.digest(mechanism, CLIENT, meter.title, STOC, begun.challenge)
                    self.assertEqual(answered.answer, expected)
                    answer = meter.digest(mechanism, meter.title, CLIENT, begun.challenge, STOC)
                    verified = self.verify(begun, answer=answer)
                    self.assertEqual((verified.verdict, verified.secret_version), (OK, 1), verified.reason)

    def test_a_meter_that_sends_a_command_or_another_answer_is_refused(self):
        meter = Pydlms()
        begun = self.begin(meter, 5)
        command = bytes.fromhex("C301C100460000600300FF01010F00")
        for challenge in (command, begun.challenge):
            refused = self.answer(begun, challenge)
            self.assertEqual((refused.verdict, refused.answer, refused.apdu), (POLICY_REFUSED, b"", b""))
        answered = self.answer(begun)
        # Our own answer sent back.
        self.assertEqual(self.verify(begun, answer=answered.answer).verdict, MIC_FAILURE)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    SITE = pathlib.Path(sys.argv[1]).resolve()
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
