//! What happens to an image under a live device: replaced, grown, shrunk, full, wanted by a second server.

use std::fs::File;
use std::time::Duration;

use anyhow::{ensure, Context as _, Result};
use rustix::mount::MountFlags;

use super::autoconf::{check_refused, serve, Case, SIZE};
use crate::direct::{self, Pending};
use crate::lab::device::Device;
use crate::lab::Lab;
use crate::report::say;
use crate::wait;

/// How long a change of the image may take to reach the device.
const NOTICED: Duration = Duration::from_secs(30);

/// The cases, for the campaign.
pub const CASES: [(&str, Case); 6] = [
    (
        "another image under the same name fails the device",
        replaced,
    ),
    ("the same image comes back after a detour", moved_and_back),
    ("an image that grows reaches the live device", grown),
    ("an image that shrinks under the device", shrunk),
    ("two servers never serve one file", second_server),
    ("a full disk under the image", full),
];

/// # Errors
/// I/O on the device did not fail within the time in which it should.
fn check_io_fails(device: &Device<'_>) -> Result<()> {
    for write in [false, true] {
        let file = direct::open(device.block(), true)?;
        let io = Pending::start(move || match write {
            true => direct::write(&file, 0, &[0xEE; 4096]),
            false => direct::read(&file, 0, 4096).map(|_| ()),
        });
        let (done, _) = io.outcome(NOTICED)?;
        ensure!(done.is_err(), "I/O (write: {write}) on the device succeeds");
    }
    Ok(())
}

fn replaced(lab: &Lab) -> Result<()> {
    let image = lab.image("replaced.img", SIZE)?;
    let mut server = serve(lab, &image.display().to_string(), &[])?;
    let mut device = Device::attach(lab, &server.url("disk"), &[])?;
    let file = direct::open(device.block(), true)?;
    direct::write(&file, 0, &[1; 4096])?;
    drop(file);
    server.kill()?;
    // As a script would do it: the very same name, size and perhaps inode.
    std::fs::remove_file(&image)?;
    std::fs::write(&image, vec![0x55; SIZE as usize])?;
    server.start()?;
    device.wait_state("failed", NOTICED)?;
    let (_, message) = device.state()?;
    say(&format!("it says: {message}"));
    ensure!(
        message.contains("another"),
        "the message does not say that it is another disk: {message}"
    );
    check_io_fails(&device)?;
    device.detach_by_force()?;
    device.check_gone()?;
    let now = std::fs::read(&image)?;
    ensure!(
        now.iter().all(|b| *b == 0x55),
        "the other disk was written to"
    );
    // Attached anew, it is that disk.
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    let read = direct::read(&direct::open(device.block(), false)?, 0, 4096)?;
    ensure!(
        read.iter().all(|b| *b == 0x55),
        "a new attach shows something else"
    );
    device.detach()?;
    server.stop()
}

fn moved_and_back(lab: &Lab) -> Result<()> {
    let image = lab.image("moved.img", SIZE)?;
    let away = lab.path("away.img");
    let mut server = serve(lab, &image.display().to_string(), &[])?;
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    let file = direct::open(device.block(), true)?;
    direct::write(&file, 0, &[1; 4096])?;
    server.kill()?;
    std::fs::rename(&image, &away)?;
    ensure!(server.start().is_err(), "a server without its image starts");
    std::fs::rename(&away, &image)?;
    server.start()?;
    let io = Pending::start(move || {
        direct::write(&file, 8192, &[2; 4096])?;
        file.sync_all()
    });
    io.outcome(NOTICED)?
        .0
        .context("I/O when the image was back")?;
    device.detach()?;
    server.stop()
}

