#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the guest: a device on this kernel's nbd driver through its whole life: what it announces, a file system on it while the
# server is killed, growing while mounted, detaching by force, the death of its agent.
# Modules: nbd,nbds_max=1, ext4. Files: dst, lib.sh, /usr/bin/dd.
set -eu
# shellcheck source=lib.sh
. /dst/lib.sh
size=134217728

try_attach() { dst attach --front-end nbd "$@" "$url" >/tmp/attached 2>&1; }

attach() {
    wait_for 10 try_attach "$@"
    disk=$(readlink /dev/dst/disk)
    case $disk in
        # Number 0 is there already, for others.
        /dev/nbd[1-9]*) ;;
        *) fail "/dev/dst/disk leads to $disk" ;;
    esac
    [ -b "$disk" ] || fail "$disk is no block device"
    sys=/sys/block/${disk#/dev/}
    case $(cat "$sys/backend") in
        dst:disk:*) ;;
        *) fail "the backend is $(cat "$sys/backend")" ;;
    esac
}

gone() { [ ! -e "$sys" ]; }

nothing_left() {
    wait_for 10 gone
    for node in /dev/nbd[1-9]* /dev/dst/* /run/dst/disk; do
        [ ! -e "$node" ] && [ ! -L "$node" ] || fail "left behind: $node"
    done
    [ -b /dev/nbd0 ] && [ ! -e /sys/block/nbd0/backend ] || fail "nbd0 is not as it was"
}

partitioned_image "$size"

serve
attach
[ "$(from_status front_end)" = '"nbd"' ] || fail "the front end is $(from_status front_end)"
[ "$(from_status size)" = "$size" ] || fail "status says $(from_status size) bytes"
shows size $((size / 512))
shows ro 0
shows queue/logical_block_size "$(from_status logical_block)"
shows queue/physical_block_size "$(from_status logical_block)"
shows queue/max_sectors_kb 1024
shows queue/read_ahead_kb 1024
shows queue/write_cache "write back"
shows queue/fua 1
shows queue/discard_max_bytes 4294966784
shows queue/write_zeroes_max_bytes 4294966784
shows queue/rotational 0
grep -q '\[none\]' "$sys/queue/scheduler" || fail "the scheduler is $(cat "$sys/queue/scheduler")"
[ "$(cat "$sys/${disk#/dev/}p1/start")" = 2048 ] || fail "the partition is at the wrong place"
dst detach disk
nothing_left
echo "ok: it shows what was negotiated, and goes in good order"

attach --read-only
is_read_only
dst detach disk
nothing_left
echo "ok: read-only"

attach
does_every_operation
echo "ok: flush, FUA, write zeroes, discard"

mkfs.ext4 -q -F "$disk"
mount -t ext4 "$disk" /mnt
is_kept_while_mounted
copies_while_the_server_is_killed
echo "ok: a file system goes on while the server is killed and comes back"

truncate -s $((size * 2)) "$image"
grown() { [ "$(cat "$sys/size")" = $((size / 256)) ]; }
wait_for 30 grown
resize2fs "$disk" >/dev/null 2>&1 || fail "resize2fs"
[ "$(df -m /mnt | awk 'NR == 2 { print $2 }')" -gt 200 ] || fail "the file system did not grow"
shows queue/max_sectors_kb 1024
umount /mnt
fsck.ext4 -fn "$disk" >/dev/null || fail "fsck"
dst detach disk
nothing_left
attach
shows size $((size / 256))
copies_are_whole
echo "ok: grown while mounted; clean and whole after detaching and attaching again"

mount -t ext4 "$disk" /mnt
kill_server
dd if="$disk" of=/dev/null bs=64K skip=1024 iflag=direct 2>/dev/null &
reader=$!
dd if=/dev/zero of=/mnt/new bs=1M count=16 conv=fsync 2>/dev/null &
writer=$!
wait_for 30 waits
detach_by_force
failed "$reader"
failed "$writer"
umount /mnt
nothing_left
echo "ok: detached by force within $took s, mounted and without a server"

serve
attach
mount -t ext4 "$disk" /mnt
umount /mnt
process=$(agent)
kill_server
dd if="$disk" of=/dev/null bs=64K skip=1024 iflag=direct 2>/dev/null &
before=$!
wait_for 30 waits
kill -9 "$process"
wait_for 10 ended "$process"
dd if="$disk" of=/dev/null bs=64K skip=2048 iflag=direct 2>/dev/null &
after=$!
sleep 1
! ended "$before" && ! ended "$after" || fail "what waits for a dead agent has ended by itself"
dst detach disk >/tmp/detached || fail "detach after the agent's death"
grep -q "the device nbd" /tmp/detached || fail "not told: $(cat /tmp/detached)"
failed "$before"
failed "$after"
nothing_left
echo "ok: what waits for a dead agent waits until it is detached, and then ends"

serve
attach
process=$(agent)
dd if=/dev/zero of="$disk" bs=1M seek=128 count=64 oflag=direct 2>/dev/null &
writer=$!
kill -STOP "$process"
dst detach --force disk >/tmp/detached || fail "detach of a stopped agent"
grep -q killed /tmp/detached || fail "not told: $(cat /tmp/detached)"
wait_for 10 ended "$writer"
nothing_left
echo "ok: an agent that is stopped is ended by force, and nothing is left of its device"

attach
process=$(agent)
old=$sys
kill -9 "$process"
wait_for 10 ended "$process"
attach
dst detach disk
sys=$old
nothing_left
attach
nbd_number=${disk#/dev/nbd}
[ "$nbd_number" = 1 ] || fail "numbers are used up: $disk"
fsck.ext4 -fn "$disk" >/dev/null || fail "fsck at the end"
dst detach disk
nothing_left
echo "ok: attached over what a dead agent had left"

kill "$server"
wait "$server" || fail "the server"
rmmod nbd
status=0
mv /lib/modules /lib/away
dst attach --front-end nbd "$url" 2>/tmp/refused || status=$?
[ "$status" = 12 ] && grep -q "modprobe nbd" /tmp/refused || fail "without the module: $status, $(cat /tmp/refused)"
kernel_is_content
echo "ok: the kernel has nothing to complain about"
