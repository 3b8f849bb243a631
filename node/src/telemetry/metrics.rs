//! Every metric of the node, in one table: [`Metrics::new`]. Name, type, labels and sentence of a
//! metric stand there and nowhere else; `docs/operations.md` is tested against it.
//!
//! ```text
//! Counter   only grows; counted where the thing happens
//! Gauge     goes up and down there; `hold` ties it to a value's life
//! Sampled   a counter or gauge whose truth is elsewhere; a scrape hook copies it in
//! Histogram durations in fixed buckets
//! ```

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::exposition;
use super::label::*;
use super::process;
use super::sharded::Sharded;

/// All metrics of one node. Counting is lock-free, and cheap enough to do several times per
/// request.
pub struct Metrics {
    pub requests: Counter<(StatusClass, CacheResult)>,
    pub response_bytes: Counter<()>,
    pub request_bytes: Counter<()>,
    pub time_to_first_byte: Histogram<CacheResult>,
    pub request_duration: Histogram<()>,
    pub stale_served: Counter<StaleReason>,
    pub uncacheable: Counter<Uncacheable>,
    pub bad_requests: Counter<BadRequest>,
    pub invalidations: Counter<()>,
    pub purges: Counter<(PurgeSelector, PurgeMode)>,
    pub purges_heard: Counter<PurgeWay>,
    pub purge_log_unread: Sampled<()>,

    pub client_connections: Gauge<()>,
    pub client_connections_accepted: Counter<()>,
    pub client_connections_refused: Counter<Refused>,
    pub client_timeouts: Counter<TimeoutPhase>,
    pub clients_gone: Counter<()>,

    pub fills: Gauge<()>,
    pub fills_started: Counter<()>,
    pub fills_joined: Counter<()>,
    pub fills_unshared: Counter<()>,
    pub fills_completed: Counter<()>,
    pub fills_failed: Counter<FillFailure>,
    pub validations: Counter<Validation>,

    pub origin_requests: Counter<(OriginId, OriginOutcome)>,
    pub origin_response_bytes: Counter<OriginId>,
    pub origin_retries: Sampled<()>,
    pub origin_connections: Sampled<()>,
    pub origin_connections_opened: Sampled<()>,
    pub origin_connections_reused: Sampled<()>,
    pub origin_connections_failed: Sampled<()>,
    pub origin_waiting: Sampled<()>,

    pub peer_requests: Counter<PeerOutcome>,
    pub peer_response_bytes: Counter<()>,
    pub peer_answers: Counter<PeerAnswer>,

    pub store_reads: Sampled<Tier>,
    pub store_read_bytes: Sampled<()>,
    pub store_writes: Sampled<()>,
    pub store_written_bytes: Sampled<()>,
    pub store_errors: Sampled<StoreOperation>,
    pub store_checksum_errors: Sampled<()>,
    pub store_full: Sampled<()>,
    pub store_evictions: Sampled<()>,
    pub store_objects: Sampled<()>,
    pub store_bytes: Sampled<Tier>,
    pub store_limit_bytes: Sampled<Tier>,
    pub store_unwritten_bytes: Sampled<()>,
    pub disk_state: Sampled<DiskState>,
    pub io_engine: Sampled<IoEngine>,
    pub io_fallback: Sampled<()>,

    pub manifest_recorded: Counter<Recorded>,
    pub manifest_role: Sampled<ManifestRole>,
    pub manifest_outbox: Sampled<()>,
    pub manifest_batches: Sampled<()>,
    pub manifest_rows_published: Sampled<()>,
    pub manifest_rows_merged: Sampled<()>,
    pub manifest_rows_refused: Sampled<()>,
    pub manifest_rows_lost: Sampled<()>,
    pub manifest_rows_dropped: Sampled<()>,
    pub manifest_rows_given_up: Sampled<()>,
    pub manifest_failing: Sampled<()>,

    pub populate_attempts: Counter<Populated>,
    pub populate_bytes: Counter<()>,
    pub populate_in_flight: Gauge<()>,
    pub populate_blocked: Sampled<Populated>,
    pub populate_waiting: Sampled<()>,
    pub populate_walks: Counter<()>,

