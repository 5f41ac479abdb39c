#!/usr/bin/env bash
# PyKCS11 1.5.20 on SoftHSM 2.6.1: a label that is given as bytes, (CKA_LABEL, b"kek"), is written to the token as the text
# that Python shows for it: b'kek', six characters. It says nothing of it, for generateKey, createObject, and
# setAttributeValue.
# Expected: the three bytes 6B 65 6B, as the library takes bytes for CKA_ID, CKA_VALUE and each other attribute that is no
# number; or a TypeError, as it raises for a text as CKA_ID. By PKCS #11 a label is bytes (UTF-8). The guess was that bytes
# are taken as they are.
#
# A search by the same bytes is changed the same way and finds the key, so a script tests well against itself. Where two
# meet: python-pkcs11 0.10.1 has no key "kek" and finds it by the label "b'kek'"; so does every other caller.
#
# What hurts: a KEK that a ceremony's script makes by PyKCS11, with a label that came out of a file or off a wire as bytes:
# it is on the token, its check value is right, and the key service that looks for its label has no KEK. On a token that
# lets no label be changed the key has to be made, and meter keys wrapped, anew. Read labels back with another tool before a
# ceremony ends; and show them in quotation marks in every list.
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
  asn1crypto==1.5.1

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

cat > by_pykcs11.py <<'PYTHON'
import sys
from importlib.metadata import version

from PyKCS11 import *

library = PyKCS11Lib()
library.load(sys.argv[1])
session = library.openSession(library.getSlotList(tokenPresent=True)[0], CKF_SERIAL_SESSION | CKF_RW_SESSION)
session.login("1234")
AES = [(CKA_CLASS, CKO_SECRET_KEY), (CKA_KEY_TYPE, CKK_AES), (CKA_TOKEN, CK_TRUE)]
generated = session.generateKey([*AES, (CKA_VALUE_LEN, 32), (CKA_LABEL, b"kek"), (CKA_ID, b"\x01\x02")])
created = session.createObject([*AES, (CKA_VALUE, bytes(range(32))), (CKA_LABEL, b"transport"), (CKA_ID, b"\x03")])
changed = session.generateKey([*AES, (CKA_VALUE_LEN, 32), (CKA_LABEL, "old"), (CKA_ID, b"\x04")])
session.setAttributeValue(changed, [(CKA_LABEL, b"new")])

seen = [tuple(session.getAttributeValue(key, [CKA_LABEL, CKA_ID])) for key in (generated, created, changed)]
found = [len(session.findObjects([(CKA_LABEL, label)])) for label in (b"kek", "kek")]
print(f"PyKCS11 {version('PyKCS11')}: {seen}; found by b'kek' and by 'kek': {found}")
assert seen == [("b'kek'", (1, 2)), ("b'transport'", (3,)), ("b'new'", (4,))]
assert found == [1, 0]
PYTHON

cat > by_python_pkcs11.py <<'PYTHON'
import sys
from importlib.metadata import version

import pkcs11

with pkcs11.lib(sys.argv[1]).get_token(token_label="meters").open(user_pin="1234") as session:
    try:
        session.get_key(label="kek")
        raise SystemExit("there is a key labelled kek")
    except pkcs11.exceptions.NoSuchKey as error:
        missing = type(error).__name__
    key = session.get_key(label="b'kek'")
    print(f"python-pkcs11 {version('python-pkcs11')}: by kek {missing}, by b'kek' the key {key.id.hex()}")
    assert key.id == b"\x01\x02"
PYTHON
venv/bin/python by_pykcs11.py "$module"
venv/bin/python by_python_pkcs11.py "$module"
echo "as described: bytes for a label become their source text"
