#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the guest: the agent of a device keeps nothing mounted, neither the file system on its own device nor those that were there
# before it; a device that was attached and mounted in a mount namespace outlives it, and is whole.
# usage: mounts.sh [FRONT-END...]   ublk and nbd unless given
# Modules: ublk_drv, nbd,nbds_max=1, ext4. Files: dst, devices.sh.
set -eu
# shellcheck source=devices.sh
. /dst/devices.sh
[ $# -gt 0 ] || set -- ublk nbd

# process NAME: of the device's agent.
process() {
    pid=$(field "$1" pid)
    [ -n "$pid" ] && [ -d "/proc/$pid" ] || fail "$1 has no agent '$pid'" >&2
    echo "$pid"
}

# sees_nothing NAME: the device's agent has a namespace of its own, with /proc and without the file systems of the devices.
sees_nothing() {
    pid=$(process "$1") || exit 1
    for task in /proc/"$pid"/task/*; do
        space=$(readlink "$task/ns/mnt")
        [ -n "$space" ] && [ "$space" != "$(readlink /proc/self/ns/mnt)" ] || fail "a thread of the agent sees all mounts"
    done
    grep -q " /proc " "/proc/$pid/mountinfo" || fail "the agent has no /proc"
    ! grep -qE " /(one|two) " "/proc/$pid/mountinfo" || fail "the agent has file systems of devices mounted"
}

detach_quietly() { dst detach "$1" >/tmp/detached 2>&1; }

for front in "$@"; do
    for name in one two; do
        start_server $name --size 64M
        attach $name
        eval "$name=$disk"
        mkfs.ext4 -q -F "$disk"
        mkdir -p /$name
        if [ $name = one ]; then mount -t ext4 "$disk" /one; fi
    done
    # shellcheck disable=SC2154 # both are set above
    mount -t ext4 "$two" /two
    sees_nothing two
    kill -9 "$(process two)"
    wait_for 10 state_is two waiting-for-recovery
    dst attach --recover two >/tmp/attached 2>&1 || fail "recover: $(cat /tmp/attached)"
    sees_nothing two
    status=0
    dst detach two 2>/tmp/refused || status=$?
    [ "$status" = 8 ] && grep -q "mounted at /two" /tmp/refused || fail "detach of a mounted device: $status $(cat /tmp/refused)"
    umount /one
    detach one
    stop_server one
    umount /two
    detach two
    stop_server two
    ok "on $front the agent keeps no file system mounted, and knows who does"

    # The last process of that namespace ends with the script: what is mounted there goes with it.
    pattern /tmp/pattern 4
    start_server there --size 64M
    export front
    unshare --mount sh -eu -c '
        . /dst/devices.sh
        attach there
        mkfs.ext4 -q -F "$disk"
        mkdir -p /there
        mount -t ext4 "$disk" /there
        cp /tmp/pattern /there/pattern
    ' || fail "attaching in a namespace"
    wait_for 30 detach_quietly there
    attach there
    mount -t ext4 "$disk" /there
    cmp /tmp/pattern /there/pattern || fail "other bytes than written"
    umount /there
    fsck.ext4 -fn "$disk" >/dev/null || fail "fsck"
    detach there
    stop_server there
    rm -f /tmp/*.img
    nothing_left
    ok "on $front a device outlives the mount namespace that it was attached in"
done
