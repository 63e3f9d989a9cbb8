#!/bin/sh
# Installs the Debian packages that are missing. Each argument is a command and the package that has it: dig:bind9-dnsutils.
set -eu
missing=
for want in "$@"; do
	command -v "${want%%:*}" >/dev/null || missing="$missing ${want##*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "not installed, for want of $([ "$(id -u)" = 0 ] && echo apt-get || echo root):$missing (as Debian calls them)." \
		"Tests that use them are skipped, commands of the lab that use them fail." >&2
	exit 0
fi
echo "installing$missing" >&2
apt-get update -qq || echo "going on with the lists of packages that there are" >&2
export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes LC_ALL=C
# A machine that has just been started may be installing something itself.
apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $missing >/dev/null
