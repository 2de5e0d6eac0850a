//! The command line: what `dst` understands. Behaviour lives in one file per command.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use dst_blockdev::Choice;
use dst_net::Endpoint;
use dst_store::{parse_new_size, parse_size, NewSize, Spec};

use crate::values::{
    parse_block, parse_bytes_or_off, parse_limit, parse_positive_duration, parse_watch, Bytes,
    Limit, Watch,
};

/// A disk on one machine, a block device on another.
#[derive(Debug, Parser)]
#[command(
    name = "dst",
    version,
    about = "DST: a disk on one machine, a block device on another",
    after_help = "\
A remote disk in two commands:
  storage$ dst serve --insecure --size 10G disk.img
  desktop$ sudo dst attach --insecure dst://storage/disk
then use /dev/dst/disk like any disk. `dst demo` shows it all on this machine.
Exit codes: see `dst --help`.",
    after_long_help = long_help(),
    max_term_width = 100,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

fn long_help() -> String {
    format!(
        "\
A remote disk in two commands:
  storage$ dst serve --insecure --size 10G disk.img
  desktop$ sudo dst attach --insecure dst://storage/disk
then use /dev/dst/disk like any disk. `dst demo` shows it all on this machine.

URLs:
  dst://HOST[:PORT]/EXPORT                  TCP, port 7789 unless given; IPv6 in brackets
  dst+unix:///PATH/TO.SOCK?export=EXPORT    a Unix socket
  dst+exec:///EXPORT?command=COMMAND        the standard streams of a command, for example
                                            ssh%20storage%20dst%20serve%20--stdio%20disk.img

Environment:
  DST_RUNTIME_DIR  sockets and logs of attached devices (root: /run/dst)
  DST_STATE_DIR    identity of this client, state of exports (root: /var/lib/dst)

{}",
        crate::exit::help()
    )
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Offer files and disks to other machines
    Serve(Serve),
    /// Make an export of a server a block device here
    Attach(Attach),
    /// Remove a device, after everything written is safe on the server
    Detach(Detach),
    /// Show what a server offers
    List(List),
    /// Show the devices attached here
    Status(Status),
    /// Give the file of an export another size, or a device the size of its export
    Resize(Resize),
    /// Measure an export: operations per second, throughput, latency, CPU
    Bench(Bench),
    /// Show everything on this machine: serve, attach, kill the server, verify
    Demo(Demo),
    /// Write the completions of a shell to standard output
    Completions(Completions),
    /// Show a manual page, or write all of them to files
    Man(Man),
    /// What the udev rule wants to know of a block device
    #[command(hide = true, name = "udev-info")]
    UdevInfo(UdevInfo),
    /// Serves one device in the background; started by attach
    #[command(hide = true)]
    Agent(Attach),
    /// Serves what `serve --stdio` hands over, in the background; started by it
    #[command(hide = true)]
    StdioServer(Serve),
}

/// `dst serve`
#[derive(Debug, Args)]
#[command(after_help = "\
Without --listen: only this machine can attach, at dst://127.0.0.1:7789 and dst://[::1]:7789.
With --insecure, all of the network can, in plaintext, at dst://[::]:7789.

Examples:
  dst serve disk.img                              a file, as the export `disk`
  dst serve --size 10G disk.img                   make it first if it is not there (sparse)
  dst serve root=/dev/sdb scratch=memory:4G       several exports, named
  dst serve --read-only --block-size 4096 cd.iso
  dst serve --listen dst+unix:///run/disk.sock disk.img
  dst serve --insecure --listen dst://10.0.0.1 disk.img
  dst attach 'dst+exec:///disk?command=ssh%20storage%20dst%20serve%20--stdio%20disk.img'

SIGTERM or Ctrl-C: clients are told, what is in flight is finished and flushed, exit code 0.
A second one ends the server at once.")]
pub struct Serve {
    /// Where to listen, as a URL without an export; may be given several times
    #[arg(long, value_name = "URL", conflicts_with = "stdio")]
    pub listen: Vec<Endpoint>,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Make files that are not there, sparse, of this size (10G, 512M)
    #[arg(long, value_parser = parse_size)]
    pub size: Option<u64>,
    /// Logical block size in bytes: 512 or 4096
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    pub block_size: Option<u32>,
    /// Where ids of exports and their writers are kept
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Allow plaintext over a network: everybody there can read and write
    #[arg(long)]
    pub insecure: bool,
    /// Serve on standard input and output: through the server of the file, or one started in the background, which stays as
    /// long as a client may come back
    #[arg(long)]
    pub stdio: bool,
    /// Memory for all clients together, memory:SIZE apart; at least 64M [default: a quarter of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// How long a client may be away before another one may write
    #[arg(long, value_name = "TIME", value_parser = parse_positive_duration, hide = true)]
    pub lease_time: Option<Duration>,
    /// How long the server remembers a client that is away
    #[arg(long, value_name = "TIME", value_parser = parse_positive_duration, hide = true)]
    pub session_time: Option<Duration>,
    /// What to serve: a file, a block device, memory:SIZE or null:SIZE
    #[arg(required = true, value_name = "[NAME=]PATH", value_hint = clap::ValueHint::FilePath)]
    pub exports: Vec<Spec>,
}

