//! Autoconfiguration: the device is what the export is, whatever its size and blocks; what can't be one is refused with a
//! reason. (What happens to an image under a live device is in `autoconf_image.rs`.)

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure, Context as _, Result};

use super::autoconf_image;
use crate::command::{self, cmd};
use crate::direct;
use crate::lab::device::Device;
use crate::lab::fsys::{Kind, Mount};
use crate::lab::server::Server;
use crate::lab::Lab;
use crate::report::Report;

/// Bytes of an ordinary image here.
pub const SIZE: u64 = 64 << 20;
const TIB: u64 = 1 << 40;
const SOON: Duration = Duration::from_secs(60);

/// A case of this campaign.
pub type Case = fn(&Lab) -> Result<()>;

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let cases: [(&str, Case); 10] = [
        ("512-byte blocks", |lab| blocks(lab, 512)),
        ("4096-byte blocks", |lab| blocks(lab, 4096)),
        ("a read-only export", |lab| read_only(lab, true)),
        ("a device attached read-only", |lab| read_only(lab, false)),
        ("sizes that no disk can have are refused", bad_sizes),
        ("--size makes a sparse image", create),
        ("15 TiB", huge),
        ("discard and zeroes reach the image", discard),
        ("a block device as export", block_device),
        ("memory as export", memory),
    ];
    for (name, case) in cases.into_iter().chain(autoconf_image::CASES) {
        if lab.plan.wants(name) {
            report.case(name, |_| case(lab));
        }
    }
    Ok(())
}

/// A server with one export `disk` over `spec`, with more arguments.
pub fn serve<'l>(lab: &'l Lab, spec: &str, more: &[&str]) -> Result<Server<'l>> {
    let args = more.iter().map(|s| (*s).to_owned());
    let mut server = Server::tcp(lab)?.with(args).with([format!("disk={spec}")]);
    server.start()?;
    Ok(server)
}

/// # Errors
/// The block device, `dst status` and what was expected don't agree.
fn check_limits(device: &Device<'_>, size: u64, block: u64, read_only: bool) -> Result<()> {
    let status = device.status()?;
    let number = |field: &str| {
        status[field]
            .as_u64()
            .with_context(|| format!("no {field} in {status}"))
    };
    let sysfs = |file: &str| -> Result<u64> { Ok(device.sysfs(file)?.parse()?) };
    ensure!(
        number("size")? == size,
        "status says {} bytes, not {size}",
        number("size")?
    );
    ensure!(
        device.size()? == size,
        "the device has {} bytes, not {size}",
        device.size()?
    );
    let logical = sysfs("queue/logical_block_size")?;
    ensure!(
        logical == block && number("logical_block")? == block,
        "logical block {logical}, not {block}"
    );
    let physical = sysfs("queue/physical_block_size")?;
    // A loop device has no physical block size apart from the logical one (drivers/block/loop.c, loop_configure).
    let announced = number("physical_block")?;
    let by_loop = status["front_end"] == "fuse" && physical == block;
    ensure!(
        physical == announced || by_loop,
        "physical block {physical}, status says {announced}"
    );
    ensure!((sysfs("ro")? == 1) == read_only, "ro is {}", sysfs("ro")?);
    ensure!(
        status["read_only"] == read_only,
        "status says read_only: {}",
        status["read_only"]
    );
    // A disk of whose cache the kernel does not know gets no FLUSH.
    let cache = device.sysfs("queue/write_cache")?;
    ensure!(read_only || cache == "write back", "write cache: {cache}");
    if !read_only {
        let discard = sysfs("queue/discard_max_bytes")?;
        let granularity = sysfs("queue/discard_granularity")?;
        ensure!(
            discard > 0 && granularity >= block,
            "discard: up to {discard}, granularity {granularity}"
        );
        ensure!(
            sysfs("queue/write_zeroes_max_bytes")? > 0,
            "no write zeroes"
        );
    }
    Ok(())
}

fn blocks(lab: &Lab, block: u64) -> Result<()> {
    let image = lab.image(&format!("{}.img", lab.unique("i")), SIZE)?;
    let size = block.to_string();
    let mut server = serve(lab, &image.display().to_string(), &["--block-size", &size])?;
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    check_limits(&device, SIZE, block, false)?;
    let file = direct::open(device.block(), true)?;
    let mut rng = lab.rng(block);
    // Single blocks at both ends and somewhere in the middle, of which neighbours must not change.
    for at in [0, 7 * block, SIZE / 2 + block, SIZE - block] {
        let data = rng.bytes(block as usize);
        direct::write(&file, at, &data).with_context(|| format!("one block at {at}"))?;
        ensure!(
            direct::read(&file, at, block as usize)?[..] == data,
            "block at {at} reads differently"
        );
        let next = if at == 0 { block } else { at - block };
        let neighbour = direct::read(&file, next, block as usize)?;
        ensure!(
            neighbour.iter().all(|b| *b == 0),
            "writing at {at} changed {next}"
        );
    }
    file.sync_all()?;
    if block == 4096 {
        let done = direct::write(&file, 512, &[1; 512]);
        ensure!(
            done.is_err(),
            "512 bytes can be written to 4096-byte blocks"
        );
    }
    drop(file);
    Kind::Ext4.make(device.block())?;
    let mount = Mount::new(lab, Kind::Ext4, device.block(), "")?;
    std::fs::write(mount.point().join("x"), b"x")?;
    mount.unmount()?;
    device.detach()?;
    server.stop()
}

