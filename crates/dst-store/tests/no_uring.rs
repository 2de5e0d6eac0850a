//! Where io_uring is forbidden, as in many containers, threads do the work.
#![allow(missing_docs)]

mod common;

use common::{image, open, options};
use dst_store::{EngineChoice, OpenOptions};

/// Makes `io_uring_setup` fail with EPERM on this thread and the threads it starts from here on.
fn forbid_io_uring() {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        // Offset 0 of seccomp_data is the number of the system call.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_io_uring_setup as u32,
        ),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers only; PR_SET_SECCOMP reads the program, which is alive, and copies it.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_io_uring_is_forbidden_threads_do_the_work() {
    let thread = std::thread::spawn(|| {
        forbid_io_uring();
        let (_directory, path) = image(1 << 20);
        let error = open(&path, &options(EngineChoice::Uring))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("cannot use io_uring"), "{error}");
        let mut disk = open(&path, &OpenOptions::default()).unwrap();
        assert!(disk.backend.info().description.ends_with("threads"));
        disk.write_fua(4096, &[3; 8192]).unwrap();
        assert_eq!(disk.read(4096, 8192).unwrap(), [3; 8192]);
    });
    thread.join().unwrap();
}
