//! Settings as the lower modules want them.

use std::path::PathBuf;
use std::sync::Arc;

use super::{AccessFormat, Config, Engine, HostHeader, Http2, Io, Limits, Origin, Scheme};
use crate::block::BlockSize;
use crate::cache::OriginRules;
use crate::cluster::{self, ClusterError};
use crate::manifest;
use crate::origin::{self, Tls, TlsError, TlsOptions};
use crate::peer;
use crate::store::{self, IoMode};
use crate::telemetry::{Format, Metrics, Sink};
use crate::workers::{limits, populate, prefetch};
use crate::{proxy, wire};

/// Descriptors of a node before its first client: standard streams, the store's lock and index, the
/// log, the manifest's databases and those that populate reads, the administrator's listener and some of its
/// connections, event loops of threads without data.
const FIXED_DESCRIPTORS: u64 = 88;

/// Of a data thread: its event loop, its ring, and what wakes it; and a client more than there is room
/// for, where several threads accept at the same moment.
const THREAD_DESCRIPTORS: u64 = 8;

impl Config {
    pub fn store_settings(&self) -> store::Settings {
        let settings = &self.store;
        let defaults =
            store::Settings::new(&settings.dir, settings.size_bytes, settings.memory_bytes);
        store::Settings {
            block_size: BlockSize::new(settings.block_size_bytes).unwrap_or_default(),
            io: match settings.io {
                Io::Auto => IoMode::Auto,
                Io::Uring => IoMode::Uring,
                Io::Blocking => IoMode::Blocking,
            },
            max_objects: settings.max_objects,
            ..defaults
        }
    }

    /// Where this node's manifest is, and as whom it writes.
    pub fn manifest_settings(&self) -> manifest::Settings {
        let node = self.manifest.node.as_ref().unwrap_or(&self.node.name);
        manifest::Settings {
            max_rows: self.manifest.max_rows,
            ..manifest::Settings::new(self.store.dir.join("manifest"), node)
        }
    }

    /// Whether other nodes write the manifest too: the local engine's own folder is this node's alone.
    pub fn shares_manifest(&self) -> bool {
        self.manifest.engine == Engine::LiteFs || self.manifest.dir.is_some()
    }

    /// What brings the manifest to the other nodes. BLOCKING.
    ///
    /// # Errors
    /// [`ClusterError::Io`], when there is no such folder and none can be made.
    pub fn manifest_engine(&self) -> Result<Arc<dyn cluster::Engine>, ClusterError> {
        let dir = self.manifest.dir.as_deref();
        Ok(match self.manifest.engine {
            Engine::Local => {
                let own = self.store.dir.join("manifest");
                Arc::new(cluster::Local::open(dir.unwrap_or(&own))?)
            }
            Engine::LiteFs => {
                let mount = dir.unwrap_or("/litefs".as_ref());
                Arc::new(cluster::LiteFs::new(
                    mount,
                    &self.manifest.litefs.to_string(),
                ))
            }
        })
    }

    /// The origins in their order: an index of [`Routes`](super::Routes) is one of this list. Reads
    /// the files of certificates that they name.
    pub fn origin_rules(&self, metrics: &Metrics) -> Result<Vec<OriginRules>, TlsError> {
        let rules = |origin: &Origin| {
            Ok(OriginRules {
                name: origin.name.as_str().into(),
                id: metrics.origins.intern(&origin.name),
                upstream: Arc::new(origin.upstream_settings(self.node.threads.get())?),
                caching: origin.rules.clone(),
                read_ahead: origin.read_ahead_bytes,
                merge_gap: origin.merge_gap_bytes,
                linger: self.limits.linger,
                record: origin.record.clone(),
                prefetch: origin.prefetch.clone().map(Arc::new),
                peer: origin.peer,
                peer_timeout: origin.peer_timeout,
                host: match &origin.host_header {
                    HostHeader::Client => None,
                    HostHeader::Origin => Some(origin.url.authority().into()),
                    HostHeader::Literal(host) => Some(host.as_str().into()),
                },
            })
        };
        self.origins.iter().map(rules).collect()
    }

    /// Descriptors that all connections together can come to need, with everything else that is open.
    pub fn descriptors(&self) -> u64 {
        self.limits.max_connections as u64 + self.origin_descriptors() + self.other_descriptors()
    }

    /// How many client connections `limit` open files leave room for: origins keep what their pools
    /// may grow to, but not more than half of what there is for both. At least one.
    pub fn client_room(&self, limit: u64) -> usize {
        let left = limit.saturating_sub(self.other_descriptors());
        let clients = left - self.origin_descriptors().min(left / 2);
        usize::try_from(clients).unwrap_or(usize::MAX).max(1)
    }

    fn origin_descriptors(&self) -> u64 {
        let connections = |origin: &Origin| origin.max_connections as u64;
        self.origins.iter().map(connections).sum()
    }

