#!/bin/sh
# In the guest: the whole demo on this kernel's FUSE, loop and ext4.
set -eu
dst demo --size 256M --dir /tmp
[ -z "$(losetup -a)" ] || { echo "loop devices left behind"; exit 1; }
! grep -q fuse.dst /proc/self/mounts || { echo "mounts left behind"; exit 1; }
