#!/bin/sh
# Installs the Debian packages that are missing. Each argument is a command and the package that has it: dig:bind9-dnsutils.
set -eu
missing=
for want in "$@"; do
	command -v "${want%%:*}" >/dev/null || missing="$missing ${want##*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "the tests use commands of these Debian packages, which are not there; install them, or tests that need them are skipped:$missing" >&2
	exit 0
fi
echo "installing$missing" >&2
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
