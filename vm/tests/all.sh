#!/bin/sh
# In the guest: several tests one after the other, since booting takes as long as some of them.
# usage: all.sh 'TEST [ARGUMENT...]'...   TEST.sh is in /dst/tests
set -eu

fail() {
    echo "FAILED: $*"
    exit 1
}

# What a test may have unloaded, or hidden.
load_modules() {
    [ ! -d /lib/away ] || mv /lib/away /lib/modules
    while read -r module; do
        # shellcheck disable=SC2086 # name and parameters
        modprobe $module || fail "cannot load $module"
    done </etc/dst-modules
}

report=
for test in "$@"; do
    load_modules
    # What the kernel said of a test before says nothing of this one.
    dmesg -C
    begun=$(date +%s)
    echo "--> $test"
    # shellcheck disable=SC2086 # name and arguments
    set -- $test
    name=$1
    shift
    "/dst/tests/$name.sh" "$@" || fail "$test"
    # shellcheck disable=SC2009 # there is no pgrep here
    [ -z "$(pidof dst)" ] || fail "$test has left processes behind: $(ps | grep '[d]st ')"
    [ -z "$(losetup -a)" ] || fail "$test has left loop devices behind: $(losetup -a)"
    ! grep -E ' (fuse|ext4)[ .]' /proc/mounts || fail "$test has left something mounted"
    rm -rf /tmp/* /dev/dst
    report="$report
$(($(date +%s) - begun)) s  $test"
done
echo "all passed:$report"
