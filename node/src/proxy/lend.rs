//! Bytes into a socket without a copy: their pages are lent to a pipe, and go on from there.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice, vmsplice};
use nix::unistd::pipe2;
use socket2::SockRef;
use tokio::net::TcpStream;

/// Lent at a time, in bytes: what the socket does not take has been lent for nothing.
const LENT_BYTES: usize = 256 << 10;

/// Room of the pipe, in bytes: above [`LENT_BYTES`], since pages that are lent in part count whole.
const ROOM_BYTES: i32 = 512 << 10;

/// The way of one data thread, empty between two sends.
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    nowhere: File,
    /// Something is left in it that could not be taken out.
    is_clogged: Cell<bool>,
}

impl Pipe {
    pub fn new() -> io::Result<Pipe> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // With less room it takes more turns.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(ROOM_BYTES));
        Ok(Pipe {
            out,
            into,
            nowhere: File::options().write(true).open("/dev/null")?,
            is_clogged: Cell::new(false),
        })
    }

    /// Sends as much of `bytes` as the socket takes at once. The bytes are those of which
    /// [`may_lend`](crate::cache::may_lend) has said yes: they are not written again while the socket
    /// has them.
    pub fn send(&self, bytes: &[u8], socket: &TcpStream) -> io::Result<usize> {
        let at_once = SpliceFFlags::SPLICE_F_NONBLOCK;
        let part = &bytes[..bytes.len().min(LENT_BYTES)];
        let lent = match self.is_clogged.get() {
            false => vmsplice(&self.into, &[IoSlice::new(part)], at_once).unwrap_or(0),
            true => 0,
        };
        if lent == 0 {
            return SockRef::from(socket).send(bytes);
        }
        let sent = splice(&self.out, None, socket, None, lent, at_once);
        let mut left = lent - sent.unwrap_or(0);
        while left > 0 {
            match splice(&self.out, None, &self.nowhere, None, left, at_once) {
                Ok(gone) if gone > 0 => left -= gone,
                _ => {
                    self.is_clogged.set(true);
                    break;
                }
            }
        }
        Ok(sent?)
    }
}
