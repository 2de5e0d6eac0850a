//! A program that takes memory and goes on touching it until it is killed.

use std::time::Duration;

/// Takes this many bytes and touches each page again and again.
pub fn take_and_hold(bytes: u64) -> ! {
    // The first to go when memory is short, before anything that is tested.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let mut memory = vec![1_u8; bytes as usize];
    println!("holding {bytes} bytes");
    let mut round = 0_u8;
    loop {
        round = round.wrapping_add(1);
        for at in (0..memory.len()).step_by(4096) {
            memory[at] = round;
        }
        std::hint::black_box(&mut memory);
        std::thread::sleep(Duration::from_millis(20));
    }
}
