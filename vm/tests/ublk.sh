#!/bin/sh
# In the guest: a device on this kernel's ublk driver through its whole life: what it announces, a file system on it while
# the server is killed, growing, detaching by force, the death of its agent (more of that in recover.sh).
# Modules: ublk_drv, ext4. Files: dst, lib.sh, /usr/bin/dd.
set -eu
# shellcheck source=lib.sh
. /dst/lib.sh
size=268435456

try_attach() { dst attach --front-end ublk "$@" "$url" >/tmp/attached 2>&1; }

attach() {
    wait_for 10 try_attach "$@"
    disk=$(readlink /dev/dst/disk)
    case $disk in
        /dev/ublkb[0-9]*) ;;
        *) fail "/dev/dst/disk leads to $disk" ;;
    esac
    [ -b "$disk" ] || fail "$disk is no block device"
    sys=/sys/block/${disk#/dev/}
}

nothing_left() {
    [ -z "$(ls /sys/class/ublk-char)" ] || fail "devices left behind: $(ls /sys/class/ublk-char)"
    for node in /dev/ublkb* /dev/ublkc* /dev/dst/* /run/dst/disk; do
        [ ! -e "$node" ] && [ ! -L "$node" ] || fail "left behind: $node"
    done
}

# The processors are spread over as many queues as the agent serves, each with a place left for the driver to notice its death.
has_the_queues() {
    processors=$(nproc)
    wanted=$((processors < 4 ? processors : 4))
    [ "$(number queues)" = "$wanted" ] || fail "status says $(number queues) queues, not $wanted"
    [ "$(find "$sys/mq" -mindepth 1 -maxdepth 1 | wc -l)" = "$wanted" ] || fail "the kernel has other queues: $(ls "$sys/mq")"
    shows queue/nr_requests 127
}

# Writers on a processor of each queue at once, and readers on the next queue's.
uses_every_queue() {
    before='' writers=''
    for queue in "$sys"/mq/*; do
        at=${queue##*/}
        processor=$(sed 's/[-,].*//' "$queue/cpu_list")
        dd if=/dev/urandom of="/tmp/pinned.$at" bs=1M count=4 status=none
        for part in 0 1 2 3; do
            taskset -c "$processor" /dst/dd if="/tmp/pinned.$at" of="$disk" bs=16K count=64 skip=$((part * 64)) \
                seek=$(((64 + at * 4 + part) * 64)) oflag=direct conv=notrunc status=none &
            writers="$writers $!"
        done
    done
    for writer in $writers; do
        wait "$writer" || fail "a writer on one of the processors"
    done
    for queue in "$sys"/mq/* "$sys/mq/0"; do
        at=${queue##*/}
        processor=$(sed 's/[-,].*//' "$queue/cpu_list")
        if [ -n "$before" ]; then
            taskset -c "$processor" /dst/dd if="$disk" of=/tmp/back bs=16K count=256 skip=$(((64 + before * 4) * 64)) \
                iflag=direct status=none
            cmp "/tmp/pinned.$before" /tmp/back || fail "what was written on queue $before"
        fi
        before=$at
    done
    [ "$(from_status errors)" = 0 ] || fail "$(from_status errors) requests failed"
}

agent_is_dead() { [ "$(from_status state)" = '"waiting-for-recovery"' ]; }

partitioned_image "$size"
serve
attach
[ "$(from_status front_end)" = '"ublk"' ] || fail "the front end is $(from_status front_end)"
[ "$(from_status notes)" = '[]' ] || fail "notes: $(from_status notes)"
[ "$(from_status size)" = "$size" ] || fail "status says $(from_status size) bytes"
shows size $((size / 512))
shows ro 0
shows queue/logical_block_size "$(from_status logical_block)"
shows queue/physical_block_size "$(from_status physical_block)"
shows queue/max_sectors_kb 1024
shows queue/write_cache "write back"
shows queue/fua 1
shows queue/discard_max_bytes 2147483648
shows queue/write_zeroes_max_bytes 2147483648
shows queue/rotational 0
has_the_queues
echo "ok: it shows what was negotiated"

