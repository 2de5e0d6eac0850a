//! The agent's mount namespace: one of its own, with as few mounts as it can do with.
//!
//! Two things can go wrong with a device whose agent sees the mounts that everybody sees:
//!
//! - Where it was attached inside a container or another mount namespace, the agent may be the last process there. When it
//!   ends, the kernel unmounts what is mounted in it, the file system on the agent's own device too: that writes to a device
//!   whose agent is ending, and waits for it.
//! - In a namespace that is merely a copy, what was mounted when it was made stays mounted for as long as the agent lives, so
//!   that another disk that everybody has unmounted is still in use.
//!
//! So everything is taken out of the copy but what is on the way to a file that the agent needs. It stays a slave of what it was
//! copied from (mount_namespaces(7)): where mounts are shared, as systemd has them, what is mounted and unmounted later is so here
//! too, and a socket on a disk that comes later is found. The agent's own file system may come along then; but it is
//! never the last mount of it, since a namespace with shared mounts is that of the whole machine. (One that somebody makes with
//! `unshare --propagation shared` is the exception.)

use std::path::{Component, Path, PathBuf};

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::mountinfo::{self, Mount};

/// Where single files may be mounted that decide on names of hosts, as in containers: all of it stays.
const NAMES: &str = "/etc";

/// What any agent needs: devices, what the kernel tells and takes, names of hosts and the libraries that look them up.
const NEEDED: [&str; 7] = [
    "/proc",
    "/sys",
    "/dev/shm",
    "/etc/resolv.conf",
    "/usr/lib",
    "/run/nscd",
    "/run/systemd/resolve",
];

/// Links one behind the other that are followed; the kernel follows 40.
const LINKS: u32 = 10;

/// Gives this process a mount namespace of its own, in which nothing is mounted but what is on the way to one of `needed`, and
/// to what every agent needs. To be called before any thread starts: only the calling one is moved.
///
/// # Errors
/// In words. The process goes on with everybody's mounts, or with more than it needs.
pub fn leave_mounts(needed: &[PathBuf]) -> Result<(), String> {
    let failed = |what: &'static str| {
        move |errno| format!("the agent shares its mounts with others: {what}: {errno}")
    };
    // SAFETY: only the mount namespace is changed (and the root and current directory are this process's own from now on, as
    // they are already where there is one thread): no descriptor is shared or closed by it.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(failed("can't make a mount namespace"))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(failed("can't part with them"))?;

    let mut ways = Vec::new();
    for path in NEEDED
        .iter()
        .map(Path::new)
        .chain(needed.iter().map(PathBuf::as_path))
    {
        way(path, LINKS, &mut ways);
    }
    let mounts = mountinfo::of_thread().map_err(|e| format!("can't read the mounts: {e}"))?;
    // Those on top first. One that went with the one below it is not there any more.
    for mount in superfluous(&mounts, &ways).into_iter().rev() {
        let _ = rustix::mount::unmount(&mount.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
    Ok(())
}

/// Puts into `ways` each path that has to be there for `path` to be reached, whether that is there already or not: itself, and where
/// the links on the way to it lead, at most `links` of them one behind the other.
fn way(path: &Path, links: u32, ways: &mut Vec<PathBuf>) {
    ways.push(path.to_owned());
    if links == 0 {
        return;
    }
    for ancestor in path.ancestors() {
        if let Ok(target) = std::fs::read_link(ancestor) {
            let above = ancestor.parent().unwrap_or(Path::new("/"));
            let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
            way(&normal(&above.join(target).join(rest)), links - 1, ways);
        }
    }
}

/// Without `.` and `..`, which lead up from where they stand: of a path through links an approximation, to more rather than to less,
/// since the links themselves are followed too.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// The mounts that are not on the way to any of `needed`.
fn superfluous<'a>(mounts: &'a [Mount], needed: &[PathBuf]) -> Vec<&'a Mount> {
    let root = Path::new("/");
    mounts
        .iter()
        .filter(|mount| {
            mount.point != root
                && !mount.point.starts_with(NAMES)
                && !needed.iter().any(|path| path.starts_with(&mount.point))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_way_to_something_needed_stays() {
        let mounts: Vec<Mount> = [
            "/",
            "/proc",
            "/dev",
            "/dev/pts",
            "/run",
            "/run/user/0",
            "/srv",
            "/srv/a",
            "/srv/ab",
            "/etc/hosts",
            "/mnt",
        ]
        .into_iter()
        .map(|point| Mount {
            device: (0, 1),
            point: PathBuf::from(point),
            fs_type: "ext4".to_owned(),
            source: PathBuf::from("/dev/x"),
        })
        .collect();
        let needed = ["/proc", "/dev/shm", "/run/dst/x", "/srv/a/socket"].map(PathBuf::from);
        let points: Vec<&str> = superfluous(&mounts, &needed)
            .into_iter()
            .filter_map(|mount| mount.point.to_str())
            .collect();
        assert_eq!(points, ["/dev/pts", "/run/user/0", "/srv/ab", "/mnt"]);
    }

    #[test]
    fn the_way_leads_through_links_to_what_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("../real", root.join("real/up")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("second")).unwrap();
        std::os::unix::fs::symlink("second", root.join("first")).unwrap();
        let mut ways = Vec::new();
        way(&root.join("first/socket"), LINKS, &mut ways);
        for name in ["first/socket", "second/socket", "real/socket"] {
            assert!(ways.contains(&root.join(name)), "{name}: {ways:?}");
        }
        way(&root.join("real/up/socket"), LINKS, &mut ways);
        assert!(ways.contains(&root.join("real/socket")));
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        way(&root.join("loop/x"), LINKS, &mut ways);
    }

    /// In a process of its own, since a test program has threads.
    #[test]
    fn an_unmounted_disk_is_not_held_and_what_is_needed_is_there() {
        if !crate::is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let script = "mount --make-rprivate / && mkdir a b && mount -t tmpfs none a && mount -t tmpfs none b && \
                      touch a/file b/file && exec \"$0\" --ignored --exact namespace::tests::helper";
        let done = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(program)
            .current_dir(dir.path())
            .env("DST_TEST_NEEDED", dir.path().join("a/file"))
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        assert!(
            String::from_utf8_lossy(&done.stdout).contains("1 passed"),
            "{done:?}"
        );
    }

    /// Not a test: run by the one above.
    #[test]
    #[ignore = "run by another test"]
    fn helper() {
        let Some(needed) = std::env::var_os("DST_TEST_NEEDED").map(PathBuf::from) else {
            return;
        };
        let dir = needed.parent().unwrap().parent().unwrap().to_owned();
        assert!(dir.join("b/file").exists());
        leave_mounts(&[needed.clone(), dir.clone()]).unwrap();
        assert!(needed.exists() && !dir.join("b/file").exists());
        assert!(Path::new("/proc/self/mountinfo").exists() && Path::new("/dev/null").exists());
        // The main thread's is the one that it was made from: nothing was unmounted there.
        let has = |mounts: Vec<Mount>| mounts.iter().any(|mount| mount.point == dir.join("b"));
        assert!(has(mountinfo::mounts().unwrap()) && !has(mountinfo::of_thread().unwrap()));
    }
}
