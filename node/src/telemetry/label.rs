//! Labels: closed sets of values, so that no request can make a new time series.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// One label: a name and all the values it can have.
pub trait Label: Copy {
    const NAME: &'static str;
    const VALUES: &'static [&'static str];

    /// This value's place in [`Label::VALUES`].
    fn index(self) -> usize;

    /// The value as it stands in the exposition.
    fn as_str(self) -> &'static str {
        Self::VALUES[self.index()]
    }
}

/// The labels of one family: none, one or two.
pub trait Labels: Copy {
    /// How many series the family has.
    const SERIES: usize;

    fn series(self) -> usize;

    fn names() -> Vec<&'static str>;

    /// The label values of a series, in the order of `names`; `None` for a series that does not
    /// exist (an origin that is not configured).
    fn values(series: usize, origins: &OriginNames) -> Option<Vec<&str>>;
}

impl Labels for () {
    const SERIES: usize = 1;

    fn series(self) -> usize {
        0
    }

    fn names() -> Vec<&'static str> {
        Vec::new()
    }

    fn values(_: usize, _: &OriginNames) -> Option<Vec<&str>> {
        Some(Vec::new())
    }
}

impl<A: Label> Labels for A {
    const SERIES: usize = A::VALUES.len();

    fn series(self) -> usize {
        self.index()
    }

    fn names() -> Vec<&'static str> {
        vec![A::NAME]
    }

    fn values(series: usize, _: &OriginNames) -> Option<Vec<&str>> {
        Some(vec![A::VALUES[series]])
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    const SERIES: usize = A::VALUES.len() * B::VALUES.len();

    fn series(self) -> usize {
        self.0.index() * B::VALUES.len() + self.1.index()
    }

    fn names() -> Vec<&'static str> {
        vec![A::NAME, B::NAME]
    }

    fn values(series: usize, _: &OriginNames) -> Option<Vec<&str>> {
        Some(vec![
            A::VALUES[series / B::VALUES.len()],
            B::VALUES[series % B::VALUES.len()],
        ])
    }
}

/// A configured origin's name as a label value. See [`OriginNames::intern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginId(u8);

/// Distinct origin names a process tells apart in its metrics; later ones are counted as `other`.
pub const MAX_ORIGINS: usize = 64;

impl Labels for OriginId {
    const SERIES: usize = MAX_ORIGINS;

    fn series(self) -> usize {
        usize::from(self.0)
    }

    fn names() -> Vec<&'static str> {
        vec!["origin"]
    }

    fn values(series: usize, origins: &OriginNames) -> Option<Vec<&str>> {
        origins.name(series).map(|name| vec![name])
    }
}

impl<B: Label> Labels for (OriginId, B) {
    const SERIES: usize = MAX_ORIGINS * B::VALUES.len();

    fn series(self) -> usize {
        self.0.series() * B::VALUES.len() + self.1.index()
    }

    fn names() -> Vec<&'static str> {
        vec!["origin", B::NAME]
    }

    fn values(series: usize, origins: &OriginNames) -> Option<Vec<&str>> {
        origins
            .name(series / B::VALUES.len())
            .map(|name| vec![name, B::VALUES[series % B::VALUES.len()]])
    }
}

/// The names of the origins this process has had configured. Names are never forgotten, so that a
/// counter stays one counter across a reload.
pub struct OriginNames {
    names: [OnceLock<Box<str>>; MAX_ORIGINS],
    count: AtomicUsize,
    adding: Mutex<()>,
}

impl OriginNames {
    pub(super) fn new() -> OriginNames {
        OriginNames {
            names: [const { OnceLock::new() }; MAX_ORIGINS],
            count: AtomicUsize::new(0),
            adding: Mutex::new(()),
        }
    }

    /// The id of this name, a new one when the name is new. Called when a configuration is taken
    /// into use, not per request.
    pub fn intern(&self, name: &str) -> OriginId {
        let _adding = self.adding.lock();
        let count = self.count.load(Ordering::Acquire);
        let known = (0..count).find(|&at| self.name(at) == Some(name));
        let at = known.unwrap_or(count.min(MAX_ORIGINS - 1));
        if known.is_none() && count < MAX_ORIGINS {
            let name = if at == MAX_ORIGINS - 1 { "other" } else { name };
            self.names[at].get_or_init(|| name.into());
            self.count.store(count + 1, Ordering::Release);
        }
        OriginId(at as u8)
    }

    fn name(&self, at: usize) -> Option<&str> {
        self.names.get(at)?.get().map(|name| &**name)
    }
}

/// Declares a label: an enum and, for each variant, the value it has in the exposition.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident $label:literal { $($(#[$variant_doc:meta])* $variant:ident $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($value,)+];

            fn index(self) -> usize {
                self as usize
            }
        }

        impl $name {
            /// The variant of this value.
            pub fn named(value: &str) -> Option<$name> {
                [$($name::$variant,)+].into_iter().find(|variant| variant.as_str() == value)
            }
        }
    };
}

