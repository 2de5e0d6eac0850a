#!/bin/sh
# In the guest: partitions are found; an export grows under a mounted ext4, and the file system with it, while it is written to.
# Argument: the front end. Modules: that of the front end, fuse and loop for fuse, ext4. Files: dst, lib.sh.
set -eu
# shellcheck source=lib.sh disable=SC2154
. /dst/lib.sh
front_end=$1
size=134217728

try_attach() { dst attach --front-end "$front_end" "$url" >/tmp/attached 2>&1; }
blocks() { stat -f -c %b /mnt; }

partitioned_image "$size"
serve
wait_for 10 try_attach
disk=$(readlink -f /dev/dst/disk)
[ -b "$disk" ] || fail "$disk is no block device"
sys=/sys/block/${disk#/dev/}
[ "$(blockdev --getsize64 "${disk}p1")" = 33554432 ] || fail "no partition, or of another size"
echo "ok: partitions are found"
mkfs.ext4 -q -F "$disk"
mount -t ext4 "$disk" /mnt
before=$(blocks)
dd if=/dev/urandom of=/mnt/pattern bs=1M count=32 conv=fsync 2>/dev/null
(while [ ! -e /tmp/enough ]; do cp /mnt/pattern /mnt/copy && sync -f /mnt || exit 1; done) &
writer=$!

dst resize "$image" +128M
grown() { [ "$(cat "$sys/size")" = $((size / 256)) ]; }
kept() { dst status disk | grep -q "keeps its size"; }
decided() { grown || kept; }
wait_for 60 decided
if kept; then
    case $(uname -r) in
        [1-5].* | 6.[0-9].* | 6.1[0-5].*) [ "$front_end" = ublk ] || fail "$front_end should be able to grow" ;;
        *) fail "$front_end should be able to grow here" ;;
    esac
    shows size $((size / 512))
    ! dst resize disk 2>/tmp/refused || fail "dst resize disk claims to have done it"
    grep -q "can't change the size" /tmp/refused || fail "not told why: $(cat /tmp/refused)"
    echo "ok: this driver can't resize, and status and resize say so"
else
    dst resize disk
    resize2fs "$disk" 2>/dev/null || fail "resize2fs"
    [ "$(blocks)" -gt $((before + before / 2)) ] || fail "the file system has $(blocks) blocks, $before before"
    dd if=/dev/zero of=/mnt/much bs=1M count=130 conv=fsync 2>/dev/null || fail "no room after growing"
    echo "ok: the file system has grown while it was written to"
fi
touch /tmp/enough
wait "$writer" || fail "a writer got an error"
cmp /mnt/pattern /mnt/copy || fail "other bytes"
umount /mnt
fsck.ext4 -fn "$disk" >/dev/null || fail "fsck"
[ "$(number errors)" = 0 ] || fail "$(from_status errors) requests failed"
dst detach disk
kill "$server"
wait "$server" || fail "the server"
kernel_is_content
echo "ok: clean"