/// `dst attach`
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Returns when the device is there and usable. An agent goes on in the background; its log is in
/run/dst/NAME/log (below DST_RUNTIME_DIR where that is set). If the server goes away, I/O waits until it is back (or until --deadline).

Examples:
  dst attach dst://storage/disk                   /dev/dst/disk
  dst attach dst://storage/disk --name root       /dev/dst/root
  dst attach dst://storage/disk --deadline 30s    I/O errors after 30 s without the server
  dst attach --recover disk                       go on with a device (ublk, nbd) whose agent died, or was updated
  dst attach 'dst+unix:///run/disk.sock?export=disk'
  dst attach 'dst+exec:///disk?command=ssh%20storage%20dst%20serve%20--stdio%20disk.img'")]
pub struct Attach {
    /// The export to attach
    #[arg(value_name = "URL", required_unless_present = "recover")]
    pub url: Option<Endpoint>,
    /// Go on with a device that waits since its agent died: same node, no I/O error. If its agent lives, it is replaced by
    /// this version of dst. Options are as they were unless given
    #[arg(
        long,
        value_name = "NAME|NODE",
        conflicts_with_all = ["url", "front_end", "name", "read_only", "retain"]
    )]
    pub recover: Option<String>,
    /// How the device reaches this system: auto takes the first that works of ublk, fuse and nbd; ublk is a block device by
    /// the kernel's ublk driver, for root; fuse is a loop device over FUSE as root and a plain file otherwise; nbd is a
    /// block device by the kernel's nbd driver, for root
    #[arg(long, value_parser = front_end(), default_value_t = Choice::Auto)]
    pub front_end: Choice,
    /// Name of the device; the export's unless given
    #[arg(long)]
    pub name: Option<String>,
    /// Fail a request that the server has not answered in this time; later ones work again once it is back [default: none]
    #[arg(long, value_name = "TIME|none", value_parser = parse_limit)]
    pub deadline: Option<Limit>,
    /// Connections to the server, 1 to 8 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=8))]
    pub connections: Option<u16>,
    /// Refuse writes; then other clients may write
    #[arg(long)]
    pub read_only: bool,
    /// Memory for writes that the server has not made durable yet, which it gets again if it lost them [default: 256M, or an eighth of the memory if that is less]
    #[arg(long, value_name = "SIZE|off", value_parser = parse_bytes_or_off)]
    pub retain: Option<Bytes>,
    /// How long to try to reach the server now
    #[arg(long, value_name = "TIME|none", value_parser = parse_limit, default_value = "10s")]
    pub connect_timeout: Limit,
    /// Stay in the foreground and log to standard error; Ctrl-C detaches
    #[arg(long)]
    pub foreground: bool,
    /// Allow plaintext over a network
    #[arg(long)]
    pub insecure: bool,
}

/// `dst detach`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dst detach disk
  dst detach /dev/dst/disk
  dst detach --force disk        at once: all I/O fails, what is not flushed may be lost

A mounted or open device is refused without --force, and so is one that has failed: what it holds can't be flushed.")]
pub struct Detach {
    /// The device, by name or node
    #[arg(required = true, value_name = "NAME|NODE")]
    pub devices: Vec<String>,
    /// Fail all I/O and remove the device within 5 s, whatever uses it
    #[arg(long)]
    pub force: bool,
}

/// `dst list`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dst list dst://storage
  dst list --json dst+unix:///run/disk.sock")]
pub struct List {
    /// The server; an export in the URL shows only that one
    #[arg(value_name = "URL")]
    pub url: Endpoint,
    /// Allow plaintext over a network
    #[arg(long)]
    pub insecure: bool,
}

/// `dst status`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dst status
  dst status disk
  dst status --watch                              again and again, until Ctrl-C
  dst status disk --watch 500ms                   until the device is gone, then exit code 13
  dst status --json | jq '.devices[].state'
  dst status --json --watch 10                    one object per line, with the time")]
pub struct Status {
    /// Only this device, by name or node, in detail
    #[arg(value_name = "NAME|NODE")]
    pub device: Option<String>,
    /// Show it again and again, every 2 s unless another time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "2s", value_parser = parse_watch)]
    pub watch: Option<Watch>,
}

