#!/usr/bin/env bash
# python-pkcs11 0.10.1 on SoftHSM 2.6.1: `close` of the session that was opened with the PIN, or the end of its `with`, is a
# C_Logout, and that one is for the whole process. Every other session stays open and has lost the keys: session keys are
# ObjectHandleInvalid, private token keys "no such key" (NoSuchKey). Nothing says that the login is gone.
# Expected: one session ends, its own session objects with it; the login lasts until the last session is closed or somebody
# calls C_Logout (PKCS #11 v2.40, 5.6: C_CloseSession, C_Logout). The guess was that `close` is C_CloseSession.
#
# It can't be avoided by opening each with the PIN: the second is refused (UserAlreadyLoggedIn), so exactly one session of a
# process is the one whose end ends all. Where two meet: PyKCS11 1.5.20 closes the session that logged in, and the others go
# on.
#
# What hurts: a pool of sessions that is trimmed, or a job (a rotation, a look at the KEK) that opens first and ends first:
# the meter keys that other sessions had unwrapped are gone in the middle of work, and a KEK "is not there". Keep one
# session with the PIN for the life of the process and use it for nothing; never take "not found" after that for a key that
# is missing.
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

cat > by_python_pkcs11.py <<'PYTHON'
import sys
from importlib.metadata import version

import pkcs11
from pkcs11 import KeyType, Mechanism
from pkcs11.exceptions import PKCS11Error

print("python-pkcs11", version("python-pkcs11"))
token = pkcs11.lib(sys.argv[1]).get_token(token_label="meters")


def seen(call):
    try:
        return call()
    except PKCS11Error as error:
        return type(error).__name__


first = token.open(user_pin="1234", rw=True)
first.generate_key(KeyType.AES, 256, label="kek", store=True)
again = seen(lambda: token.open(user_pin="1234"))
second = token.open(rw=True)
key = second.generate_key(KeyType.AES, 128, store=False)


def work():
    used = seen(lambda: len(key.encrypt(bytes(16), mechanism=Mechanism.AES_ECB)))
    kek = seen(lambda: second.get_key(label="kek").label)
    return used, kek


before = work()
first.close()
after = work()
print(f"a second session with the PIN: {again}; without: open")
print(f"the second session's own key and the KEK, while the first is open: {before}; after it was closed: {after}")
assert again == "UserAlreadyLoggedIn"
assert before == (16, "kek")
assert after == ("ObjectHandleInvalid", "NoSuchKey")

second.close()
with token.open(user_pin="1234") as anew:
    print("after a new login:", anew.get_key(label="kek"))
PYTHON

cat > by_pykcs11.py <<'PYTHON'
import sys
from importlib.metadata import version

from PyKCS11 import *

library = PyKCS11Lib()
library.load(sys.argv[1])
slot = library.getSlotList(tokenPresent=True)[0]
first, second = (library.openSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION) for _ in range(2))
first.login("1234")
key = second.generateKey(
    [(CKA_CLASS, CKO_SECRET_KEY), (CKA_KEY_TYPE, CKK_AES), (CKA_VALUE_LEN, 16), (CKA_TOKEN, CK_FALSE), (CKA_ENCRYPT, CK_TRUE)]
)
first.closeSession()
used = len(second.encrypt(key, bytes(16), Mechanism(CKM_AES_ECB)))
found = len(second.findObjects([(CKA_LABEL, "kek")]))
print(f"PyKCS11 {version('PyKCS11')}, the first session closed: {used} bytes under the second one's key, {found} KEK found")
assert (used, found) == (16, 1)
PYTHON
venv/bin/python by_python_pkcs11.py "$module"
venv/bin/python by_pykcs11.py "$module"
echo "as described: the end of one session is the logout of all"
