# shellcheck shell=bash
# Stock Debian kernels, by package, unpacked in the cache:
#   $DST_CACHE/kernel/VERSION/vmlinuz, $DST_CACHE/kernel/VERSION/modules/lib/modules/VERSION/

# The suites whose kernels are of interest: 6.12 is in the first, 7.x in the second.
readonly KERNEL_SUITES="bookworm-backports trixie-backports"

# kernel_cached PREFIX: prints the newest version in the cache that starts with PREFIX.
kernel_cached() {
    local dir
    for dir in "$DST_CACHE/kernel/"*; do
        if [ -e "$dir/vmlinuz" ] && kernel_matches "$1" "${dir##*/}"; then printf '%s\n' "${dir##*/}"; fi
    done | sort -V | tail -n 1
}

# kernel_matches PREFIX VERSION: whole components only, so that 7.1 is not the start of 7.12.
kernel_matches() {
    case $2 in
        "$1" | "$1".* | "$1"+*) return 0 ;;
        *) return 1 ;;
    esac
}

# kernel_newest PREFIX: prints the newest version of the archive that starts with PREFIX.
kernel_newest() {
    local version
    apt-cache pkgnames linux-image- | sed -n 's/^linux-image-\([0-9].*-cloud-amd64\)$/\1/p' |
        while read -r version; do
            if kernel_matches "$1" "$version"; then printf '%s\n' "$version"; fi
        done | sort -V | tail -n 1
}

# kernel_get PREFIX REFRESH: sets KERNEL_DIR to the directory and KERNEL_VERSION to the full version of
# the newest kernel that starts with PREFIX. Asks the archive only if the cache has none, or if
# REFRESH is yes.
kernel_get() {
    local prefix=$1 refresh=$2
    KERNEL_VERSION=$(kernel_cached "$prefix")
    if [ -z "$KERNEL_VERSION" ] || [ "$refresh" = yes ]; then
        with_lock kernel kernel_fetch "$prefix" "$refresh"
    fi
    # shellcheck disable=SC2034 # for the caller
    KERNEL_DIR=$DST_CACHE/kernel/$KERNEL_VERSION
}

kernel_fetch() {
    local prefix=$1 refresh=$2 package packages=() target new
    # Whoever held the lock before may have fetched it.
    KERNEL_VERSION=$(kernel_cached "$prefix")
    [ -z "$KERNEL_VERSION" ] || [ "$refresh" = yes ] || return 0
    # shellcheck disable=SC2086 # a list of suites
    debian_apt "$SCRATCH/apt-kernel" $KERNEL_SUITES
    KERNEL_VERSION=$(kernel_newest "$prefix")
    [ -n "$KERNEL_VERSION" ] || die "no kernel $prefix in $KERNEL_SUITES"
    target=$DST_CACHE/kernel/$KERNEL_VERSION
    [ ! -e "$target/vmlinuz" ] || return 0
    say "fetching kernel $KERNEL_VERSION"
    # Older kernels are one package, newer ones are split.
    for package in image binary modules base; do
        package=linux-$package-$KERNEL_VERSION
        if apt-cache pkgnames "$package" | grep -qxF "$package"; then packages+=("$package"); fi
    done
    new=$(mktemp -d "$SCRATCH/kernel.XXXXXX")
    mkdir -p "$new/root/usr/lib" "$new/kernel/modules/lib"
    ln -s usr/lib "$new/root/lib"
    debian_unpack "$new/root" "${packages[@]}"
    find "$new/root" -name 'vmlinuz*' -type f -exec mv {} "$new/kernel/vmlinuz" \;
    mv "$new/root/usr/lib/modules" "$new/kernel/modules/lib/"
    depmod -b "$new/kernel/modules" "$KERNEL_VERSION"
    cache_put "$new/kernel" "$target"
}