/// `dst resize`
#[derive(Debug, Args)]
#[command(after_help = "\
With SIZE, where the file is: grows it, also while it is served. The server notices at once, and so
do the devices; the file system on a device is then grown with resize2fs, xfs_growfs or its like.
A volume or disk is grown with its own tools (lvextend, ...); a server notices that within 2 s.

Without SIZE, where the device is: waits until the device shows the size of its export. As a rule
that has happened by itself; this tries again where it could not, and says why.

Examples:
  dst resize disk.img 20G
  dst resize disk.img +5G
  dst resize --shrink disk.img 5G        only while nothing serves it; what lies beyond is lost
  dst resize disk                        a device attached here")]
pub struct Resize {
    /// With SIZE the file of an export, else a device, by name or node
    #[arg(value_name = "PATH|DEVICE")]
    pub target: PathBuf,
    /// The size it is to have (20G), or what is to be added (+5G)
    #[arg(value_parser = parse_new_size)]
    pub size: Option<NewSize>,
    /// Allow making the file smaller; what lies beyond the new end is lost
    #[arg(long, requires = "size")]
    pub shrink: bool,
}

/// `dst bench`
#[derive(Debug, Args)]
#[command(after_help = "\
Without --rw everything is measured, one after the other; writes only with --yes-destroy-data.
Sequential I/O has 128K blocks and random I/O 4K ones unless --bs is given.

Examples:
  dst bench dst://storage/disk                                reads only
  dst bench --yes-destroy-data dst://storage/scratch          everything
  dst bench --rw randread --bs 4k --depth 64 --time 10s dst://storage/disk
  dst bench --rw mixed --read-percent 70 --yes-destroy-data dst://storage/scratch")]
pub struct Bench {
    /// The export to measure
    #[arg(value_name = "URL")]
    pub url: Endpoint,
    /// What to do; all of them unless given
    #[arg(long, value_enum)]
    pub rw: Option<Workload>,
    /// Bytes of one request
    #[arg(long, value_name = "SIZE", value_parser = parse_block)]
    pub bs: Option<u32>,
    /// Requests in flight
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512), default_value_t = 32)]
    pub depth: u16,
    /// Time of each measurement
    #[arg(long, value_name = "TIME", value_parser = parse_positive_duration, default_value = "5s")]
    pub time: Duration,
    /// Share of reads in mixed I/O
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100), default_value_t = 70)]
    pub read_percent: u8,
    /// Connections to the server, 1 to 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=8), default_value_t = 1)]
    pub connections: u16,
    /// Memory for writes that the server has not made durable yet
    #[arg(long, value_name = "SIZE|off", value_parser = parse_bytes_or_off)]
    pub retain: Option<Bytes>,
    /// Allow writes: what the export holds is lost
    #[arg(long)]
    pub yes_destroy_data: bool,
    /// Allow plaintext over a network
    #[arg(long)]
    pub insecure: bool,
}

/// What a benchmark does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Random reads and writes
    Mixed,
}

/// `dst demo`
#[derive(Debug, Args)]
#[command(after_help = "\
Serves a new disk image, attaches it, makes ext4 on it, writes files, kills the server in the middle
and starts it again, checks the file system, attaches anew and verifies every byte. Takes less than a
minute and leaves nothing behind. As root it uses a real block device and mounts it.

Examples:
  sudo dst demo
  dst demo --size 4G --dir /var/tmp
  dst demo --keep                leaves the image and the logs to look at")]
