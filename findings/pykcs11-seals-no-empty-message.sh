#!/usr/bin/env bash
# PyKCS11 1.5.20 on SoftHSM 2.6.1: `session.encrypt` of an empty message under AES-GCM ends with CKR_ARGUMENTS_BAD (0x07),
# and the session is lost: whatever it is asked to begin next is CKR_OPERATION_ACTIVE (0x90), until it is closed.
# Expected: the tag alone. An empty plaintext with additional data is what DLMS calls GMAC: f(StoC) and f(CtoS) of HLS
# mechanism 5, and each APDU that is authenticated only (security control 10). The guess was that it works, as it does on
# this token from other callers.
#
# Where two meet: PyKCS11 hands empty bytes over as a null pointer; SoftHSM refuses that and leaves the operation open,
# although such an error ends it by PKCS #11 (v2.40, 5.8: C_Encrypt). python-pkcs11 0.10.1 on the same token has the tag,
# the one that AES-GCM alone gives. PyKCS11 opens a message that is a tag alone, and makes one by encryptInit and
# encryptFinal with no update between them.
#
# What hurts: a key service or a reader in Python that holds meter keys by PyKCS11: APDUs of policy 30 go, the first
# association by HLS GMAC fails, and with it each later call for any meter that gets the same session out of a pool. A pool
# must not take a session back after an error of Encrypt, and a probe of a token has to try an empty plaintext, too.
#
# Needs: Debian 12 with its package lists, python3 with venv, PyPI. Prints what it saw; fails if the behaviour is another
# one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in softhsm2 libsofthsm2; do
  apt-get download -q "$package=2.6.1-2.1" > /dev/null 2>&1
  dpkg-deb -x "$package"_*.deb root
done
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps --only-binary :all: PyKCS11==1.5.20 python-pkcs11==0.10.1 \
  asn1crypto==1.5.1 cffi==2.1.1 cryptography==50.0.2 pycparser==3.12

mkdir tokens
cat > softhsm2.conf <<CONF
directories.tokendir = $work/tokens
objectstore.backend = file
log.level = ERROR
CONF
export SOFTHSM2_CONF=$work/softhsm2.conf
module=$(find "$work/root" -name libsofthsm2.so | head -n 1)
"$work/root/usr/bin/softhsm2-util" --module "$module" --init-token --free --label meters \
  --so-pin 12345678 --pin 1234 > /dev/null

cat > common.py <<'PYTHON'
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

EK, AK = bytes(range(16)), bytes(range(0xD0, 0xE0))
TITLE, COUNTER, CHALLENGE = bytes.fromhex("4D4D4D0000BC614E"), bytes.fromhex("01234567"), b"K56iVagY"
IV, AAD = TITLE + COUNTER, b"\x10" + AK + CHALLENGE


def by_hand(plaintext):
    gcm = Cipher(algorithms.AES(EK), modes.GCM(IV)).encryptor()
    gcm.authenticate_additional_data(AAD)
    sealed = gcm.update(plaintext) + gcm.finalize()
    return sealed + gcm.tag[:12]


GMAC = by_hand(b"")
assert GMAC.hex() == "fe1466afb3dbcd4f9389e2b7"
PYTHON

cat > by_pykcs11.py <<'PYTHON'
import sys
from importlib.metadata import version

from common import AAD, EK, GMAC, IV, by_hand
from PyKCS11 import *

print("PyKCS11", version("PyKCS11"))
library = PyKCS11Lib()
library.load(sys.argv[1])
slot = library.getSlotList(tokenPresent=True)[0]


def opened():
    return library.openSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION)


def gcm():
    return AES_GCM_Mechanism(IV, AAD, 96)


def seen(call):
    try:
        return bytes(call()).hex()
    except PyKCS11Error as error:
        return f"CKR {error.value:#x}"


holder = opened()
holder.login("1234")
key = holder.createObject(
    [
        (CKA_CLASS, CKO_SECRET_KEY),
        (CKA_KEY_TYPE, CKK_AES),
        (CKA_VALUE, EK),
        (CKA_TOKEN, CK_FALSE),
        (CKA_ENCRYPT, CK_TRUE),
        (CKA_DECRYPT, CK_TRUE),
    ]
)
session, other = opened(), opened()
before = seen(lambda: session.encrypt(key, b"abc", gcm()))
empty = seen(lambda: session.encrypt(key, b"", gcm()))
after = seen(lambda: session.encrypt(key, b"abc", gcm()))
elsewhere = seen(lambda: other.encrypt(key, b"abc", gcm()))
print(f"three bytes: {before}\nan empty message: {empty}\nthree bytes by the same session: {after}, by another: {elsewhere}")
assert before == elsewhere == by_hand(b"abc").hex()
assert (empty, after) == (f"CKR {CKR_ARGUMENTS_BAD:#x}", f"CKR {CKR_OPERATION_ACTIVE:#x}")

assert bytes(other.decrypt(key, GMAC, gcm())) == b""
mechanism = gcm()
other.encryptInit(mechanism, key)
in_parts = seen(other.encryptFinal)
print(f"opened: the tag alone; encryptInit and encryptFinal: {in_parts}")
assert in_parts == GMAC.hex()
PYTHON

cat > by_python_pkcs11.py <<'PYTHON'
import sys
from importlib.metadata import version

import pkcs11
from common import AAD, EK, GMAC, IV
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass

with pkcs11.lib(sys.argv[1]).get_token(token_label="meters").open(user_pin="1234", rw=True) as session:
    key = session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.VALUE: EK,
            Attribute.TOKEN: False,
            Attribute.ENCRYPT: True,
        }
    )
    sealed = key.encrypt(b"", mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(IV, AAD, 96))
    print(f"python-pkcs11 {version('python-pkcs11')}, an empty message: {sealed.hex()}")
    assert sealed == GMAC
PYTHON
venv/bin/python by_pykcs11.py "$module"
venv/bin/python by_python_pkcs11.py "$module"
echo "as described: PyKCS11 makes no GMAC at one go, and loses the session by trying"