    pub prefetches: Counter<Prefetched>,
    pub prefetch_bytes: Counter<()>,
    pub prefetch_in_flight: Gauge<()>,
    pub prefetch_used: Sampled<PrefetchSource>,
    pub prefetch_wasted: Sampled<PrefetchSource>,

    pub tasks: Sampled<()>,
    pub node_state: Sampled<NodeState>,
    pub config_reloads: Counter<ReloadResult>,
    pub access_log_dropped: Counter<Dropped>,
    pub(super) process: process::ProcessMetrics,

    /// The origins whose ids [`OriginNames::intern`] has given out.
    pub origins: OriginNames,
    families: Vec<Family>,
    hooks: Mutex<Vec<ScrapeHook>>,
}

type ScrapeHook = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Bounds of the histograms' buckets, in seconds: from an answer out of memory to an origin that
/// has hung.
pub const BUCKETS: [f64; 10] = [
    0.0001, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0,
];

impl Metrics {
    #[rustfmt::skip]
    pub fn new() -> Metrics {
        let mut table = Table::default();
        let build_info: Sampled<Version> = table.sampled_gauge("caje_build_info", "Always 1; the label is the version that runs.");
        build_info.set(Version, 1);
        Metrics {
            requests: table.counter("caje_requests_total", "Requests answered, by class of status and by what the cache did for them."),
            response_bytes: table.counter("caje_response_bytes_total", "Bytes of answers' bodies sent to clients."),
            request_bytes: table.counter("caje_request_bytes_total", "Bytes received from clients, heads included."),
            time_to_first_byte: table.histogram("caje_time_to_first_byte_seconds", "Time from the last byte of a request's head to the first byte of its answer, by what the cache did."),
            request_duration: table.histogram("caje_request_duration_seconds", "Time from the last byte of a request's head to the last byte of its answer."),
            stale_served: table.counter("caje_stale_served_total", "Answers served stale, by the reason that allowed it."),
            uncacheable: table.counter("caje_uncacheable_total", "Answers that were forwarded and not stored, by the reason."),
            bad_requests: table.counter("caje_bad_requests_total", "Requests refused as malformed, too large or looping, by reason."),
            invalidations: table.counter("caje_invalidations_total", "Stored responses invalidated by an unsafe request (RFC 9111 section 4.4)."),
            purges: table.counter("caje_purges_total", "Purges applied, by what they select and whether they remove (hard) or make stale (soft)."),
            purges_heard: table.counter("caje_purges_heard_total", "Purges of other nodes, by how they came: told directly, read from the log, or known already."),
            purge_log_unread: table.sampled_gauge("caje_purge_log_unread", "1 until the log of purges was read since the start; until then what was stored before is validated before it is used, where the manifest is shared."),

            client_connections: table.gauge("caje_client_connections", "Client connections open now."),
            client_connections_accepted: table.counter("caje_client_connections_accepted_total", "Client connections accepted."),
            client_connections_refused: table.counter("caje_client_connections_refused_total", "Client connections closed right after accept, by reason."),
            client_timeouts: table.counter("caje_client_timeouts_total", "Clients let go because they were too slow, by what they were slow with."),
            clients_gone: table.counter("caje_clients_gone_total", "Clients that left before the end of their request's body or of their answer."),

            fills: table.gauge("caje_fills", "Fills in flight now."),
            fills_started: table.counter("caje_fills_started_total", "Fills started."),
            fills_joined: table.counter("caje_fills_joined_total", "Requests that joined a fill in flight instead of asking the origin."),
            fills_unshared: table.counter("caje_fills_unshared_total", "Requests that had joined a fill and went their own way, because its response may not be shared with them."),
            fills_completed: table.counter("caje_fills_completed_total", "Fills that stored all they went for."),
            fills_failed: table.counter("caje_fills_failed_total", "Fills that ended early, by reason."),
            validations: table.counter("caje_validations_total", "Stale stored responses checked with the origin, by outcome."),

            origin_requests: table.counter("caje_origin_requests_total", "Requests sent to an origin, by origin and by class of status or kind of failure."),
            origin_response_bytes: table.counter("caje_origin_response_bytes_total", "Bytes of body that fills received from an origin; answers that are only passed on are not counted."),
            origin_retries: table.sampled_counter("caje_origin_retries_total", "Requests repeated on a fresh connection because a pooled one had been closed."),
            origin_connections: table.sampled_gauge("caje_origin_connections", "Connections to origins open now, busy or idle."),
            origin_connections_opened: table.sampled_counter("caje_origin_connections_opened_total", "Connections to origins opened."),
            origin_connections_reused: table.sampled_counter("caje_origin_connections_reused_total", "Requests that went out on a connection used before."),
            origin_connections_failed: table.sampled_counter("caje_origin_connections_failed_total", "Attempts to connect to an origin that failed."),
            origin_waiting: table.sampled_gauge("caje_origin_waiting", "Requests that wait for a free connection to an origin now."),

            peer_requests: table.counter("caje_peer_requests_total", "Questions to other nodes for what was not here, by outcome."),
            peer_response_bytes: table.counter("caje_peer_response_bytes_total", "Bytes of body that fills received from other nodes."),
            peer_answers: table.counter("caje_peer_answers_total", "Questions of other nodes that were answered, by what they got."),

            store_reads: table.sampled_counter("caje_store_reads_total", "Blocks read from the store, by tier."),
            store_read_bytes: table.sampled_counter("caje_store_read_bytes_total", "Bytes read from disk."),
            store_writes: table.sampled_counter("caje_store_writes_total", "Blocks written to disk."),
            store_written_bytes: table.sampled_counter("caje_store_written_bytes_total", "Bytes written to disk."),
            store_errors: table.sampled_counter("caje_store_errors_total", "Disk operations that failed, by operation."),
            store_checksum_errors: table.sampled_counter("caje_store_checksum_errors_total", "Blocks that came back from disk with a wrong checksum and were thrown away."),
            store_full: table.sampled_counter("caje_store_full_total", "Writes given up because the disk had no room."),
            store_evictions: table.sampled_counter("caje_store_evictions_total", "Stored bodies evicted to make room."),
            store_objects: table.sampled_gauge("caje_store_objects", "Stored bodies."),
            store_bytes: table.sampled_gauge("caje_store_bytes", "Bytes in use, by tier."),
            store_limit_bytes: table.sampled_gauge("caje_store_limit_bytes", "Bytes the tier may use."),
            store_unwritten_bytes: table.sampled_gauge("caje_store_unwritten_bytes", "Bytes received and not yet on disk."),
            disk_state: table.sampled_gauge("caje_disk_state", "1 for the state the disk is in: ok, degraded (something failed lately) or off (memory only)."),
            io_engine: table.sampled_gauge("caje_io_engine", "1 for the way files are read and written: io_uring or threads."),
            io_fallback: table.sampled_gauge("caje_io_fallback", "1 when io_uring was wanted and refused, so that threads stand in."),

            manifest_recorded: table.counter("caje_manifest_recorded_total", "Responses that the manifest was to be told of, by outcome."),
            manifest_role: table.sampled_gauge("caje_manifest_role", "1 for what this node is where the manifest is kept: primary, replica, unknown; none without a manifest."),
            manifest_outbox: table.sampled_gauge("caje_manifest_outbox_rows", "Rows that are recorded here and not yet published."),
            manifest_batches: table.sampled_counter("caje_manifest_batches_total", "Transactions with rows in this node's database of the manifest."),
            manifest_rows_published: table.sampled_counter("caje_manifest_rows_published_total", "Rows published to the other nodes."),
            manifest_rows_merged: table.sampled_counter("caje_manifest_rows_merged_total", "Rows of other nodes that became the latest of their keys."),
            manifest_rows_refused: table.sampled_counter("caje_manifest_rows_refused_total", "Rows of other nodes that could not be taken."),
            manifest_rows_lost: table.sampled_counter("caje_manifest_rows_lost_total", "Rows that had been published, were found missing, and were published again."),
            manifest_rows_dropped: table.sampled_counter("caje_manifest_rows_dropped_total", "Rows that found no room in the queue."),
            manifest_rows_given_up: table.sampled_counter("caje_manifest_rows_given_up_total", "Resources of this node given up to keep manifest.max_rows."),
            manifest_failing: table.sampled_gauge("caje_manifest_failing", "1 while the manifest cannot be opened or published."),

            populate_attempts: table.counter("caje_populate_attempts_total", "Resources of the manifest that were fetched because this disk lacked them, by what came of it."),
            populate_bytes: table.counter("caje_populate_bytes_total", "Bytes of bodies that populate has brought."),
            populate_in_flight: table.gauge("caje_populate_in_flight", "Resources that populate fetches now."),
            populate_blocked: table.sampled_gauge("caje_populate_blocked", "Resources that this disk lacks and populate leaves alone, by the reason."),
            populate_waiting: table.sampled_gauge("caje_populate_waiting", "Resources that failed and are tried again after a pause."),
            populate_walks: table.counter("caje_populate_walks_total", "Times that populate has looked through what the manifest has and this disk lacks."),
            prefetches: table.counter("caje_prefetches_total", "What answers and requests name as the next, by what came of it."),
            prefetch_bytes: table.counter("caje_prefetch_bytes_total", "Bytes of bodies that prefetch has brought."),
            prefetch_in_flight: table.gauge("caje_prefetch_in_flight", "Resources that prefetch fetches now."),
            prefetch_used: table.sampled_counter("caje_prefetch_used_total", "Prefetched bodies that a client has had, by who named them."),
            prefetch_wasted: table.sampled_counter("caje_prefetch_wasted_total", "Prefetched bodies that went before a client had them, by who named them."),

            tasks: table.sampled_gauge("caje_tasks", "Tasks alive now that outlive the request which began them."),
            node_state: table.sampled_gauge("caje_node_state", "1 for what the node is doing: starting, serving or draining."),
            config_reloads: table.counter("caje_config_reloads_total", "Reloads of the configuration, by result."),
            access_log_dropped: table.counter("caje_access_log_dropped_total", "Lines of the access log that were lost, by reason."),
            process: process::ProcessMetrics {
                cpu_seconds: table.sampled_counter("process_cpu_seconds_total", "User and system time this process has used."),
                open_fds: table.sampled_gauge("process_open_fds", "File descriptors open now."),
                max_fds: table.sampled_gauge("process_max_fds", "File descriptors this process may have open."),
                resident_memory_bytes: table.sampled_gauge("process_resident_memory_bytes", "Memory of this process that is in RAM."),
                start_time_seconds: table.sampled_gauge("process_start_time_seconds", "When this process started, in seconds since 1970."),
            },

            origins: OriginNames::new(),
            families: table.families,
            hooks: Mutex::new(Vec::new()),
        }
    }