pub struct Demo {
    /// Leave the image and the logs there
    #[arg(long)]
    pub keep: bool,
    /// Size of the disk
    #[arg(long, value_parser = parse_size, default_value = "1G")]
    pub size: u64,
    /// Where to put the image, in a directory made for it
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `dst completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dst completions bash > /usr/share/bash-completion/completions/dst
  dst completions zsh > /usr/local/share/zsh/site-functions/_dst
  dst completions fish > ~/.config/fish/completions/dst.fish")]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `dst man`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dst man | man -l -
  dst man attach | man -l -
  dst man --dir /usr/local/share/man/man1        dst.1, dst-attach.1, ...")]
pub struct Man {
    /// The page of this command; that of dst itself unless given
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    pub command: Option<String>,
    /// Write every page to a file in this directory
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `dst udev-info`
#[derive(Debug, Args)]
pub struct UdevInfo {
    /// The node of a disk
    pub node: PathBuf,
}

fn front_end() -> impl TypedValueParser<Value = Choice> {
    PossibleValuesParser::new(["auto", "ublk", "fuse", "nbd"])
        .try_map(|text| text.parse::<Choice>())
}

/// A block size that an export can have.
fn block_size(text: &str) -> Result<u32, String> {
    match parse_block(text)? {
        size if dst_store::open::BLOCK_SIZES.contains(&size) => Ok(size),
        _ => Err("it can be 512 or 4096".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, ErrorKind> {
        Cli::try_parse_from(line.split_whitespace())
            .map(|cli| cli.command)
            .map_err(|e| e.kind())
    }

    #[test]
    fn the_definition_is_consistent_and_every_visible_command_has_examples() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            if sub.get_name() != "help" {
                let help = sub.get_after_help().map(ToString::to_string);
                assert!(
                    help.is_some_and(|text| text.contains("Examples:")),
                    "{}",
                    sub.get_name()
                );
            }
        }
    }

    #[test]
    fn long_help_lists_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        for (_, meaning) in crate::exit::Code::ALL {
            assert!(help.contains(meaning), "{meaning}");
        }
    }

    #[test]
    fn serve_takes_several_exports_and_addresses() {
        let line = "dst serve --listen dst://[::1]:0 --listen dst+unix:///x.sock --size 10G \
                    --block-size 4096 a.img b=/dev/sdb";
        let Ok(Command::Serve(serve)) = parse(line) else {
            panic!("not parsed");
        };
        assert_eq!(serve.listen.len(), 2);
        assert_eq!(serve.size, Some(10 << 30));
        assert_eq!(serve.block_size, Some(4096));
        let names: Vec<_> = serve.exports.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn serve_refuses_what_makes_no_sense() {
        for (line, kind) in [
            ("dst serve", ErrorKind::MissingRequiredArgument),
            ("dst serve --block-size 1024 a", ErrorKind::ValueValidation),
            ("dst serve --size 10X a", ErrorKind::ValueValidation),
            (
                "dst serve --stdio --listen dst://x a",
                ErrorKind::ArgumentConflict,
            ),
        ] {
            assert_eq!(parse(line).unwrap_err(), kind, "{line}");
        }
    }

    #[test]
    fn attach_waits_without_limit_unless_told_otherwise() {
        let Ok(Command::Attach(attach)) = parse("dst attach dst://storage/disk") else {
            panic!("not parsed");
        };
        assert_eq!((attach.deadline, attach.connections), (None, None));
        assert_eq!(attach.retain, None);
        assert_eq!(attach.front_end, Choice::Auto);
        let line = "dst attach dst://[::1]:7/x --deadline 5s --retain off --connections 8 --name y";
        let Ok(Command::Attach(attach)) = parse(line) else {
            panic!("not parsed");
        };
        assert_eq!(attach.deadline, Some(Limit(Some(Duration::from_secs(5)))));
        assert_eq!(attach.retain, Some(Bytes(None)));
        assert_eq!(attach.connections, Some(8));
    }

    #[test]
    fn attach_refuses_what_makes_no_sense() {
        for line in [
            "dst attach storage/disk",
            "dst attach http://storage/disk",
            "dst attach dst://s/d --connections 0",
            "dst attach dst://s/d --connections 9",
            "dst attach dst://s/d --deadline 0s",
        ] {
            assert_eq!(
                parse(line).unwrap_err(),
                ErrorKind::ValueValidation,
                "{line}"
            );
        }
    }

    #[test]
    fn a_recovery_takes_a_name_and_what_may_be_another_now() {
        let line = "dst attach --recover disk --deadline none --connections 2 --connect-timeout 1s";
        let Ok(Command::Attach(attach)) = parse(line) else {
            panic!("not parsed");
        };
        assert_eq!(
            (attach.recover.as_deref(), attach.url),
            (Some("disk"), None)
        );
        for other in [
            "dst://s/d",
            "--name x",
            "--read-only",
            "--retain 1M",
            "--front-end ublk",
        ] {
            assert_eq!(
                parse(&format!("dst attach --recover disk {other}")).unwrap_err(),
                ErrorKind::ArgumentConflict,
                "{other}"
            );
        }
        assert_eq!(
            parse("dst attach").unwrap_err(),
            ErrorKind::MissingRequiredArgument
        );
    }

    #[test]
    fn every_front_end_can_be_chosen() {
        for choice in Choice::ALL {
            let line = format!("dst attach dst://s/d --front-end {choice}");
            let Ok(Command::Attach(attach)) = parse(&line) else {
                panic!("not parsed");
            };
            assert_eq!(attach.front_end, choice);
        }
    }

    #[test]
    fn json_can_stand_anywhere() {
        for line in ["dst --json status", "dst status --json"] {
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            assert!(cli.json, "{line}");
        }
    }
}
