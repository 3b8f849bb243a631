//! The one place with `unsafe`: a duplicate of a descriptor with a high number.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// The lowest number that a lock's descriptor gets.
pub(crate) const LOWEST: i32 = 900;

/// A duplicate with a number of at least [`LOWEST`] that is closed on exec.
///
/// # Errors
/// `EINVAL` where the process may not have so many open files.
pub(crate) fn duplicate_high(descriptor: impl AsFd) -> Result<OwnedFd, Errno> {
    let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(LOWEST))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
