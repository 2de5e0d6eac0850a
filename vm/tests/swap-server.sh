#!/bin/sh
# In the second of two guests: the server's machine of swap.sh.
set -eu
dst serve --insecure --lease-time 1s swap=memory:512M >/tmp/server.log 2>&1 &
server=$!
tell serving
await stop
kill "$server"
wait "$server" || { cat /tmp/server.log && exit 1; }
