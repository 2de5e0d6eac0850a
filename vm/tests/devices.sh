# shellcheck shell=sh
# In the guest: what tests of several devices have in common: each device NAME has a server of its own, at a Unix socket, with
# the image $store/NAME.img. To be sourced.
store=${store:-/tmp}
# How devices are attached; a test may set it.
front=${front:-ublk}
begun=$(date +%s)

fail() {
    echo "FAILED: $*"
    dst status || true
    for log in /run/dst/*/log /tmp/*.server.log; do
        [ ! -e "$log" ] || { echo "$log:" && tail -n 20 "$log"; }
    done
    exit 1
}

# ok WHAT: with the seconds since the last one.
ok() {
    now=$(date +%s)
    echo "ok: $* ($((now - begun)) s)"
    begun=$now
}

# wait_for SECONDS COMMAND...: of a machine that is not emulated; here it tells only what hangs from what is slow.
wait_for() {
    left=$(($1 * 50))
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "still not: $*"
        sleep 0.1
    done
}

# ended PROCESS
ended() { ! kill -0 "$1" 2>/dev/null; }

# start_server NAME OPTION...: for $store/NAME.img.
start_server() {
    name=$1
    shift
    rm -f "/tmp/$name.sock"
    dst serve --lease-time 1s --listen "dst+unix:///tmp/$name.sock" "$@" "$store/$name.img" >>"/tmp/$name.server.log" 2>&1 &
    echo $! >"/tmp/$name.server"
}

# kill_server NAME
kill_server() {
    pid=$(cat "/tmp/$1.server")
    kill -9 "$pid"
    wait "$pid" || true
}

# stop_server NAME
stop_server() {
    pid=$(cat "/tmp/$1.server")
    kill "$pid"
    wait "$pid" || fail "the server of $1"
    rm -f "/tmp/$1.server" "/tmp/$1.server.log" "/tmp/$1.sock"
}

try_attach() { dst attach --front-end "$front" --retain 8M "$@" >/tmp/attached 2>&1; }

# attach NAME OPTION...: leaves the device in $disk.
attach() {
    name=$1
    shift
    wait_for 20 try_attach "$@" "dst+unix:///tmp/$name.sock?export=$name"
    disk=$(readlink -f "/dev/dst/$name")
    [ -b "$disk" ] || fail "$disk is no block device"
}

detach() { dst detach "$@" >/tmp/detached || fail "detach $*: $(cat /tmp/detached)"; }

# field NAME FIELD: of the device's status, as JSON has it.
field() {
    dst status --json "$1" | tr ',{}' '\n\n\n' | sed -n "s/^ *\"$2\": *//p" | head -n 1
}

# state_is NAME STATE
state_is() { [ "$(field "$1" state)" = "\"$2\"" ]; }

# no_errors NAME...
no_errors() {
    for name in "$@"; do
        [ "$(field "$name" errors)" = 0 ] || fail "$name: $(field "$name" errors) requests failed"
    done
}

# outage COMMAND NAME...: runs COMMAND again and again in the background; meanwhile the servers of these devices are killed, and
# started again once the devices have noticed. COMMAND writes the same to the same place each time.
outage() {
    command=$1
    shift
    rm -f /tmp/enough
    (while [ ! -e /tmp/enough ]; do $command || exit 1; done) &
    work=$!
    for name in "$@"; do
        wait_for 60 writing "$name"
    done
    for name in "$@"; do
        kill_server "$name"
    done
    for name in "$@"; do
        wait_for 30 state_is "$name" reconnecting
    done
    touch /tmp/enough
    for name in "$@"; do
        start_server "$name"
    done
    wait "$work" || fail "$command, while the servers were killed"
}

# writing NAME: requests are under way, or writes were done that are not durable yet.
writing() { [ $(($(field "$1" retained_bytes) + $(field "$1" in_flight))) -gt 0 ]; }

# nothing_left: of devices, directories, links.
nothing_left() {
    for node in /dev/ublkb* /dev/ublkc* /dev/dst/* /run/dst/*; do
        [ ! -e "$node" ] && [ ! -L "$node" ] || fail "left behind: $node"
    done
    [ -z "$(losetup -a)" ] || fail "left behind: $(losetup -a)"
}

# pattern FILE MIB: random bytes.
pattern() { dd if=/dev/urandom of="$1" bs=1M count="$2" 2>/dev/null; }
