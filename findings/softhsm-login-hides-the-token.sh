#!/usr/bin/env bash
# SoftHSM 2.6.1 (Debian 12, packages 2.6.1-2.1): while one process logs in to a token, a token directory that
# two processes share is at times invisible to the other. After a C_Initialize in such a moment C_GetSlotList
# has only the slot for new tokens, or C_GetTokenInfo of the slot fails with CKR_GENERAL_ERROR (5); both last
# until the next C_Finalize and C_Initialize. C_Login of the right PIN by the user is enough: it writes
# token.object anew (the "user PIN count low" flags), and who reads meanwhile takes it for broken.
# Expected: to be logged in to is no reason for a token to vanish. With nobody logging in it is found each time.
#
# Seen on 2026-11-28, 2 cores: nobody logs in: 400 of 400 found; another one logs in: of 1,000 looks 394 found it,
# 600 had no token, 6 had error 5; on another run 985, 14 and 1. It is a matter of when the two meet, so 5,000 looks.
#
# What hurts: servers that share a SoftHSM token and start together; one of them ends with "no such token".
# A product has to look again, each time with the library initialised anew.
#
# Needs: Debian 12 with its package lists, python3. Prints the counts; fails if the behaviour is another one.
set -euo pipefail

version=2.6.1-2.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

for package in softhsm2 libsofthsm2; do
  apt-get download -q "$package=$version"
  dpkg-deb -x "$package"_*.deb root
done

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

cat > look.py <<'PYTHON'
import collections, ctypes, multiprocessing, sys

PATH, WORD = sys.argv[1], ctypes.c_ulong
RW_SESSION, USER, PIN = 0x2 | 0x4, 1, b"1234"


def module():
    return ctypes.CDLL(PATH)


def slot_of(library, label):
    """The slot, or why there is none."""
    count = WORD(0)
    library.C_GetSlotList(ctypes.c_ubyte(1), None, ctypes.byref(count))
    slots = (WORD * max(count.value, 1))()
    library.C_GetSlotList(ctypes.c_ubyte(1), slots, ctypes.byref(count))
    reason = "no token"
    for slot in list(slots)[: count.value]:
        info = ctypes.create_string_buffer(1024)
        code = library.C_GetTokenInfo(WORD(slot), info)
        if code:
            reason = f"C_GetTokenInfo {code}"
        elif info.raw[:32].rstrip() == label:
            return slot, "found"
    return None, reason


def log_in_again_and_again(ready, stop):
    library = module()
    assert library.C_Initialize(None) == 0
    slot, _ = slot_of(library, b"meters")
    ready.set()
    while not stop.is_set():
        session = WORD(0)
        assert library.C_OpenSession(WORD(slot), WORD(RW_SESSION), None, None, ctypes.byref(session)) == 0
        assert library.C_Login(session, WORD(USER), PIN, WORD(len(PIN))) == 0
        assert library.C_Logout(session) == 0
        assert library.C_CloseSession(session) == 0


def look(times):
    library, seen = module(), collections.Counter()
    for _ in range(times):
        assert library.C_Initialize(None) == 0
        seen[slot_of(library, b"meters")[1]] += 1
        assert library.C_Finalize(None) == 0
    return seen


idle = look(400)
ready, stop = multiprocessing.Event(), multiprocessing.Event()
other = multiprocessing.Process(target=log_in_again_and_again, args=(ready, stop))
other.start()
assert ready.wait(20)
beside = look(5000)
stop.set()
other.join()
print("nobody logs in:      ", dict(idle))
print("another one logs in: ", dict(beside))
assert other.exitcode == 0, "the logins themselves went wrong"
assert idle == {"found": 400}
assert beside["no token"] > 0 and 0 < beside["found"] < 5000
print("as described: a login of one process hides the token from another")
PYTHON
python3 look.py "$module"