fn grown(lab: &Lab) -> Result<()> {
    let image = lab.image("grown.img", SIZE)?;
    let mut server = serve(lab, &image.display().to_string(), &[])?;
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    for (size, restart) in [(2 * SIZE, false), (3 * SIZE, true)] {
        File::options().write(true).open(&image)?.set_len(size)?;
        if restart {
            server.kill()?;
            server.start()?;
        }
        wait::until("the new size", NOTICED, || Ok(device.size()? == size))
            .with_context(|| format!("with a restart: {restart}"))?;
        let file = direct::open(device.block(), true)?;
        direct::write(&file, size - 4096, &[9; 4096]).context("at the new end")?;
        ensure!(
            direct::read(&file, size - 4096, 4096)?[..] == [9; 4096],
            "it reads differently there"
        );
        ensure!(
            device.number("size")? == size,
            "dst status has another size"
        );
    }
    device.detach()?;
    server.stop()
}

fn shrunk(lab: &Lab) -> Result<()> {
    let image = lab.image("shrunk.img", SIZE)?;
    let mut server = serve(lab, &image.display().to_string(), &[])?;
    let mut device = Device::attach(lab, &server.url("disk"), &[])?;
    let file = direct::open(device.block(), true)?;
    direct::write(&file, 0, &[1; 4096])?;
    File::options()
        .write(true)
        .open(&image)?
        .set_len(SIZE / 2)?;
    let beyond = file.try_clone()?;
    let io = Pending::start(move || direct::read(&beyond, SIZE - 4096, 4096));
    let (done, _) = io.outcome(NOTICED).context("a read beyond the new end")?;
    ensure!(done.is_err(), "a read beyond the end of the image succeeds");
    // Nothing else is disturbed.
    let inside = file.try_clone()?;
    let io = Pending::start(move || direct::read(&inside, 0, 4096));
    let read = io
        .outcome(NOTICED)?
        .0
        .context("a read before the new end")?;
    ensure!(read.iter().all(|b| *b == 1), "it reads differently");
    ensure!(device.size()? == SIZE, "the live device has shrunk");
    drop(file);
    device.detach_by_force()?;
    device.check_gone()?;
    server.check_alive()?;
    server.stop()
}

fn second_server(lab: &Lab) -> Result<()> {
    let image = lab.image("shared.img", SIZE)?;
    let mut first = serve(lab, &image.display().to_string(), &[])?;
    check_refused(lab, &image, &[], &["shared.img"])?;
    // By another name, too.
    let link = lab.path("other-name.img");
    std::fs::hard_link(&image, &link)?;
    check_refused(lab, &link, &[], &[])?;
    first.freeze()?;
    check_refused(lab, &image, &[], &[]).context("while the first server is frozen")?;
    first.thaw()?;
    first.check_alive()?;
    first.kill()?;
    serve(lab, &image.display().to_string(), &[])?.stop()
}

fn full(lab: &Lab) -> Result<()> {
    let dir = lab.path("full");
    std::fs::create_dir(&dir)?;
    let options = c"size=24m";
    rustix::mount::mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), Some(options))?;
    let image = dir.join("disk.img");
    File::create(&image)?.set_len(SIZE)?;
    let mut server = serve(lab, &image.display().to_string(), &[])?;
    let mut device = Device::attach(lab, &server.url("disk"), &[])?;
    let file = direct::open(device.block(), true)?;
    direct::write(&file, 0, &[3; 4096])?;
    let filling = file.try_clone()?;
    let io = Pending::start(move || {
        (1..64).try_for_each(|mib: u64| direct::write(&filling, mib << 20, &vec![4; 1 << 20]))
    });
    let (done, _) = io.outcome(NOTICED)?;
    ensure!(done.is_err(), "64 MiB fit into 24 MiB");
    let read = direct::read(&file, 0, 4096).context("a read after a failed write")?;
    ensure!(read.iter().all(|b| *b == 3), "it reads differently");
    device
        .check_not_failed()
        .context("after a write that found the disk full")?;
    drop(file);
    device.detach_by_force()?;
    device.check_gone()?;
    server.check_alive()?;
    let stopped = server.stop();
    drop(server);
    rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::empty())?;
    stopped
}
