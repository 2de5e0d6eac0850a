//! Control commands: `io_uring` commands of 128 bytes to `/dev/ublk-control`, one at a time, each waited for.
//!
//! The kernel runs them on a thread of its own. They may block, so this is for threads other than the one that serves,
//! but for what is done before anything is served.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use io_uring::{opcode, squeue, types, IoUring};
use rustix::io::Errno;
use rustix::ioctl::Opcode;

use super::abi::{ctrl, feature, CtrlCmd, DevInfo, Params};
use crate::{Error, ErrorKind};

const PATH: &str = "/dev/ublk-control";

/// How long deleting a device is given. A kernel without the asynchronous command waits until the last one closes it, when
/// the disk is gone already.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long taking a disk away is given, which writes back what is cached: fails to, as a rule.
const STOPPING: Duration = Duration::from_secs(2);

/// How long the end of a recovery is given, when every tag fetches. It waits for nothing then.
const RECOVERING: Duration = Duration::from_secs(10);

type Ring = IoUring<squeue::Entry128>;

/// `/dev/ublk-control`.
pub(super) struct Control {
    // Dropped before the file that its commands refer to. `None` after a command that the kernel did not take: it would
    // go out with the next one.
    ring: Option<Ring>,
    device: File,
    features: u64,
    /// Commands so far: the latest one's `user_data`.
    sent: u64,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("features", &format_args!("{:#x}", self.features))
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Opens the driver, and asks what it can do.
    ///
    /// # Errors
    /// `NotAvailable`, `Permission`, `Io`
    pub(super) fn open() -> Result<Control, Error> {
        let device = OpenOptions::new().read(true).write(true).open(PATH);
        let device = device.map_err(|error| {
            let missing = matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOENT | Errno::NODEV | Errno::NXIO)
            );
            let error = Error::io(format!("can't open {PATH}"), error);
            if missing {
                error.with_kind(ErrorKind::NotAvailable).with_hint(
                    "load the ublk driver with `modprobe ublk_drv`; the kernel needs CONFIG_BLK_DEV_UBLK, and a \
                     container this device passed in",
                )
            } else {
                error.with_hint("making a ublk device takes root (CAP_SYS_ADMIN)")
            }
        })?;
        let ring = ring().map_err(|error| {
            Error::io("can't set up io_uring, which ublk needs", error)
                .with_kind(ErrorKind::NotAvailable)
                .with_hint("see the sysctl kernel.io_uring_disabled")
        })?;
        let mut control = Control {
            ring: Some(ring),
            device,
            features: 0,
            sent: 0,
        };
        control.features = control.ask_features()?;
        Ok(control)
    }

    /// The driver's [`feature`] bits.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    fn ask_features(&mut self) -> Result<u64, Error> {
        let mut features = 0_u64;
        let mut command = CtrlCmd::new(0);
        command.len = size_of::<u64>() as u16;
        command.addr = &raw mut features as u64;
        // SAFETY: `addr` leads to eight bytes that live through the call.
        let asked = unsafe { self.call(ctrl::GET_FEATURES, command) };
        let old = |why: String| {
            Err(Error::new(ErrorKind::NotAvailable, why)
                .with_hint("this front end takes the ublk driver of Linux 6.5 or later"))
        };
        match asked {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV) => {
                return old("the ublk driver does not say what it can do".to_owned());
            }
            Err(errno) => return Err(Error::io("can't ask the ublk driver", errno)),
        }
        let needed = feature::CMD_IOCTL_ENCODE | feature::USER_COPY;
        if features & needed != needed {
            return old(format!(
                "the ublk driver lacks what is needed (features {features:#x})"
            ));
        }
        Ok(features)
    }

    /// Makes a device. Returns what it became: its number, and limits that may be lower.
    ///
    /// # Errors
    /// `Permission`, `Io`
    pub(super) fn add(&mut self, mut info: DevInfo) -> Result<DevInfo, Error> {
        let mut command = CtrlCmd::new(info.dev_id);
        command.len = size_of::<DevInfo>() as u16;
        command.addr = &raw mut info as u64;
        // SAFETY: `addr` leads to a `DevInfo`, which has the layout of `struct ublksrv_ctrl_dev_info` and lives through
        // the call.
        unsafe { self.call(ctrl::ADD_DEV, command) }
            .map_err(|e| Error::io("can't make a ublk device", e))?;
        Ok(info)
    }

    /// What the device `id` is; `None` if there is none, or one that does not answer us: an unprivileged one of somebody else
    /// (`UBLK_F_UNPRIVILEGED_DEV`) wants to be asked by its path, and perhaps by its owner. Ours never are such.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn info(&mut self, id: u32) -> Result<Option<DevInfo>, Error> {
        let mut info = DevInfo::default();
        let mut command = CtrlCmd::new(id);
        command.len = size_of::<DevInfo>() as u16;
        command.addr = &raw mut info as u64;
        // SAFETY: as in `add`.
        match unsafe { self.call(ctrl::GET_DEV_INFO, command) } {
            Ok(()) => Ok(Some(info)),
            Err(Errno::NODEV | Errno::INVAL | Errno::PERM | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(Error::io(
                format!("can't ask for the ublk device {id}"),
                errno,
            )),
        }
    }

    /// Sets the parameters of a device that has not been started.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn set_params(&mut self, id: u32, params: &Params) -> Result<(), Error> {
        let mut command = CtrlCmd::new(id);
        command.len = Params::LEN as u16;
        command.addr = std::ptr::from_ref(params) as u64;
        // SAFETY: the driver reads `Params::LEN` bytes from `addr`, which leads to a `Params`, the beginning of `struct
        // ublk_params`, that lives through the call.
        unsafe { self.call(ctrl::SET_PARAMS, command) }
            .map_err(|e| Error::io(format!("can't set up the ublk device {id}"), e))
    }

    /// Makes the disk appear; reads it for its partition table.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn start(&mut self, id: u32) -> Result<(), Error> {
        let mut command = CtrlCmd::new(id);
        command.data = u64::from(std::process::id());
        self.plain(ctrl::START_DEV, command)
            .map_err(|e| Error::io(format!("can't start the ublk device {id}"), e))
    }

    /// Makes a device whose server is dead ready for another one. False: the driver has not noticed the death yet, or what
    /// the process had open is not closed yet.
    ///
    /// Linux before 6.16 refuses (`EINVAL`) a device that is ready already, since another process has died since; so that is
    /// taken for success. Whether the device can be recovered at all is for the caller to have asked.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn start_recovery(&mut self, id: u32) -> Result<bool, Error> {
        match self.plain(ctrl::START_USER_RECOVERY, CtrlCmd::new(id)) {
            Ok(()) | Err(Errno::INVAL) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(errno) => Err(Error::io(
                format!("can't recover the ublk device {id}"),
                errno,
            )),
        }
    }

    /// Lets requests flow to this process, which fetches on every tag.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn end_recovery(&mut self, id: u32) -> Result<(), Error> {
        let mut command = CtrlCmd::new(id);
        command.data = u64::from(std::process::id());
        let ended = self.patiently(ctrl::END_USER_RECOVERY, command, RECOVERING);
        ended
            .unwrap_or(Err(Errno::TIMEDOUT))
            .map_err(|e| Error::io(format!("can't recover the ublk device {id}"), e))
    }

    /// Writes back what is cached and takes the disk away, whoever has it open. Nothing if it is not there.
    ///
    /// What is cached of a device that is made to survive ([`feature::USER_RECOVERY`]) is not written back but fails.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn stop(&mut self, id: u32) -> Result<(), Error> {
        match self.plain(ctrl::STOP_DEV, CtrlCmd::new(id)) {
            Ok(()) | Err(Errno::NODEV) => Ok(()),
            Err(errno) => Err(Error::io(format!("can't stop the ublk device {id}"), errno)),
        }
    }

    /// As [`Control::stop`], but not waited for when it takes long. False: it is still under way.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn stop_soon(&mut self, id: u32) -> Result<bool, Error> {
        match self.patiently(ctrl::STOP_DEV, CtrlCmd::new(id), STOPPING) {
            Some(Ok(()) | Err(Errno::NODEV)) => Ok(true),
            Some(Err(errno)) => Err(Error::io(format!("can't stop the ublk device {id}"), errno)),
            None => Ok(false),
        }
    }

    /// As [`Control::stop`], but only if nobody has the disk open. For a driver with [`feature::SAFE_STOP_DEV`].
    ///
    /// # Errors
    /// `Busy`, `Io`
    pub(super) fn stop_unused(&mut self, id: u32) -> Result<(), Error> {
        match self.plain(ctrl::TRY_STOP_DEV, CtrlCmd::new(id)) {
            Ok(()) | Err(Errno::NODEV) => Ok(()),
            Err(errno) => Err(Error::io(format!("can't stop the ublk device {id}"), errno)),
        }
    }

    /// Deletes the device. Its number is free when nobody has the disk or `/dev/ublkcN` open any more, which is not waited
    /// for. Nothing if it is not there.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn delete(&mut self, id: u32) -> Result<(), Error> {
        let command = CtrlCmd::new(id);
        let deleted = match self.plain(ctrl::DEL_DEV_ASYNC, command) {
            Err(Errno::OPNOTSUPP | Errno::INVAL) => self
                .patiently(ctrl::DEL_DEV, command, PATIENCE)
                .unwrap_or(Ok(())),
            deleted => deleted,
        };
        match deleted {
            Ok(()) | Err(Errno::NODEV) => Ok(()),
            Err(errno) => Err(Error::io(
                format!("can't delete the ublk device {id}"),
                errno,
            )),
        }
    }

    /// Gives the disk another size. For a driver with [`feature::UPDATE_SIZE`].
    ///
    /// # Errors
    /// `Io`
    pub(super) fn update_size(&mut self, id: u32, sectors: u64) -> Result<(), Error> {
        let mut command = CtrlCmd::new(id);
        command.data = sectors;
        self.plain(ctrl::UPDATE_SIZE, command)
            .map_err(|e| Error::io(format!("can't resize the ublk device {id}"), e))
    }

    /// A command without memory.
    fn plain(&mut self, code: Opcode, command: CtrlCmd) -> Result<(), Errno> {
        debug_assert!(command.addr == 0 && command.len == 0);
        // SAFETY: it refers to no memory.
        unsafe { self.call(code, command) }
    }

    /// A command without memory, not waited for longer than `patience`: `None` then.
    fn patiently(
        &mut self,
        code: Opcode,
        command: CtrlCmd,
        patience: Duration,
    ) -> Option<Result<(), Errno>> {
        debug_assert!(command.addr == 0 && command.len == 0);
        // SAFETY: it refers to no memory.
        if let Err(errno) = unsafe { self.send(code, command) } {
            return Some(Err(errno));
        }
        let limit = types::Timespec::from(patience);
        let args = types::SubmitArgs::new().timespec(&limit);
        if let Some(ring) = &self.ring {
            // The outcome is in the completion queue, or it is not.
            let _ = ring.submitter().submit_with_args(1, &args);
        }
        self.outcome()
    }

    /// Runs a command to its end.
    ///
    /// # Safety
    /// `addr` of the command is 0, or leads to `len` bytes of the structure that the command takes, exclusively borrowed
    /// if it fills them.
    unsafe fn call(&mut self, code: Opcode, command: CtrlCmd) -> Result<(), Errno> {
        // SAFETY: as for this function; and this does not return before the kernel is done with the memory.
        unsafe { self.send(code, command) }?;
        loop {
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            let waited = self.ring.as_ref().map(|ring| ring.submit_and_wait(1));
            if !matches!(waited, Some(Ok(_))) {
                thread::yield_now();
            }
        }
    }

    /// Hands a command to the kernel.
    ///
    /// # Safety
    /// As for [`Control::call`], until [`Control::outcome`] has given its outcome.
    unsafe fn send(&mut self, code: Opcode, command: CtrlCmd) -> Result<(), Errno> {
        let mut ring = match self.ring.take() {
            Some(ring) => ring,
            None => ring().map_err(|error| errno(&error))?,
        };
        self.sent += 1;
        let entry = opcode::UringCmd80::new(types::Fd(self.device.as_raw_fd()), code)
            .cmd(command.encode())
            .build()
            .user_data(self.sent);
        // SAFETY: the descriptor is open as long as the ring; the rest is the caller's promise. A command that the kernel
        // does not take goes with the ring.
        unsafe { ring.submission().push(&entry) }.expect("a ring that is kept has no entry left");
        loop {
            let submitted = ring.submit();
            if ring.submission().is_empty() {
                self.ring = Some(ring);
                return Ok(());
            }
            match submitted.map_err(|error| errno(&error)) {
                Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {
                    thread::yield_now();
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The outcome of the latest command, if it is there. What an earlier one left is dropped.
    fn outcome(&mut self) -> Option<Result<(), Errno>> {
        let sent = self.sent;
        let entry = self
            .ring
            .as_mut()?
            .completion()
            .find(|entry| entry.user_data() == sent)?;
        Some(match entry.result() {
            0.. => Ok(()),
            error => Err(Errno::from_raw_os_error(-error)),
        })
    }
}

fn ring() -> io::Result<Ring> {
    IoUring::builder().build(1)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
