//! After 101 Switching Protocols: bytes both ways, until both sides have ended.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::origin::Upgraded;
use crate::proxy::io::ClientIo;

/// What one read takes from the upstream, in bytes.
const READ_SIZE: usize = 16 << 10;

/// Carries bytes until both directions have ended, or neither moved for `idle`.
pub async fn run<Io>(client: &ClientIo<Io>, upstream: Upgraded, idle: Duration)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
    let up = async {
        loop {
            let bytes = client.inbox().borrow_mut().split();
            if !bytes.is_empty() {
                to_upstream.write_all(&bytes).await.ok()?;
                continue;
            }
            let read = timeout(idle, poll_fn(|cx| client.poll_fill(cx))).await;
            if !matches!(read, Ok(Ok(1..))) {
                break;
            }
        }
        to_upstream.shutdown().await.ok()
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(READ_SIZE);
        loop {
            buffer.reserve(READ_SIZE);
            let read = timeout(idle, from_upstream.read_buf(&mut buffer)).await;
            if !matches!(read, Ok(Ok(1..))) {
                break;
            }
            let (mut body, mut tail) = (Bytes::new(), Bytes::new());
            let mut head = buffer.split();
            client.write(&mut head, &mut body, &mut tail).await.ok()?;
        }
        client.shutdown().await.ok()
    };
    tokio::join!(up, down);
}
