//! The interface of the kernel's ublk driver: numbers and structures that this front end uses.
//!
//! Source: `include/uapi/linux/ublk_cmd.h` of Linux 6.12 and 7.x; the names in comments are those of that file. All fields are
//! in native byte order. Only the ioctl-encoded numbers are used (`UBLK_F_CMD_IOCTL_ENCODE`), since a kernel may be built
//! without the others.

use rustix::ioctl::{opcode, Opcode};

use super::place::Place;

/// Numbers of control commands, to `/dev/ublk-control`.
pub(super) mod ctrl {
    use super::{opcode, CtrlCmd, Opcode};

    /// `UBLK_U_CMD_GET_DEV_INFO`: `addr` leads to a [`super::DevInfo`] to be filled.
    pub(in super::super) const GET_DEV_INFO: Opcode = opcode::read::<CtrlCmd>(b'u', 0x02);
    /// `UBLK_U_CMD_ADD_DEV`: `addr` leads to a [`super::DevInfo`], which is adjusted.
    pub(in super::super) const ADD_DEV: Opcode = opcode::read_write::<CtrlCmd>(b'u', 0x04);
    /// `UBLK_U_CMD_DEL_DEV`: waits until nobody has the device open any more.
    pub(in super::super) const DEL_DEV: Opcode = opcode::read_write::<CtrlCmd>(b'u', 0x05);
    /// `UBLK_U_CMD_START_DEV`: `data` is the server's process id.
    pub(in super::super) const START_DEV: Opcode = opcode::read_write::<CtrlCmd>(b'u', 0x06);
    /// `UBLK_U_CMD_STOP_DEV`: takes the disk away, whoever has it open.
    pub(in super::super) const STOP_DEV: Opcode = opcode::read_write::<CtrlCmd>(b'u', 0x07);
    /// `UBLK_U_CMD_SET_PARAMS`: `addr` leads to [`super::Params`].
    pub(in super::super) const SET_PARAMS: Opcode = opcode::read_write::<CtrlCmd>(b'u', 0x08);
    /// `UBLK_U_CMD_START_USER_RECOVERY`: the device is made ready for another server.
    pub(in super::super) const START_USER_RECOVERY: Opcode =
        opcode::read_write::<CtrlCmd>(b'u', 0x10);
    /// `UBLK_U_CMD_END_USER_RECOVERY`: the new server takes requests; `data` is its process id.
    pub(in super::super) const END_USER_RECOVERY: Opcode =
        opcode::read_write::<CtrlCmd>(b'u', 0x11);
    /// `UBLK_U_CMD_GET_FEATURES` (Linux 6.5): `addr` leads to a u64 to be filled.
    pub(in super::super) const GET_FEATURES: Opcode = opcode::read::<CtrlCmd>(b'u', 0x13);
    /// `UBLK_U_CMD_DEL_DEV_ASYNC`: as `DEL_DEV`, without waiting. No feature bit says whether it is there.
    pub(in super::super) const DEL_DEV_ASYNC: Opcode = opcode::read::<CtrlCmd>(b'u', 0x14);
    /// `UBLK_U_CMD_UPDATE_SIZE`, with [`super::feature::UPDATE_SIZE`]: `data` is the new size in sectors.
    pub(in super::super) const UPDATE_SIZE: Opcode = opcode::read_write::<CtrlCmd>(b'u', 0x15);
    /// `UBLK_U_CMD_TRY_STOP_DEV`, with [`super::feature::SAFE_STOP_DEV`]: as `STOP_DEV`, `EBUSY` if somebody has it open.
    pub(in super::super) const TRY_STOP_DEV: Opcode = opcode::read_write::<CtrlCmd>(b'u', 0x17);
}

/// Numbers of I/O commands, to `/dev/ublkcN`.
pub(super) mod io {
    use super::{opcode, IoCmd, Opcode};

    /// `UBLK_U_IO_FETCH_REQ`: completes when a request comes on the tag. Once per tag.
    pub(in super::super) const FETCH_REQ: Opcode = opcode::read_write::<IoCmd>(b'u', 0x20);
    /// `UBLK_U_IO_COMMIT_AND_FETCH_REQ`: answers the request of the tag, and completes when the next one comes.
    pub(in super::super) const COMMIT_AND_FETCH_REQ: Opcode =
        opcode::read_write::<IoCmd>(b'u', 0x21);
}

