//! Standard streams as a transport, from both sides. This program is its own peer (`stdio echo`), so it has no test
//! harness: that would write to standard output.

use std::fs::File;
use std::io::{self, IoSlice, IsTerminal as _, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use dst_net::{Address, Endpoint, Event, Interest, Poller, StdioStream, Stream};
use rustix::fs::OFlags;

const TESTS: &[(&str, fn())] = &[
    (
        "a_command_and_its_standard_streams_carry_bytes_both_ways",
        through_exec,
    ),
    ("pipes_carry_the_channel_too", through_pipes),
    (
        "what_is_printed_by_mistake_stays_out_of_the_channel",
        prints_go_to_standard_error,
    ),
    (
        "blocking_mode_is_put_back_at_the_end",
        blocking_mode_is_put_back,
    ),
    (
        "a_terminal_a_file_and_a_device_are_refused",
        no_pipe_no_socket,
    ),
    ("reading_goes_on_after_the_output_is_ended", half_close),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("echo") => echo(),
        Some("take") => {
            if let Err(e) = StdioStream::take() {
                println!("{e}");
            }
        }
        _ => {
            let filter = arguments.iter().find(|a| !a.starts_with('-'));
            for (name, test) in TESTS
                .iter()
                .filter(|(name, _)| filter.is_none_or(|f| name.contains(f.as_str())))
            {
                test();
                println!("test {name} ... ok");
            }
        }
    }
}

/// Sends back what comes, until the end.
fn echo() {
    let mut stream = StdioStream::take().expect("standard streams");
    println!("printed by mistake");
    let poller = Poller::new().unwrap();
    poller.add(stream.fd(), 0, Interest::READ).unwrap();
    let mut events = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => write_all(&mut stream, &buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                poller.wait(None, &mut events).unwrap()
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn wait_for(fd: std::os::fd::BorrowedFd<'_>, interest: Interest) {
    let poller = Poller::new().unwrap();
    poller.add(fd, 0, interest).unwrap();
    let mut events: Vec<Event> = Vec::new();
    while events.is_empty() {
        poller.wait(None, &mut events).unwrap();
    }
}

fn write_all(stream: &mut dyn Stream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match stream.write_vectored(&[IoSlice::new(bytes)]) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait_for(stream.write_fd(), Interest::WRITE)
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn read_exact(stream: &mut dyn Stream, bytes: &mut [u8]) {
    let mut done = 0;
    while done < bytes.len() {
        match stream.read(&mut bytes[done..]) {
            Ok(0) => panic!("the stream ended"),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait_for(stream.fd(), Interest::READ)
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn myself() -> String {
    std::env::current_exe()
        .unwrap()
        .into_os_string()
        .into_string()
        .unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251 + i) as u8).collect()
}

fn through_exec() {
    let endpoint = Endpoint::new(
        Address::Exec {
            command: format!("{} echo", myself()),
        },
        None,
    )
    .expect("a path without blanks");
    let mut stream = endpoint
        .transport()
        .connect(Duration::from_secs(5))
        .unwrap();
    let sent = pattern(100_000);
    let mut received = vec![0; sent.len()];
    for _ in 0..20 {
        write_all(&mut *stream, &sent);
        read_exact(&mut *stream, &mut received);
        assert!(sent == received);
    }
    stream.shutdown();
    wait_for(stream.fd(), Interest::READ);
    let ended = stream.read(&mut [0]).unwrap_err();
    assert!(ended.to_string().contains("exit status 0"), "{ended}");
}

fn through_pipes() {
    let mut child = Command::new(myself())
        .arg("echo")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sent = pattern(500_000);
    let (mut input, expected) = (child.stdin.take().unwrap(), sent.clone());
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let mut received = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut received)
        .unwrap();
    writer.join().unwrap().unwrap();
    assert!(received == expected);
    assert!(child.wait().unwrap().success());
}

fn prints_go_to_standard_error() {
    let mut child = Command::new(myself())
        .arg("echo")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"x").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"x"[..], &b"printed by mistake\n"[..])
    );
}

fn blocking_mode_is_put_back() {
    let (near, far) = UnixStream::pair().unwrap();
    // Input and output of the child are one open file, and ours.
    let shared = far.try_clone().unwrap();
    let mut child = Command::new(myself())
        .arg("echo")
        .stdin(OwnedFd::from(far.try_clone().unwrap()))
        .stdout(OwnedFd::from(far))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (&near).write_all(b"x").unwrap();
    (&near).read_exact(&mut [0]).unwrap();
    assert!(
        rustix::fs::fcntl_getfl(&shared)
            .unwrap()
            .contains(OFlags::NONBLOCK),
        "while it runs"
    );
    near.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        !rustix::fs::fcntl_getfl(&shared)
            .unwrap()
            .contains(OFlags::NONBLOCK),
        "afterwards"
    );
}

fn no_pipe_no_socket() {
    let refused = |input: File| {
        let output = Command::new(myself())
            .arg("take")
            .stdin(input)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/ptmx")
        .unwrap();
    assert!(terminal.is_terminal());
    assert!(refused(terminal).contains("standard input is a terminal"));
    assert!(refused(File::open(myself()).unwrap()).contains("standard input is a file"));
    assert!(refused(File::open("/dev/null").unwrap()).contains("neither a pipe nor a socket"));
}

fn half_close() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut stream = StdioStream::new(far.try_clone().unwrap().into(), far.into()).unwrap();
    write_all(&mut stream, b"last words");
    stream.shutdown();
    let mut heard = String::new();
    (&near).read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "last words");
    assert_eq!(
        stream
            .write_vectored(&[IoSlice::new(b"x")])
            .unwrap_err()
            .kind(),
        io::ErrorKind::BrokenPipe
    );
    assert_eq!(
        stream.read(&mut [0]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    (&near).write_all(b"yz").unwrap();
    let mut answer = [0; 2];
    read_exact(&mut stream, &mut answer);
    assert_eq!(&answer, b"yz");
}