    /// Runs `hook` before every scrape. It copies values that live elsewhere into [`Sampled`]
    /// families; it must not block, and must not scrape.
    pub fn on_scrape(&self, hook: impl Fn(&Metrics) + Send + Sync + 'static) {
        self.hooks.lock().push(Box::new(hook));
    }

    /// Samples what is sampled and writes everything in Prometheus's text format, to be served as
    /// [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        self.process.sample();
        for hook in &*self.hooks.lock() {
            hook(self);
        }
        exposition::render(&self.families, &self.origins)
    }

    /// Counts a fill that begins; it is in flight until the returned value is dropped.
    pub fn fill_started(&self) -> Held {
        self.fills_started.increment(());
        self.fills.hold(())
    }

    /// Counts a fill that has ended: with the reason when it fell short.
    pub fn fill_ended(&self, failure: Option<impl Into<FillFailure>>) {
        match failure {
            None => self.fills_completed.increment(()),
            Some(reason) => self.fills_failed.increment(reason.into()),
        }
    }

    /// The table's rows, in its order.
    pub fn families(&self) -> &[Family] {
        &self.families
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// The media type of [`Metrics::render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One row of the table.
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    pub labels: Vec<&'static str>,
    pub(super) series: usize,
    pub(super) values: for<'a> fn(usize, &'a OriginNames) -> Option<Vec<&'a str>>,
    pub(super) cells: Arc<Sharded>,
    /// What one unit of a cell is in the metric's own unit; 1 but for times, whose cells hold
    /// microseconds.
    pub(super) unit: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