/// `UBLK_F_*`: what a driver can do, and what a device is to do.
pub(super) mod feature {
    /// `UBLK_F_USER_RECOVERY`: when the server dies, requests wait for another one.
    pub(in super::super) const USER_RECOVERY: u64 = 1 << 3;
    /// `UBLK_F_USER_RECOVERY_REISSUE`: and those that the dead one had not answered come again.
    pub(in super::super) const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// `UBLK_F_CMD_IOCTL_ENCODE`
    pub(in super::super) const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// `UBLK_F_USER_COPY`: payload moves by `pread` and `pwrite` on `/dev/ublkcN`.
    pub(in super::super) const USER_COPY: u64 = 1 << 7;
    /// `UBLK_F_UPDATE_SIZE`: [`super::ctrl::UPDATE_SIZE`] is there.
    pub(in super::super) const UPDATE_SIZE: u64 = 1 << 10;
    /// `UBLK_F_SAFE_STOP_DEV`: [`super::ctrl::TRY_STOP_DEV`] is there.
    pub(in super::super) const SAFE_STOP_DEV: u64 = 1 << 17;
    /// `UBLK_F_NO_AUTO_PART_SCAN`: partitions are not looked for.
    pub(in super::super) const NO_AUTO_PART_SCAN: u64 = 1 << 18;
}

/// `UBLK_IO_OP_*`, the low 8 bits of [`IoDesc::op_flags`].
pub(super) mod op {
    pub(in super::super) const READ: u32 = 0;
    pub(in super::super) const WRITE: u32 = 1;
    pub(in super::super) const FLUSH: u32 = 2;
    pub(in super::super) const DISCARD: u32 = 3;
    pub(in super::super) const WRITE_ZEROES: u32 = 5;
    /// Which bits of `op_flags` these are.
    pub(in super::super) const MASK: u32 = 0xff;
    /// `UBLK_IO_F_FUA`
    pub(in super::super) const FUA: u32 = 1 << 13;
    /// `UBLK_IO_F_NOUNMAP`
    pub(in super::super) const NO_UNMAP: u32 = 1 << 15;
}

/// `UBLK_ATTR_*`
pub(super) mod attr {
    pub(in super::super) const READ_ONLY: u32 = 1 << 0;
    pub(in super::super) const ROTATIONAL: u32 = 1 << 1;
    pub(in super::super) const VOLATILE_CACHE: u32 = 1 << 2;
    pub(in super::super) const FUA: u32 = 1 << 3;
}

/// `UBLK_PARAM_TYPE_BASIC`
pub(super) const PARAM_BASIC: u32 = 1 << 0;
/// `UBLK_PARAM_TYPE_DISCARD`
pub(super) const PARAM_DISCARD: u32 = 1 << 1;

/// `dev_id` of `ADD_DEV`: any that is free.
pub(super) const ANY_ID: u32 = u32::MAX;
/// `state` of a device with a disk (`UBLK_S_DEV_LIVE`).
pub(super) const LIVE: u16 = 1;
/// `state` of a device whose server is dead and whose requests wait (`UBLK_S_DEV_QUIESCED`).
pub(super) const QUIESCED: u16 = 2;
/// `queue_id` of a command that is for no queue.
const NO_QUEUE: u16 = u16::MAX;

/// `UBLK_MAX_QUEUE_DEPTH`: each queue's descriptors have a place in `/dev/ublkcN` for so many.
const MOST_TAGS: u64 = 4096;

/// `UBLKSRV_IO_BUF_OFFSET`: where the payloads begin in `/dev/ublkcN`.
const IO_BUF_OFFSET: u64 = 0x8000_0000;
/// `UBLK_IO_BUF_BITS`: each request has so many bits of that space, with the tag in the bits above.
const IO_BUF_BITS: u32 = 25;
/// `UBLK_QID_OFF`: and the queue in the bits above those.
const QUEUE_BITS_AT: u32 = IO_BUF_BITS + 16;
/// Longest payload of one request in bytes that has a place in `/dev/ublkcN`.
pub(super) const LONGEST_PAYLOAD: u32 = 1 << IO_BUF_BITS;

/// Bytes per sector, whatever the logical block.
pub(super) const SECTOR: u64 = 512;

/// Where the payload of the request at a place is in `/dev/ublkcN`.
pub(super) fn payload_offset(place: Place) -> u64 {
    let queue = u64::from(place.queue) << QUEUE_BITS_AT;
    IO_BUF_OFFSET + queue + (u64::from(place.tag) << IO_BUF_BITS)
}

