# shellcheck shell=bash
# The emulator, by package, in the cache: $DST_CACHE/qemu/VERSION/ is a tree with its own C library,
# so nothing is installed on this machine. And guests on it: emulated machines that run until they
# power off or their time is up. Each has a directory of its own, which is also what it is called by.
# States of a guest, told by its control port (see init): started -> up -> exited N. One that ends
# before "up" never ran any of the test and is started again; under emulation about 1 boot in 24
# of a two-processor guest dies there. One that ends after "up" without "exited" has crashed, which
# is a result.

# QEMU 7.2 of Debian 12 is of no use here: its CMPXCHG16B leaves garbage in EFLAGS, and guests die of
# it at random places.
readonly QEMU_SUITE=trixie
readonly BOOT_ATTEMPTS=4
# Seconds until init must have been reached; 3 on a quiet machine.
readonly BOOT_TIMEOUT=300

# qemu_get REFRESH: sets QEMU to the tree.
qemu_get() {
    QEMU=$DST_CACHE/qemu/$QEMU_SUITE
    if [ ! -e "$QEMU/usr/bin/qemu-system-x86_64" ] || [ "$1" = yes ]; then with_lock qemu qemu_fetch "$1"; fi
}

qemu_fetch() {
    local new
    # Whoever held the lock before may have fetched it.
    if [ -e "$QEMU/usr/bin/qemu-system-x86_64" ] && [ "$1" = no ]; then return 0; fi
    say "fetching qemu-system-x86 of $QEMU_SUITE"
    debian_apt "$SCRATCH/apt-qemu" "$QEMU_SUITE"
    new=$(mktemp -d "$SCRATCH/qemu.XXXXXX")
    stage_new "$new/all"
    debian_unpack_closure "$new/all" qemu-system-x86 seabios
    mkdir -p "$new/qemu/usr"/{bin,lib,share}
    mv "$new/all/usr/bin/qemu-system-x86_64" "$new/qemu/usr/bin/"
    mv "$new/all/usr/lib/x86_64-linux-gnu" "$new/qemu/usr/lib/"
    mv "$new/all/usr/share"/{qemu,seabios} "$new/qemu/usr/share/"
    cache_put "$new/qemu" "$QEMU"
}

# Process of each guest that was started, by its directory.
declare -A GUEST_PID=()

# guest_start DIR KERNEL INITRD MEMORY CPUS APPEND [QEMU-ARGUMENT...]: starts a guest whose script
# writes to this script's standard output. Its logs are DIR/kernel.log and DIR/control.
guest_start() {
    local dir=$1 kernel=$2 initrd=$3 memory=$4 cpus=$5 append=$6
    shift 6
    : >"$dir/control"
    # The emulator dies with this shell, even when that is killed.
    local libraries=$QEMU/usr/lib/x86_64-linux-gnu
    QEMU_MODULE_DIR=$libraries/qemu setpriv --pdeathsig KILL \
        "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" \
        "$QEMU/usr/bin/qemu-system-x86_64" -L "$QEMU/usr/share/seabios" -L "$QEMU/usr/share/qemu" \
        -accel tcg,thread=multi -cpu max -smp "$cpus" -m "$memory" -no-reboot \
        -display none -monitor none -nodefaults \
        -kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 panic=-1 $append" \
        -serial "file:$dir/kernel.log" -serial stdio -serial "file:$dir/control" \
        "$@" </dev/null &
    GUEST_PID[$dir]=$!
}

# guest_stop DIR: ends the guest at once, if there is one.
guest_stop() {
    local pid=${GUEST_PID[$1]:-}
    [ -n "$pid" ] || return 0
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    unset "GUEST_PID[$1]"
}

# guests_stop: ends all guests.
guests_stop() {
    local dir
    for dir in "${!GUEST_PID[@]}"; do
        guest_stop "$dir"
    done
}

# guest_ended DIR: has the emulator ended?
guest_ended() { ! kill -0 "${GUEST_PID[$1]}" 2>/dev/null; }

# guest_said DIR LINE: has the guest sent a line that starts so?
guest_said() { grep -q "^$2" "$1/control"; }

# guest_done DIR: has its script ended, or the guest?
guest_done() { guest_said "$1" exit || guest_ended "$1"; }

# guest_up DIR COMMAND...: waits until the guest is up. One that dies before is started again by
# COMMAND.
guest_up() {
    local dir=$1 attempt deadline
    shift
    for ((attempt = 1; ; attempt++)); do
        deadline=$((SECONDS + BOOT_TIMEOUT))
        until guest_said "$dir" up || guest_ended "$dir" || [ "$SECONDS" -ge "$deadline" ]; do
            sleep 0.1
        done
        ! guest_said "$dir" up || return 0
        guest_stop "$dir"
        if [ "$attempt" = "$BOOT_ATTEMPTS" ]; then
            say "the guest never reached init, $attempt times"
            return "$EXIT_HARNESS"
        fi
        say "the guest died before init, starting it again"
        "$@"
    done
}

# guests_wait SECONDS DIR...: waits until the scripts of all these guests have ended, or one has
# failed, or the time is up, which is the only case that fails. The guests stay.
guests_wait() {
    local deadline=$((SECONDS + $1)) dir left
    shift
    while :; do
        left=no
        for dir in "$@"; do
            if ! guest_done "$dir"; then
                left=yes
            elif ! guest_said "$dir" 'exit 0$'; then
                return 0
            fi
        done
        [ "$left" = yes ] || return 0
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# guest_status DIR: what its script has returned; for a guest that is done.
guest_status() {
    local status
    status=$(sed -n 's/^exit \([0-9]*\).*$/\1/p' "$1/control")
    [ -n "$status" ] || return "$EXIT_HARNESS"
    return "$status"
}
