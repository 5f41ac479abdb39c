#!/usr/bin/env bash
# pkcs11-tool of OpenSC 0.23.0 (Debian 12, opensc 0.23.0-0.3+deb12u2) on SoftHSM 2.6.1: with `--label` it takes the first
# key that the token names, however many have that label. It says nothing of the others and ends with 0, for
# `--delete-object`, too. On this token chance decides which one is first, anew for each pair of keys: now the older one,
# now the newer.
# Expected: an error that says that there are two, as python-pkcs11 0.10.1 has one (MultipleObjectsReturned), or at least a
# fixed rule. PKCS #11 makes no label unique and promises no order of what C_FindObjects returns (v2.40, 5.7). The guess was
# that the older one is found first, as on a token that numbers its objects.
#
# What hurts: a KEK that is rotated under its name, old and new for a while beside each other. Who then deletes the old one
# by its label may delete the new one, and the meter keys under it are lost; the check value that is shown at a ceremony
# (`--encrypt` of zeros, below) may be that of the other key. A rehearsal proves nothing: it may go well by chance. Name
# keys by CKA_ID in every command of a ceremony, count what a label finds before it is used, and have a label of its own for
# each version.
#
# Seen on 2026-11-29: of 20 pairs the older one was first 7 times, the newer one 13 times. Up to 40 pairs are tried here,
# until either has been seen.
#
# Needs: Debian 12 with its package lists, python3 with venv, PyPI, openssl. Prints what it saw; fails if the behaviour is
# another one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in softhsm2=2.6.1-2.1 libsofthsm2=2.6.1-2.1 opensc=0.23.0-0.3+deb12u2 opensc-pkcs11=0.23.0-0.3+deb12u2; do
  apt-get download -q "$package" > /dev/null 2>&1
done
for archive in *.deb; do
  dpkg-deb -x "$archive" root
done
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps --only-binary :all: python-pkcs11==0.10.1 asn1crypto==1.5.1

mkdir tokens
cat > softhsm2.conf <<CONF
directories.tokendir = $work/tokens
objectstore.backend = file
log.level = ERROR
CONF
export SOFTHSM2_CONF=$work/softhsm2.conf
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
module=$(find "$work/root" -name libsofthsm2.so | head -n 1)
"$work/root/usr/bin/softhsm2-util" --module "$module" --init-token --free --label meters \
  --so-pin 12345678 --pin 1234 > /dev/null

tool() {
  "$work/root/usr/bin/pkcs11-tool" --module "$module" --token-label meters --login --pin 1234 "$@" 2> errors.txt
}
head -c 16 /dev/zero > zeros
printf '\1%.0s' {1..16} > older
printf '\2%.0s' {1..16} > newer
declare -A name seen=([older]=0 [newer]=0)
for key in older newer; do
  hex=$(od -An -tx1 "$key" | tr -d ' \n')
  name[$(LD_LIBRARY_PATH='' openssl enc -aes-128-ecb -nopad -K "$hex" -in zeros | od -An -tx1)]=$key
done
with_the_label() {
  tool --list-objects --type secrkey | grep -A1 'label: *kek$' | grep -o 'ID: .*' | tr -d ' ' | sort | tr '\n' ' '
}

for pair in {1..40}; do
  tool --write-object older --type secrkey --key-type AES:16 --label kek --id 01 > written.txt
  tool --write-object newer --type secrkey --key-type AES:16 --label kek --id 02 > written.txt
  test "$(with_the_label)" = 'ID:01 ID:02 '
  tool --encrypt --mechanism AES-ECB --label kek --input-file zeros --output-file answer
  answers=${name[$(od -An -tx1 answer)]}

  if [ "$pair" = 1 ]; then
    venv/bin/python - "$module" <<'PYTHON'
import sys

import pkcs11

with pkcs11.lib(sys.argv[1]).get_token(token_label="meters").open(user_pin="1234") as session:
    try:
        session.get_key(label="kek")
        raise SystemExit("python-pkcs11 took one of the two")
    except pkcs11.exceptions.MultipleObjectsReturned as error:
        print("python-pkcs11 0.10.1 by the label:", type(error).__name__)
PYTHON
  fi

  tool --delete-object --type secrkey --label kek # ends with 0, or the script would end here
  left=$(with_the_label)
  case $left in
    'ID:02 ') deleted=older ;;
    'ID:01 ') deleted=newer ;;
    *) echo "left is: $left"; exit 1 ;;
  esac
  echo "pair $pair: the check value was that of the $answers one; deleted was the $deleted one"
  seen[$deleted]=$((seen[$deleted] + 1))
  test "$answers" = "$deleted"
  tool --delete-object --type secrkey --label kek
  test -z "$(with_the_label || true)"
  if [ "${seen[older]}" -gt 0 ] && [ "${seen[newer]}" -gt 0 ]; then
    break
  fi
done
echo "deleted by label: ${seen[older]} times the older one, ${seen[newer]} times the newer one"
test "${seen[older]}" -gt 0
test "${seen[newer]}" -gt 0
echo "as described: of two keys of one label pkcs11-tool takes any, without a word"