[ "$(cat "$sys/${disk#/dev/}p1/start")" = 2048 ] || fail "the partition is at the wrong place"
[ "$(blockdev --getsize64 "${disk}p1")" = 33554432 ] || fail "the partition has the wrong size"
echo "ok: partitions are found"

dst detach disk
nothing_left
echo "ok: detached in good order"

attach --read-only
is_read_only
dst detach disk
nothing_left
echo "ok: read-only"

attach
does_every_operation
echo "ok: flush, FUA, write zeroes, discard"

uses_every_queue
dst detach disk
nothing_left
attach --connections 2
has_both() { dst status disk | grep -q '^connections: *2 of 2'; }
wait_for 10 has_both
does_every_operation
uses_every_queue
echo "ok: I/O on every queue at once, over one connection and over two"

mkfs.ext4 -q -F "$disk"
mount -t ext4 "$disk" /mnt
is_kept_while_mounted
copies_while_the_server_is_killed
umount /mnt
fsck.ext4 -fn "$disk" >/dev/null || fail "fsck"
dst detach disk
nothing_left
attach
copies_are_whole
echo "ok: a file system goes on while the server is killed and comes back"

kill_server
dd if=/dev/zero of="$disk" bs=1M seek=128 count=96 conv=fsync 2>/dev/null &
writer=$!
wait_for 30 waits
truncate -s $((size * 2)) "$image"
serve
wait "$writer" || fail "writing more than the agent takes at once"
[ "$(from_status errors)" = 0 ] || fail "$(from_status errors) requests failed"
echo "ok: what the agent does not take at once waits in the kernel"

refused() { grep -q "driver can't change the size" /run/dst/disk/log; }
resized() { [ "$(cat "$sys/size")" = $((size / 256)) ]; }
decided() { refused || resized; }
wait_for 30 decided
if refused; then
    # Drivers can since Linux 6.16.
    case $(uname -r) in
        [1-5].* | 6.[0-9].* | 6.1[0-5].*) ;;
        *) fail "this driver should be able to resize" ;;
    esac
    shows size $((size / 512))
    echo "ok: this driver can't resize, and that is said"
else
    echo "ok: it follows an export that grows"
fi

kill_server
dd if="$disk" of=/dev/null bs=64K iflag=direct 2>/dev/null &
reader=$!
dd if=/dev/zero of="$disk" bs=1M count=64 2>/dev/null &
writer=$!
wait_for 30 waits
detach_by_force
failed "$reader"
wait_for 10 ended "$writer"
nothing_left
echo "ok: detached by force within $took s, without a server"

serve
attach
dd if="$disk" of=/dev/null bs=64K iflag=direct 2>/dev/null &
reader=$!
kill -9 "$(agent)"
wait_for 10 agent_is_dead
status=0
dst detach disk 2>/dev/null || status=$?
[ "$status" = 8 ] || fail "detaching a device that waits and is open: exit code $status"
! ended "$reader" || fail "the reader did not wait"
detach_by_force
failed "$reader"
nothing_left
echo "ok: the device waits when its agent dies, until it is detached by force, and nothing is left of it"

attach
dd if=/dev/zero of="$disk" bs=1M seek=128 count=64 oflag=direct 2>/dev/null &
writer=$!
kill -STOP "$(agent)"
detach_by_force >/tmp/detached 2>&1 || fail "detach of a stopped agent: $(cat /tmp/detached)"
grep -q killed /tmp/detached || fail "not told: $(cat /tmp/detached)"
wait_for 10 ended "$writer"
nothing_left
echo "ok: an agent that is stopped is ended by force, and nothing is left of its device"

attach
kill_server
for at in 0 64 128 192; do
    dd if="$disk" of=/dev/null bs=1M skip="$at" count=60 iflag=direct 2>/dev/null &
    readers="${readers:-} $!"
done
wait_for 30 waits
kill -9 "$(agent)"
wait_for 10 agent_is_dead
serve
before=$(cat "$sys/diskseq")
attach
[ "$(cat "$sys/diskseq")" = "$before" ] || fail "it is another disk"
for reader in $readers; do
    wait "$reader" || fail "a reader"
done
dd if="$disk" of=/dev/null bs=1M count=16 iflag=direct status=none
dst detach disk
nothing_left
echo "ok: attached again over what a killed agent had left, and its requests are answered"

kill "$server"
wait "$server" || fail "the server"
kernel_is_content
rmmod ublk_drv
echo "ok: the kernel has nothing to complain about"
