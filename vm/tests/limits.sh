#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the guest: whatever the kernel shows of a device is what was negotiated with the server (`dst status --json`), for each
# front end and several kinds of disks. What a driver can't show is in the table `expected`, and nowhere else.
# usage: limits.sh [FRONT-END...]   ublk, fuse and nbd unless given
# Modules: ublk_drv, nbd,nbds_max=1, fuse, loop, ext4. Disk: /dev/vda. Files: dst, devices.sh.
set -eu
# shellcheck source=devices.sh
. /dst/devices.sh
[ $# -gt 0 ] || set -- ublk fuse nbd

limit() {
    value=$(echo "$status" | sed -n "s/^ *\"$1\": *//p" | head -n 1)
    [ -n "$value" ] || fail "the status has no $1" >&2
    echo "$value"
}

number() { case $(limit "$1") in true) echo 1 ;; false) echo 0 ;; *) limit "$1" ;; esac; }
# if_ CONDITION THEN ELSE
if_() { if [ "$1" = 1 ]; then echo "$2"; else echo "$3"; fi; }
less() { if [ "$1" -lt "$2" ]; then echo "$1"; else echo "$2"; fi; }

# expected FRONT-END: attribute below /sys/block/X and value, one pair a line, from what was negotiated.
expected() {
    logical=$(number logical_block) physical=$(number physical_block) ro=$(number read_only)
    discard=$(number discard) zeroes=$(number write_zeroes) granularity=$(number discard_granularity)
    transfer=$(($(number max_transfer) / 1024))
    cache=$(if_ "$(number write_cache)" "write back" "write through")
    cat <<END
size $(($(number size) / 512))
ro $ro
queue/logical_block_size $logical
queue/hw_sector_size $logical
queue/rotational $(number rotational)
queue/write_cache $cache
queue/read_ahead_kb 1024
queue/max_sectors_kb $(less $transfer 1024)
queue/zoned none
queue/chunk_sectors 0
queue/dax 0
alignment_offset 0
END
    case $1 in
        ublk)
            # The driver takes no granularity of 0, and the kernel shows none where there is no discard.
            [ "$discard" = 1 ] && [ "$granularity" -lt "$logical" ] && granularity=$logical
            cat <<END
queue/physical_block_size $physical
queue/minimum_io_size $physical
queue/optimal_io_size $physical
queue/fua $(number fua)
queue/discard_max_bytes $(if_ "$discard" 2147483648 0)
queue/discard_granularity $(if_ "$discard" "$granularity" "*")
queue/write_zeroes_max_bytes $(if_ "$zeroes" 2147483648 0)
END
            ;;
        fuse)
            # Loop devices have one block size and no FUA (the block layer writes and flushes), and call discard and write
            # zeroes by one name. Their granularity is the file system's block, which is the device's. Of a read-only device
            # they announce both all the same, and the kernel refuses them; of one without discard, write zeroes, until the
            # first one is refused (then the kernel writes zeroes).
            holes=$(if_ "$discard" "4294966784 4294963200" 0)
            zeroes_shown=$(if_ "$discard" "4294966784 4294963200" "*")
            [ "$ro" = 0 ] || holes='*' zeroes_shown='*'
            cat <<END
queue/physical_block_size $logical
queue/minimum_io_size $logical
queue/fua 0
queue/discard_max_bytes $holes
queue/write_zeroes_max_bytes $zeroes_shown
queue/discard_granularity $(if_ "$discard" "$logical 4096" "*")
END
            ;;
        nbd)
            cat <<END
queue/physical_block_size $logical
queue/minimum_io_size $logical
queue/fua $(number fua)
queue/scheduler [none]
queue/discard_max_bytes $(if_ "$discard" "4294966784 4294963200" 0)
queue/write_zeroes_max_bytes $(if_ "$zeroes" "4294966784 4294963200" 0)
queue/discard_granularity $(if_ "$discard" "$logical" "*")
END
            ;;
    esac
}

# compare FRONT-END WHAT: the device $disk with what was negotiated.
compare() {
    sys=/sys/block/${disk#/dev/}
    status=$(dst status --json disk | tr ',{}' '\n\n\n')
    [ "$(limit front_end)" = "\"$1\"" ] || fail "the front end is $(limit front_end)"
    expected "$1" >/tmp/expected
    checked=0
    while read -r attribute values; do
        [ "$values" != "*" ] || continue
        # A newer kernel may no longer have one.
        [ -e "$sys/$attribute" ] || continue
        is=$(cat "$sys/$attribute")
        case $attribute in
            queue/write_cache) [ "$is" = "$values" ] ;;
            queue/scheduler) [ "$is" != "${is#*\[none\]}" ] ;;
            *) case " $values " in *" $is "*) ;; *) false ;; esac ;;
        esac || fail "$1, $2: $attribute is $is, negotiated was $values"
        checked=$((checked + 1))
    done </tmp/expected
    [ "$checked" -ge 13 ] || fail "only $checked attributes compared"
    [ "$(cat "$sys/queue/nr_requests")" -ge 32 ] || fail "nr_requests is $(cat "$sys/queue/nr_requests")"
    [ "$(find "$sys/mq" -mindepth 1 -maxdepth 1 | wc -l)" = "$(number queues)" ] || fail "status says $(number queues) queues: $(ls "$sys/mq")"
    [ "$(blockdev --getss "$disk")" = "$(number logical_block)" ] || fail "blockdev --getss"
    [ "$(blockdev --getsize64 "$disk")" = "$(number size)" ] || fail "blockdev --getsize64"
    [ "$(blockdev --getro "$disk")" = "$(number read_only)" ] || fail "blockdev --getro"
    compared="$compared; $2"
}

# serve_disk ARGUMENT...
serve_disk() {
    rm -f /tmp/disk.sock
    dst serve --lease-time 1s --listen dst+unix:///tmp/disk.sock "$@" >/tmp/disk.server.log 2>&1 &
    echo $! >/tmp/disk.server
    wait_for 20 test -S /tmp/disk.sock
}

# try WHAT ATTACH-OPTION...: with each front end that was asked for.
try() {
    what=$1
    shift
    for front in $fronts; do
        dst attach --front-end "$front" --retain 1M "$@" "dst+unix:///tmp/disk.sock?export=disk" >/tmp/attached 2>&1 ||
            fail "attach: $(cat /tmp/attached)"
        disk=$(readlink -f /dev/dst/disk)
        compare "$front" "$what"
        detach disk
    done
}

fronts=$*
compared=
truncate -s 64M /tmp/plain
serve_disk disk=/tmp/plain
try "a file"
try "a file, attached read-only" --read-only
stop_server disk
serve_disk --block-size 4096 disk=/tmp/plain
try "a file, blocks of 4096"
stop_server disk
serve_disk --read-only disk=/tmp/plain
try "a file that is served read-only"
stop_server disk
if [ -b /dev/vda ]; then
    serve_disk disk=/dev/vda
    try "a disk"
    stop_server disk
fi
# One that neither discards nor is flash.
mkdir -p /no-holes && mount -t ramfs none /no-holes && truncate -s 16M /no-holes/disk
if losetup -f /no-holes/disk 2>/dev/null; then
    loop=$(losetup -a | sed -n 's/:.*no-holes.*//p')
    echo 1 >"/sys/block/${loop#/dev/}/queue/rotational"
    serve_disk disk="$loop"
    try "a disk that rotates and has no discard"
    stop_server disk
    losetup -d "$loop"
fi
umount /no-holes
rm -f /tmp/plain /tmp/expected
nothing_left
ok "what the kernel shows is what was negotiated, by $fronts:${compared#;}"
