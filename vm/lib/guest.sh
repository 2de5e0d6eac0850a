# shellcheck shell=bash
# The parts of the guest's initramfs:
#   $DST_CACHE/guest/RELEASE/PACKAGE.cpio   the files of one Debian package and the libraries they
#                                           need; of the release that this machine runs, so that
#                                           they share a C library with the programs built here
#   a small archive per run                 init, the test script, kernel modules, given files

# What every guest has. A shell other than busybox, which prefers its own applets to real programs.
# shellcheck disable=SC2034 # for those who read this file
readonly GUEST_PACKAGES="busybox-static dash bash kmod util-linux e2fsprogs"

# guest_packages REFRESH PACKAGE...: sets GUEST_ARCHIVES to the archives of these packages, made
# now if the cache lacks one.
guest_packages() {
    local refresh=$1 dir package missing=()
    shift
    dir=$DST_CACHE/guest/$(debian_release)
    GUEST_ARCHIVES=()
    for package in "$@"; do
        GUEST_ARCHIVES+=("$dir/$package.cpio")
        if [ "$refresh" = yes ] || [ ! -e "$dir/$package.cpio" ]; then missing+=("$package"); fi
    done
    [ ${#missing[@]} -eq 0 ] || with_lock guest guest_fetch "$dir" "$refresh" "${missing[@]}"
}

guest_fetch() {
    local dir=$1 refresh=$2 package release work
    shift 2
    release=$(debian_release)
    debian_apt "$SCRATCH/apt-guest" "$release" "$release-updates"
    for package in "$@"; do
        [ "$refresh" = yes ] || [ ! -e "$dir/$package.cpio" ] || continue
        say "fetching package $package"
        work=$(mktemp -d "$SCRATCH/guest.XXXXXX")
        stage_new "$work/all"
        debian_unpack_closure "$work/all" "$package"
        stage_new "$work/own"
        debian_unpack "$work/own" "$package"
        rm -rf "$work"/own/usr/share/{doc,man,info,locale,lintian,bash-completion,bug}
        stage_libraries "$work/own" "$work/all"
        stage_archive "$work/own" "$work/archive"
        cache_put "$work/archive" "$dir/$package.cpio"
        rm -rf -- "$work"
    done
}

# guest_modules STAGE NAME...: the modules of $KERNEL_DIR with these names and all they depend on, with
# an index, so that modprobe finds them. A name built into the kernel is no error.
guest_modules() {
    local stage=$1 tree file base
    shift
    tree=/lib/modules/$KERNEL_VERSION
    mkdir -p "$stage$tree"
    cp "$KERNEL_DIR/modules$tree"/modules.{order,builtin,builtin.modinfo} "$stage$tree/"
    for base in "$@"; do
        modprobe -d "$KERNEL_DIR/modules" -S "$KERNEL_VERSION" --show-depends "$base" \
            >"$SCRATCH/depends" || die "kernel $KERNEL_VERSION has no module $base"
        while read -r file; do
            file=${file#"$KERNEL_DIR/modules"}
            mkdir -p "$stage$(dirname "$file")"
            # Not every kernel unpacks modules itself, and one that can't complains.
            xz -dc "$KERNEL_DIR/modules$file" >"$stage${file%.xz}"
        done < <(sed -nE 's/^insmod ([^ ]+).*$/\1/p' "$SCRATCH/depends")
    done
    depmod -b "$stage" "$KERNEL_VERSION"
}
