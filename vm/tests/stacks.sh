#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the guest: what people build on disks: dm-linear over two servers' disks, RAID1 of two, LUKS, LVM.
# usage: stacks.sh [PART...]   linear | raid | luks | lvm; all unless given
# Modules: ublk_drv, fuse, loop, ext4, dm-mod, dm-crypt, raid1, xts, aesni_intel, algif_skcipher.
# Packages: dmsetup, mdadm, cryptsetup-bin, lvm2. Files: dst, devices.sh.
set -eu
# shellcheck source=devices.sh
. /dst/devices.sh
mib=24
# Set by new_disks.
disk_one='' disk_two='' disk_stays='' disk_secret='' disk_first='' disk_second=''

new_disks() {
    for name in "$@"; do
        rm -f "$store/$name.img"
        start_server "$name" --size "${mib}M"
        attach "$name"
        eval "disk_$name=$disk"
    done
}

end_disks() {
    detach "$@"
    for name in "$@"; do
        stop_server "$name"
    done
    nothing_left
}

# 3 MiB in files of many sizes.
make_tree() {
    mkdir -p /tmp/tree
    for kib in 1 3 10 30 100 300 1000; do
        for number in 1 2; do
            dd if=/dev/urandom of=/tmp/tree/$kib.$number bs=1k count=$kib 2>/dev/null
        done
    done
}
tree_to_mnt() { rm -rf /mnt/tree && cp -a /tmp/tree /mnt/tree && sync -f /mnt; }
tree_is_whole() { diff -r /tmp/tree /mnt/tree || fail "the tree differs"; }

# Each half of what is written ends on another server.
linear() {
    new_disks one two
    sectors=$((mib * 2048))
    printf '0 %s linear %s 0\n%s %s linear %s 0\n' $sectors "$disk_one" $sectors $sectors "$disk_two" |
        dmsetup create --noudevsync both || fail "dmsetup"
    dmsetup mknodes both
    [ "$(blockdev --getsize64 /dev/mapper/both)" = $((mib * 2097152)) ] || fail "the size of /dev/mapper/both"
    pattern /tmp/pattern $((mib * 2))
    status=0
    dst detach one 2>/dev/null || status=$?
    [ "$status" = 8 ] || fail "detaching a disk under Device Mapper: exit code $status"
    write_both() { dd if=/tmp/pattern of=/dev/mapper/both bs=1M oflag=direct 2>/dev/null; }
    outage write_both one two
    cmp /tmp/pattern /dev/mapper/both || fail "read back other bytes than written"
    dd if=/dev/null of=/dev/mapper/both conv=fsync,notrunc 2>/dev/null
    for name in one two; do
        [ "$(field $name retained_bytes)" = 0 ] || fail "a flush did not reach $name"
    done
    blkdiscard -z -o 4M -l 4M /dev/mapper/both || fail "write zeroes"
    blkdiscard -o $((mib - 2))M -l 4M /dev/mapper/both || fail "discard over the border"
    dd if=/dev/zero of=/tmp/pattern bs=1M seek=4 count=4 conv=notrunc 2>/dev/null
    dd if=/dev/zero of=/tmp/pattern bs=1M seek=$((mib - 2)) count=4 conv=notrunc 2>/dev/null
    dmsetup remove --noudevsync both
    rm -f /dev/mapper/both
    no_errors one two
    end_disks one two
    cat "$store/one.img" "$store/two.img" | cmp - /tmp/pattern || fail "the images hold other bytes than written"
    rm /tmp/pattern
    ok "dm-linear over the disks of two servers, both killed meanwhile ($front)"
}

