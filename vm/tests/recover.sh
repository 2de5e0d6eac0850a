#!/bin/sh
# In the guest: the agent of a mounted, busy device is killed again and again, its server too, and its successor in the
# middle of taking over; and it is replaced by another binary. The device goes on: same node, no I/O error, no lost byte.
# The server forgets at a kill what was not flushed, so what an agent retains has to come through.
# Arguments, all with defaults: the front end; numbers of the kills (at 3 the server dies too); moments, in tenths of a second
# after its start, at which a recovery is killed.
# Modules: ublk_drv or nbd with nbds_max=1, ext4. Files: dst, lib.sh, /usr/bin/dd.
set -eu
# shellcheck source=lib.sh
. /dst/lib.sh
rounds=${2:-1 2 3 4 5}
moments=${3:-0 2 4 6 8 10 12 14 17 20}
front=${1:-ublk}
case $front in
    ublk) module=ublk_drv ;;
    nbd) module=nbd ;;
    *) fail "no device of $front survives its agent" ;;
esac

serve() {
    dst serve --lease-time 1s "disk=lossy:$image?early=10" >>/tmp/server.log 2>&1 &
    server=$!
}

try_attach() { dst attach --front-end "$front" --retain 64M "$@" "$url" >/tmp/attached 2>&1; }

