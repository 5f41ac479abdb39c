#!/usr/bin/env bash
# Makes the Debian package: target/deb/ami-kms_VERSION_ARCH.deb. Wants dpkg-deb and the built programs.
#
#   scripts/deb.sh [--profile release|debug] [--bin-dir DIR] [--out DIR]
#
# --profile   which programs go in: release (default; built here), or debug (what `make build` made)
# --bin-dir   take the programs from there, build nothing
set -euo pipefail
cd "$(dirname "$0")/.."

profile=release bin_dir='' out=target/deb
while [ $# -gt 0 ]; do
  case "$1" in
    --profile) profile=$2 && shift 2 ;;
    --bin-dir) bin_dir=$2 && shift 2 ;;
    --out) out=$2 && shift 2 ;;
    *) echo "unknown argument: $1" >&2 && exit 2 ;;
  esac
done

command -v dpkg-deb >/dev/null || { echo "dpkg-deb is missing: this needs Debian or Ubuntu (package dpkg)" >&2; exit 1; }
if [ -z "$bin_dir" ]; then
  bin_dir=${CARGO_TARGET_DIR:-target}/$profile
  if [ "$profile" = release ]; then
    "${CARGO:-cargo}" build --release --locked -p kms-server -p kms-client --bins
  fi
fi
for program in kms-server ami-tool sync-keys; do
  [ -x "$bin_dir/$program" ] || { echo "$bin_dir/$program is missing: build it first" >&2; exit 1; }
done

version=$(sed -nE '/^\[workspace.package\]/,/^\[/ s/^version = "(.*)"/\1/p' Cargo.toml)
arch=$(dpkg --print-architecture)
# The same sources give the same package, byte for byte.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}
export SOURCE_DATE_EPOCH

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
umask 022
doc=$stage/usr/share/doc/ami-kms

# Not stripped: a release has line tables and names only, and a backtrace without them says nothing.
install -D -m 755 -t "$stage/opt/ami/bin" "$bin_dir/kms-server" "$bin_dir/ami-tool" "$bin_dir/sync-keys"
# Where everybody looks for programs.
install -d -m 755 "$stage/usr/bin"
ln -s /opt/ami/bin/kms-server /opt/ami/bin/ami-tool /opt/ami/bin/sync-keys "$stage/usr/bin"
install -D -m 644 -t "$stage/usr/lib/systemd/system" deploy/systemd/ami-kms.service \
  deploy/systemd/ami-sync-keys.service deploy/systemd/ami-sync-keys.timer \
  deploy/systemd/ami-backup.service deploy/systemd/ami-backup.timer
install -D -m 644 -t "$stage/usr/lib/sysusers.d" deploy/sysusers.d/ami-kms.conf
install -D -m 644 -t "$stage/usr/lib/tmpfiles.d" deploy/tmpfiles.d/ami-kms.conf
install -d -m 750 "$stage/etc/ami"
install -m 640 deploy/kms.toml "$stage/etc/ami/kms.toml"
install -D -m 644 -t "$stage/etc/ami/profiles" deploy/profiles/*.toml

# Laid out as in the sources, so that the links between the documents lead somewhere.
install -D -m 644 -t "$doc" README.md ARCHITECTURE.md NOTICE
cp -r docs deploy proto "$doc"
mkdir -p "$doc/interop"
cp -r interop/python "$doc/interop"
rm -rf "$doc"/proto/{src,generate,target,Cargo.toml} "$doc"/interop/python/{generated,.venv,__pycache__}
# What is not in the package is no link in it.
find "$doc" -name '*.md' | while read -r page; do
  perl -pi -e 'BEGIN { ($dir = shift) =~ s{[^/]*$}{} }
    s{\[([^\]]*)\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)}{-e "$dir$2" ? $& : "$1 (`$2` of the sources)"}ge' "$page" "$page"
done
find "$doc" -type d -exec chmod 755 {} + -o -type f -exec chmod 644 {} +
{
  printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: ami-kms\n\n'
  printf 'Files: *\nCopyright: the authors of ami-kms\nLicense: Apache-2.0\n'
  printf ' On Debian systems the text of this licence is in /usr/share/common-licenses/Apache-2.0.\n'
  printf 'Comment:\n The programs contain other crates; Cargo.lock of the sources lists them, and deny.toml\n'
  printf ' the licences that they may have. Test data of others is named in NOTICE.\n'
} >"$doc/copyright"
# Who answers for the package: whoever makes it, as Debian's tools are told, else whoever made the sources.
from_sources() { git log -1 --format="$1" 2>/dev/null || true; }
name=${DEBFULLNAME:-$(from_sources %an)} email=${DEBEMAIL:-$(from_sources %ae)}
maintainer="${name:-ami-kms} <${email:-root@$(hostname -f 2>/dev/null || hostname)}>"
{
  printf 'ami-kms (%s) unstable; urgency=medium\n\n' "$version"
  changes=$(git log --no-merges --format='  * %s' 2>/dev/null || true)
  printf '%s\n' "${changes:-  * Made from sources without their history.}"
  printf '\n -- %s  %s\n' "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n >"$doc/changelog.gz"

# As hsm/memory calls itself: no package has the token for tests.
if grep -q "memory of a process" "$bin_dir/kms-server"; then
  echo "$bin_dir/kms-server has the token for tests in it: build it without its feature" >&2
  exit 1
fi
# The C library that the programs were linked against, or a later one.
glibc=$(objdump -T "$bin_dir/kms-server" "$bin_dir/ami-tool" "$bin_dir/sync-keys" | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -1)
size=$(du -sk "$stage" | cut -f1)
mkdir "$stage/DEBIAN"
cat >"$stage/DEBIAN/control" <<EOF
Package: ami-kms
Version: $version
Architecture: $arch
Maintainer: $maintainer
Section: admin
Priority: optional
Installed-Size: $size
Depends: libc6 (>= ${glibc#GLIBC_}), libgcc-s1, systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles
Suggests: libsofthsm2, softhsm2, postgresql, openssl
Description: key management for smart meters (DLMS/COSEM)
 Keeps the keys of smart meters under a PKCS #11 HSM and uses them for the
 head-end system: opens and authenticates what meters send. The head-end
 system never sees a key.
 .
 kms-server is the service, ami-tool its command line, sync-keys brings a
 second site in step. Start with
 /usr/share/doc/ami-kms/docs/HANDBOOK.md.
EOF
(cd "$stage" && find etc/ami -type f -printf '/%p\n' | LC_ALL=C sort) >"$stage/DEBIAN/conffiles"
install -m 755 deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm "$stage/DEBIAN"
(cd "$stage" && find . -path ./DEBIAN -prune -o -type f ! -path './etc/ami/*' -printf '%P\n' | LC_ALL=C sort |
  xargs -d '\n' md5sum >DEBIAN/md5sums)

compression=(-Zxz)
[ "$profile" = release ] || compression=(-Zgzip -z1)
mkdir -p "$out"
package="$out/ami-kms_${version}_$arch.deb"
dpkg-deb --root-owner-group "${compression[@]}" --build "$stage" "$package" >/dev/null
echo "$package ($(du -h "$package" | cut -f1), $profile)"
