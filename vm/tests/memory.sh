#!/bin/sh
# In the guest: two writers with a file system on a device, the agent and the server of that device, and something that takes
# memory and keeps it, all in one control group that has almost none left. Nothing may wait for ever, and what was written
# must be right. (Here, unlike in a container, root may set PR_SET_IO_FLUSHER, which is part of the promise.)
set -eu

group=/sys/fs/cgroup/little
mib=24

fail() {
    echo "$*" >&2
    cat /run/dst/disk/log "$group/memory.events" "$group/memory.stat" >&2 || true
    for process in $(cat "$group/cgroup.procs"); do
        echo "$process $(tr '\0' ' ' <"/proc/$process/cmdline"): $(cat "/proc/$process/stack")" >&2
    done
    # Or the guest waits for what is not written.
    dst detach --force disk >&2 || true
    exit 1
}

# In place of the shell that calls it.
inside() { exec sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@"; }

event() { sed -n "s/^$1 //p" "$group/memory.events"; }

[ -b /dev/vda ] || fail "no disk"
mkfs.ext4 -q /dev/vda 1G
mkdir -p /store /disk
mount -t ext4 /dev/vda /store
mount -t cgroup2 none /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
mkdir "$group"
echo 200M >"$group/memory.max"
dd if=/dev/urandom of=/tmp/source bs=1M count=$mib 2>/dev/null

inside dst serve --size 512M /store/disk.img >/tmp/serve.out 2>&1 &
server=$!
node=$(inside dst attach --retain 16M --name disk dst://127.0.0.1/disk) || fail "no device: $(cat /tmp/serve.out)"
! grep -E 'PR_SET_IO_FLUSHER|mlockall|oom_score_adj' /run/dst/disk/log || fail "the agent is not protected"
mkfs.ext4 -q "$node"
mount -t ext4 "$node" /disk
# Reads into its memory, which can't be given back, as there is no swap; and then waits for a reader that never comes. Should
# something have to be killed, that is it.
mkfifo /tmp/hog
exec 3<>/tmp/hog
inside sh -c 'echo 1000 >/proc/self/oom_score_adj && exec dd if=/dev/zero of=/tmp/hog bs=70M count=1' 2>/dev/null &
hog=$!
until [ "$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$hog/status")" -gt 70000 ]; do
    sleep 0.1
done

agent=$(dst status --json disk | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
faults() { sed 's/.*) //' "/proc/$agent/stat" | cut -d' ' -f8; }
before=$(faults)
met=$(event max)
for name in a b; do
    inside timeout 200 dd if=/tmp/source of=/disk/$name bs=1M conv=fsync 2>/dev/null &
    writers="${writers:-} $!"
done
for writer in $writers; do
    wait "$writer" || fail "a writer failed, or did not end"
done
met=$(($(event max) - met))
took=$(($(faults) - before))
[ "$met" -gt 0 ] || fail "there was no memory pressure"
killed=$(event oom_kill)
kill "$hog" 2>/dev/null || killed=$((killed - 1))
[ "$killed" = 0 ] || fail "something was killed"
echo "the limit was met $met times; page faults of the agent meanwhile: $took"
[ "$took" -lt 64 ] || fail "the agent takes memory while it writes out"

echo 3 >/proc/sys/vm/drop_caches
for name in a b; do
    cmp /tmp/source /disk/$name || fail "$name is not what was written"
done
umount /disk
e2fsck -fn "$node" >/dev/null 2>&1 || fail "the file system is damaged"
dst detach disk
kill "$server"
wait "$server" || fail "the server failed: $(cat /tmp/serve.out)"
