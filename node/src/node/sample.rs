//! Values whose truth is elsewhere, for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::keeper::Keeper;
use crate::cache::Cache;
use crate::cache::prefetch;
use crate::cache::record::Recorder;
use crate::cluster::Role;
use crate::origin;
use crate::store::{DiskHealth, Store};
use crate::telemetry::{
    DiskState, IoEngine, ManifestRole, Metrics, NodeState, PrefetchSource, StoreOperation, Tier,
};

/// Copies what others count into the metrics, whenever they are asked for.
pub(super) fn sample(
    metrics: &Arc<Metrics>,
    cache: &Cache,
    origins: &Arc<origin::Counters>,
    tasks: &Arc<AtomicUsize>,
    stage: impl Fn() -> NodeState + Send + Sync + 'static,
) {
    let (store, origins, tasks) = (cache.store.clone(), origins.clone(), tasks.clone());
    let prefetcher = cache.prefetcher.clone();
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
        for source in prefetch::Source::ALL {
            let (total, label) = (prefetcher.total(source), label(source));
            metrics.prefetch_used.set(label, total.used());
            metrics.prefetch_wasted.set(label, total.wasted());
        }
        metrics.tasks.set((), tasks.load(Ordering::Relaxed) as u64);
        metrics.node_state.set_only(stage());
    });
}

fn label(source: prefetch::Source) -> PrefetchSource {
    match source {
        prefetch::Source::Link => PrefetchSource::Link,
        prefetch::Source::Cmcd => PrefetchSource::Cmcd,
        prefetch::Source::Cmsd => PrefetchSource::Cmsd,
    }
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

/// The same of the manifest.
pub(super) fn sample_manifest(metrics: &Arc<Metrics>, keeper: Keeper, recorder: Arc<Recorder>) {
    metrics.on_scrape(move |metrics| {
        let failing = keeper.failure().is_some();
        metrics.manifest_failing.set((), u64::from(failing));
        let Some(manifest) = recorder.manifest() else {
            metrics.manifest_role.set_only(ManifestRole::None);
            return;
        };
        let status = manifest.status();
        metrics.manifest_role.set_only(match status.role {
            Role::Primary => ManifestRole::Primary,
            Role::Replica { .. } => ManifestRole::Replica,
            Role::Unknown => ManifestRole::Unknown,
        });
        metrics.manifest_outbox.set((), status.outbox);
        metrics.manifest_batches.set((), status.batches);
        metrics
            .manifest_rows_published
            .set((), status.rows_published);
        metrics.manifest_rows_merged.set((), status.rows_merged);
        metrics.manifest_rows_refused.set((), status.rows_refused);
        metrics.manifest_rows_lost.set((), status.rows_lost);
        metrics.manifest_rows_dropped.set((), status.dropped);
        metrics.manifest_rows_given_up.set((), status.given_up);
    });
}
