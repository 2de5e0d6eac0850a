#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the guest: a device on this kernel's nbd driver through its whole life: what it announces, a file system on it while the
# server is killed, growing while mounted, detaching by force, the death of its agent and what becomes of the device then
# (more of that in recover.sh).
# Modules: nbd,nbds_max=1, ext4. Files: dst, lib.sh, /usr/bin/dd.
set -eu
# shellcheck source=lib.sh
. /dst/lib.sh
size=134217728

try_attach() { dst attach --front-end nbd --retain 64M "$@" "$url" >/tmp/attached 2>&1; }

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

# The agent is killed; the device waits.
kill_agent() {
    killed=$(agent)
    kill -9 "$killed"
    wait_for 10 waits_for_recovery
}
waits_for_recovery() { [ "$(from_status state)" = '"waiting-for-recovery"' ]; }

# Another one goes on with the very same disk.
recover() {
    sequence=$(cat "$sys/diskseq")
    dst attach --recover disk >/tmp/attached 2>&1 || fail "recover"
    [ "$(readlink /dev/dst/disk)" = "$disk" ] || fail "/dev/dst/disk leads to $(readlink /dev/dst/disk), not $disk"
    [ "$(cat "$sys/diskseq")" = "$sequence" ] || fail "it is another disk"
}

# The driver waits for room in the socket, with its locks held.
is_full() { grep -q unix_stream_sendmsg /proc/[0-9]*/stack 2>/dev/null; }

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
shows queue/io_timeout 10000
shows queue/write_cache "write back"
shows queue/fua 1
shows queue/discard_max_bytes 4294966784
shows queue/write_zeroes_max_bytes 4294966784
shows queue/rotational 0
grep -q '\[none\]' "$sys/queue/scheduler" || fail "the scheduler is $(cat "$sys/queue/scheduler")"
[ "$(cat "$sys/${disk#/dev/}p1/start")" = 2048 ] || fail "the partition is at the wrong place"
[ "$(lsblk -bnro NAME,SIZE "$disk" | tr '\n' ' ')" = "${disk#/dev/} $size ${disk#/dev/}p1 33554432 " ] ||
    fail "lsblk: $(lsblk -b "$disk")"
[ "$(blkid -p -s PTTYPE -o value "$disk")" = dos ] || fail "blkid: $(blkid -p "$disk")"
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
echo 4096 >"$sys/queue/max_sectors_kb"
dd if=/dev/urandom of=/tmp/pattern bs=4M count=2 status=none
/dst/dd if=/tmp/pattern of="$disk" bs=4M seek=1 oflag=direct,dsync status=none
/dst/dd if="$disk" of=/tmp/back bs=4M skip=1 count=2 iflag=direct status=none
cmp /tmp/pattern /tmp/back || fail "requests of 4 MiB"
[ "$(from_status errors)" = 0 ] || fail "$(from_status errors) requests failed"
echo 1024 >"$sys/queue/max_sectors_kb"
echo "ok: flush, FUA, write zeroes, discard; requests longer than a transfer"

mkfs.ext4 -q -F "$disk"
[ "$(blkid -p -s TYPE -o value "$disk")" = ext4 ] || fail "blkid: $(blkid -p "$disk")"
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
# There were some when it was detached by force.
io_errors=$(dmesg | grep -c 'I/O error') || true
dd if=/dev/urandom of=/tmp/pattern bs=1M count=8 status=none
mount -t ext4 "$disk" /mnt
for round in 1 2 3 4 5; do
    # What was under way is sent again when it is so old: the first time after the 10 s that the agent has set.
    [ "$round" = 1 ] || echo 1000 >"$sys/queue/io_timeout"
    dd if=/tmp/pattern of="/mnt/copy.$round" bs=64K conv=fsync 2>/dev/null &
    writer=$!
    dd if="$disk" of=/dev/null bs=64K count=64 skip=$((round * 256)) iflag=direct 2>/dev/null &
    reader=$!
    kill_agent
    recover
    wait "$writer" || fail "writing, $round"
    wait "$reader" || fail "reading, $round"
    [ "$(from_status errors)" = 0 ] || fail "$(from_status errors) requests failed"
done
echo 3 >/proc/sys/vm/drop_caches
for round in 1 2 3 4 5; do
    cmp /tmp/pattern "/mnt/copy.$round" || fail "copy $round differs"
done
umount /mnt
fsck.ext4 -fn "$disk" >/dev/null || fail "fsck"
[ "$(dmesg | grep -c 'I/O error')" = "$io_errors" ] || fail "I/O failed"
echo "ok: the agent is killed five times while a file system is written to; no error, the same disk, every byte"

kill_agent
dst attach "$url" >/tmp/attached 2>&1 || fail "attach over a device that waits"
grep -q "going on with it" /tmp/attached || fail "not told: $(cat /tmp/attached)"
kill_server
dd if="$disk" of=/dev/null bs=64K skip=1024 iflag=direct 2>/dev/null &
before=$!
wait_for 30 waits
kill_agent
dd if="$disk" of=/dev/null bs=64K skip=2048 iflag=direct 2>/dev/null &
after=$!
status=0
dst detach disk 2>/tmp/refused || status=$?
[ "$status" = 8 ] && grep -q "attach --recover disk" /tmp/refused || fail "detach of a device in use: $status $(cat /tmp/refused)"
! ended "$before" && ! ended "$after" || fail "what waits for a dead agent has ended by itself"
detach_by_force
failed "$before"
failed "$after"
nothing_left
echo "ok: what waits for a dead agent waits until it is recovered, or detached by force"

serve
attach
kill -STOP "$(agent)"
dd if=/dev/zero of="$disk" bs=1M seek=128 count=64 conv=fsync 2>/dev/null &
writer=$!
wait_for 30 is_full
detach_by_force >/tmp/detached
grep -q killed /tmp/detached || fail "not told: $(cat /tmp/detached)"
failed "$writer"
nothing_left
echo "ok: an agent that is stopped, with as much under way as fits, is ended by force within $took s, and nothing is left"

attach
kill_agent
dst detach disk >/tmp/detached || fail "detach of a device that waits: $(cat /tmp/detached)"
nothing_left
attach
nbd_number=${disk#/dev/nbd}
[ "$nbd_number" = 1 ] || fail "numbers are used up: $disk"
fsck.ext4 -fn "$disk" >/dev/null || fail "fsck at the end"
dst detach disk
nothing_left
echo "ok: a device that waits and is not in use is detached, and its number is free"

kill "$server"
wait "$server" || fail "the server"
rmmod nbd
status=0
mv /lib/modules /lib/away
dst attach --front-end nbd "$url" 2>/tmp/refused || status=$?
[ "$status" = 12 ] && grep -q "modprobe nbd" /tmp/refused || fail "without the module: $status, $(cat /tmp/refused)"
kernel_is_content
echo "ok: the kernel has nothing to complain about"