pub struct Counter<L> {
    cells: Arc<Sharded>,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Counter<L> {
    pub fn add(&self, labels: L, amount: u64) {
        self.cells.add(labels.series(), amount);
    }

    pub fn increment(&self, labels: L) {
        self.add(labels, 1);
    }

    /// The sum over all threads.
    pub fn get(&self, labels: L) -> u64 {
        self.cells.sum(labels.series())
    }

    /// The sum over all threads and all series.
    pub fn total(&self) -> u64 {
        (0..L::SERIES).map(|series| self.cells.sum(series)).sum()
    }
}

pub struct Gauge<L> {
    cells: Arc<Sharded>,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Gauge<L> {
    /// Counts one more, until the returned value is dropped, on whatever thread.
    pub fn hold(&self, labels: L) -> Held {
        let series = labels.series();
        self.cells.add(series, 1);
        Held {
            cells: Arc::clone(&self.cells),
            series,
        }
    }

    pub fn add(&self, labels: L, amount: i64) {
        self.cells.add(labels.series(), amount as u64);
    }

    pub fn get(&self, labels: L) -> i64 {
        self.cells.sum(labels.series()) as i64
    }
}

/// One unit of a [`Gauge`]; dropping it gives the unit back.
#[must_use = "the gauge counts this only as long as it lives"]
pub struct Held {
    cells: Arc<Sharded>,
    series: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cells.add(self.series, u64::MAX);
    }
}

pub struct Sampled<L> {
    cells: Arc<Sharded>,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Sampled<L> {
    pub fn set(&self, labels: L, value: u64) {
        self.cells.set(labels.series(), value);
    }

    pub fn get(&self, labels: L) -> u64 {
        self.cells.sum(labels.series())
    }
}

impl<L: Label> Sampled<L> {
    /// 1 for this value, 0 for all others: how a state is shown.
    pub fn set_only(&self, state: L) {
        for series in 0..L::VALUES.len() {
            self.cells.set(series, u64::from(series == state.index()));
        }
    }
}

pub struct Histogram<L> {
    cells: Arc<Sharded>,
    labels: PhantomData<fn(L)>,
}

/// Cells of one histogram series: a count per bucket, one for what is above them all, and the sum
/// in microseconds.
pub(super) const HISTOGRAM_CELLS: usize = BUCKETS.len() + 2;

impl<L: Labels> Histogram<L> {
    pub fn observe(&self, labels: L, duration: Duration) {
        let first = labels.series() * HISTOGRAM_CELLS;
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.iter().take_while(|&&bound| seconds > bound).count();
        self.cells.add(first + bucket, 1);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.cells.add(first + HISTOGRAM_CELLS - 1, micros);
    }

