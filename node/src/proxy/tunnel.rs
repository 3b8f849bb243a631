//! After 101 Switching Protocols: bytes both ways, until both sides have ended.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::origin::Upgraded;
use crate::proxy::io::ClientIo;

/// What one read takes from the upstream, in bytes.
const READ_SIZE: usize = 16 << 10;

/// Carries bytes until both directions have ended, or neither moved for `idle`. Adds to `sent_bytes`
/// what the client was sent.
pub async fn run(client: &ClientIo, upstream: Upgraded, idle: Duration, sent_bytes: &Cell<u64>) {
    let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
    let moved = Cell::new(Instant::now());
    let up = async {
        loop {
            let bytes = client.inbox().borrow_mut().split();
            if !bytes.is_empty() {
                let written = timeout(idle, to_upstream.write_all(&bytes)).await;
                written.ok()?.ok()?;
                continue;
            }
            if !progress(&moved, idle, poll_fn(|cx| client.poll_fill(cx))).await {
                break;
            }
        }
        to_upstream.shutdown().await.ok()
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(READ_SIZE);
        loop {
            buffer.reserve(READ_SIZE);
            if !progress(&moved, idle, from_upstream.read_buf(&mut buffer)).await {
                break;
            }
            let (mut body, mut tail) = (Bytes::new(), Bytes::new());
            let mut head = buffer.split();
            sent_bytes.set(sent_bytes.get() + head.len() as u64);
            client.write(&mut head, &mut body, &mut tail).await.ok()?;
        }
        client.shutdown().await.ok()
    };
    tokio::join!(up, down);
}

/// Whether a read brings anything before neither direction has moved for `idle`.
async fn progress(
    moved: &Cell<Instant>,
    idle: Duration,
    read: impl Future<Output = io::Result<usize>>,
) -> bool {
    let mut read = pin!(read);
    loop {
        match timeout_at(moved.get() + idle, read.as_mut()).await {
            Ok(read) => {
                moved.set(Instant::now());
                return matches!(read, Ok(1..));
            }
            Err(_) if Instant::now() < moved.get() + idle => {}
            Err(_) => return false,
        }
    }
}
