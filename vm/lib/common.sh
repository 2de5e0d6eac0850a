# shellcheck shell=bash
# What every script of vm/ and kernel/ starts with: messages, the cache directory, a temporary
# directory that goes away, a lock on what is being put into the cache.
#
# The cache is ${DST_CACHE:-$HOME/.cache/dst}, outside the repository. Everything in it can be made
# again, so it may be deleted at any time at which nothing runs. An entry appears by one rename, so
# an interrupted script leaves no half entry behind.

set -euo pipefail

DST_CACHE=${DST_CACHE:-$HOME/.cache/dst}

# Exit code for a failure of the harness itself; a test script's own code is passed through.
readonly EXIT_HARNESS=125
# Exit code for a guest that outlived its time, as timeout(1) has it.
# shellcheck disable=SC2034 # for those who read this file
readonly EXIT_TIMEOUT=124

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit "$EXIT_HARNESS"
}

# Whatever goes wrong unforeseen is a failure of the harness too.
set -E
trap 'die "${BASH_SOURCE[0]##*/}:$LINENO: command failed"' ERR

# need COMMAND PACKAGE: refuses to go on without a command, and names the package that has it.
need() {
    command -v "$1" >/dev/null || die "needs $1: apt-get install $2"
}

# make_scratch: sets SCRATCH to a private directory, removed by the EXIT trap of the script.
make_scratch() {
    SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/dst-${0##*/}.XXXXXX")
}

# remove_scratch: for the EXIT trap.
remove_scratch() {
    [ -z "${SCRATCH:-}" ] || rm -rf --one-file-system -- "$SCRATCH"
}

# with_lock NAME COMMAND...: runs COMMAND while no other process does work under the same name. The
# lock ends with this process, however it ends.
with_lock() {
    local name=$1 fd
    shift
    mkdir -p "$DST_CACHE"
    exec {fd}>"$DST_CACHE/$name.lock"
    flock "$fd"
    "$@"
    exec {fd}>&-
}

# cache_put NEW TARGET: moves a finished entry into the cache by one rename, also from another file
# system.
cache_put() {
    local new=$1 target=$2 near
    mkdir -p "${target%/*}"
    near=$(mktemp -d "${target%/*}/.new.XXXXXX")
    mv "$new" "$near/entry"
    rm -rf -- "$target"
    mv "$near/entry" "$target"
    rmdir "$near"
}