    /// How many observations there were.
    pub fn count(&self, labels: L) -> u64 {
        let first = labels.series() * HISTOGRAM_CELLS;
        (first..=first + BUCKETS.len())
            .map(|cell| self.cells.sum(cell))
            .sum()
    }
}

/// The table while it is being written down.
#[derive(Default)]
struct Table {
    families: Vec<Family>,
}

impl Table {
    fn row<L: Labels>(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
    ) -> Arc<Sharded> {
        let cells_per_series = if kind == Kind::Histogram {
            HISTOGRAM_CELLS
        } else {
            1
        };
        let cells = Arc::new(Sharded::new(L::SERIES * cells_per_series));
        let in_micros = kind == Kind::Histogram || name == "process_cpu_seconds_total";
        self.families.push(Family {
            name,
            kind,
            help,
            labels: L::names(),
            series: L::SERIES,
            values: L::values,
            cells: Arc::clone(&cells),
            unit: if in_micros { 1e-6 } else { 1.0 },
        });
        cells
    }

    fn counter<L: Labels>(&mut self, name: &'static str, help: &'static str) -> Counter<L> {
        Counter {
            cells: self.row::<L>(name, Kind::Counter, help),
            labels: PhantomData,
        }
    }

    fn gauge<L: Labels>(&mut self, name: &'static str, help: &'static str) -> Gauge<L> {
        Gauge {
            cells: self.row::<L>(name, Kind::Gauge, help),
            labels: PhantomData,
        }
    }

    fn sampled_counter<L: Labels>(&mut self, name: &'static str, help: &'static str) -> Sampled<L> {
        Sampled {
            cells: self.row::<L>(name, Kind::Counter, help),
            labels: PhantomData,
        }
    }

    fn sampled_gauge<L: Labels>(&mut self, name: &'static str, help: &'static str) -> Sampled<L> {
        Sampled {
            cells: self.row::<L>(name, Kind::Gauge, help),
            labels: PhantomData,
        }
    }

