#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the first of two guests: a device over a network from another machine, whose link goes down and comes back under load, and
# whose server is killed and started again.
# Modules: ublk_drv, ext4; --disk 1G; files: dst, lib.sh; --peer pair-server.sh.
set -eu
# shellcheck source=lib.sh
. /dst/lib.sh
url=dst://peer/disk

state_is() { [ "$(from_status state)" = "\"$1\"" ]; }
attach() { dst attach --insecure --front-end ublk "$url" >/tmp/attached 2>&1 || fail "attach"; }

# copy NAME: a tree onto the file system, in the background.
copy() {
    (cp -a /usr/sbin "/mnt/$1" && sync -f /mnt) &
    copier=$!
}

await serving
status=0
dst attach "$url" 2>/tmp/refused || status=$?
[ "$status" = 10 ] || fail "attached in plaintext over a network: exit code $status"
attach
disk=$(readlink /dev/dst/disk)
[ "$(blockdev --getsize64 "$disk")" = 268435456 ] || fail "the device's size"
mkfs.ext4 -q "$disk"
mount -t ext4 "$disk" /mnt
copy 1
wait "$copier" || fail "copying"
echo "ok: a file system on another machine's disk"

# What goes out now gets no answer, not even a refusal.
tell cut
await "is cut"
copy 2
wait_for 60 state_is reconnecting
! ended "$copier" || fail "copied without a network"
tell mend
wait "$copier" || fail "copying while the network was cut"
state_is live || fail "the state is $(from_status state)"
[ "$(from_status reconnects)" != 0 ] || fail "never reconnected"
[ "$(from_status fresh_sessions)" = 0 ] || fail "the session was lost, though the server had it"
echo "ok: goes on in the same session when a cut network comes back"

tell kill
await killed
copy 3
wait_for 60 state_is reconnecting
! ended "$copier" || fail "copied without a server"
tell restart
wait "$copier" || fail "copying while the server was killed"
[ "$(from_status fresh_sessions)" != 0 ] || fail "no fresh session with a new server"
echo "ok: goes on with a server that was started again"

[ "$(from_status errors)" = 0 ] || fail "$(from_status errors) requests failed"
umount /mnt
fsck.ext4 -fn "$disk" >/dev/null 2>&1 || fail "fsck"
dst detach disk >/dev/null
attach
copies_are_whole
dst detach disk >/dev/null
tell stop
echo "ok: clean and whole after detaching and attaching again"
