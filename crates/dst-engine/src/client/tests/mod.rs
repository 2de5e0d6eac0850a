//! The client's rules, one by one, against frames put together by hand. The sequences of many events are the
//! simulation's.

extern crate std;

mod aborts;
mod adoption;
mod closing;
mod order;
mod retention;
mod rig;
mod sessions;