/// Where the descriptors of a queue are in `/dev/ublkcN`, with pages of so many bytes.
pub(super) fn descriptors_offset(queue: u16, page: u64) -> u64 {
    // From `UBLKSRV_CMD_BUF_OFFSET`, which is 0.
    u64::from(queue) * (MOST_TAGS * size_of::<IoDesc>() as u64).next_multiple_of(page)
}

/// `struct ublksrv_ctrl_cmd`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CtrlCmd {
    pub(super) dev_id: u32,
    queue_id: u16,
    /// Bytes at `addr`.
    pub(super) len: u16,
    pub(super) addr: u64,
    pub(super) data: u64,
    dev_path_len: u16,
    pad: u16,
    reserved: u32,
}

impl CtrlCmd {
    /// A command for a device, with nothing else.
    pub(super) fn new(dev_id: u32) -> CtrlCmd {
        CtrlCmd {
            dev_id,
            queue_id: NO_QUEUE,
            len: 0,
            addr: 0,
            data: 0,
            dev_path_len: 0,
            pad: 0,
            reserved: 0,
        }
    }

    /// As it stands in the second half of a 128-byte submission queue entry.
    pub(super) fn encode(&self) -> [u8; 80] {
        let mut bytes = [0; 80];
        let parts: [&[u8]; 8] = [
            &self.dev_id.to_ne_bytes(),
            &self.queue_id.to_ne_bytes(),
            &self.len.to_ne_bytes(),
            &self.addr.to_ne_bytes(),
            &self.data.to_ne_bytes(),
            &self.dev_path_len.to_ne_bytes(),
            &self.pad.to_ne_bytes(),
            &self.reserved.to_ne_bytes(),
        ];
        put(&mut bytes, &parts);
        bytes
    }
}

/// `struct ublksrv_ctrl_dev_info`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DevInfo {
    pub(super) nr_hw_queues: u16,
    pub(super) queue_depth: u16,
    /// [`LIVE`], [`QUIESCED`], or without a disk.
    pub(super) state: u16,
    pub(super) pad0: u16,
    /// Most payload of a request in bytes.
    pub(super) max_io_buf_bytes: u32,
    pub(super) dev_id: u32,
    pub(super) ublksrv_pid: i32,
    pub(super) pad1: u32,
    /// [`feature`] bits: what was asked for; then what there is.
    pub(super) flags: u64,
    /// The driver keeps this for us and never looks at it.
    pub(super) ublksrv_flags: u64,
    pub(super) owner_uid: u32,
    pub(super) owner_gid: u32,
    pub(super) reserved: [u64; 2],
}

/// `struct ublksrv_io_desc`: a request, in memory that the driver shares with us.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct IoDesc {
    pub(super) op_flags: u32,
    pub(super) nr_sectors: u32,
    pub(super) start_sector: u64,
    pub(super) addr: u64,
}

/// `struct ublksrv_io_cmd`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IoCmd {
    q_id: u16,
    tag: u16,
    /// Bytes done, or a negative errno.
    result: i32,
    /// 0 with [`feature::USER_COPY`].
    addr: u64,
}

impl IoCmd {
    pub(super) fn new(place: Place, result: i32) -> IoCmd {
        IoCmd {
            q_id: place.queue,
            tag: place.tag,
            result,
            addr: 0,
        }
    }

    /// As it stands at the end of a 64-byte submission queue entry.
    pub(super) fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let parts: [&[u8]; 4] = [
            &self.q_id.to_ne_bytes(),
            &self.tag.to_ne_bytes(),
            &self.result.to_ne_bytes(),
            &self.addr.to_ne_bytes(),
        ];
        put(&mut bytes, &parts);
        bytes
    }
}

/// `struct ublk_param_basic`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ParamBasic {
    pub(super) attrs: u32,
    pub(super) logical_bs_shift: u8,
    pub(super) physical_bs_shift: u8,
    pub(super) io_opt_shift: u8,
    pub(super) io_min_shift: u8,
    pub(super) max_sectors: u32,
    pub(super) chunk_sectors: u32,
    pub(super) dev_sectors: u64,
    pub(super) virt_boundary_mask: u64,
}

/// `struct ublk_param_discard`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ParamDiscard {
    pub(super) discard_alignment: u32,
    pub(super) discard_granularity: u32,
    pub(super) max_discard_sectors: u32,
    pub(super) max_write_zeroes_sectors: u32,
    pub(super) max_discard_segments: u16,
    pub(super) reserved0: u16,
}