fn read_only(lab: &Lab, export: bool) -> Result<()> {
    let image = lab.image(&format!("{}.img", lab.unique("i")), SIZE)?;
    std::fs::write(&image, lab.rng(1).bytes(1 << 20))?;
    std::fs::File::options()
        .write(true)
        .open(&image)?
        .set_len(SIZE)?;
    let before = blake3::hash(&std::fs::read(&image)?);
    let (of_server, of_client): (&[&str], &[&str]) = match export {
        true => (&["--read-only"], &[]),
        false => (&[], &["--read-only"]),
    };
    let mut server = serve(lab, &image.display().to_string(), of_server)?;
    let device = Device::attach(lab, &server.url("disk"), of_client)?;
    check_limits(&device, SIZE, 512, true)?;
    let wrote = direct::open(device.block(), true)
        .and_then(|file| Ok(direct::write(&file, 0, &[0; 4096])?));
    ensure!(wrote.is_err(), "a read-only device can be written");
    let read = direct::read(&direct::open(device.block(), false)?, 0, 1 << 20)?;
    ensure!(
        read[..] == std::fs::read(&image)?[..1 << 20],
        "it reads differently"
    );
    device.detach()?;
    server.stop()?;
    ensure!(
        blake3::hash(&std::fs::read(&image)?) == before,
        "the image has changed"
    );
    Ok(())
}

/// # Errors
/// `dst serve` does not refuse to serve, with its code for that and a text that has all these words.
pub fn check_refused(lab: &Lab, image: &Path, more: &[&str], words: &[&str]) -> Result<()> {
    let args = more.iter().map(|s| (*s).to_owned());
    let spec = format!("disk={}", image.display());
    let output = Server::tcp(lab)?
        .with(args)
        .with([spec])
        .refuses()?
        .expect_code(16)?;
    let said = output.stderr.to_lowercase();
    for word in words {
        ensure!(
            said.contains(word),
            "the refusal does not say {word:?}: {}",
            output.said()
        );
    }
    Ok(())
}

fn bad_sizes(lab: &Lab) -> Result<()> {
    for (size, more, word) in [
        (SIZE + 100, &[][..], "multiple"),
        (SIZE + 512, &["--block-size", "4096"][..], "multiple"),
        (0, &[][..], "0"),
        (511, &[][..], "multiple"),
    ] {
        let image = lab.image("odd.img", size)?;
        check_refused(lab, &image, more, &[word, "odd.img"])
            .with_context(|| format!("{size} bytes {more:?}"))?;
        ensure!(
            std::fs::metadata(&image)?.len() == size,
            "the refused image was changed"
        );
    }
    // Directories and other things that are no disk.
    check_refused(lab, lab.root(), &[], &["directory"])?;
    check_refused(lab, Path::new("/dev/null"), &[], &[])?;
    check_refused(lab, &lab.path("not-there.img"), &[], &["not-there.img"])
}

fn create(lab: &Lab) -> Result<()> {
    let image = lab.path("made.img");
    let mut server = serve(lab, &image.display().to_string(), &["--size", "3G"])?;
    let meta = std::fs::metadata(&image)?;
    let on_disk = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
    ensure!(
        meta.len() == 3 << 30 && on_disk < 1 << 20,
        "{} bytes, {on_disk} on disk",
        meta.len()
    );
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    check_limits(&device, 3 << 30, 512, false)?;
    direct::write(&direct::open(device.block(), true)?, 1 << 30, &[7; 4096])?;
    device.detach()?;
    server.stop()?;
    // An image that is there is served as it is.
    server.start()?;
    ensure!(
        std::fs::metadata(&image)?.len() == 3 << 30,
        "the second start changed its size"
    );
    let byte = std::fs::File::open(&image)?;
    let mut read = [0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&byte, &mut read, 1 << 30)?;
    ensure!(read == [7; 4096], "the second start lost data");
    server.stop()
}

