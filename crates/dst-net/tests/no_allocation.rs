//! A link in steady state, and the frames on it, allocate nothing. One test only: the counter sees every thread of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dst_buf::{Buf, Pool};
use dst_net::{Came, Endpoint, Framed, Memory, Share};
use dst_proto::{
    digest, Algorithm, DigestChoice, Header, Hello, Kind, Role, HEADER_LEN, HELLO_LEN,
    MAX_DIGEST_AREA,
};

const DIGESTS: DigestChoice = DigestChoice {
    algorithm: Algorithm::Crc32c,
    granule: 4096,
};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to `System` as it came, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout, since all allocations do.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Own;

impl Memory<Buf> for Own {
    fn room<'a>(&'a mut self, buffer: &'a mut Buf) -> Option<&'a mut [u8]> {
        Some(buffer)
    }
}

/// Sixteen frames with header, digests, payload and mark, from one end to the other.
fn round(
    near: &mut Framed<Buf>,
    far: &mut Framed<Buf>,
    pool: &Pool,
    marks: &mut Vec<u64>,
    scratch: &mut [u8],
    len: u32,
) {
    for n in 0..16 {
        let digest_len = digest::area_len(DIGESTS.algorithm, DIGESTS.granule, 0, len);
        let header = Header {
            payload_len: len,
            digest_len: digest_len.unwrap(),
            ..Header::new(Kind::WRITE)
        };
        let payload = pool.get(len as usize).share();
        near.push_frame(&header, DIGESTS, 0, payload, scratch);
        near.link.push_mark(n);
    }
    let mut left = 16;
    while left > 0 {
        near.link.flush().unwrap();
        let mut share = Share::new();
        while let Some(came) = far.next(&mut Own, &mut share).unwrap() {
            match came {
                Came::Hello(_) => far.begin(1 << 20, DIGESTS),
                Came::Frame(header) => far.deliver(pool.get(header.payload_len as usize)),
                Came::Payload(buffer) => {
                    assert!(far.is_good(DIGESTS, 0, &buffer));
                    left -= 1;
                }
            }
        }
    }
    near.link.take_marks(marks);
    assert_eq!(marks.len(), 16);
    marks.clear();
}

#[test]
fn frames_of_every_size_go_through_without_an_allocation() {
    let mut listener = "dst://127.0.0.1:0"
        .parse::<Endpoint>()
        .unwrap()
        .listen()
        .unwrap();
    let transport = listener
        .local_url()
        .parse::<Endpoint>()
        .unwrap()
        .transport();
    let stream = transport.connect(Duration::from_secs(5)).unwrap();
    let mut near = Framed::new(stream, Role::Server);
    let mut far = Framed::new(listener.accept().unwrap(), Role::Client);
    let mut hello = [0; HELLO_LEN];
    Hello::new(Role::Client, [0; 16], "").encode(&mut hello);
    near.link.push_bytes(&hello);
    let pool = Pool::new(64 << 20);
    let mut marks = Vec::with_capacity(16);
    let mut scratch = vec![0; HEADER_LEN + MAX_DIGEST_AREA as usize];
    let mut all = |near: &mut _, far: &mut _, times| {
        let sizes = [512, 4096, 16 << 10, 128 << 10, 1 << 20];
        for len in sizes.into_iter().cycle().take(times) {
            round(near, far, &pool, &mut marks, &mut scratch, len);
        }
    };
    all(&mut near, &mut far, 5);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    all(&mut near, &mut far, 50);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
