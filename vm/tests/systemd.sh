#!/bin/sh
# In a guest that runs systemd (vm/systemd): a device is attached at boot, mounted by fstab, known to udev, and detached in
# order at shutdown, before the network goes and after its mount is gone. At the second boot everything is there.
# Argument, from the kernel's command line: dst.test=first or second.
boot=$(sed -n 's/.*dst\.test=\([a-z]*\).*/\1/p' /proc/cmdline)
end=poweroff
[ "$boot" = second ] || end=reboot

finish() {
    echo "$1" >/run/verdict
    systemctl --no-block "$end" 2>/dev/null
    exit 0
}

fail() {
    echo "FAILED ($boot boot): $*"
    systemctl --no-pager --full status 'dst-*' mnt.mount dev-dst-disk.device
    cat /run/dst/disk/log
    udevadm info /dev/dst/disk
    journalctl --no-pager -b | tail -n 60
    finish 1
}

# wait_for SECONDS COMMAND...
wait_for() {
    left=$1
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "still not: $*"
        sleep 1
    done
}

# sums DIRECTORY: of every file in it.
sums() { (cd "$1" && find . -type f -exec cksum {} + | sort); }

# A test that waits for the mount is a part of the boot, so it waits outside of it.
mounted() { mountpoint -q /mnt; }
wait_for 180 mounted
[ "$(systemctl is-active dst-attach@disk.service)" = active ] || fail "the unit is not active"
disk=$(readlink -f /dev/dst/disk)
findmnt -n -o SOURCE /mnt | grep -q "$disk" || fail "/mnt is not on $disk"
main=$(systemctl show -p MainPID --value dst-attach@disk.service)
[ "$main" = "$(dst status --json disk | sed -n 's/^ *"pid": *\([0-9]*\).*/\1/p')" ] || fail "the main process is $main"
echo "ok: attached and mounted at boot; the unit's main process is the agent"

udevadm settle --timeout 60 || fail "udev does not settle"
id=$(dst status --json disk | sed -n 's/^ *"export_id": *"\([0-9a-f]*\)".*/\1/p')
[ "$(readlink -f "/dev/disk/by-id/dst-$id")" = "$disk" ] || fail "no /dev/disk/by-id/dst-$id: $(ls /dev/disk/by-id)"
uuid=$(blkid -o value -s UUID "$disk")
[ "$(readlink -f "/dev/disk/by-uuid/$uuid")" = "$disk" ] || fail "no by-uuid link"
udevadm info -q property "$disk" | grep -qx DM_MULTIPATH_DEVICE_PATH=0 || fail "multipath may take it"
lsblk -n -o NAME,SERIAL,MOUNTPOINT "$disk" | grep -q "dst-$id\|$id" || fail "lsblk: $(lsblk -o NAME,SERIAL "$disk")"
[ "$(blockdev --getsize64 "$disk")" = 134217728 ] || fail "blockdev: $(blockdev --getsize64 "$disk")"
fdisk -l "$disk" | grep -q "134217728 bytes" || fail "fdisk: $(fdisk -l "$disk")"
echo "ok: udev has /dev/disk/by-id/dst-$id; lsblk, blkid, blockdev, fdisk, udevadm settle behave"

# A reader of the same export leaves the links where they are, whoever is looked at last.
dst attach --read-only --front-end fuse --name reader 'dst+unix:///run/dst-main.sock?export=disk' >/dev/null || fail "a reader"
reader=$(readlink -f /dev/dst/reader)
echo change >"/sys/class/block/${reader##*/}/uevent"
udevadm settle --timeout 60 || fail "udev does not settle"
udevadm info -q property "$reader" | grep -qx "DST_EXPORT_ID=$id" || fail "udev does not know the reader"
[ "$(readlink -f "/dev/disk/by-id/dst-$id")" = "$disk" ] || fail "/dev/disk/by-id/dst-$id is the reader"
[ "$(readlink -f "/dev/disk/by-uuid/$uuid")" = "$disk" ] || fail "the by-uuid link is the reader's"
dst detach reader >/dev/null || fail "detach the reader"
echo "ok: beside a reader the links are the writer's"

if [ "$boot" = first ]; then
    # Not synced: that is for the shutdown to do.
    cp -a /usr/lib/systemd /mnt/copy || fail "copying"
    echo "ok: written to; rebooting"
    finish 0
fi

[ "$(cat /run/fsck.status)" = 0 ] || fail "the image was not clean: $(cat /run/fsck.log)"
[ "$(sums /mnt/copy)" = "$(sums /usr/lib/systemd)" ] || fail "other bytes after the reboot"
echo "ok: the image was clean and everything is there after the reboot"

# line TEXT: where it stands in the journal of the boot before.
journalctl --no-pager -b -1 -o cat >/run/before
line() {
    found=$(grep -n -- "$1" /run/before | tail -n 1 | cut -d: -f1)
    [ -n "$found" ] || fail "nothing of '$1' in the journal: $(tail -n 80 /run/before)"
    echo "$found"
}
unmounted=$(line "Unmounted .*/mnt") || { echo "$unmounted"; finish 1; }
detached=$(line "^disk is detached$") || { echo "$detached"; finish 1; }
network=$(line "the network goes down") || { echo "$network"; finish 1; }
drained=$(line "Stopped dst-serve@main") || { echo "$drained"; finish 1; }
[ "$unmounted" -lt "$detached" ] || fail "detached at line $detached, unmounted at $unmounted"
[ "$detached" -lt "$network" ] || fail "detached at line $detached, network down at $network"
[ "$detached" -lt "$drained" ] || fail "detached at line $detached, server stopped at $drained"
! grep -q "dst-attach@disk.service: Failed" /run/before || fail "the unit failed at shutdown"
echo "ok: at shutdown the mount went first, then the device, then the network"

systemctl stop dst-attach@disk.service || fail "stop"
! mounted || fail "still mounted after its device was stopped"
[ ! -e /run/dst/disk ] || fail "stopped, and still attached"
udevadm settle --timeout 60
[ ! -e "/dev/disk/by-id/dst-$id" ] || fail "the link outlives its device"
fsck.ext4 -fn /srv/disk.img >/dev/null || fail "fsck after stop"
systemctl start mnt.mount || fail "start"
mounted || fail "not mounted again"
echo "ok: stop takes the mount along and detaches, start of the mount attaches"
echo "ok: clean" >/mnt/last
finish 0