/// The beginning of `struct ublk_params`, as far as it is used.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Params {
    /// [`Params::LEN`]
    pub(super) len: u32,
    /// Which of the following count.
    pub(super) types: u32,
    pub(super) basic: ParamBasic,
    pub(super) discard: ParamDiscard,
}

impl Params {
    /// Bytes that the driver is to read: without the padding that Rust adds.
    pub(super) const LEN: u32 =
        (std::mem::offset_of!(Params, discard) + size_of::<ParamDiscard>()) as u32;
}

const _: () = assert!(size_of::<CtrlCmd>() == 32);
const _: () = assert!(size_of::<DevInfo>() == 64);
const _: () = assert!(size_of::<IoDesc>() == 24);
const _: () = assert!(size_of::<IoCmd>() == 16);
const _: () = assert!(size_of::<ParamBasic>() == 32 && size_of::<ParamDiscard>() == 20);
const _: () = assert!(std::mem::offset_of!(Params, basic) == 8 && Params::LEN == 60);

/// Puts the parts one after another at the beginning of `bytes`, which has room for them.
fn put(bytes: &mut [u8], parts: &[&[u8]]) {
    let all = parts.iter().flat_map(|part| part.iter());
    for (to, from) in bytes.iter_mut().zip(all) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn commands_have_the_numbers_of_the_header_file() {
        // As a C compiler expands the macros of ublk_cmd.h on these machines.
        assert_eq!(ctrl::GET_DEV_INFO, 0x8020_7502);
        assert_eq!(ctrl::ADD_DEV, 0xc020_7504);
        assert_eq!(ctrl::DEL_DEV, 0xc020_7505);
        assert_eq!(ctrl::START_DEV, 0xc020_7506);
        assert_eq!(ctrl::STOP_DEV, 0xc020_7507);
        assert_eq!(ctrl::SET_PARAMS, 0xc020_7508);
        assert_eq!(ctrl::START_USER_RECOVERY, 0xc020_7510);
        assert_eq!(ctrl::END_USER_RECOVERY, 0xc020_7511);
        assert_eq!(ctrl::GET_FEATURES, 0x8020_7513);
        assert_eq!(ctrl::DEL_DEV_ASYNC, 0x8020_7514);
        assert_eq!(ctrl::UPDATE_SIZE, 0xc020_7515);
        assert_eq!(ctrl::TRY_STOP_DEV, 0xc020_7517);
        assert_eq!(io::FETCH_REQ, 0xc010_7520);
        assert_eq!(io::COMMIT_AND_FETCH_REQ, 0xc010_7521);
    }

    #[test]
    fn commands_are_encoded_field_by_field() {
        let mut command = CtrlCmd::new(7);
        command.len = 8;
        command.addr = 0x1122_3344_5566_7788;
        command.data = 42;
        let bytes = command.encode();
        assert_eq!(bytes[0..4], 7_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], [0xff, 0xff]);
        assert_eq!(bytes[6..8], 8_u16.to_ne_bytes());
        assert_eq!(bytes[8..16], command.addr.to_ne_bytes());
        assert_eq!(bytes[16..24], 42_u64.to_ne_bytes());
        assert!(bytes[24..].iter().all(|byte| *byte == 0));

        let place = Place { queue: 3, tag: 513 };
        let bytes = IoCmd::new(place, -5).encode();
        assert_eq!(bytes[0..2], 3_u16.to_ne_bytes());
        assert_eq!(bytes[2..4], 513_u16.to_ne_bytes());
        assert_eq!(bytes[4..8], (-5_i32).to_ne_bytes());
        assert_eq!(bytes[8..16], [0; 8]);
    }

    #[test]
    fn payloads_have_places_apart() {
        let at = |queue, tag| payload_offset(Place { queue, tag });
        assert_eq!(at(0, 0), 0x8000_0000);
        assert_eq!(at(0, 3), 0x8000_0000 + 3 * (32 << 20));
        assert_eq!(at(2, 1), 0x8000_0000 + (2 << 41) + (32 << 20));
        assert_eq!(LONGEST_PAYLOAD, 32 << 20);
    }

    #[test]
    fn descriptors_of_each_queue_begin_on_a_page() {
        assert_eq!(descriptors_offset(0, 4096), 0);
        assert_eq!(descriptors_offset(3, 4096), 3 * 98304);
        assert_eq!(descriptors_offset(1, 65536), 131072);
    }
}