label! {
    /// The first digit of a status.
    StatusClass "class" {
        Informational "1xx",
        Successful "2xx",
        Redirection "3xx",
        ClientError "4xx",
        ServerError "5xx",
        /// The client left before there was a status.
        None "none",
    }
}

impl From<u16> for StatusClass {
    fn from(status: u16) -> StatusClass {
        match status / 100 {
            1 => StatusClass::Informational,
            2 => StatusClass::Successful,
            3 => StatusClass::Redirection,
            4 => StatusClass::ClientError,
            5 => StatusClass::ServerError,
            _ => StatusClass::None,
        }
    }
}

label! {
    /// What the cache did for a request.
    CacheResult "cache" {
        /// Answered from the store, fresh.
        Hit "hit",
        /// Filled from the origin for this request.
        Miss "miss",
        /// Part of the body was here, the rest came from the origin.
        Partial "partial",
        /// Joined a fill that another request had started.
        Collapsed "collapsed",
        /// Answered stale, because the origin failed.
        Stale "stale",
        /// Answered stale, while a validation runs.
        Updating "updating",
        /// Stored, found stale, and confirmed by the origin's 304.
        Revalidated "revalidated",
        /// Stored, found stale, and replaced by the origin.
        Expired "expired",
        /// Not cacheable, or not allowed to be: straight from the origin.
        Bypass "bypass",
        /// Answered by this node itself: an error, a redirect of its own, 504 for only-if-cached.
        Synthetic "synthetic",
    }
}

label! {
    /// What came of fetching what the manifest lists.
    Populated "outcome" {
        /// It is whole on this disk.
        Whole "whole",
        Redirection "3xx",
        ClientError "4xx",
        ServerError "5xx",
        Connect "connect",
        Tls "tls",
        Dns "dns",
        Timeout "timeout",
        Truncated "truncated",
        Protocol "protocol",
        /// The origin answered well, with what may not be stored.
        Uncacheable "uncacheable",
        /// Nobody's fault: it is tried again.
        Again "again",
        /// No origin of the settings answers for it.
        NoOrigin "no_origin",
        /// The disk is full.
        NoRoom "no_room",
        /// The row cannot be asked for.
        Malformed "malformed",
    }
}

impl From<u16> for Populated {
    fn from(status: u16) -> Populated {
        match status / 100 {
            3 => Populated::Redirection,
            4 => Populated::ClientError,
            5 => Populated::ServerError,
            _ => Populated::Protocol,
        }
    }
}

label! {
    /// What became of something that an answer, or a request, names as the next.
    Prefetched "outcome" {
        /// It is whole here, and fresh.
        Whole "whole",
        /// It was so before.
        Present "present",
        UnderWay "under_way",
        Failed "failed",
        /// It has failed lately.
        Resting "resting",
        /// By its rules or by its form, or no origin answers for it.
        Refused "refused",
        /// Too much was going on.
        Dropped "dropped",
        /// Its rule wastes too much.
        Throttled "throttled",
    }
}

label! {
    /// Who names what is prefetched.
    PrefetchSource "source" {
        Link "link",
        Cmcd "cmcd",
        Cmsd "cmsd",
    }
}

label! {
    /// What a purge selects.
    PurgeSelector "selector" {
        Url "url",
        Prefix "prefix",
        Host "host",
        Tag "tag",
        /// Named by an origin's answer to an unsafe request (RFC 9875).
        Group "group",
        Everything "everything",
    }
}

label! {
    /// Whether a purge removes or makes stale.
    PurgeMode "mode" {
        Hard "hard",
        Soft "soft",
    }
}

label! {
    /// How a purge of another node came.
    PurgeWay "way" {
        Told "told",
        Log "log",
        Again "again",
    }
}

label! {
    /// What became of a response that the manifest was to be told of.
    Recorded "outcome" {
        Told "told",
        Unfit "unfit",
    }
}

label! {
    /// How a question to another node ended.
    PeerOutcome "outcome" {
        /// Its answer is what the client gets.
        Filled "filled",
        /// It does not hold it.
        Absent "absent",
        Timeout "timeout",
        /// It could not be reached, or not be understood.
        Failed "failed",
        /// Who answered did not know the secret.
        Untrusted "untrusted",
        /// It may not be used here: purged meanwhile, of another variant, or not storable.
        Unfit "unfit",
        /// Another node was faster.
        Outpaced "outpaced",
    }
}

label! {
    /// What this node may write where the manifest is kept.
    ManifestRole "role" {
        Primary "primary",
        Replica "replica",
        Unknown "unknown",
        None "none",
    }
}

label! {
    /// What another node got that asked this one.
    PeerAnswer "outcome" {
        /// What was stored here.
        Held "held",
        /// What the origin was asked for.
        Filled "filled",
        Absent "absent",
        /// Nothing of a node's: its proof was wrong.
        Refused "refused",
    }
}

label! {
    /// Why a client's connection was not accepted.
    Refused "reason" {
        PerAddress "per_address",
        Total "total",
        Descriptors "descriptors",
    }
}

label! {
    /// What a client was too slow with.
    TimeoutPhase "phase" {
        FirstByte "first_byte",
        Head "head",
        Body "body",
        Write "write",
        Idle "idle",
    }
}

