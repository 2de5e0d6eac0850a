#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the first of two guests: swap on a device from another machine, while memory is short on the whole of this one: the kernel
# can give nobody memory before it has written some to this very device. (A server on the same machine would be swapped out to
# the device that it serves, and nobody could bring it back.)
# usage: swap.sh [MIB [FRONT-END...]]   ublk and fuse unless given; in memory there are four times MIB, 96 unless given
# Modules: ublk_drv, fuse, loop, ext4. Disk: 1G, /dev/vda. Files: dst, devices.sh; --peer swap-server.sh; --memory 2048.
set -eu
store=/store
# shellcheck source=devices.sh
. /dst/devices.sh
pattern=${1:-96}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- ublk fuse

available() { awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo; }
swapped_out() { awk '/^pswpout/ { print $2 }' /proc/vmstat; }
# holds PROCESS: it has read all that it was to read.
holds() { awk -v all=$((pattern * 1024)) '/^Vm(RSS|Swap):/ { sum += $2 } END { exit sum < all }' "/proc/$1/status"; }

[ -b /dev/vda ] || fail "no disk"
mkfs.ext4 -q -F /dev/vda
mkdir -p "$store"
mount -t ext4 /dev/vda "$store"
# Most of the memory goes to huge pages that nobody uses, which costs nothing, unlike filling it.
leave=$((90 + pattern * 5 / 3))
take=$((($(available) - leave) / 2))
[ "$take" -le 0 ] || echo "$take" >/proc/sys/vm/nr_hugepages
pattern "$store"/source $pattern
sync
echo "$(available) MiB are available"
await serving

for front in "$@"; do
    dst attach --insecure --front-end "$front" --retain 8M dst://peer/swap >/tmp/attached 2>&1 || fail "attach: $(cat /tmp/attached)"
    disk=$(readlink -f /dev/dst/swap)
    [ -b "$disk" ] || fail "$disk is no block device"
    [ "$(mkswap "$disk" >/dev/null 2>&1; blkid -o value -s TYPE "$disk")" = swap ] || fail "mkswap"
    swapon "$disk" || fail "swapon"
    status=0
    dst detach swap 2>/dev/null || status=$?
    [ "$status" = 8 ] || fail "detaching a device that is swapped to: exit code $status"
    before=$(swapped_out)
    # Two kinds of memory: files in a tmpfs, and two processes that read everything before they write anything.
    mkdir -p /hog
    mount -t tmpfs -o size=1G none /hog
    mkfifo /tmp/a /tmp/b
    # Opening one without a reader would wait for that.
    exec 3<>/tmp/a 4<>/tmp/b
    for fifo in /tmp/a /tmp/b; do
        dd if="$store"/source of=$fifo bs=${pattern}M count=1 iflag=fullblock 2>/dev/null &
        hogs="${hogs:-} $!"
    done
    for hog in $hogs; do
        wait_for 100 holds "$hog"
    done
    for number in 1 2; do
        cp "$store"/source /hog/$number || fail "filling memory"
    done
    for fifo in /tmp/a /tmp/b; do
        cmp -n $((pattern << 20)) "$store"/source $fifo || fail "what a process had in memory has changed"
    done
    exec 3<&- 4<&-
    for hog in $hogs; do
        wait "$hog" || fail "a process that used memory was ended"
    done
    hogs=
    for number in 1 2; do
        cmp "$store"/source /hog/$number || fail "what was in memory has changed"
    done
    out=$(($(swapped_out) - before))
    [ "$out" -gt 1000 ] || fail "only $out pages were swapped out"
    umount /hog
    rm /tmp/a /tmp/b
    swapoff "$disk" || fail "swapoff"
    no_errors swap
    detach swap
    nothing_left
    ok "swap on $front: $((out / 256)) MiB were swapped out, and came back as they were"
done
echo 0 >/proc/sys/vm/nr_hugepages
rm "$store"/source
umount "$store"
tell stop