fn huge(lab: &Lab) -> Result<()> {
    let size = 15 * TIB;
    let image = lab.image("huge.img", size)?;
    let mut server = serve(lab, &image.display().to_string(), &[])?;
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    check_limits(&device, size, 512, false)?;
    let file = direct::open(device.block(), true)?;
    let mut rng = lab.rng(15);
    let places = [0, 2 * TIB - 4096, 4 * TIB, 8 * TIB + 512, size - 65536];
    let data: Vec<_> = places.iter().map(|_| rng.bytes(65536)).collect();
    for (at, data) in places.iter().zip(&data) {
        direct::write(&file, *at, data).with_context(|| format!("at {at}"))?;
    }
    file.sync_all()?;
    for (at, data) in places.iter().zip(&data) {
        ensure!(
            direct::read(&file, *at, 65536)?[..] == data[..],
            "at {at} it reads differently"
        );
    }
    ensure!(
        direct::write(&file, size, &[0; 4096]).is_err(),
        "it can be written beyond its end"
    );
    drop(file);
    if !lab.plan.short() {
        command::ok(cmd("mkfs.xfs", ["-q", "-f"]).arg(device.block()), SOON * 4)?;
        let mount = Mount::new(lab, Kind::Xfs, device.block(), "")?;
        std::fs::write(mount.point().join("x"), &data[0])?;
        mount.unmount()?;
        Kind::Xfs.check(device.block())?;
    }
    device.detach()?;
    server.stop()
}

fn allocated(image: &Path) -> Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(image)?) * 512)
}

fn discard(lab: &Lab) -> Result<()> {
    let image = lab.image("discard.img", SIZE)?;
    let mut server = serve(lab, &image.display().to_string(), &[])?;
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    let file = direct::open(device.block(), true)?;
    direct::write(&file, 0, &lab.rng(2).bytes(16 << 20))?;
    file.sync_all()?;
    let full = allocated(&image)?;
    let range = ["-o", "0", "-l", "8388608"];
    command::ok(cmd("blkdiscard", range).arg(device.block()), SOON).context("blkdiscard")?;
    file.sync_all()?;
    let after = allocated(&image)?;
    ensure!(
        after + (7 << 20) <= full,
        "a discard of 8 MiB left {after} of {full} bytes allocated"
    );
    let range = ["-z", "-o", "8388608", "-l", "4194304"];
    command::ok(cmd("blkdiscard", range).arg(device.block()), SOON).context("blkdiscard -z")?;
    let zeroes = direct::read(&file, 8 << 20, 4 << 20)?;
    ensure!(zeroes.iter().all(|b| *b == 0), "zeroed blocks are not zero");
    let data = direct::read(&file, 12 << 20, 4 << 20)?;
    ensure!(
        data.iter().any(|b| *b != 0),
        "blocks behind the zeroed ones are gone"
    );
    drop(file);
    device.detach()?;
    server.stop()
}

fn block_device(lab: &Lab) -> Result<()> {
    let image = lab.image("under.img", SIZE)?;
    let made = command::ok(
        cmd("losetup", ["--find", "--show", "--sector-size", "512"]).arg(&image),
        SOON,
    )?;
    let under = made.stdout.trim().to_owned();
    let result = (|| {
        let mut server = serve(lab, &under, &[])?;
        let device = Device::attach(lab, &server.url("disk"), &[])?;
        check_limits(&device, SIZE, 512, false)?;
        let data = lab.rng(3).bytes(1 << 20);
        let file = direct::open(device.block(), true)?;
        direct::write(&file, 1 << 20, &data)?;
        file.sync_all()?;
        drop(file);
        // A disk that is served must not be mounted or served by anybody else.
        let second = Server::tcp(lab)?
            .with([format!("disk={under}")])
            .refuses()?;
        if second.code != Some(16) {
            bail!(
                "a second server on {under} ended with {}: {}",
                second.ending(),
                second.said()
            );
        }
        server.kill()?;
        server.start()?;
        let file = direct::open(device.block(), true)?;
        ensure!(
            direct::read(&file, 1 << 20, 1 << 20)?[..] == data[..],
            "it reads differently after a restart"
        );
        drop(file);
        device.detach()?;
        server.stop()?;
        let read = direct::read(&direct::open(Path::new(&under), false)?, 1 << 20, 1 << 20)?;
        ensure!(read[..] == data[..], "the disk itself has something else");
        Ok(())
    })();
    let gone = command::ok(&mut cmd("losetup", ["-d", &under]), SOON);
    result.and(gone.map(|_| ()))
}

fn memory(lab: &Lab) -> Result<()> {
    let mut server =
        Server::tcp(lab)?.with(["--block-size", "4096", "disk=memory:64M", "zero=null:1T"]);
    server.start()?;
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    check_limits(&device, SIZE, 4096, false)?;
    Kind::Ext4.make(device.block())?;
    Kind::Ext4.check(device.block())?;
    let null = Device::attach(lab, &server.url("zero"), &[])?;
    check_limits(&null, TIB, 4096, false)?;
    null.detach()?;
    device.detach()?;
    server.stop()
}
