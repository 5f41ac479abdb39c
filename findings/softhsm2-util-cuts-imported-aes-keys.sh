#!/usr/bin/env bash
# softhsm2-util 2.6.1 (Debian 12, packages 2.6.1-2.1): `--import FILE --aes` reads the raw key as if it were a line of
# text. The key ends before the first byte 00 and after the first byte 0A; it says nothing of it and ends with 0.
# Expected: the key has the bytes of the file, whatever they are, or the import fails.
#
# A key that is cut after 16 (or 24) bytes is a good AES key of another length: it encrypts, and nothing that was wrapped
# under the real key opens with it. Any other remainder is an object that no mechanism takes. Of random keys one in five of
# 32 bytes (21.9 %) and one in nine of 16 bytes (11.4 %) have such a byte in such a place; a ceremony that was rehearsed
# with one key does not go with the next. CKA_CHECK_VALUE is that of the key that was cut, empty where it is no AES key.
#
# What hurts: a KEK or a transport key that a maker delivers in a file and that is put on a token with this tool. Compare
# the check value on the token with the sender's before anything is wrapped under the key.
# Upstream changed the reading after 2.6.1 (issue 746 of SoftHSMv2).
#
# Needs: Debian 12 with its package lists, python3, openssl. Prints what came in; fails if the behaviour is another one.
set -euo pipefail

version=2.6.1-2.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

for package in softhsm2 libsofthsm2; do
  apt-get download -q "$package=$version" > /dev/null 2>&1
  dpkg-deb -x "$package"_*.deb root
done
echo "softhsm2 and libsofthsm2 $version"

mkdir tokens
cat > softhsm2.conf <<CONF
directories.tokendir = $work/tokens
objectstore.backend = file
log.level = ERROR
CONF
export SOFTHSM2_CONF=$work/softhsm2.conf
module=$(find "$work/root" -name libsofthsm2.so | head -n 1)
util=$work/root/usr/bin/softhsm2-util
"$util" --module "$module" --init-token --free --label meters --so-pin 12345678 --pin 1234 > /dev/null

import() { # name, id, the key in hex
  python3 -c 'import sys; open(sys.argv[1], "wb").write(bytes.fromhex(sys.argv[2]))' "$1" "$3"
  "$util" --module "$module" --import "$1" --aes --token meters --label "$1" --id "$2" --pin 1234 > /dev/null
}
import neither 01 a1a2a3a4a5a6a7a8a9aaabacadaeafb1b1b2b3b4b5b6b7b8b9babbbcbdbebfc1
import zero    02 a1a2a3a4a5a6a7a8a9aaabacadaeafb100b2b3b4b5b6b7b8b9babbbcbdbebfc1
import newline 03 a1a2a3a4a5a6a7a8a9aaabacadaeaf0ab1b2b3b4b5b6b7b8b9babbbcbdbebfc1
import early   04 a1a2a3a4a50aa7a8a9aaabacadaeafb1b1b2b3b4b5b6b7b8b9babbbcbdbebfc1

cat > look.py <<'PYTHON'
import ctypes, subprocess, sys

WORD = ctypes.c_ulong
CKA_LABEL, CKA_CHECK_VALUE, CKA_VALUE_LEN, CKM_AES_ECB = 0x003, 0x090, 0x161, 0x1081


class Attribute(ctypes.Structure):
    _fields_ = [("kind", WORD), ("value", ctypes.c_void_p), ("length", WORD)]


class Mechanism(ctypes.Structure):
    _fields_ = [("kind", WORD), ("parameter", ctypes.c_void_p), ("length", WORD)]


def ok(code):
    assert code == 0, hex(code)


library = ctypes.CDLL(sys.argv[1])
ok(library.C_Initialize(None))
count, slots, session = WORD(8), (WORD * 8)(), WORD(0)
ok(library.C_GetSlotList(ctypes.c_ubyte(1), slots, ctypes.byref(count)))
ok(library.C_OpenSession(WORD(slots[0]), WORD(4), None, None, ctypes.byref(session)))
ok(library.C_Login(session, WORD(1), b"1234", WORD(4)))


def key_labelled(label):
    wanted, key, found = ctypes.create_string_buffer(label, len(label)), WORD(0), WORD(0)
    template = Attribute(CKA_LABEL, ctypes.cast(wanted, ctypes.c_void_p), len(label))
    ok(library.C_FindObjectsInit(session, ctypes.byref(template), WORD(1)))
    ok(library.C_FindObjects(session, ctypes.byref(key), WORD(1), ctypes.byref(found)))
    ok(library.C_FindObjectsFinal(session))
    assert found.value == 1, label
    return key


def attribute(key, kind):
    buffer = ctypes.create_string_buffer(64)
    asked = Attribute(kind, ctypes.cast(buffer, ctypes.c_void_p), 64)
    ok(library.C_GetAttributeValue(session, key, ctypes.byref(asked), WORD(1)))
    return buffer.raw[: asked.length]


def zeros_encrypted(key):
    """What the token makes of a block of zeros, or the code of its refusal."""
    mechanism, out, length = Mechanism(CKM_AES_ECB, None, 0), ctypes.create_string_buffer(32), WORD(32)
    code = library.C_EncryptInit(session, ctypes.byref(mechanism), key)
    if code == 0:
        code = library.C_Encrypt(session, bytes(16), WORD(16), out, ctypes.byref(length))
    return hex(code) if code else out.raw[:16].hex()


def by_openssl(key):
    command = ["openssl", "enc", f"-aes-{len(key) * 8}-ecb", "-nopad", "-K", key.hex()]
    return subprocess.run(command, input=bytes(16), capture_output=True, check=True).stdout.hex()


for name, length in (("neither", 32), ("zero", 16), ("newline", 16), ("early", 6)):
    key, file = key_labelled(name.encode()), open(name, "rb").read()
    came_in, answer = int.from_bytes(attribute(key, CKA_VALUE_LEN), "little"), zeros_encrypted(key)
    print(f"{name:8} {len(file)} bytes in the file, {came_in:2} on the token, zeros encrypted: {answer}")
    assert len(file) == 32 and came_in == length
    if length in (16, 32):
        assert answer == by_openssl(file[:length])
        assert answer.startswith(attribute(key, CKA_CHECK_VALUE).hex())
    else:
        assert answer.startswith("0x") and attribute(key, CKA_CHECK_VALUE) == b""
PYTHON
python3 look.py "$module"
echo "as described: a byte 00 or 0A ends the key, and the import succeeds"
