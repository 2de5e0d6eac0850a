#!/bin/sh
# shellcheck source-path=SCRIPTDIR
# In the guest, best with more processors than the machine has: many processes that each wait for their own small request, so
# that the driver's wake-ups and the agent's sleeps meet at every moment that there is. None of them may be lost.
# usage: busy.sh [SECONDS]   30 unless given
# Modules: ublk_drv. Files: dst, devices.sh, /usr/bin/fio.
set -eu
# shellcheck source=devices.sh
. /dst/devices.sh
seconds=${1:-30}

dst serve --listen dst+unix:///tmp/busy.sock null=null:1G >/tmp/server.log 2>&1 &
server=$!
wait_for 20 test -S /tmp/busy.sock
dst attach --front-end ublk --retain 8M 'dst+unix:///tmp/busy.sock?export=null' >/tmp/attached 2>&1 || fail "attach: $(cat /tmp/attached)"
disk=$(readlink -f /dev/dst/null)

# Of the totals; the rates have the same names.
done_so_far() {
    dst status --json null |
        awk -F'[:,]' '/"totals"/ { within = 1 } within && /"(reads|writes)"/ { sum += $2 } /}/ { within = 0 } END { printf "%.0f\n", sum }'
}
fio --name=busy --filename="$disk" --direct=1 --rw=randrw --bs=4k --ioengine=psync --thread --numjobs=12 --time_based \
    --runtime="$seconds" --group_reporting >/tmp/fio.log 2>&1 &
fio=$!
before=-1 still=0
while [ -e "/proc/$fio/exe" ]; do
    sleep 5
    now=$(done_so_far)
    [ "$now" = "$before" ] && still=$((still + 1)) || still=0
    [ $still -lt 6 ] || { [ ! -e "/proc/$fio/exe" ] || fail "nothing has come for 30 s, after $now requests: $(dst status null)"; }
    before=$now
done
wait "$fio" || fail "fio: $(cat /tmp/fio.log)"
no_errors null
[ "$(done_so_far)" -gt 1000 ] || fail "only $(done_so_far) requests"
ok "$(done_so_far) requests of 12 processes in $seconds s, none left behind"
detach null
kill "$server"
wait "$server" || fail "the server"
rm -f /tmp/busy.sock /tmp/server.log /tmp/fio.log
