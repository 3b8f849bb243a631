//! The way to another node's admin listener: HTTP/1.1 over connections that are kept for a moment.
//!
//! A name is resolved each time that a connection is made, and only an address of `cluster.allow` is connected to.
//! No redirect is followed, and an answer has a bound.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpStream, lookup_host};

use super::spawn;
use crate::config::{Cidr, OriginUrl, Scheme};
use crate::origin::is_nobodys;
use crate::peer::secret::{self, Nonce};

/// Longest answer of another node, in bytes.
pub const MAX_ANSWER: usize = 8 << 20;

/// Connections that are kept to one node.
const MAX_IDLE: usize = 4;

/// How long they are kept: less than the other side's patience.
const MAX_REST: Duration = Duration::from_secs(4);

/// Why a node has not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    #[error("there is no `cluster.secret`, so nodes do not talk to each other")]
    NoSecret,
    #[error("{0}")]
    Nowhere(String),
    #[error("its address {0} is none of `cluster.allow`")]
    NotAllowed(IpAddr),
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("it broke off: {0}")]
    Broken(String),
    #[error("what answers there does not know the cluster's secret")]
    Stranger,
    #[error("another node answers there: {0}")]
    Another(String),
}

/// What is asked, and of whom.
pub(super) struct Question<'a> {
    pub url: &'a OriginUrl,
    pub method: &'a Method,
    pub target: &'a str,
    pub body: &'a Bytes,
    /// It does no harm to ask twice.
    pub again: bool,
    pub allow: &'a [Cidr],
}

type Sender = SendRequest<Full<Bytes>>;

/// The connections that rest.
#[derive(Default)]
pub(super) struct Line {
    idle: Mutex<HashMap<String, Vec<(Sender, Instant)>>>,
}

impl Line {
    /// Sends a question with a proof that is made for each attempt. The answer's head and body, and the nonce of the
    /// proof that it belongs to.
    pub(super) async fn send(
        &self,
        question: &Question<'_>,
        prove: impl Fn() -> (HeaderValue, Nonce),
    ) -> Result<(response::Parts, Bytes, Nonce), Silence> {
        let authority = question.url.authority();
        while let Some(sender) = self.rested(&authority) {
            match self.exchange(sender, question, &authority, prove()).await {
                // The other side had closed it: nothing was heard, perhaps nothing was sent.
                Err(failed) if !failed.is_sent || question.again => {}
                Err(failed) => return Err(failed.silence),
                Ok(answer) => return Ok(answer),
            }
        }
        let sender = connect(question.url, question.allow).await?;
        let answer = self.exchange(sender, question, &authority, prove()).await;
        answer.map_err(|failed| failed.silence)
    }

    fn rested(&self, authority: &str) -> Option<Sender> {
        let mut idle = self.idle.lock();
        let rested = idle.get_mut(authority)?;
        while let Some((sender, since)) = rested.pop() {
            if since.elapsed() < MAX_REST && !sender.is_closed() {
                return Some(sender);
            }
        }
        idle.remove(authority);
        None
    }

    async fn exchange(
        &self,
        mut sender: Sender,
        question: &Question<'_>,
        authority: &str,
        (proof, nonce): (HeaderValue, Nonce),
    ) -> Result<(response::Parts, Bytes, Nonce), Failed> {
        let before = |why: &dyn std::fmt::Display| Failed {
            silence: Silence::Broken(why.to_string()),
            is_sent: false,
        };
        let after = |why: &dyn std::fmt::Display| Failed {
            silence: Silence::Broken(why.to_string()),
            is_sent: true,
        };
        let request = Request::builder()
            .method(question.method)
            .uri(question.target)
            .header(HOST, authority)
            .header(CONTENT_TYPE, "application/json")
            .header(secret::ASK, proof)
            .body(Full::new(question.body.clone()))
            .map_err(|error| before(&error))?;
        sender.ready().await.map_err(|error| before(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| Failed {
            is_sent: !error.is_canceled(),
            ..after(&error)
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| after(&error))?.to_bytes();
        if !sender.is_closed() {
            let mut idle = self.idle.lock();
            let rested = idle.entry(authority.to_owned()).or_default();
            if rested.len() < MAX_IDLE {
                rested.push((sender, Instant::now()));
            }
        }
        Ok((head, body, nonce))
    }
}

struct Failed {
    silence: Silence,
    /// Whether the other side may have taken it.
    is_sent: bool,
}

async fn connect(url: &OriginUrl, allow: &[Cidr]) -> Result<Sender, Silence> {
    if url.scheme != Scheme::Http {
        let why = "its admin listener is said to speak TLS, which nodes do not among themselves";
        return Err(Silence::Nowhere(why.to_owned()));
    }
    let unreachable = |error: std::io::Error| Silence::Unreachable(error.to_string());
    let found = lookup_host((url.host.as_str(), url.port)).await;
    let mut last = Silence::Unreachable("its name has no address".to_owned());
    for address in found.map_err(unreachable)? {
        match open(address, allow).await {
            Ok(stream) => {
                let (sender, connection) = handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| Silence::Broken(error.to_string()))?;
                // Who waits for an answer learns how it ended.
                spawn(connection);
                return Ok(sender);
            }
            Err(silence) => last = silence,
        }
    }
    Err(last)
}

async fn open(address: SocketAddr, allow: &[Cidr]) -> Result<TcpStream, Silence> {
    if !may_be_a_node(address.ip(), allow) {
        return Err(Silence::NotAllowed(address.ip()));
    }
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| Silence::Unreachable(error.to_string()))?;
    // Only costs time if it does not work.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn may_be_a_node(address: IpAddr, allow: &[Cidr]) -> bool {
    !is_nobodys(address) && allow.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_node_may_be() {
        let networks = |list: &[&str]| -> Vec<Cidr> {
            list.iter()
                .map(|network| Cidr::parse(network).unwrap())
                .collect()
        };
        let private = networks(&["10.0.0.0/8", "127.0.0.0/8", "fc00::/7", "::1/128"]);
        let all = networks(&["0.0.0.0/0", "::/0"]);
        for (address, by_private, by_all) in [
            ("10.1.2.3", true, true),
            ("127.0.0.1", true, true),
            ("::1", true, true),
            ("fdaa::3", true, true),
            ("::ffff:10.0.0.1", true, true),
            ("192.0.2.1", false, true),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("fd00:ec2::254", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
        ] {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!(may_be_a_node(ip, &private), by_private, "{address}");
            assert_eq!(may_be_a_node(ip, &all), by_all, "{address}");
        }
    }
}
