#!/usr/bin/env bash
# p11tool of GnuTLS 3.7.9 (Debian 12, gnutls-bin 3.7.9-2+deb12u7) on SoftHSM 2.6.1: `--write --secret-key=HEX` makes a
# CKK_GENERIC_SECRET, and has no option for another type. It says nothing of it and ends with 0.
# Expected: 16 or 32 bytes become a CKK_AES key, as pkcs11-tool and softhsm2-util make one.
#
# The key has CKA_WRAP and CKA_ENCRYPT, yet AES refuses it: CKM_AES_ECB by CKR_KEY_TYPE_INCONSISTENT (0x63), as wrapping key
# of CKM_AES_KEY_WRAP by CKR_WRAPPING_KEY_TYPE_INCONSISTENT (0x115). A search for CKK_AES does not find it, its check value
# is not that of the AES key, and the type of an object can't be changed. `p11tool --list-keys` shows no secret keys at all
# ("No matching objects found"); `--list-all` calls this one and an AES key alike "Secret key".
#
# What hurts: a meter maker's KEK that was put on the token by p11tool: it is there, with the right label, and the key
# management service does not find it or cannot use it. Look at CKA_KEY_TYPE, not at the label, and say so in the error.
#
# Needs: Debian 12 with its package lists, python3. Prints what it saw; fails if the behaviour is another one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

for package in softhsm2=2.6.1-2.1 libsofthsm2=2.6.1-2.1 gnutls-bin=3.7.9-2+deb12u7 libgnutls30=3.7.9-2+deb12u7; do
  apt-get download -q "$package" > /dev/null 2>&1
done
for archive in *.deb; do
  dpkg-deb -x "$archive" root
done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
p11tool=$work/root/usr/bin/p11tool
"$p11tool" --version | head -n 1

mkdir tokens
cat > softhsm2.conf <<CONF
directories.tokendir = $work/tokens
objectstore.backend = file
log.level = ERROR
CONF
export SOFTHSM2_CONF=$work/softhsm2.conf GNUTLS_PIN=1234
module=$(find "$work/root" -name libsofthsm2.so | head -n 1)
"$work/root/usr/bin/softhsm2-util" --module "$module" --init-token --free --label meters \
  --so-pin 12345678 --pin 1234 > /dev/null

token='pkcs11:token=meters'
kek=000102030405060708090a0b0c0d0e0f
"$p11tool" --provider "$module" --login --write --secret-key=$kek --label kek "$token" 2> write.txt
"$p11tool" --provider "$module" --login --list-keys "$token" > keys.txt 2>&1 || true
echo "list-keys: $(cat keys.txt)"
grep -q 'No matching objects found' keys.txt

cat > look.py <<'PYTHON'
import ctypes, sys

WORD = ctypes.c_ulong
CKA_LABEL, CKA_CHECK_VALUE, CKA_KEY_TYPE, CKA_WRAP = 0x003, 0x090, 0x100, 0x106
CKK_GENERIC_SECRET, CKM_AES_ECB, CKM_AES_KEY_WRAP = 0x10, 0x1081, 0x2109


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
ok(library.C_OpenSession(WORD(slots[0]), WORD(6), None, None, ctypes.byref(session)))
ok(library.C_Login(session, WORD(1), b"1234", WORD(4)))

label, key, found = ctypes.create_string_buffer(b"kek", 3), WORD(0), WORD(0)
template = Attribute(CKA_LABEL, ctypes.cast(label, ctypes.c_void_p), 3)
ok(library.C_FindObjectsInit(session, ctypes.byref(template), WORD(1)))
ok(library.C_FindObjects(session, ctypes.byref(key), WORD(1), ctypes.byref(found)))
ok(library.C_FindObjectsFinal(session))
assert found.value == 1


def attribute(kind):
    buffer = ctypes.create_string_buffer(64)
    asked = Attribute(kind, ctypes.cast(buffer, ctypes.c_void_p), 64)
    ok(library.C_GetAttributeValue(session, key, ctypes.byref(asked), WORD(1)))
    return buffer.raw[: asked.length]


kind, wraps = int.from_bytes(attribute(CKA_KEY_TYPE), "little"), attribute(CKA_WRAP)
ecb, wrap, length = Mechanism(CKM_AES_ECB, None, 0), Mechanism(CKM_AES_KEY_WRAP, None, 0), WORD(64)
encrypt = library.C_EncryptInit(session, ctypes.byref(ecb), key)
wrapped = library.C_WrapKey(session, ctypes.byref(wrap), key, key, None, ctypes.byref(length))
print(f"CKA_KEY_TYPE {kind:#x}, CKA_WRAP {wraps.hex()}, CKA_CHECK_VALUE {attribute(CKA_CHECK_VALUE).hex()}")
print(f"C_EncryptInit with CKM_AES_ECB {encrypt:#x}, C_WrapKey with CKM_AES_KEY_WRAP {wrapped:#x}")
assert kind == CKK_GENERIC_SECRET and wraps == b"\1"
assert attribute(CKA_CHECK_VALUE).hex() != "c6a13b", "the check value of this key as AES"
assert (encrypt, wrapped) == (0x63, 0x115)
PYTHON
python3 look.py "$module"
echo "as described: the KEK that p11tool wrote is no AES key"