attach() {
    wait_for 10 try_attach "$@"
    disk=$(readlink /dev/dst/disk)
    sys=/sys/block/${disk#/dev/}
    number=$(cat "$sys/dev")
    sequence=$(cat "$sys/diskseq")
    # What was under way is sent again when it is so old: not only after 10 s, since there are many recoveries here.
    [ "$front" != nbd ] || echo 1000 >"$sys/queue/io_timeout"
}

# The very same disk.
is_the_same() {
    [ "$(readlink /dev/dst/disk)" = "$disk" ] || fail "/dev/dst/disk leads to $(readlink /dev/dst/disk), not $disk"
    [ "$(cat "$sys/dev") $(cat "$sys/diskseq")" = "$number $sequence" ] || fail "it is another disk"
    [ "$(from_status queues)" = "$(find "$sys/mq" -mindepth 1 -maxdepth 1 | wc -l)" ] || dead || fail "status says $(from_status queues) queues"
}

gone() { [ ! -e "$sys" ]; }

nothing_left() {
    wait_for 10 gone
    [ "$front" != ublk ] || [ -z "$(ls /sys/class/ublk-char)" ] || fail "devices left behind: $(ls /sys/class/ublk-char)"
    for node in /dev/ublkb* /dev/ublkc* /dev/nbd[1-9]* /dev/dst/* /run/dst/disk; do
        [ ! -e "$node" ] && [ ! -L "$node" ] || fail "left behind: $node"
    done
}

# refuses_to_recover WHY: the device goes on waiting.
refuses_to_recover() {
    status=0
    dst attach --recover disk >/tmp/attached 2>&1 || status=$?
    [ "$status" = 1 ] && grep -q "$1" /tmp/attached || fail "recover: exit code $status"
    dead || fail "it does not wait any more"
}

recover() {
    "${dst:-dst}" attach --recover disk "$@" >/tmp/attached 2>&1 || fail "recover: exit code $?"
    is_the_same
}

kill_agent() {
    killed=$(agent)
    kill -9 "$killed"
    wait_for 10 dead
}
dead() { [ "$(from_status state)" = '"waiting-for-recovery"' ]; }
known() { dead || [ "$(from_status state)" = '"live"' ]; }

# Two writers. What each has finished is noted: place and pattern.
buffered_writer() {
    at=0
    while [ ! -e /tmp/stop ]; do
        at=$((at + 1))
        /dst/dd if=/tmp/pattern.$((at % 5)) of=/mnt/buffered.$((at % 16)) bs=64K conv=fsync status=none ||
            return 1
        echo "$((at % 16)) $((at % 5))" >>/tmp/buffered.done
    done
}
direct_writer() {
    at=0
    while [ ! -e /tmp/stop ]; do
        at=$((at + 1))
        /dst/dd if=/tmp/pattern.$((at % 5)) of=/mnt/direct bs=16K seek=$((at % 16 * 16)) \
            oflag=direct conv=notrunc status=none || return 1
        echo "$((at % 16)) $((at % 5))" >>/tmp/direct.done
    done
}
done_by() { wc -l <"/tmp/$1.done"; }

# progress ROUNDS: both writers go on.
progress() {
    for name in buffered direct; do
        ended_at=$(($(done_by $name) + $1))
        wait_for 60 has_done $name "$ended_at"
    done
}
has_done() { [ "$(done_by "$1")" -ge "$2" ]; }

# Into /tmp/last: each place, and the pattern that was written there last.
last_of() { awk '{ last[$1] = $2 } END { for (place in last) print place, last[place] }' "/tmp/$1.done" >/tmp/last; }

# Every byte that the writers have written last.
is_all_there() {
    last_of buffered
    while read -r place pattern; do
        cmp "/tmp/pattern.$pattern" "/mnt/buffered.$place" || fail "buffered.$place differs"
    done </tmp/last
    last_of direct
    while read -r place pattern; do
        dd if=/mnt/direct bs=256K skip="$place" count=1 status=none | cmp "/tmp/pattern.$pattern" - ||
            fail "part $place of direct differs"
    done </tmp/last
}

no_io_error() {
    ! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|lost async page write' || fail "I/O failed"
    [ ! -e /tmp/writer.failed ] || fail "a writer failed"
}

truncate -s 134217728 "$image"
for at in 0 1 2 3 4; do
    dd if=/dev/urandom of=/tmp/pattern.$at bs=256K count=1 status=none
done
serve
attach
mkfs.ext4 -q -F "$disk"
mount -t ext4 "$disk" /mnt
dd if=/dev/zero of=/mnt/direct bs=256K count=16 conv=fsync status=none
: >/tmp/buffered.done
: >/tmp/direct.done
for writer in buffered direct; do
    (${writer}_writer || touch /tmp/writer.failed) &
    writers="${writers:-} $!"
done
progress 3

for round in $rounds; do
    kill_agent
    retained=$(number retained_writes)
    status=0
    dst detach disk 2>/tmp/refused || status=$?
    [ "$status" = 8 ] && grep -q "attach --recover disk" /tmp/refused || fail "detach of a mounted device: $status $(cat /tmp/refused)"
    if [ "$round" = 3 ]; then
        kill_server
        serve
    fi
    recover
    [ "$(agent)" != "$killed" ] || fail "the agent is the dead one"
    grep "taken over" /run/dst/disk/log | tail -n 1 | grep -q " in $retained retained writes" ||
        fail "not the $retained writes that were retained: $(grep "taken over" /run/dst/disk/log)"
    progress 3
    no_io_error
    echo "ok: killed and recovered, $round"
done

kill_agent
kill_server
recover
wait_for 30 waits
serve
progress 3
no_io_error
echo "ok: recovered without a server, which comes later"

# At moments from the first to the last of a recovery, which takes a second or so here.
for tenths in $moments; do
    kill_agent
    dst attach --recover disk >/tmp/attached 2>&1 &
    recovery=$!
    sleep "$((tenths / 10)).$((tenths % 10))"
    for process in /proc/[0-9]*; do
        if tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -q '^dst agent'; then
            kill -9 "${process#/proc/}" 2>/dev/null || true
        fi
    done
    wait "$recovery" || true
    wait_for 30 known
    # It had not begun when it was to be killed, or was done.
    dead || kill_agent
    is_the_same
    recover
    no_io_error
done
progress 3
no_io_error
echo "ok: a recovery that is killed can be recovered"

# The second word of a record is its layout.
layout() { printf "$1" | dd of=/run/dst/disk/record bs=1 seek=8 conv=notrunc status=none; }
kill_agent
layout '\143'
refuses_to_recover "layout 99"
layout '\001'
recover
progress 3
no_io_error
echo "ok: a recovery that fails keeps what the next one goes on with"

for round in 1 2 3; do
    cp /dst/dst "/tmp/dst-$round"
    before=$(agent)
    dst=/tmp/dst-$round recover
    [ "$(readlink "/proc/$(agent)/exe")" = "/tmp/dst-$round" ] || fail "the agent runs $(readlink "/proc/$(agent)/exe")"
    ended "$before" || fail "the old agent is still there"
    progress 3
    no_io_error
done
echo "ok: another version takes over while the old one serves"

kill_agent
dst attach "$url" >/tmp/attached 2>&1 || fail "attach over a device that waits"
grep -q "going on with it" /tmp/attached || fail "not told: $(cat /tmp/attached)"
is_the_same
progress 3
no_io_error
echo "ok: attaching it again is a recovery"

touch /tmp/stop
for writer in $writers; do
    wait "$writer" || fail "a writer"
done
no_io_error
echo "written: $(done_by buffered) files, $(done_by direct) times 256 KiB directly"
is_all_there
umount /mnt
fsck.ext4 -fn "$disk" >/dev/null || fail "fsck"
dst detach disk >/tmp/detached || fail "detach"
nothing_left
attach
mount -t ext4 -o ro "$disk" /mnt
is_all_there
umount /mnt
cmp "$disk" "$image" || fail "the image is not what the device shows"
echo "ok: every byte is there, in a fresh session and in the image"

kill_agent
dst detach disk >/tmp/detached || fail "detach of a device that waits: $(cat /tmp/detached)"
nothing_left
echo "ok: a device that waits and is not in use can be detached"

attach --read-only
dd if="$disk" of=/dev/null bs=64K iflag=direct status=none &
reader=$!
kill_agent
kill_server
mv "$image" "$image.kept"
truncate -s 134217728 "$image"
serve
refuses_to_recover "another disk"
kill_server
mv "$image.kept" "$image"
serve
recover
wait "$reader" || fail "a reader"
cmp "$disk" "$image" || fail "the image is not what the device shows"
echo "ok: a read-only device is recovered, with its own export only"

kill_agent
dst attach --front-end "$front" --name writer "$url" >/tmp/attached 2>&1 || fail "a writer: $(cat /tmp/attached)"
dd if=/tmp/pattern.1 of=/dev/dst/writer bs=64K oflag=direct conv=fsync status=none || fail "writing beside a reader that waits"
recover
dd if="$disk" bs=256K count=1 iflag=direct status=none | cmp /tmp/pattern.1 - || fail "the reader shows other bytes"
dst detach writer || fail "detach of the writer"
dst detach disk || fail "detach of the reader"
nothing_left
echo "ok: a reader that waits is in no writer's way"

attach
kill_server
dd if="$disk" of=/dev/null bs=64K iflag=direct 2>/dev/null &
reader=$!
wait_for 30 waits
kill_agent
detach_by_force
failed "$reader"
nothing_left
echo "ok: by force all of its I/O fails, and it is gone"

kernel_is_content
rmmod "$module"
echo "ok: the kernel has nothing to complain about"
