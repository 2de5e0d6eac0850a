# shellcheck shell=bash
# Putting together what the guest's root file system holds. A stage is a directory with the layout
# of a merged-/usr Debian (/bin, /sbin, /lib, /lib64 are links), which becomes one archive of the
# initramfs; the kernel unpacks several archives one after the other into the same root.

# stage_new DIR
stage_new() {
    local dir=$1
    mkdir -p "$dir"/usr/{bin,sbin,lib,lib64} "$dir"/{dev,proc,sys,run,tmp,etc,root,mnt,var}
    ln -s usr/bin usr/sbin usr/lib usr/lib64 "$dir/"
}

# stage_file STAGE SOURCE GUESTPATH: one file or directory, with the shared libraries that the
# programs in it need on this machine.
stage_file() {
    local stage=$1 source=$2 guest=$3 file library
    [ -e "$source" ] || die "no such file: $source"
    mkdir -p "$stage$(dirname "$guest")"
    cp -rL --preserve=mode,timestamps "$source" "$stage$guest"
    while IFS= read -r -d '' file; do
        is_dynamic "$file" || continue
        while read -r library; do
            [ ! -e "$stage$library" ] || continue
            mkdir -p "$stage$(dirname "$library")"
            cp -L --preserve=mode,timestamps "$library" "$stage$library"
        done < <(ldd "$file" |
            sed -nE 's/^.*=> (\/[^ ]+) .*$/\1/p; s/^[[:space:]]*(\/[^ ]*ld-[^ ]+) \(.*$/\1/p')
    done < <(find "$stage$guest" -type f -print0)
}

# stage_libraries STAGE ROOT: the shared libraries that the programs in STAGE need, from ROOT, a
# stage that holds whole packages.
stage_libraries() {
    local stage=$1 root=$2 file library found pending=() seen=" "
    while IFS= read -r -d '' file; do
        ! is_dynamic "$file" || pending+=("$file")
    done < <(find "$stage" -type f -print0)
    # The program loader is named by each program and is no NEEDED entry of most.
    library=$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
    [ ! -e "$library" ] || cp -L --preserve=mode,timestamps "$library" "$stage/usr/lib64/"
    while [ ${#pending[@]} -gt 0 ]; do
        file=${pending[-1]}
        unset 'pending[-1]'
        while read -r library; do
            case $seen in *" $library "*) continue ;; esac
            seen+="$library "
            found=$(find "$root/usr/lib" -name "$library" -print -quit)
            # A plug-in may need what the program that loads it brings along.
            [ -n "$found" ] || continue
            pending+=("$found")
            mkdir -p "$stage/$(dirname "${found#"$root"}")"
            cp -L --preserve=mode,timestamps "$found" "$stage${found#"$root"}"
        done < <(LC_ALL=C readelf -d -- "$file" | sed -nE 's/^.*\(NEEDED\).*\[(.*)\]$/\1/p')
    done
}

# is_dynamic FILE: is it an ELF file that loads others?
is_dynamic() {
    [ "$(head -c 4 -- "$1" | tr -d '\0')" = $'\177ELF' ] &&
        LC_ALL=C readelf -d -- "$1" 2>/dev/null | grep -q '(NEEDED)'
}

# stage_archive STAGE FILE: writes the stage as one archive that the kernel can unpack.
stage_archive() {
    (cd "$1" && find . -mindepth 1 -print0 | LC_ALL=C sort -z |
        cpio --quiet --null --create --format=newc --owner=0:0 --reproducible) >"$2"
}
