//! From an accepted socket to HTTP/1.1 or HTTP/2, within what one client may take.
//!
//! Kept true here:
//! - Every connection is counted while it lives, in all and for its address, and refused beyond the caps.
//! - A socket that says nothing, or half of an HTTP/2 preface, ends by a deadline.
//! - Beyond what descriptors allow, clients wait in the kernel until one leaves: those that are kept
//!   for origins, the store and the administrator are never taken. Running out of them all the same
//!   slows accepting down; it never ends it.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::proxy::message::Client;
use crate::proxy::{Proxy, h1, h2};
use crate::semantics::key::Scheme;
use crate::tasks::Tasks;
use crate::telemetry::{Refused, TimeoutPhase};
use crate::wire::{Preface, preface};

/// How long accepting rests when the process has no descriptor left.
const DESCRIPTOR_REST: Duration = Duration::from_millis(100);

/// Shards of the per-address table.
const SHARDS: usize = 16;

/// Whether this thread has stopped taking new work.
#[derive(Clone, Default)]
pub struct Draining(Rc<DrainState>);

#[derive(Default)]
struct DrainState {
    begun: Cell<bool>,
    told: Notify,
}

impl Draining {
    pub fn begin(&self) {
        self.0.begun.set(true);
        self.0.told.notify_waiters();
    }

    pub fn has_begun(&self) -> bool {
        self.0.begun.get()
    }

    /// Completes once draining has begun.
    pub async fn begun(&self) {
        while !self.0.begun.get() {
            self.0.told.notified().await;
        }
    }
}

/// Who is connected, over all threads.
pub struct Admission {
    total: AtomicUsize,
    max_total: usize,
    /// At so many nobody is accepted.
    room: usize,
    /// A place within the room was given back.
    freed: Notify,
    max_per_address: usize,
    by_address: [Mutex<HashMap<IpAddr, usize>>; SHARDS],
}

/// A counted connection.
pub struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    /// Beyond `max_total` clients are refused. Where descriptors leave `room` for fewer, they wait.
    pub fn new(max_total: usize, room: usize, max_per_address: usize) -> Arc<Admission> {
        Arc::new(Admission {
            total: AtomicUsize::new(0),
            max_total,
            room: if room < max_total { room } else { usize::MAX },
            freed: Notify::new(),
            max_per_address,
            by_address: Default::default(),
        })
    }

    fn shard(&self, address: &IpAddr) -> &Mutex<HashMap<IpAddr, usize>> {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[7],
        };
        &self.by_address[last as usize % SHARDS]
    }

    /// Completes when there is room for one more. Each thread may then take one.
    async fn has_room(&self) {
        while self.total.load(Ordering::Relaxed) >= self.room {
            let freed = self.freed.notified();
            // What was given back since is not told again.
            if self.total.load(Ordering::SeqCst) >= self.room {
                freed.await;
            }
        }
    }

    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admitted, Refused> {
        let address = subscriber(address);
        if self.total.fetch_add(1, Ordering::Relaxed) >= self.max_total {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::Total);
        }
        let mut shard = self.shard(&address).lock();
        let count = shard.entry(address).or_insert(0);
        if *count >= self.max_per_address {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::PerAddress);
        }
        *count += 1;
        drop(shard);
        Ok(Admitted {
            admission: self.clone(),
            address,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.admission.total.fetch_sub(1, Ordering::SeqCst) >= self.admission.room {
            self.admission.freed.notify_waiters();
        }
        let mut shard = self.admission.shard(&self.address).lock();
        if let Some(count) = shard.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&self.address);
            }
        }
    }
}

/// What one subscriber holds: an IPv4 address, or a /64 of IPv6.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

/// Accepts until the thread drains, and nobody waits any more.
pub async fn accept(
    listener: TcpListener,
    proxy: Rc<Proxy>,
    admission: Arc<Admission>,
    tasks: Tasks,
) {
    let metrics = proxy.shared.metrics.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            // Those that wait in the kernel's queue first: closing the listener would reset them.
            accepted = async {
                admission.has_room().await;
                listener.accept().await
            } => accepted,
            () = proxy.draining.begun() => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if is_out_of_descriptors(&error) {
                    metrics
                        .client_connections_refused
                        .increment(Refused::Descriptors);
                    tokio::time::sleep(DESCRIPTOR_REST).await;
                }
                if proxy.draining.has_begun() {
                    return;
                }
                continue;
            }
        };
        metrics.client_connections_accepted.increment(());
        match admission.admit(peer.ip()) {
            Ok(admitted) => {
                let client = Client {
                    address: peer.ip().to_canonical(),
                    scheme: Scheme::Http,
                };
                let proxy = proxy.clone();
                let open = metrics.client_connections.hold(());
                tasks.spawn(async move {
                    let _counted = (admitted, open);
                    serve(socket, client, proxy).await;
                });
            }
            // Closed without a word: an answer would cost what the cap is to save.
            Err(reason) => metrics.client_connections_refused.increment(reason),
        }
    }
}

fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(
        error.raw_os_error(),
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM)
    )
}

async fn serve(mut socket: TcpStream, client: Client, proxy: Rc<Proxy>) {
    // Answers are written whole: there is nothing to wait for.
    let _ = socket.set_nodelay(true);
    let mut inbox = BytesMut::with_capacity(4 << 10);
    let deadline = tokio::time::sleep(proxy.limits().first_byte_timeout);
    tokio::pin!(deadline);
    let mut is_last_call = false;
    let version = loop {
        if !inbox.is_empty() {
            match preface(&inbox) {
                Preface::Undecided => {}
                decided => break decided,
            }
        }
        tokio::select! {
            biased;
            read = socket.read_buf(&mut inbox) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
            () = &mut deadline => {
                if !is_last_call {
                    proxy.count_timeout(TimeoutPhase::FirstByte);
                }
                return;
            }
            () = proxy.draining.begun(), if !is_last_call => {
                is_last_call = true;
                let last_call = deadline.deadline().min(Instant::now() + h1::LAST_CALL);
                deadline.as_mut().reset(last_call);
            }
        }
    };
    match version {
        Preface::Http2 => h2::serve(socket, inbox, client, proxy).await,
        _ => h1::serve(socket, inbox, client, proxy).await,
    }
}