# The data of both legs, which has the same place and length in each.
legs_are_equal() {
    # In sectors and KiB.
    offset=$(mdadm --examine "$1" | sed -n 's/^ *Data Offset : \([0-9]*\) sectors/\1/p')
    length=$(mdadm --examine "$1" | sed -n 's/^ *Array Size : \([0-9]*\) .*/\1/p')
    [ "$offset" = "$(mdadm --examine "$2" | sed -n 's/^ *Data Offset : \([0-9]*\) sectors/\1/p')" ] || fail "other offsets"
    cmp -n $((length * 1024)) "$1" "$2" $((offset * 512)) $((offset * 512)) || fail "the legs differ"
    ok "both legs are equal, $((length / 1024)) MiB"
}

written_to() { awk '{ print $7 * 512 }' "/sys/block/${1#/dev/}/stat"; }
degraded() { [ "$(cat /sys/block/md0/md/degraded)" = 1 ]; }
in_sync() { [ "$(cat /sys/block/md0/md/degraded)" = 0 ] && [ "$(cat /sys/block/md0/md/sync_action)" = idle ]; }

# A server that is away for longer than the deadline of its device is a failed disk to MD. What it lacks is in the bitmap.
raid() {
    new_disks stays
    rm -f "$store/leaves.img"
    start_server leaves --size "${mib}M"
    # Long enough for a machine that is only slow.
    attach leaves --deadline 8s
    leaves_disk=$disk
    # Without --failfast MD would try each sector of a failed write for itself, for as long as the deadline each.
    mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --bitmap=internal --bitmap-chunk=1M --assume-clean --failfast \
        "$disk_stays" "$leaves_disk" >/tmp/mdadm 2>&1 || fail "mdadm --create: $(cat /tmp/mdadm)"
    mkfs.ext4 -q /dev/md0
    mount -t ext4 /dev/md0 /mnt
    tree_to_mnt || fail "copying"
    # What is under way when the server goes may or may not have been written, and must not come later than what follows it.
    rm -f /tmp/enough
    (while [ ! -e /tmp/enough ]; do pattern /mnt/churn 4 && sync -f /mnt || exit 1; done) &
    work=$!
    wait_for 60 writing leaves
    kill_server leaves
    wait_for 120 degraded
    touch /tmp/enough
    wait "$work" || fail "writing to the degraded array"
    cp -a /usr/bin/dash /mnt/meanwhile
    sync -f /mnt
    expired=$(field leaves errors)
    [ "$expired" -gt 0 ] || fail "nothing failed at the deadline"
    ok "the array goes on without a disk whose server is away for longer than its deadline ($expired requests failed)"

    start_server leaves
    wait_for 60 state_is leaves live
    before=$(written_to "$leaves_disk")
    mdadm /dev/md0 --remove "$leaves_disk" >/tmp/mdadm 2>&1 || fail "mdadm --remove: $(cat /tmp/mdadm)"
    mdadm /dev/md0 --re-add "$leaves_disk" >/tmp/mdadm 2>&1 || fail "mdadm --re-add: $(cat /tmp/mdadm)"
    wait_for 120 in_sync
    copied=$(($(written_to "$leaves_disk") - before))
    dmesg | grep -Eq 'md: recover[y]? of RAID array md0' || fail "the kernel log has no recovery"
    [ "$copied" -gt 0 ] || fail "nothing was written to the disk that came back"
    [ "$copied" -lt $((mib * 1048576 * 3 / 4)) ] || fail "$copied bytes were written to the disk that came back"
    [ "$(field stays errors)" = 0 ] || fail "the other disk has errors"
    umount /mnt
    fsck.ext4 -fn /dev/md0 >/tmp/fsck 2>&1 || fail "fsck: $(cat /tmp/fsck)"
    mount -t ext4 -o ro /dev/md0 /mnt
    tree_is_whole
    cmp /usr/bin/dash /mnt/meanwhile || fail "what was written to the degraded array"
    umount /mnt
    mdadm --stop /dev/md0 >/tmp/mdadm 2>&1 || fail "mdadm --stop: $(cat /tmp/mdadm)"
    ok "resynchronised by the bitmap: $((copied / 1024)) KiB of $((mib * 1024)) were written ($front)"
    legs_are_equal "$disk_stays" "$leaves_disk"
    end_disks stays leaves
    legs_are_equal "$store/stays.img" "$store/leaves.img"
}