    /// Connections to other nodes, of each thread that asks for bodies, and as many for what they say to one another.
    fn peer_descriptors(&self) -> u64 {
        match self.cluster.secret {
            Some(_) => (self.node.threads.get() as u64 + 3) * peer::MAX_CONNECTIONS as u64,
            None => 0,
        }
    }

    /// Connections to origins for what is asked for next.
    fn prefetch_descriptors(&self) -> u64 {
        let is_on = self.origins.iter().any(|origin| origin.prefetch.is_some());
        if is_on {
            prefetch::MAX_IN_FLIGHT as u64
        } else {
            0
        }
    }

    /// Listeners, event loops, rings, the store's files, logs, and the administrator.
    fn other_descriptors(&self) -> u64 {
        let threads = self.node.threads.get() as u64;
        let listeners = self.node.listen.len() as u64;
        FIXED_DESCRIPTORS
            + self.populate.max_in_flight as u64
            + self.prefetch_descriptors()
            + self.peer_descriptors()
            + threads * (THREAD_DESCRIPTORS + listeners)
            + self
                .store
                .size_bytes
                .div_ceil(self.store_settings().segment_bytes)
    }

    /// `pseudonym/region`, or the pseudonym alone: how `Cache-Status` names this node.
    pub fn cache_name(&self) -> String {
        match &self.node.region {
            Some(region) => format!("{}/{region}", self.node.pseudonym),
            None => self.node.pseudonym.clone(),
        }
    }

    /// Format and place of the access log; `None` when it is off.
    pub fn access_log(&self) -> Option<(Format, Sink)> {
        let format = match self.log.access {
            AccessFormat::Combined => Format::Combined,
            AccessFormat::Json => Format::Json,
            AccessFormat::Off => return None,
        };
        Some((
            format,
            self.log
                .path
                .clone()
                .map_or(Sink::Stdout, |path: PathBuf| Sink::File(path)),
        ))
    }
}

impl Origin {
    /// How this origin is reached from each of `threads` data threads, which share its connections
    /// evenly.
    pub fn upstream_settings(&self, threads: usize) -> Result<origin::Settings, TlsError> {
        let scheme = match self.url.scheme {
            Scheme::Http => origin::Scheme::Http,
            Scheme::Https => origin::Scheme::Https,
        };
        let tls = match self.url.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(Tls::new(&TlsOptions {
                extra_ca: self.tls_ca.clone(),
                insecure: self.tls_insecure,
                server_name: self.tls_name.clone(),
            })?),
        };
        let defaults = origin::Settings::new(scheme, self.url.host.as_str(), self.url.port);
        let max_connections = self.max_connections.div_ceil(threads.max(1));
        Ok(origin::Settings {
            http2: match self.http2 {
                Http2::Off => origin::Http2::Off,
                Http2::Auto => origin::Http2::Auto,
                Http2::PriorKnowledge => origin::Http2::PriorKnowledge,
            },
            tls,
            connect_timeout: self.connect_timeout,
            first_byte_timeout: self.first_byte_timeout,
            read_timeout: self.read_timeout,
            write_timeout: self.write_timeout,
            idle_timeout: self.idle_timeout,
            queue_timeout: self.queue_timeout,
            max_connections,
            max_idle: defaults.max_idle.min(max_connections),
            max_interim: self.max_interim,
            limits: wire::Limits {
                max_head_bytes: self.max_header_bytes,
                ..defaults.limits
            },
            ..defaults
        })
    }
}

impl super::Populate {
    pub fn worker(&self) -> populate::Settings {
        let (first, longest) = self.backoff;
        populate::Settings {
            enabled: self.enabled,
            max_in_flight: self.max_in_flight,
            max_in_flight_per_origin: self.max_in_flight_per_origin,
            max_rate: self.max_rate,
            retry_after: self.retry_after,
            backoff: limits::Backoff { first, longest },
            limits: limits::Limits {
                default: self.limits.default,
                by_kind: self.limits.by_kind.clone(),
            },
        }
    }
}

impl Limits {
    pub fn proxy(&self) -> proxy::Limits {
        proxy::Limits {
            first_byte_timeout: self.first_byte_timeout,
            header_timeout: self.header_timeout,
            request_timeout: self.request_timeout,
            idle_timeout: self.idle_timeout,
            write_timeout: self.write_timeout,
            body_rate: self.body_rate,
            max_drained_body: self.max_drained_body,
            max_ranges: self.max_ranges,
            max_streams: self.max_streams,
            wire: wire::Limits {
                max_head_bytes: self.max_header_bytes,
                max_fields: self.max_headers,
                max_target_bytes: self.max_uri_bytes,
                ..wire::Limits::default()
            },
        }
    }
}
