//! How much a thread may get in the way of others.

use nix::libc;

/// Steps below the usual priority: a tenth of the processor where somebody else wants it.
const NICE: libc::c_int = 10;

/// `IOPRIO_CLASS_BE` with the lowest of its levels, as ioprio_set(2) has it.
const LOWEST_BEST_EFFORT: libc::c_int = 2 << 13 | 7;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Lets others go before the calling thread: at the processor, and at disks whose scheduler knows priorities. Where
/// the kernel refuses, all goes on as before.
pub fn be_gentle() {
    // SAFETY: both calls take numbers only, and change nothing but how this thread is scheduled (0 names it).
    let refused = unsafe {
        let nice = libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
        let disk = libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            LOWEST_BEST_EFFORT,
        );
        nice != 0 || disk != 0
    };
    if refused {
        tracing::debug!("a worker's thread has the priority of all others");
    }
}