luks() {
    new_disks secret
    echo "correct horse" >/tmp/key
    mkdir -p /run/cryptsetup
    cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /tmp/key \
        "$disk_secret" || fail "luksFormat"
    cryptsetup open --allow-discards --key-file /tmp/key "$disk_secret" clear || fail "open"
    mkfs.ext4 -q /dev/mapper/clear
    mount -t ext4 /dev/mapper/clear /mnt
    outage tree_to_mnt secret
    echo "a marker that nobody else has" >/mnt/marker
    umount /mnt
    cryptsetup close clear || fail "close"
    no_errors secret
    detach secret
    ! grep -q "a marker that nobody" "$store/secret.img" || fail "the server's image holds what was to be secret"
    attach secret
    [ "$(blkid -o value -s TYPE "$disk")" = crypto_LUKS ] || fail "blkid does not see LUKS"
    cryptsetup open --key-file /tmp/key "$disk" clear || fail "open again"
    fsck.ext4 -fn /dev/mapper/clear >/tmp/fsck 2>&1 || fail "fsck: $(cat /tmp/fsck)"
    mount -t ext4 -o ro /dev/mapper/clear /mnt
    tree_is_whole
    grep -q "a marker" /mnt/marker || fail "the marker"
    umount /mnt
    cryptsetup close clear
    end_disks secret
    ok "LUKS, with its server killed meanwhile ($front)"
}

# There is no udev here to do its part.
lvm() {
    command lvm "$@" --config "activation { udev_sync = 0 udev_rules = 0 }" >/tmp/lvm 2>&1 || fail "lvm $*: $(cat /tmp/lvm)"
}

lvm_volumes() {
    new_disks first second
    lvm pvcreate "$disk_first"
    lvm vgcreate group "$disk_first"
    lvm lvcreate -y -W n -Z n -l 100%FREE -n volume group
    mkfs.ext4 -q /dev/group/volume
    mount -t ext4 /dev/group/volume /mnt
    tree_to_mnt
    before=$(df -k /mnt | awk 'NR == 2 { print $2 }')
    lvm pvcreate "$disk_second"
    lvm vgextend group "$disk_second"
    lvm lvextend -l +100%FREE group/volume
    resize2fs /dev/group/volume >/dev/null 2>&1 || fail "resize2fs"
    [ "$(df -k /mnt | awk 'NR == 2 { print $2 }')" -gt $((before * 3 / 2)) ] || fail "the file system did not grow"
    # More than the first disk holds, of which LVM takes some for itself.
    fill_volume() { tree_to_mnt && pattern /mnt/fill $mib && sync -f /mnt; }
    outage fill_volume first second
    umount /mnt
    lvm vgchange -an group
    no_errors first second
    detach first second
    attach second
    attach first
    lvm vgscan --mknodes
    lvm vgchange -ay group
    fsck.ext4 -fn /dev/group/volume >/tmp/fsck 2>&1 || fail "fsck: $(cat /tmp/fsck)"
    mount -t ext4 -o ro /dev/group/volume /mnt
    tree_is_whole
    umount /mnt
    lvm vgremove -f group
    end_disks first second
    ok "LVM, grown onto a second server's disk while mounted, both killed meanwhile ($front)"
}

[ $# -gt 0 ] || set -- linear raid luks lvm
# Resynchronising is not to wait for a quiet moment.
echo 100000 >/proc/sys/dev/raid/speed_limit_min
make_tree
for part in "$@"; do
    case $part in
        linear) linear && front=fuse && linear && front=ublk ;;
        lvm) lvm_volumes ;;
        *) $part ;;
    esac
done
rm -rf /tmp/tree /tmp/key /tmp/fsck /tmp/lvm /tmp/mdadm
