#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the guest: programs that write and check what they read, on a device of one front end: fio with every kind of
# verification that it has, on the device itself and in files; fsx and stress-ng in a file system. And again what fio wrote,
# through a fresh attach.
#
#   verify.sh ublk|nbd [short|full]
#
# Modules: ublk_drv or nbd,nbds_max=1; ext4, and xfs for the full form. Files: dst, lib.sh, fsx (of the crate of that name:
# cargo install fsx), /usr/bin/fio; for the full form /usr/sbin/mkfs.xfs, /usr/sbin/xfs_repair. Package: stress-ng.
set -eu
# shellcheck source=lib.sh
. /dst/lib.sh
front_end=$1
form=${2:-short}
case $form in
    short) kinds=ext4 area=$((256 << 10)) operations=400 bytes=2M size=$((128 << 20)) ;;
    full) kinds="ext4 xfs" area=$((2 << 20)) operations=5000 bytes=16M size=$((512 << 20)) ;;
    *) fail "no form $form" ;;
esac

try_attach() { dst attach --front-end "$front_end" "$url" >/tmp/attached 2>&1; }

attach() {
    wait_for 30 try_attach
    disk=$(readlink /dev/dst/disk)
    [ -b "$disk" ] || fail "$disk is no block device"
    [ "$(from_status front_end)" = "\"$front_end\"" ] || fail "the front end is $(from_status front_end)"
}

no_errors() { [ "$(from_status errors)" = 0 ] || fail "$(from_status errors) requests failed"; }

# modes: every kind of verification that fio has but the one that looks at nothing.
modes() { fio --cmdhelp=verify | sed -nE 's/^ *: ([a-z][a-z0-9-]*) +[A-Z].*$/\1/p' | grep -vx null; }

# job MODE NUMBER: its own area of what is written.
job() {
    case $1 in
        pattern) echo "[pattern]" && echo "verify=pattern" && echo "verify_pattern=0xd5a70f1c" ;;
        *) echo "[$1]" && echo "verify=$1" ;;
    esac
    echo "offset=$(($2 * area))"
}

# jobs: all of them.
jobs() {
    number=0
    for mode in $(modes); do
        job "$mode" "$number"
        number=$((number + 1))
    done
    [ "$number" -ge 17 ] || fail "fio names only $number kinds"
}

# verified TARGET OPTION...: fio writes and verifies, or only verifies.
verified() {
    target=$1
    shift
    printf '%s\n' '[global]' "filename=$target" "size=$area" rw=randwrite randrepeat=1 verify_fatal=1 verify_state_save=0 \
        fallocate=none thread=1 group_reporting=1 "$@" >/tmp/job
    jobs >>/tmp/job
    fio --output-format=terse --minimal /tmp/job >/tmp/fio.log 2>&1 || {
        cat /tmp/job /tmp/fio.log
        fail "fio: $target $*"
    }
    no_errors
}

direct="ioengine=libaio iodepth=8 direct=1 bsrange=512-64k blockalign=512"
buffered="ioengine=psync bssplit=4k/50:16k/30:64k/20 fsync_on_close=1"

begin=$(dmesg | wc -l)
truncate -s "$size" "$image"
serve
attach
# shellcheck disable=SC2086 # lists of options
{
    verified "$disk" $direct
    echo "ok: fio, $(modes | wc -l) kinds of verification, on the device, direct, 512 bytes to 64 KiB"
    dst detach disk >/dev/null
    attach
    verified "$disk" $direct verify_only=1
    echo "ok: the same read through a fresh attach"
    verified "$disk" $buffered rw=randrw invalidate=1
    echo "ok: through the page cache, reading and writing"
    verified "$disk" $direct bsrange=4k-4k experimental_verify=1 verify_backlog=8
    echo "ok: experimental_verify, and with verification while writing"
}

for kind in $kinds; do
    case $kind in
        ext4) mkfs.ext4 -q -F "$disk" ;;
        xfs) mkfs.xfs -q -f "$disk" ;;
    esac
    mount -t "$kind" "$disk" /mnt
    # shellcheck disable=SC2086
    {
        verified /mnt/direct $direct bsrange=4k-64k blockalign=4k
        verified /mnt/buffered $buffered
    }
    echo "ok: fio in files on $kind"
    fsx -N "$operations" -S 1 /mnt/fsx >/tmp/fsx.log 2>&1 || { tail -n 40 /tmp/fsx.log && fail "fsx on $kind"; }
    echo "ok: fsx, $operations operations on $kind"
    mkdir /mnt/stress
    for options in direct wr-rnd,fsync rd-rnd,wr-seq,dsync; do
        stress-ng --hdd 2 --hdd-ops 200 --hdd-bytes "$bytes" --hdd-opts "$options" --verify --temp-path /mnt/stress \
            >/tmp/stress.log 2>&1 || { cat /tmp/stress.log && fail "stress-ng, $options, on $kind"; }
    done
    echo "ok: stress-ng --hdd on $kind"
    no_errors
    echo 3 >/proc/sys/vm/drop_caches
    # shellcheck disable=SC2086
    verified /mnt/direct $direct bsrange=4k-64k blockalign=4k verify_only=1
    umount /mnt
    dst detach disk >/dev/null
    attach
    case $kind in
        ext4) fsck.ext4 -fn "$disk" >/tmp/fsck 2>&1 || { cat /tmp/fsck && fail "fsck"; } ;;
        xfs) xfs_repair -n "$disk" >/tmp/fsck 2>&1 || { cat /tmp/fsck && fail "xfs_repair"; } ;;
    esac
    mount -t "$kind" "$disk" /mnt
    # shellcheck disable=SC2086
    verified /mnt/buffered $buffered verify_only=1
    umount /mnt
    echo "ok: $kind is whole, and its files are right through a fresh attach"
done

dst detach disk >/dev/null
[ ! -e "/sys/block/${disk#/dev/}/backend" ] && [ ! -e /dev/dst/disk ] && [ ! -e /run/dst/disk ] || fail "left behind"
kill "$server"
wait "$server" || fail "the server"
kernel_is_content
name=${disk#/dev/}
! dmesg | tail -n +$((begin + 1)) | grep -iE "(error|timed out|corrupt).*$name|$name.*(error|timed out|corrupt)" ||
    fail "the kernel tells of errors"
echo "ok: the kernel has nothing to complain about"