label! {
    /// Why a request was refused as malformed or too large.
    BadRequest "reason" {
        Syntax "syntax",
        Host "host",
        Framing "framing",
        TransferEncoding "transfer_encoding",
        HeadersTooLarge "headers_too_large",
        UriTooLong "uri_too_long",
        Target "target",
        Version "version",
        Body "body",
        Http2 "http2",
        Loop "loop",
        Expectation "expectation",
        Method "method",
    }
}

label! {
    /// Why a fill ended without the whole of what it went for.
    FillFailure "reason" {
        Truncated "truncated",
        Overlong "overlong",
        Timeout "timeout",
        Protocol "protocol",
        /// The upstream has another representation now.
        Changed "changed",
        Unreachable "unreachable",
        /// Nobody was left to read it.
        Abandoned "abandoned",
        Other "other",
    }
}

label! {
    /// How a request to an origin ended: the class of its status, or what failed.
    OriginOutcome "outcome" {
        Informational "1xx",
        Successful "2xx",
        Redirection "3xx",
        ClientError "4xx",
        ServerError "5xx",
        Dns "dns",
        Connect "connect",
        Tls "tls",
        Timeout "timeout",
        /// All connections were in use for too long.
        Busy "busy",
        Closed "closed",
        Protocol "protocol",
        Truncated "truncated",
        /// The request's body failed, or the request cannot be said in the origin's protocol.
        Client "client",
    }
}

impl From<u16> for OriginOutcome {
    fn from(status: u16) -> OriginOutcome {
        match status / 100 {
            1 => OriginOutcome::Informational,
            2 => OriginOutcome::Successful,
            3 => OriginOutcome::Redirection,
            4 => OriginOutcome::ClientError,
            5 => OriginOutcome::ServerError,
            _ => OriginOutcome::Protocol,
        }
    }
}

label! {
    /// Where a block was.
    Tier "tier" {
        Memory "memory",
        Disk "disk",
    }
}

label! {
    /// What the store was doing when it failed.
    StoreOperation "operation" {
        Read "read",
        Write "write",
        Index "index",
    }
}

label! {
    /// What the disk is good for.
    DiskState "state" {
        Ok "ok",
        Degraded "degraded",
        Off "off",
    }
}

label! {
    /// How files are read and written.
    IoEngine "engine" {
        Uring "io_uring",
        Threads "threads",
    }
}

label! {
    /// Why a stale response was served.
    StaleReason "reason" {
        WhileRevalidate "while_revalidate",
        OriginError "origin_error",
        Unreachable "unreachable",
        ClientAccepts "client_accepts",
    }
}

label! {
    /// What a validation found.
    Validation "outcome" {
        NotModified "not_modified",
        Replaced "replaced",
        Failed "failed",
    }
}

label! {
    /// Why a response was not stored.
    Uncacheable "reason" {
        Method "method",
        Status "status",
        NoStore "no_store",
        Private "private",
        Authorization "authorization",
        SetCookie "set_cookie",
        VaryAny "vary_any",
        NoFreshness "no_freshness",
        RequestNoStore "request_no_store",
        PartialContent "partial_content",
        MustUnderstand "must_understand",
        TooLarge "too_large",
        Other "other",
    }
}

label! {
    /// How a reload of the configuration ended.
    ReloadResult "result" {
        Ok "ok",
        Failed "failed",
    }
}

label! {
    /// What the node is about.
    NodeState "state" {
        Starting "starting",
        Serving "serving",
        Draining "draining",
    }
}

label! {
    /// Why a line of the access log was lost.
    Dropped "reason" {
        /// The writer could not keep up.
        Full "full",
        /// The file or standard output refused it.
        Write "write",
    }
}

/// The version of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version;

impl Label for Version {
    const NAME: &'static str = "version";
    const VALUES: &'static [&'static str] = &[env!("CARGO_PKG_VERSION")];

    fn index(self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_keep_their_id_and_the_surplus_shares_one() {
        let names = OriginNames::new();
        let first = names.intern("video");
        assert_eq!(names.intern("video"), first);
        for number in 0..200 {
            names.intern(&format!("origin-{number}"));
        }
        assert_eq!(names.intern("video"), first);
        assert_eq!(names.intern("origin-150"), names.intern("origin-151"));
        assert_eq!(
            OriginId::values(MAX_ORIGINS - 1, &names),
            Some(vec!["other"])
        );
        assert_eq!(OriginId::values(1, &names), Some(vec!["origin-0"]));
    }

    #[test]
    fn series_and_values_agree() {
        let origins = OriginNames::new();
        let pair = (StatusClass::ClientError, CacheResult::Synthetic);
        assert_eq!(
            <(StatusClass, CacheResult)>::values(pair.series(), &origins),
            Some(vec!["4xx", "synthetic"])
        );
        assert_eq!(<(StatusClass, CacheResult)>::SERIES, 60);
        assert_eq!(CacheResult::named("stale"), Some(CacheResult::Stale));
        assert_eq!(CacheResult::named("pony"), None);
    }
}
