# shellcheck shell=bash
# The emulator, by package, in the cache: $DST_CACHE/qemu/VERSION/ is a tree with its own C library,
# so nothing is installed on this machine. And one guest on it: an emulated machine that runs until
# it powers off or its time is up.
# States of a guest, told by its control port (see init): started -> up -> exited N. One that ends
# before "up" never ran any of the test and is started again; under emulation about 1 boot in 24
# of a two-processor guest dies there. One that ends after "up" without "exited" has crashed, which
# is a result.

# QEMU 7.2 of Debian 12 is of no use here: its CMPXCHG16B leaves garbage in EFLAGS, and guests die of
# it at random places.
readonly QEMU_SUITE=trixie
readonly BOOT_ATTEMPTS=4
# Seconds until init must have been reached; 3 on a quiet machine.
readonly BOOT_TIMEOUT=120

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

# guest_start DIR KERNEL INITRD MEMORY CPUS APPEND [QEMU-ARGUMENT...]: starts a guest whose script
# writes to this script's standard output. Sets QEMU_PID. Its logs are DIR/kernel.log and
# DIR/control.
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
    QEMU_PID=$!
}

# guest_stop: ends the guest at once, if there is one.
guest_stop() {
    [ -n "${QEMU_PID:-}" ] || return 0
    kill -KILL "$QEMU_PID" 2>/dev/null || true
    wait "$QEMU_PID" 2>/dev/null || true
    QEMU_PID=
}

# guest_ended: has the emulator ended?
guest_ended() { ! kill -0 "$QEMU_PID" 2>/dev/null; }

# guest_wait DIR LINE SECONDS: waits for a line of the control port that starts with LINE, or for
# the guest's end, or for the time to be up, which is the only case that fails.
guest_wait() {
    local deadline=$((SECONDS + $3))
    while ! grep -q "^$2" "$1/control" && ! guest_ended; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# guest_run DIR TIMEOUT START-ARGUMENT...: boots a guest until one gets up, waits for its end and
# returns the script's exit code.
guest_run() {
    local dir=$1 timeout=$2 attempt
    shift 2
    for ((attempt = 1; ; attempt++)); do
        guest_start "$dir" "$@"
        guest_wait "$dir" up "$BOOT_TIMEOUT" || true
        ! grep -q '^up' "$dir/control" || break
        guest_stop
        if [ "$attempt" = "$BOOT_ATTEMPTS" ]; then
            say "the guest never reached init, $attempt times"
            return "$EXIT_HARNESS"
        fi
        say "the guest died before init, starting it again"
    done
    if ! guest_wait "$dir" exit "$timeout"; then
        guest_stop
        say "the guest was still busy after $timeout s"
        return "$EXIT_TIMEOUT"
    fi
    guest_status "$dir"
}

# guest_status DIR: ends the guest and returns what its script returned.
guest_status() {
    local status
    status=$(sed -n 's/^exit \([0-9]*\).*$/\1/p' "$1/control")
    if [ -z "$status" ]; then
        guest_stop
        say "the guest died"
        return "$EXIT_HARNESS"
    fi
    # What the script wrote is out when its exit code is, so the rest of the shutdown is of no use.
    guest_stop
    return "$status"
}
