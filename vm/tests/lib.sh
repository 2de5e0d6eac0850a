# shellcheck shell=sh disable=SC2034,SC2154
# In the guest: what tests of one device, /dev/dst/disk, have in common. To be sourced.
image=/tmp/disk.img
url=dst://127.0.0.1/disk

fail() {
    echo "FAILED: $*"
    cat /tmp/attached /run/dst/disk/log /tmp/server.log 2>/dev/null || true
    dmesg | tail -n 40
    exit 1
}

# wait_for SECONDS COMMAND...: of a machine that is not emulated; here it tells only what hangs from what is slow.
wait_for() {
    left=$(($1 * 50))
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "still not: $*"
        sleep 0.1
    done
}

# The lease is short: a client that was killed, or detached without its server, keeps the next one out no longer.
serve() {
    dst serve --lease-time 1s "$image" >>/tmp/server.log 2>&1 &
    server=$!
}

kill_server() {
    kill -9 "$server"
    wait "$server" || true
}

# from_status FIELD: of the device, as JSON has it.
from_status() {
    dst status --json disk | tr ',{}' '\n\n\n' | sed -n "s/^ *\"$1\": *//p" | head -n 1
}

agent() { from_status pid; }

# shows ATTRIBUTE VALUE: what the kernel says of the disk, whose directory in sysfs is $sys.
shows() {
    [ "$(cat "$sys/$1")" = "$2" ] || fail "$1 is $(cat "$sys/$1"), not $2"
}

# number FIELD: of the device; there must be one.
number() {
    value=$(from_status "$1")
    case $value in
        '' | *[!0-9]*) fail "status has no number $1: '$value'" >&2 ;;
    esac
    echo "$value"
}

# waits: requests are with the server, or on their way.
waits() {
    in_flight=$(number in_flight) && queued=$(number queued) || fail "no numbers"
    [ $((in_flight + queued)) -gt 0 ]
}

# ended PROCESS
ended() { ! kill -0 "$1" 2>/dev/null; }

kernel_is_content() {
    ! dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|blocked for more than' || fail "the kernel warned"
}

# partitioned_image SIZE: with a partition of 32 MiB at 1 MiB.
partitioned_image() {
    truncate -s "$1" "$image"
    printf '\000\000\000\000\203\000\000\000\000\010\000\000\000\000\001\000' |
        dd of="$image" bs=1 seek=446 conv=notrunc status=none
    printf '\125\252' | dd of="$image" bs=1 seek=510 conv=notrunc status=none
}

# A device attached read-only is not written to, and needs no flush.
is_read_only() {
    shows ro 1
    shows queue/write_cache "write through"
    shows queue/fua 0
    shows queue/discard_max_bytes 0
    shows queue/write_zeroes_max_bytes 0
    ! dd if=/dev/zero of="$disk" bs=4k count=1 oflag=direct 2>/dev/null || fail "written to a read-only device"
    dd if="$disk" of=/dev/null bs=1M count=4 iflag=direct status=none
}

# What is written is kept in the agent until a flush has come and was passed on: one that got lost would show.
flushes() {
    dd if=/dev/urandom of="$disk" bs=1M count=4 oflag=direct status=none
    [ "$(number retained_bytes)" -gt 0 ] || fail "nothing is retained before a flush"
    # Writes nothing, but calls fsync.
    dd if=/dev/null of="$disk" conv=fsync,notrunc status=none
    [ "$(number retained_bytes)" = 0 ] || fail "$(number retained_bytes) bytes are retained after fsync of the device"
    dd if=/dev/urandom of="$disk" bs=1M count=4 conv=fsync,notrunc status=none
    [ "$(number retained_bytes)" = 0 ] || fail "$(number retained_bytes) bytes are retained after writing with fsync"
}

# Flush, FUA, write zeroes, discard and reading back in other pieces.
does_every_operation() {
    flushes
    dd if=/dev/urandom of=/tmp/pattern bs=1M count=4 status=none
    # Busybox has no dsync.
    /dst/dd if=/tmp/pattern of="$disk" bs=1M oflag=direct,dsync status=none
    cmp -n 4194304 /tmp/pattern "$disk" || fail "read back other bytes than written"
    blkdiscard -z -o 1M -l 1M "$disk"
    blkdiscard -o 3M -l 1M "$disk"
    for at in 1 3; do
        dd if=/dev/zero of=/tmp/pattern bs=1M count=1 seek=$at conv=notrunc status=none
    done
    dd if="$disk" of=/tmp/back bs=512K count=8 iflag=direct status=none
    cmp /tmp/pattern /tmp/back || fail "zeroes, discard"
    [ "$(from_status errors)" = 0 ] || fail "$(from_status errors) requests failed"
}

# The file system at /mnt gets copies of a tree while the server is killed and started again.
copies_while_the_server_is_killed() {
    rm -f /tmp/killed
    (for copy in 1 2 3; do
        cp -a /usr/sbin "/mnt/$copy"
        sync -f /mnt
        # The last is not begun before the server is gone.
        [ $copy != 2 ] || wait_for 60 test -e /tmp/killed
    done) &
    copier=$!
    wait_for 60 test -e /mnt/2
    kill_server
    touch /tmp/killed
    serve
    wait "$copier" || fail "copying failed"
    [ "$(from_status errors)" = 0 ] || fail "$(from_status errors) requests failed"
    [ "$(from_status reconnects)" != 0 ] || fail "never reconnected"
}

# What the function above has copied is there.
copies_are_whole() {
    mount -t ext4 -o ro "$disk" /mnt
    for copy in 1 2 3; do
        diff -r /usr/sbin "/mnt/$copy" || fail "copy $copy differs"
    done
    umount /mnt
}

# Detaching a mounted device is refused.
is_kept_while_mounted() {
    status=0
    dst detach disk 2>/dev/null || status=$?
    [ "$status" = 8 ] || fail "detaching a mounted device: exit code $status"
}

# Leaves in $took how many seconds it took; some, but here a machine may be slow.
detach_by_force() {
    begin=$(date +%s)
    timeout 120 dst detach --force disk || fail "detach by force"
    took=$(($(date +%s) - begin))
}

# failed PROCESS: ends soon, and not well.
failed() {
    wait_for 10 ended "$1"
    ! wait "$1" || fail "process $1 succeeded"
}
