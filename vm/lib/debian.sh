# shellcheck shell=bash
# Debian packages without installing them: a private apt (own lists, own idea of what is installed:
# nothing) on the archive that this machine's own apt configuration names.

# debian_sources SUITE...: prints a deb822 stanza for those suites of the machine's archive.
debian_sources() {
    local own=${DST_DEBIAN_SOURCES:-/etc/apt/sources.list.d/debian.sources}
    [ -r "$own" ] || die "cannot read $own: name a deb822 file with the archive in DST_DEBIAN_SOURCES"
    awk -v suites="$*" 'BEGIN { RS = "" } NR == 1 { n = split($0, line, "\n")
        for (i = 1; i <= n; i++) {
            if (line[i] ~ /^#/) continue
            if (line[i] ~ /^Suites:/) line[i] = "Suites: " suites
            print line[i]
        } }' "$own"
}

# debian_release: the code name of the release that this machine runs.
debian_release() {
    # shellcheck source=/dev/null
    (. /etc/os-release && printf '%s\n' "$VERSION_CODENAME")
}

# debian_apt DIR SUITE...: prepares a private apt in DIR and fetches its lists. From then on
# apt-get and apt-cache of this script use it.
debian_apt() {
    local dir=$1
    shift
    mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial" "$dir/sources"
    debian_sources "$@" >"$dir/sources/archive.sources"
    cat >"$dir/apt.conf" <<EOF
Dir::State "$dir/state";
Dir::State::status "/dev/null";
Dir::Cache "$dir/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$dir/sources";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Update::Post-Invoke-Success { "true"; };
EOF
    export APT_CONFIG=$dir/apt.conf
    apt-get -qq update || die "apt-get update failed for: $*"
}

# debian_unpack DIR PACKAGE...: downloads exactly these packages and unpacks them into DIR.
debian_unpack() {
    local dir=$1 debs deb
    shift
    debs=$(mktemp -d "$SCRATCH/debs.XXXXXX")
    (cd "$debs" && apt-get -qq download "$@") || die "cannot download: $*"
    for deb in "$debs"/*.deb; do
        debian_extract "$deb" "$dir"
    done
    rm -rf -- "$debs"
}

# debian_unpack_closure DIR PACKAGE...: the same with everything that the packages depend on.
debian_unpack_closure() {
    local dir=$1 debs deb
    shift
    debs=$(mktemp -d "$SCRATCH/debs.XXXXXX")
    mkdir "$debs/partial"
    apt-get -qq -y -o "Dir::Cache::archives=$debs" -o Debug::NoLocking=1 --download-only \
        install "$@" >"$debs/log" 2>&1 || {
        cat "$debs/log" >&2
        die "cannot download with dependencies: $*"
    }
    for deb in "$debs"/*.deb; do
        debian_extract "$deb" "$dir"
    done
    rm -rf -- "$debs"
}

# debian_extract DEB DIR: like dpkg -x, but leaves directory links of DIR (/bin, /lib) as they are.
debian_extract() {
    mkdir -p "$2"
    dpkg-deb --fsys-tarfile "$1" | tar -C "$2" --keep-directory-symlink --no-same-owner -xpf -
}
