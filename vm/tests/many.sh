#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the guest: many devices: several front ends of one server at the same time, as many devices as asked for, and attaching
# and detaching again and again.
# usage: many.sh [DEVICES [ROUNDS]]   50 and 200 unless given
# Modules: ublk_drv, nbd,nbds_max=1, fuse, loop, ext4. Files: dst, devices.sh.
set -eu
# shellcheck source=devices.sh
. /dst/devices.sh
devices=${1:-50}
rounds=${2:-200}
url() { echo "dst+unix:///tmp/all.sock?export=$1"; }

# attach_as FRONT NAME EXPORT OPTION...: leaves the device in $disk.
attach_as() {
    kind=$1 name=$2 at=$(url "$3")
    shift 3
    dst attach --front-end "$kind" --retain 4M --name "$name" "$@" "$at" >/tmp/attached 2>&1 ||
        fail "attach $name: $(cat /tmp/attached)"
    disk=$(readlink -f "/dev/dst/$name")
    [ -b "$disk" ] || fail "$disk is no block device"
}

# What could leak: processes, descriptors of the server, nodes, directories, memory of the kernel in KiB.
# Workers of the kernel come and go by themselves.
processes() { cat /proc/[0-9]*/comm 2>/dev/null | grep -vc '^kworker'; }
descriptors() { ls "/proc/$server/fd" | wc -l; }
threads() { ls "/proc/$server/task" | wc -l; }
nodes() {
    ls /dev /dev/dst /dev/char /dev/block /dev/shm /run/dst /sys/class/block /sys/class/bdi /sys/class/misc \
        /sys/class/ublk-char /sys/fs/fuse/connections 2>/dev/null
}
loops() { losetup -a | wc -l; }
of_memory() { awk -v field="$1:" '$1 == field { print $2 }' /proc/meminfo; }
memory_of() { awk '$1 == "VmRSS:" { print $2 }' "/proc/$1/status"; }

exports=
number=0
while [ $number -lt "$devices" ]; do
    number=$((number + 1))
    exports="$exports e$number=memory:4M"
done
# shellcheck disable=SC2086 # a list
dst serve --memory $((devices * 80 + 256))M --lease-time 1s --listen dst+unix:///tmp/all.sock \
    two=memory:16M $exports >/tmp/all.server.log 2>&1 &
server=$!
wait_for 20 test -S /tmp/all.sock

# One writes, the others read the same export, by other drivers.
pattern /tmp/pattern 4
attach_as ublk writer two
writer=$disk
[ "$(stat -c %a /run/dst)" = 755 ] || fail "who may look for devices: /run/dst has mode $(stat -c %a /run/dst)"
status=0
dst attach --front-end fuse --name second "$(url two)" >/tmp/attached 2>&1 || status=$?
[ "$status" = 7 ] || fail "a second writer: exit code $status"
attach_as fuse reader two --read-only
reader=$disk
attach_as nbd third two --read-only
third=$disk
attach_as nbd other e1
other=$disk
dd if=/tmp/pattern of="$writer" bs=1M oflag=direct conv=fsync 2>/dev/null &
one=$!
dd if=/tmp/pattern of="$other" bs=1M oflag=direct conv=fsync 2>/dev/null || fail "writing by nbd"
wait "$one" || fail "writing by ublk"
for disk in "$writer" "$reader" "$third" "$other"; do
    dd if="$disk" of=/tmp/back bs=1M count=4 iflag=direct 2>/dev/null
    cmp /tmp/pattern /tmp/back || fail "$disk shows other bytes than written"
done
detach third other reader writer
ok "ublk, fuse and nbd at the same time on one server, a writer and two readers of one export among them"

# Alternately by all front ends.
free=$(of_memory MemAvailable)
number=0
while [ $number -lt "$devices" ]; do
    number=$((number + 1))
    case $((number % 3)) in
        0) kind=fuse ;;
        1) kind=ublk ;;
        2) kind=nbd ;;
    esac
    attach_as $kind "d$number" "e$number"
    echo "device $number" | dd of="$disk" bs=4096 count=1 conv=sync,fsync 2>/dev/null
done
used=$(((free - $(of_memory MemAvailable)) / devices))
[ "$(dst status --json | grep -o '"state": *"live"' | wc -l)" = "$devices" ] || fail "not all are live: $(dst status)"
all=
number=0
while [ $number -lt "$devices" ]; do
    number=$((number + 1))
    disk=$(readlink -f "/dev/dst/d$number")
    [ "$(dd if="$disk" bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1)" = "device $number" ] || fail "$disk is not device $number"
    all="$all d$number"
done
ok "$devices devices at once, each about $used KiB of memory with --retain 4M"
# shellcheck disable=SC2086 # a list
detach $all
ok "detached by one command"

# Nine rounds before the first count, so that what is kept for reuse is there.
round=0
while [ $round -lt "$rounds" ]; do
    round=$((round + 1))
    case $((round % 3)) in
        0) kind=fuse ;;
        1) kind=ublk ;;
        2) kind=nbd ;;
    esac
    attach_as $kind again two
    dd if=/tmp/pattern of="$disk" bs=1M count=1 oflag=direct 2>/dev/null || fail "writing in round $round"
    detach again
    [ $((round % 50)) != 0 ] || echo "round $round: the server has $(memory_of "$server") KiB"
    if [ $round = 9 ]; then
        wait_for 20 nothing_left
        begin_processes=$(processes) begin_descriptors=$(descriptors) begin_threads=$(threads) begin_nodes=$(nodes || true)
        begin_server=$(memory_of "$server") begin_free=$(of_memory MemAvailable) begin_slab=$(of_memory SUnreclaim)
    fi
done
nothing_left
same_processes() { [ "$(processes)" = "$begin_processes" ]; }
wait_for 20 same_processes
same_descriptors() { [ "$(descriptors)" = "$begin_descriptors" ]; }
wait_for 20 same_descriptors
same_threads() { [ "$(threads)" = "$begin_threads" ]; }
wait_for 20 same_threads
same_nodes() { [ "$(nodes || true)" = "$begin_nodes" ]; }
wait_for 20 same_nodes
[ "$(loops)" = 0 ] || fail "loop devices left behind"
more_server=$(($(memory_of "$server") - begin_server))
more_slab=$(($(of_memory SUnreclaim) - begin_slab))
less_free=$((begin_free - $(of_memory MemAvailable)))
echo "after $rounds rounds: server ${more_server} KiB more, slab ${more_slab} KiB more, ${less_free} KiB less available"
# A leak of one page for each round would be below what else comes and goes; of 64 KiB for each round it is not.
limit=$((8192 + rounds * 64))
[ "$more_server" -le "$limit" ] && [ "$more_slab" -le "$limit" ] && [ "$less_free" -le $((limit * 2)) ] || fail "memory leaks"
ok "attached and detached $rounds times: $(processes) processes, $(descriptors) descriptors and $(threads) threads of the server, as before"
kill "$server"
wait "$server" || fail "the server"
rm -f /tmp/all.sock /tmp/all.server.log /tmp/pattern /tmp/back
