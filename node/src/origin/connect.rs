//! From an origin's name to bytes: DNS, TCP, TLS.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::resolve::Resolver;
use super::tls::Offer;
use super::{ErrorKind, OriginError, Phase, Scheme, Settings};

/// How long one address is tried alone before the next is tried beside it (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// A connection's bytes. Halves are clones: one task reads while another writes.
#[derive(Clone)]
pub(super) struct Io(Rc<RefCell<Stream>>);

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What was connected.
pub(super) struct Connected {
    pub(super) io: Io,
    /// ALPN chose HTTP/2.
    pub(super) is_http2: bool,
}

/// Connects within the settings' timeout.
pub(super) async fn connect(
    settings: &Settings,
    resolver: &Resolver,
    offer: Offer,
) -> Result<Connected, OriginError> {
    tokio::time::timeout(
        settings.connect_timeout,
        connect_untimed(settings, resolver, offer),
    )
    .await
    .unwrap_or_else(|_| Err(OriginError::timeout(Phase::Connect)))
}

async fn connect_untimed(
    settings: &Settings,
    resolver: &Resolver,
    offer: Offer,
) -> Result<Connected, OriginError> {
    let addresses = resolver.resolve(&settings.host).await?;
    if let Some(permits) = &settings.permits
        && let Some(address) = addresses.iter().find(|a| !permits.allows(**a))
    {
        let message = format!("{} is at {address}", settings.host);
        return Err(OriginError::new(ErrorKind::Prohibited, message));
    }
    let tcp = connect_any(&addresses, settings.port)
        .await
        .map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorKind::Refused,
                _ => ErrorKind::Connect,
            };
            OriginError::new(kind, error.to_string())
        })?;
    // Refusing Nagle is an optimisation: without it the connection works all the same.
    let _ = tcp.set_nodelay(true);
    if settings.scheme == Scheme::Http {
        return Ok(Connected {
            io: Io::new(Stream::Plain(tcp)),
            is_http2: false,
        });
    }

    let failed = |message: String| OriginError::new(ErrorKind::Tls, message);
    let tls = settings
        .tls
        .as_ref()
        .ok_or_else(|| failed("no TLS settings".into()))?;
    let name = tls
        .server_name(&settings.host)
        .map_err(|e| failed(e.to_string()))?;
    let stream = TlsConnector::from(tls.config(offer))
        .connect(name, tcp)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Connected {
        io: Io::new(Stream::Tls(Box::new(stream))),
        is_http2,
    })
}

/// The first address that answers, each tried beside the ones before it after [`STAGGER`] or their
/// failure.
async fn connect_any(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    if let [address] = addresses {
        return TcpStream::connect(SocketAddr::new(*address, port)).await;
    }
    let mut untried = addresses.iter();
    let mut attempts = JoinSet::new();
    let mut last_error = io::Error::other("no address");
    loop {
        if let Some(address) = untried.next() {
            attempts.spawn_local(TcpStream::connect(SocketAddr::new(*address, port)));
        } else if attempts.is_empty() {
            return Err(last_error);
        }
        let may_stagger = untried.len() > 0;
        tokio::select! {
            Some(attempt) = attempts.join_next() => match attempt {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last_error = error,
                Err(error) => last_error = io::Error::other(error),
            },
            () = tokio::time::sleep(STAGGER), if may_stagger => {}
        }
    }
}

impl Io {
    fn new(stream: Stream) -> Self {
        Self(Rc::new(RefCell::new(stream)))
    }

    /// Nothing was received since the last exchange: no byte, no end, no error. Anything else means
    /// that the connection cannot carry another request.
    pub(super) fn is_quiet(&self) -> bool {
        let mut stream = self.0.borrow_mut();
        match &mut *stream {
            // The system is asked, not the runtime, which may not have heard yet.
            Stream::Plain(tcp) => {
                let peeked = SockRef::from(&*tcp).peek(&mut [MaybeUninit::uninit()]);
                matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
            }
            // A session ticket is no answer: only the TLS layer can tell.
            Stream::Tls(tls) => {
                let mut byte = [0];
                let mut cx = Context::from_waker(Waker::noop());
                let mut buf = ReadBuf::new(&mut byte);
                Pin::new(tls).poll_read(&mut cx, &mut buf).is_pending()
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self.0.borrow_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self.0.borrow_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self.0.borrow_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.0.borrow_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.0.borrow_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
