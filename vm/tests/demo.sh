#!/bin/sh
# In the guest: the whole demo, on the front end that is taken by itself: ublk, whose module is loaded for it, and FUSE where the
# administrator does not want that module.
# Modules: ublk_drv, fuse, loop, ext4. Files: dst.
set -eu
fail() { echo "FAILED: $*" && exit 1; }

# demo FRONT-END
demo() {
    dst --json demo --size 256M --dir /tmp >/tmp/demo.json || fail "the demo"
    tr -d ' ' </tmp/demo.json | tr ',{}' '\n\n\n' >/tmp/demo.lines
    grep -qx "\"front_end\":\"$1\"" /tmp/demo.lines || fail "not on $1: $(cat /tmp/demo.json)"
    grep -qx '"verified":true' /tmp/demo.lines || fail "not verified: $(cat /tmp/demo.json)"
    [ -z "$(losetup -a)" ] || fail "loop devices left behind"
    [ ! -e /dev/ublkb0 ] || fail "a ublk device left behind"
    ! grep -q fuse.dst /proc/self/mounts || fail "mounts left behind"
    echo "ok: the demo on $1"
}

rmmod ublk_drv
demo ublk
rmmod ublk_drv || fail "the module is in use"
mkdir -p /etc/modprobe.d
echo "blacklist ublk_drv" >/etc/modprobe.d/dst.conf
demo fuse
[ ! -e /sys/module/ublk_drv ] || fail "a module was loaded that is on the blacklist"
echo "ok: a module on the blacklist is left alone"
