#!/bin/sh
# In the guest: campaigns of the e2e program on the kernel's own block drivers, each with each.
#
#   campaign.sh "plug powercut" "ublk nbd" [OPTION OF e2e]...
#
# Modules: ublk_drv or nbd,nbds_max=1; ext4, xfs, loop. Files: dst, e2e, /usr/bin/fio, /usr/bin/cp, /usr/sbin/mkfs.xfs,
# /usr/sbin/xfs_repair (a fraction of what their packages would bring).
set -eu
campaigns=$1
front_ends=$2
shift 2

fail() {
    echo "FAILED: $*"
    for log in /tmp/dst-e2e-logs/*/*.log; do
        [ ! -e "$log" ] || { echo "== $log" && tail -n 40 "$log"; }
    done
    dmesg | tail -n 40
    exit 1
}

nothing_left() {
    for node in /sys/class/ublk-char/* /sys/block/nbd[1-9]* /dev/ublk[bc]* /dev/nbd[1-9]* /dev/dst/*; do
        [ ! -e "$node" ] && [ ! -L "$node" ] || fail "left behind: $node"
    done
}

echo "kernel: $(uname -r)"
# The longest outage of a campaign lasts three minutes, and I/O waits all that time: a task may wait so long, and no longer.
echo 300 >/proc/sys/kernel/hung_task_timeout_secs
status=0
for front_end in $front_ends; do
    for campaign in $campaigns; do
        # Emulated, and beside others: nothing is decided by time, but some day what hangs must be told from what is slow.
        e2e "$campaign" --front-end "$front_end" --patience 20 --json --dst /dst/dst "$@" >/dev/null || status=1
        [ "$status" = 0 ] || fail "$campaign on $front_end"
        nothing_left
        ! dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|blocked for more than' || fail "the kernel warned"
    done
done
