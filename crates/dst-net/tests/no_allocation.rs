//! A link in steady state allocates nothing. One test only: the counter sees every thread of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dst_buf::Pool;
use dst_net::{Endpoint, Link};

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

/// Sixteen frames with header, payload and mark, from one end to the other.
fn round(near: &mut Link, far: &mut Link, pool: &Pool, marks: &mut Vec<u64>, len: usize) {
    for n in 0..16 {
        near.push_bytes(&[n; 64]);
        near.push_payload(pool.get(len).share());
        near.push_mark(u64::from(n));
    }
    for _ in 0..16 {
        let mut header = [0; 64];
        read_all(near, far, &mut header);
        let mut place = pool.get(len);
        read_all(near, far, &mut place);
    }
    near.take_marks(marks);
    assert_eq!(marks.len(), 16);
    marks.clear();
}

fn read_all(near: &mut Link, far: &mut Link, place: &mut [u8]) {
    let mut done = 0;
    while done < place.len() {
        near.flush().unwrap();
        match far.read_into(&mut place[done..]) {
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("{e}"),
        }
    }
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
    let mut near = Link::new(transport.connect(Duration::from_secs(5)).unwrap());
    let mut far = Link::new(listener.accept().unwrap());
    let pool = Pool::new(64 << 20);
    let mut marks = Vec::with_capacity(16);
    let sizes = [512, 4096, 16 << 10, 128 << 10, 1 << 20];
    for len in sizes {
        round(&mut near, &mut far, &pool, &mut marks, len);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for len in sizes.into_iter().cycle().take(50) {
        round(&mut near, &mut far, &pool, &mut marks, len);
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
