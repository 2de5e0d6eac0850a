# shellcheck shell=bash
# What a Rust module for a stock Debian kernel is built with: a small Debian tree that holds the very
# rustc that built the kernel, and the kernel's headers with the Rust part that their package lacks.
#   $DST_CACHE/toolchain/VERSION/rust.tar.zst   that part: metadata of the kernel's crates, 50 MB,
#                                               built from the kernel's source in some minutes
#   $DST_CACHE/toolchain/VERSION/root/          the tree, 900 MB, made anew in a minute or two
# Each is made if it is missing. Needs root, for chroot.

# The suite with the compiler, and the one with the kernel that was built by it.
readonly TOOLCHAIN_SUITE=trixie
readonly TOOLCHAIN_KERNEL_SUITE=trixie-backports

# toolchain_get REFRESH: sets KERNEL_VERSION to the newest kernel of the cache, or of the archive if
# the cache has none or REFRESH is yes, and TOOLCHAIN to the tree to build modules for it in.
toolchain_get() {
    with_lock toolchain toolchain_make "$1"
    # shellcheck disable=SC2034 # for the caller
    TOOLCHAIN=$DST_CACHE/toolchain/$KERNEL_VERSION/root
}

toolchain_make() {
    local refresh=$1 dir
    KERNEL_VERSION=$(toolchain_cached)
    if [ -z "$KERNEL_VERSION" ] || [ "$refresh" = yes ]; then
        toolchain_apt
        KERNEL_VERSION=$(toolchain_newest)
    fi
    dir=$DST_CACHE/toolchain/$KERNEL_VERSION
    [ ! -e "$dir/rust.tar.zst" ] || [ ! -e "$dir/root" ] || return 0
    toolchain_apt
    [ -e "$dir/rust.tar.zst" ] || toolchain_make_rust "$dir"
    [ -e "$dir/root" ] || toolchain_make_root "$dir"
}

toolchain_cached() {
    local dir
    for dir in "$DST_CACHE/toolchain/"*/; do
        if [ -e "$dir/rust.tar.zst" ]; then basename "$dir"; fi
    done | sort -V | tail -n 1
}

toolchain_apt() {
    [ -n "${APT_CONFIG:-}" ] || debian_apt "$SCRATCH/apt" "$TOOLCHAIN_SUITE" "$TOOLCHAIN_KERNEL_SUITE"
}

toolchain_newest() {
    apt-cache pkgnames linux-headers- |
        sed -n 's/^linux-headers-\([7-9]\..*-cloud-amd64\)$/\1/p' | sort -V | tail -n 1
}

# toolchain_tree DIR PACKAGE...: a Debian tree with the kernel's headers and these packages.
toolchain_tree() {
    local dir=$1 version packages package
    shift
    version=$(toolchain_package_version)
    packages=make,rustc,kmod,linux-headers-$KERNEL_VERSION=$version
    for package in "$@"; do
        packages+=,$package
    done
    debian_sources "$TOOLCHAIN_SUITE" "$TOOLCHAIN_KERNEL_SUITE" >"$SCRATCH/tree.sources"
    # Its mounts are in a name space of its own, so that they end with it.
    env -u APT_CONFIG nice unshare --mount --propagation private mmdebstrap --quiet --mode=root --variant=apt \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --include="$packages" "$TOOLCHAIN_SUITE" "$dir" "$SCRATCH/tree.sources"
}

# toolchain_package_version: of the packages of this kernel, headers and source alike.
toolchain_package_version() {
    apt-cache show "linux-headers-$KERNEL_VERSION" | sed -n 's/^Version: //p' | head -n 1
}

# toolchain_enter ROOT WORK SCRIPT: runs a shell script in the tree ROOT with the directory WORK at
# /mnt, which is also the working directory. The mounts end with it.
toolchain_enter() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount --propagation private bash -euc '
        mount -t proc proc "$1/proc"
        mount --bind "$2" "$1/mnt"
        exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
            /bin/bash -euc "cd /mnt; $3"' toolchain_enter "$1" "$2" "$3"
}

# toolchain_make_rust DIR: builds the kernel's Rust crates from its source; only what a module needs
# of them is kept.
toolchain_make_rust() {
    local dir=$1 series source tree=$SCRATCH/full work=$SCRATCH/rust
    series=$(cut -d. -f1,2 <<<"$KERNEL_VERSION")
    source=linux-source-$series=$(toolchain_package_version)
    say "building the Rust part of kernel $KERNEL_VERSION (once, 4 minutes and more)"
    toolchain_tree "$tree" "$source" rust-src bindgen libclang-dev clang flex bison bc libelf-dev \
        libssl-dev python3-minimal xz-utils rsync cpio
    mkdir "$work"
    toolchain_enter "$tree" "$work" "
        tar -xf /usr/src/linux-source-$series.tar.xz --strip-components=1
        cp /usr/src/linux-headers-$KERNEL_VERSION/.config .
        nice make -s -j$(nproc) ARCH=x86 CC=x86_64-linux-gnu-gcc-14 KERNELRELEASE=$KERNEL_VERSION \
            olddefconfig modules_prepare" >"$SCRATCH/rust.log" 2>&1 || {
        tail -n 40 "$SCRATCH/rust.log" >&2
        die "the kernel's Rust crates do not build"
    }
    (cd "$work" && tar -cf - rust/*.rmeta rust/*.so scripts/target.json) | zstd -q -10 >"$SCRATCH/rust.tar.zst"
    mkdir -p "$dir"
    cache_put "$SCRATCH/rust.tar.zst" "$dir/rust.tar.zst"
    rm -rf --one-file-system "$tree" "$work"
}

# toolchain_make_root DIR: the tree for everyday use.
toolchain_make_root() {
    local dir=$1 tree=$SCRATCH/root
    say "making the build tree for kernel $KERNEL_VERSION (once, 1 minute and more)"
    toolchain_tree "$tree"
    zstd -qdc "$dir/rust.tar.zst" | tar -C "$tree/usr/src/linux-headers-$KERNEL_VERSION" -xf -
    cache_put "$tree" "$dir/root"
}