    fn histogram<L: Labels>(&mut self, name: &'static str, help: &'static str) -> Histogram<L> {
        Histogram {
            cells: self.row::<L>(name, Kind::Histogram, help),
            labels: PhantomData,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn held_units_come_back_on_whatever_thread() {
        let metrics = Metrics::new();
        let held = metrics.fills.hold(());
        let second = metrics.fills.hold(());
        assert_eq!(metrics.fills.get(()), 2);
        std::thread::spawn(move || drop(held)).join().unwrap();
        assert_eq!(metrics.fills.get(()), 1);
        drop(second);
        assert_eq!(metrics.fills.get(()), 0);
    }

    #[test]
    fn a_duration_on_a_bound_is_in_that_bucket() {
        let metrics = Metrics::new();
        metrics
            .time_to_first_byte
            .observe(CacheResult::Hit, Duration::from_millis(1));
        metrics
            .time_to_first_byte
            .observe(CacheResult::Hit, Duration::from_secs(3600));
        let text = metrics.render();
        for line in [
            "caje_time_to_first_byte_seconds_bucket{cache=\"hit\",le=\"0.0005\"} 0\n",
            "caje_time_to_first_byte_seconds_bucket{cache=\"hit\",le=\"0.001\"} 1\n",
            "caje_time_to_first_byte_seconds_bucket{cache=\"hit\",le=\"60\"} 1\n",
            "caje_time_to_first_byte_seconds_bucket{cache=\"hit\",le=\"+Inf\"} 2\n",
            "caje_time_to_first_byte_seconds_sum{cache=\"hit\"} 3600.001\n",
            "caje_time_to_first_byte_seconds_count{cache=\"hit\"} 2\n",
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
    }

    #[test]
    fn a_hook_fills_sampled_families_at_scrape() {
        let metrics = Metrics::new();
        metrics.on_scrape(|metrics| {
            metrics.store_bytes.set(Tier::Disk, 4096);
            metrics.disk_state.set_only(DiskState::Degraded);
        });
        let text = metrics.render();
        assert!(
            text.contains("caje_store_bytes{tier=\"disk\"} 4096\n"),
            "{text}"
        );
        assert!(
            text.contains("caje_disk_state{state=\"degraded\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("caje_disk_state{state=\"ok\"} 0\n"), "{text}");
    }

    #[test]
    fn names_follow_prometheus_conventions() {
        let metrics = Metrics::new();
        let mut seen = BTreeSet::new();
        for family in metrics.families() {
            let name = family.name;
            assert!(seen.insert(name), "{name} stands twice in the table");
            assert!(
                name.starts_with("caje_") || name.starts_with("process_"),
                "{name}"
            );
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                family.kind == Kind::Counter,
                "{name}"
            );
            assert!(
                family.help.ends_with('.') && !family.help.contains('\n'),
                "{name}"
            );
            assert!(!family.labels.contains(&"le"), "{name}");
            for suffix in ["_count", "_sum", "_bucket", "_ms", "_micros", "_kb", "_mib"] {
                assert!(!name.ends_with(suffix), "{name}");
            }
        }
    }

    /// `docs/operations.md` has a row for every metric, with the table's own words, and advice.
    #[test]
    fn the_operations_page_agrees_with_the_table() {
        let page = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../docs/operations.md"
        ));
        let mut rows = page
            .lines()
            .filter(|line| line.starts_with("| `caje_") || line.starts_with("| `process_"))
            .map(|line| {
                line.trim_matches('|')
                    .split(" | ")
                    .map(str::trim)
                    .collect::<Vec<_>>()
            });
        for family in Metrics::new().families() {
            let row = rows
                .next()
                .unwrap_or_else(|| panic!("no row for {}", family.name));
            let labels = family.labels.iter().map(|label| format!("`{label}`"));
            let labels = labels.collect::<Vec<_>>().join(", ");
            let expected = [
                &format!("`{}`", family.name),
                family.kind.as_str(),
                &labels,
                family.help,
            ];
            assert_eq!(row[..4.min(row.len())], expected, "docs/operations.md");
            assert!(
                row.len() == 5 && row[4].len() > 10,
                "{}: what is to be done?",
                family.name
            );
        }
        assert_eq!(rows.next(), None, "docs/operations.md has a row too many");
    }
}
