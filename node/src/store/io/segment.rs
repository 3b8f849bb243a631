//! A segment file: opened once without following links, past the page cache where the file system
//! allows it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, OFlag, fallocate};

use super::buffer::{FrozenBlock, PAGE_BYTES, Source, Target};

/// Tells segments of all stores of this process apart, for the threads' tables of handles.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Segment {
    file: File,
    /// Whether the page cache is bypassed.
    direct: bool,
    serial: u64,
}

impl Segment {
    /// Opens the file, and creates it (mode 0600) when it is absent.
    ///
    /// # Errors
    /// Those of `open`; `ELOOP` when the name is a symbolic link.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let open = |flags: OFlag| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | flags).bits())
                .open(path)
        };
        let (file, direct) = match open(OFlag::O_DIRECT) {
            Ok(file) => (file, true),
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
                (open(OFlag::empty())?, false)
            }
            Err(error) => return Err(error),
        };
        let serial = NEXT_SERIAL.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            file,
            direct,
            serial,
        })
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    pub(super) fn duplicate(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(crate) fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Gives disk space behind `bytes` back.
    pub(crate) fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    /// Makes sure that `bytes` bytes from the start have disk space.
    ///
    /// # Errors
    /// `ENOSPC`, `EDQUOT`, `EFBIG`, `EROFS`, `EIO`. File systems without `fallocate` get a sparse file.
    pub(crate) fn reserve(&self, bytes: u64) -> io::Result<()> {
        let length = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        match fallocate(&self.file, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => {
                if self.file_bytes()? < bytes {
                    self.file.set_len(bytes)
                } else {
                    Ok(())
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads `bytes` bytes at `offset`; blocks.
    pub(crate) fn read_blocking(&self, offset: u64, bytes: usize) -> io::Result<FrozenBlock> {
        let mut target = Target::new(bytes);
        loop {
            match target.read_from(&self.file, offset) {
                Ok(_) if target.filled() >= bytes => return Ok(target.finish(bytes)),
                Ok(read) if read == 0 || !target.filled().is_multiple_of(PAGE_BYTES) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all of `source` at `offset`; blocks.
    pub(crate) fn write_blocking(&self, offset: u64, source: &Source) -> io::Result<()> {
        self.file.write_all_at(source.as_slice(), offset)
    }
}
