//! The admin listener: metrics and health, apart from clients' traffic.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};

use super::{Phase, node_state};
use crate::cache::Cache;
use crate::origin;
use crate::store::{DiskHealth, Store};
use crate::telemetry::{self, DiskState, IoEngine, Metrics, StoreOperation, Tier};

/// Connections to the admin listener at a time.
const MAX_CONNECTIONS: usize = 64;

/// From a connection's first byte to the end of its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long accepting rests after it failed.
const ACCEPT_REST: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    store: Store,
    phases: watch::Receiver<Phase>,
}

/// Serves until the data threads have ended: a draining node still says so.
pub(super) fn start(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    store: Store,
    phases: watch::Receiver<Phase>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let admin = Admin {
        metrics,
        store,
        phases,
    };
    thread::Builder::new()
        .name("control".into())
        .spawn(move || runtime.block_on(serve(listener, admin)))
}

async fn serve(listener: TcpListener, admin: Admin) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the admin listener cannot be used");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut phases = admin.phases.clone();
    let ended = async move {
        // An error means that the node has gone: the same.
        let _ = phases.wait_for(|phase| *phase == Phase::Ended).await;
    };
    tokio::pin!(ended);
    loop {
        let (accepted, place) = tokio::select! {
            () = &mut ended => return,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        let (Ok((socket, _)), Ok(place)) = (accepted, place) else {
            // Mostly out of descriptors: asking again at once would only burn the processor.
            tokio::time::sleep(ACCEPT_REST).await;
            continue;
        };
        let admin = admin.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "these end with the control thread's runtime"
        )]
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let response = admin.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            // What a peer does wrong here concerns nobody else.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

impl Admin {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        }
        match request.uri().path() {
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics.render());
                let content_type = HeaderValue::from_static(telemetry::metrics::CONTENT_TYPE);
                response.headers_mut().insert(CONTENT_TYPE, content_type);
                response
            }
            "/_caje/healthz" => text(StatusCode::OK, "ok\n"),
            "/_caje/readyz" => self.ready(),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// Ready means: takes traffic. A node without its disk does, and says so.
    fn ready(&self) -> Response<Full<Bytes>> {
        if *self.phases.borrow() != Phase::Serve {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        let health = self.store.health();
        let disk = match health.disk {
            DiskHealth::Ok => "disk: ok".to_owned(),
            DiskHealth::Degraded { reason } => format!("disk: degraded: {reason}"),
            DiskHealth::Off { reason } => format!("disk: off: {reason}"),
        };
        text(
            StatusCode::OK,
            format!("ready\n{disk}\nio: {}\n", health.io),
        )
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Copies what others count into the metrics, whenever they are asked for.
pub(super) fn sample(
    metrics: &Arc<Metrics>,
    cache: &Cache,
    origins: &Arc<origin::Counters>,
    tasks: &Arc<AtomicUsize>,
    phases: watch::Receiver<Phase>,
) {
    let (store, origins, tasks) = (cache.store.clone(), origins.clone(), tasks.clone());
    metrics.on_scrape(move |metrics| {
        sample_store(metrics, &store);
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        metrics.origin_retries.set((), read(&origins.retries));
        metrics
            .origin_connections_opened
            .set((), read(&origins.connections_opened));
        metrics
            .origin_connections_reused
            .set((), read(&origins.connections_reused));
        metrics
            .origin_connections_failed
            .set((), read(&origins.connections_failed));
        let gauge =
            |gauge: &std::sync::atomic::AtomicI64| gauge.load(Ordering::Relaxed).max(0) as u64;
        metrics.origin_connections.set((), gauge(&origins.open));
        metrics.origin_waiting.set((), gauge(&origins.waiting));
        metrics.tasks.set((), tasks.load(Ordering::Relaxed) as u64);
        metrics.node_state.set_only(node_state(*phases.borrow()));
    });
}

fn sample_store(metrics: &Metrics, store: &Store) {
    let counted = store.metrics();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    metrics.store_reads.set(Tier::Disk, read(&counted.reads));
    metrics
        .store_reads
        .set(Tier::Memory, counted.memory_hits.load(Ordering::Relaxed));
    metrics.store_read_bytes.set((), read(&counted.read_bytes));
    metrics.store_writes.set((), read(&counted.writes));
    metrics
        .store_written_bytes
        .set((), read(&counted.write_bytes));
    metrics
        .store_errors
        .set(StoreOperation::Read, read(&counted.read_errors));
    metrics
        .store_errors
        .set(StoreOperation::Write, read(&counted.write_errors));
    metrics
        .store_errors
        .set(StoreOperation::Index, read(&counted.index_errors));
    metrics
        .store_checksum_errors
        .set((), read(&counted.crc_errors));
    metrics.store_full.set((), read(&counted.enospc));
    metrics.store_evictions.set((), read(&counted.evictions));
    let usage = store.usage();
    metrics.store_objects.set((), usage.objects);
    metrics.store_bytes.set(Tier::Disk, usage.disk_bytes);
    metrics.store_bytes.set(Tier::Memory, usage.memory_bytes);
    metrics.store_limit_bytes.set(Tier::Disk, usage.disk_limit);
    metrics
        .store_limit_bytes
        .set(Tier::Memory, usage.memory_limit);
    metrics.store_unwritten_bytes.set((), usage.dirty_bytes);
    let health = store.health();
    metrics.disk_state.set_only(match health.disk {
        DiskHealth::Ok => DiskState::Ok,
        DiskHealth::Degraded { .. } => DiskState::Degraded,
        DiskHealth::Off { .. } => DiskState::Off,
    });
    metrics
        .io_fallback
        .set((), u64::from(health.io != "io_uring"));
    metrics.io_engine.set_only(match health.io {
        "io_uring" => IoEngine::Uring,
        _ => IoEngine::Threads,
    });
}
