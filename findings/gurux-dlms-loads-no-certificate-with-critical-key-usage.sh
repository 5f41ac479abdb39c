#!/usr/bin/env bash
# gurux-dlms 1.0.203 (Python): a certificate whose KeyUsage is marked critical can't be loaded: TypeError ("'bool' object is
# not subscriptable"), for signing and key agreement, suite 1 and suite 2 alike. The same certificate with KeyUsage not
# critical loads.
# Expected: KeyUsage is critical in what a careful CA issues (RFC 5280, 4.2.1.3: SHOULD) and in the certificates of DLMS
# security suites 1 and 2; the mark (a BOOLEAN before the value) changes nothing of what the extension says. The guess was
# that it is read.
#
# Where two meet: pydlms-client 0.1.0 loads both, with title, key and purpose.
#
# What hurts: meter certificates from a utility's or a maker's CA: export_certificate answers, the key service hands the
# certificate on, and a reader by this library ends with an error that speaks of Python and not of a certificate. Try one
# certificate of the real CA before suite 1 or 2 is planned with this library; do not have the CA leave the mark away for
# it.
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
from datetime import datetime, timezone
from importlib.metadata import version

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from gurux_dlms.asn.enums.KeyUsage import KeyUsage
from gurux_dlms.asn.GXx509Certificate import GXx509Certificate
from pydlms.security.certificates import load_certificate

print(*(f"{name} {version(name)}" for name in ("gurux-dlms", "pydlms-client")), sep=", ")

TITLE = bytes.fromhex("4D4D4D0000BC614E")
PURPOSES = {"digital_signature": KeyUsage.DIGITAL_SIGNATURE, "key_agreement": KeyUsage.KEY_AGREEMENT}
USES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
    "encipher_only decipher_only"
).split()


def named(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(key, digest, purpose, critical):
    usage = x509.KeyUsage(**{use: use == purpose for use in USES})
    builder = (
        x509.CertificateBuilder(subject_name=named(TITLE.hex().upper()), issuer_name=named("Meter CA"))
        .public_key(key.public_key())
        .serial_number(0x1234)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=timezone.utc))
        .not_valid_after(datetime(2036, 1, 1, tzinfo=timezone.utc))
        .add_extension(usage, critical=critical)
    )
    return builder.sign(ec.derive_private_key(12345, key.curve), digest).public_bytes(Encoding.PEM).decode()


def by_gurux(pem):
    try:
        read = GXx509Certificate.fromPem(pem)
    except TypeError as error:
        return error
    return bytes(read.publicKey.rawValue), read.keyUsage


for suite, curve, digest in ((1, ec.SECP256R1(), hashes.SHA256()), (2, ec.SECP384R1(), hashes.SHA384())):
    key = ec.derive_private_key(54321, curve)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    for purpose, usage in PURPOSES.items():
        for critical in (False, True):
            pem = certificate(key, digest, purpose, critical)
            read = load_certificate(pem, suite)
            assert read.system_title == TITLE and (read.can_sign, read.can_agree) == (
                purpose == "digital_signature",
                purpose == "key_agreement",
            )
            assert read.public_key.public_numbers() == key.public_key().public_numbers()
            seen = by_gurux(pem)
            print(f"suite {suite}, {purpose}, critical {critical}: {'read' if seen == (point, usage) else repr(seen)}")
            if critical:
                assert isinstance(seen, TypeError)
            else:
                assert seen == (point, usage)
print("as described: gurux-dlms takes the mark for the value")
PYTHON
venv/bin/python look.py
