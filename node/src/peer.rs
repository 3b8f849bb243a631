//! Other nodes: by what they know one another, which of them are asked for a body before the origin is, and how.
//!
//! ```text
//!  told of: manifest, settings ─► Peers::set ─► [PeerNode, …]     latency, circuit
//!  a miss ─► choose ─┬─ nearest: at most two, those that answer fastest ─┐
//!                    └─ shield: the first of the live ones for this key ─┴─► ask ─► proven? stamps? ─► Found
//! ```
//!
//! Kept true here:
//! - Who is told of is believed to be nothing. It is connected to only where all its addresses are permitted, it is
//!   sent neither cookies nor authorisation, and what it answers counts only with the proof of the secret, head and
//!   body.
//! - Nobody is waited for longer than the question allows, and a node that has failed rests: it is tried again by
//!   one request at a time.
//! - A node that is asked by another asks no third.
//!
//! It does not know what is stored, nor what the answers mean for caching.

mod ask;
mod node;
pub mod seal;
pub mod secret;
mod select;
mod stamps;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;

use crate::origin::Permits;

pub use ask::{Found, Question, proven_fields};
pub use node::{PeerNode, Told};
pub use secret::Secret;
pub use stamps::Stamps;

/// In the request of a node: whether the one that is asked may ask the origin.
pub const MODE: HeaderName = HeaderName::from_static("caje-peer-mode");
/// In its answer, whose body is [sealed](seal): [`Stamps`].
pub const ASKED: HeaderName = HeaderName::from_static("caje-peer-sealed");
/// Beside it: bytes of the body before it was sealed, if they are known. Without any, nothing is sealed.
pub const LENGTH: HeaderName = HeaderName::from_static("caje-peer-length");

/// Fields between nodes begin with this. They are nobody else's.
const PREFIX: &str = "caje-peer";

/// To all other nodes together, of each thread that asks for bodies.
pub const MAX_CONNECTIONS: usize = 64;

/// Nodes that are known at a time; more are not asked.
const MAX_NODES: usize = 1024;

/// Whether a response that is not here is asked of other nodes before the origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    Off,
    /// Of those that answer fastest, if they hold it.
    #[default]
    Nearest,
    /// Of the one node that asks the origin for all.
    Shield,
}

impl Mode {
    /// The value of [`MODE`].
    fn to_header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Mode::Off | Mode::Nearest => "nearest",
            Mode::Shield => "shield",
        })
    }

    /// What a node that has proven itself asks for; [`Mode::Nearest`] if it does not say.
    pub fn of_request(fields: &HeaderMap) -> Mode {
        match fields.get(MODE) {
            Some(mode) if mode == "shield" => Mode::Shield,
            _ => Mode::Nearest,
        }
    }
}

/// Removes the fields between nodes, which neither clients nor origins may use or see.
pub fn strip_fields(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return;
    }
    let own: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(PREFIX))
        .cloned()
        .collect();
    for name in own {
        headers.remove(name);
    }
}

/// The other nodes of the cluster, as this one knows them. One for all threads.
pub struct Peers {
    /// This node's name.
    me: Box<str>,
    /// `None`: nodes do not talk to each other.
    secret: Option<Secret>,
    /// Where a node may be.
    permits: Permits,
    /// What each has told, by [`Teller`].
    told: Mutex<[Vec<Told>; 2]>,
    nodes: ArcSwap<Vec<Arc<PeerNode>>>,
}

/// Who tells of nodes. Where both tell of the same, the first one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// The nodes themselves, asked where the settings say.
    Nodes = 0,
    Manifest = 1,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes.load();
        let names = nodes.iter().map(|node| node.id());
        f.debug_list().entries(names).finish()
    }
}

impl Peers {
    pub fn new(me: &str, secret: Option<Secret>, permits: Permits) -> Peers {
        Peers {
            me: me.into(),
            secret,
            permits,
            told: Mutex::default(),
            nodes: ArcSwap::default(),
        }
    }

    pub fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }

    /// Whether there is anybody to ask.
    pub fn are_known(&self) -> bool {
        self.secret.is_some() && !self.nodes.load().is_empty()
    }

    pub fn nodes(&self) -> Arc<Vec<Arc<PeerNode>>> {
        self.nodes.load_full()
    }

    /// From now on these are the nodes there are, as far as this one knows; this node itself may be among them. What
    /// is known of a node stays known as long as it is at the same place. Returns those whose place is none that is
    /// asked, which are left out.
    pub fn set(&self, teller: Teller, told: Vec<Told>) -> Vec<String> {
        let mut all = self.told.lock();
        all[teller as usize] = told;
        let before = self.nodes.load_full();
        let mut nodes: Vec<Arc<PeerNode>> = Vec::new();
        let mut left_out = Vec::new();
        for told in all.iter().flatten() {
            let is_known = nodes.iter().any(|node| node.id() == told.id);
            if *told.id == *self.me || is_known || nodes.len() >= MAX_NODES {
                continue;
            }
            let Some(place) = node::Place::parse(&told.data) else {
                left_out.push(told.id.clone());
                continue;
            };
            let known = before.iter().find(|node| node.is(&told.id, &place));
            nodes.push(match known {
                Some(known) => known.clone(),
                None => PeerNode::new(&told.id, place, self.permits.clone()),
            });
        }
        self.nodes.store(Arc::new(nodes));
        left_out
    }
}
