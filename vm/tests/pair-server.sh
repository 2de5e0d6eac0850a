#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the second of two guests: the server's machine of pair.sh. Its disk is /dev/vda.
set -eu

fail() {
    echo "FAILED: $*"
    cat /tmp/server.log
    exit 1
}

serve() {
    dst serve --insecure --size 256M /store/disk.img >>/tmp/server.log 2>&1 &
    server=$!
}

[ "$(blockdev --getsize64 /dev/vda)" = 1073741824 ] || fail "no disk"
mkfs.ext4 -q /dev/vda
mkdir /store
mount -t ext4 /dev/vda /store

# Without --insecure nobody else may attach.
dst serve --size 256M /store/disk.img --listen 'dst://[::]:7789' 2>/tmp/refused && fail "serves a network without --insecure"
serve
tell serving

await cut
ip link set eth0 down
tell "is cut"
await mend
ip link set eth0 up

await kill
kill -9 "$server"
wait "$server" || true
tell killed
await restart
serve

await stop
kill "$server"
wait "$server" || fail "the server"
umount /store
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || fail "the server's file system: $(cat /tmp/fsck)"
