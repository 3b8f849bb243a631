//! Who may ask: tokens and what they allow, how often one may try, and where a browser may come from.
//!
//! Kept true here:
//! - A token is compared by its hash, with all that are configured, in constant time, and shown to nobody.
//! - No token configured: closed, but to nodes of the same cluster, for what they ask of one another.
//! - What came in by the public port is told from what came to the admin listener by this node's own id in
//!   `CDN-Loop`, which the proxy adds to everything it passes on. Strangers see 404 there.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, http};
use caje_admin_api::{Identity, Scope};
use http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use http::{Method, StatusCode};
use parking_lot::Mutex;

use super::refusal::{MAX_ASK, Refusal, Told};
use super::{Node, not_found, over};
use crate::config::{Admin, HostPattern, Token, TokenHash};
use crate::peer::secret::{self, Asker};
use crate::semantics::hop;
use crate::talk::{Doubt, MAX_ANSWER, Talk};

/// Tokens that are not known, from one address within [`WINDOW`].
const MAX_FAILURES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// Addresses that failures are remembered of. Further ones are counted together.
const MAX_ADDRESSES: usize = 4096;

/// Longer tokens are not looked at.
const MAX_TOKEN: usize = 1024;

/// The address at the other end of an admin connection.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub IpAddr);

/// The failures of late.
#[derive(Default)]
pub(super) struct Gate {
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

impl Gate {
    /// For how long an address has to wait, if it has failed too often.
    fn blocked(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let failures = self.failures.lock();
        let (count, since) = failures
            .get(&network_of(address))
            .or_else(|| failures.get(&OTHERS))?;
        let left = WINDOW.checked_sub(now.saturating_duration_since(*since))?;
        (*count >= MAX_FAILURES).then_some(left)
    }

    fn note(&self, address: IpAddr, now: Instant) {
        let mut failures = self.failures.lock();
        let mut network = network_of(address);
        if failures.len() >= MAX_ADDRESSES && !failures.contains_key(&network) {
            failures.retain(|_, (_, since)| now.saturating_duration_since(*since) < WINDOW);
            if failures.len() >= MAX_ADDRESSES {
                network = OTHERS;
            }
        }
        let (count, since) = failures.entry(network).or_insert((0, now));
        if now.saturating_duration_since(*since) >= WINDOW {
            (*count, *since) = (0, now);
        }
        *count = count.saturating_add(1);
    }
}

/// Stands for addresses that are not remembered one by one.
const OTHERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Whoever has one address of an IPv6 network has all of it.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// Stands before an endpoint.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) node: Node,
    pub(super) scope: Option<Scope>,
    /// Whether it need not allow that.
    pub(super) takes_any_token: bool,
    /// Whether another node may ask for it.
    pub(super) is_for_nodes: bool,
    /// It never asks another node.
    pub(super) is_for_itself: bool,
}

/// Marks a request that another node has proven.
#[derive(Clone)]
pub(super) struct FromNode(pub(super) Asker);

/// Before all else: a stranger learns nothing by the public port, not even that there is something.
pub(super) async fn keep_strangers_out(
    State(node): State<Node>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    if !came_by_public_port(&node, headers) {
        return next.run(request).await;
    }
    let config = node.control.config.load_full();
    let address = client_of(headers).unwrap_or(peer);
    if !config.admin.public || admit(&node, &config.admin, address, headers, None).is_err() {
        return not_found().await;
    }
    next.run(request).await
}

fn came_by_public_port(node: &Node, headers: &HeaderMap) -> bool {
    hop::cdn_loop_contains(headers, &node.control.identity.cdn_id)
}

/// Lets a request through to its endpoint, or says why not.
pub(super) async fn guard(
    State(guard): State<Guard>,
    Extension(Peer(peer)): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(scope) = guard.scope else {
        return next.run(request).await;
    };
    if guard.is_for_itself && over::names_nodes(request.uri()) {
        let refusal = Refusal::bad(
            "this is asked of a node itself",
            "leave `node`, `region` and `scope` out, and send it to the node that is meant",
        );
        return refusal.into_response();
    }
    let config = guard.node.control.config.load_full();
    let headers = request.headers();
    let is_public = came_by_public_port(&guard.node, headers);
    if !is_public && headers.contains_key(secret::ASK) {
        return of_node(&guard, request, next).await;
    }
    let address = match is_public {
        true => client_of(headers).unwrap_or(peer),
        false => peer,
    };
    let needed = (!guard.takes_any_token).then_some(scope);
    let mut judged = admit(&guard.node, &config.admin, address, headers, needed);
    if !is_public {
        judged = judged.and_then(|identity| {
            is_our_host(headers, &config.admin)?;
            Ok(identity)
        });
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let identity = match judged.and_then(|identity| {
        if changes {
            is_no_foreign_page(headers)?;
        }
        Ok(identity)
    }) {
        Ok(identity) => identity,
        Err(refusal) => return refusal.into_response(),
    };
    if changes {
        let (method, path) = (request.method(), request.uri().path());
        tracing::info!(token = identity.name, %address, %method, path, "an operator's request");
    }
    request.extensions_mut().insert(identity);
    next.run(request).await
}

/// Another node's request: its proof is in the place of a token, and its answer proves itself in turn.
async fn of_node(guard: &Guard, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_ASK).await else {
        let message = format!("the body is longer than {MAX_ASK} bytes, or was cut off");
        return Refusal::bad(message, "send it in several requests").into_response();
    };
    let talk = &guard.node.control.talk;
    let asker = match talk.who_asks(&parts, &body) {
        Ok(asker) => asker,
        Err(Doubt::AnotherStart(asker)) => {
            let refusal = Refusal::new(
                StatusCode::MISDIRECTED_REQUEST,
                "another-start",
                "this is meant for another start of this node".to_owned(),
                "send it again with the start that this answer names",
            );
            return proven(talk, &asker, refusal.into_response()).await;
        }
        Err(doubt) => {
            tracing::warn!(%doubt, "a request that says it is another node's");
            let refusal = Refusal::new(
                StatusCode::UNAUTHORIZED,
                "no-node",
                format!("this is not taken for another node's request: {doubt}"),
                "give all nodes the same cluster.secret, and set their clocks",
            );
            return refusal.into_response();
        }
    };
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let response = match guard.is_for_nodes {
        true => {
            if !matches!(method, Method::GET | Method::HEAD) {
                tracing::debug!(node = asker.node, %method, path, "another node's request");
            }
            let mut request = Request::from_parts(parts, Body::from(body));
            request.extensions_mut().insert(Identity {
                name: asker.node.clone(),
                scopes: vec![Scope::Node],
            });
            request.extensions_mut().insert(FromNode(asker.clone()));
            next.run(request).await
        }
        false => Refusal::new(
            StatusCode::FORBIDDEN,
            "scope",
            "this is not what nodes ask of one another",
            "send it with a token",
        )
        .into_response(),
    };
    proven(talk, &asker, response).await
}

async fn proven(talk: &Talk, asker: &Asker, response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let Ok(body) = to_bytes(body, MAX_ANSWER).await else {
        let message = format!("the answer is longer than {MAX_ANSWER} bytes");
        return Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "too-large",
            message,
            "ask the node itself",
        )
        .into_response();
    };
    talk.prove(asker, head.status, &mut head.headers, &body);
    Response::from_parts(head, Body::from(body))
}

/// Whose request it is, if its token allows `scope`; or whatever it allows.
fn admit(
    node: &Node,
    admin: &Admin,
    address: IpAddr,
    headers: &HeaderMap,
    scope: Option<Scope>,
) -> Result<Identity, Refusal> {
    if admin.tokens.is_empty() {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "closed",
            "no token is configured, so nobody is let in",
            "run `caje-node token new --name NAME --scope admin`, and put what it prints into the file of settings; \
             or set CAJE_ADMIN_TOKEN for the node",
        ));
    }
    let now = Instant::now();
    if let Some(left) = node.gate.blocked(address, now) {
        let refusal = Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many",
            format!("{address} has shown too many tokens that are not known"),
            "wait a minute, and check which token you send",
        );
        return Err(refusal.after(left.as_secs() + 1));
    }
    let token = match token_of(admin, headers) {
        Ok(token) => token,
        Err(Stranger::Silent) => {
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "no-token",
                "this needs a token",
                "send `Authorization: Bearer TOKEN`, or set CAJE_TOKEN for `caje`",
            ));
        }
        Err(Stranger::Unknown) => {
            node.gate.note(address, now);
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "unknown-token",
                "this token is not known here",
                "check that it is whole, and that its hash stands under [[admin.token]] of this node",
            ));
        }
    };
    if let Some(scope) = scope
        && !token.scopes.contains(&scope)
    {
        let scope = scope.as_str();
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "scope",
            format!(
                "the token `{}` does not allow this: it needs `{scope}`",
                token.name
            ),
            format!("add \"{scope}\" to the token's scopes, or take another one"),
        ));
    }
    Ok(Identity {
        name: token.name.clone(),
        scopes: token.scopes.clone(),
    })
}

enum Stranger {
    /// Shows no token.
    Silent,
    /// Shows one that nobody has.
    Unknown,
}

/// Whose request it is, by its `Authorization`.
fn token_of<'a>(admin: &'a Admin, headers: &HeaderMap) -> Result<&'a Token, Stranger> {
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN)
        .ok_or(Stranger::Silent)?;
    let given = TokenHash::of(given);
    let mut found = None;
    // All of them, whichever it is.
    for token in &admin.tokens {
        if bool::from(token.hash.is(&given)) {
            found = Some(token);
        }
    }
    found.ok_or(Stranger::Unknown)
}

/// Whether a request shows a token that allows this. For what comes in elsewhere than here.
pub fn allows(admin: &Admin, headers: &HeaderMap, scope: Scope) -> bool {
    token_of(admin, headers).is_ok_and(|token| token.scopes.contains(&scope))
}

/// Who asked the public port: the last that was added to `X-Forwarded-For`, by this node.
fn client_of(headers: &HeaderMap) -> Option<IpAddr> {
    let list = headers.get_all("x-forwarded-for").iter().next_back()?;
    let last = list.to_str().ok()?.rsplit(',').next()?.trim();
    last.trim_matches(['[', ']']).parse().ok()
}

/// A page whose name leads to this address for a moment (DNS rebinding) sends its own name.
fn is_our_host(headers: &HeaderMap, admin: &Admin) -> Result<(), Refusal> {
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = name_of(host).to_ascii_lowercase();
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_private =
        name == "localhost" || name.ends_with(".localhost") || name.ends_with(".internal");
    let is_listed = || {
        admin.hosts.iter().any(|pattern| match pattern {
            HostPattern::Exact(host) => *host == name,
            HostPattern::Below(suffix) => {
                name.ends_with(suffix.as_str()) && name.len() > suffix.len()
            }
            HostPattern::Any => true,
        })
    };
    if is_address || is_private || is_listed() {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::FORBIDDEN,
        "unknown-host",
        format!(
            "the admin listener is not known as `{}`",
            name.escape_default()
        ),
        "ask by address, or name the host in `admin.hosts`",
    ))
}

fn name_of(host: &str) -> &str {
    match host.rfind([':', ']']) {
        Some(at) if host.as_bytes()[at] == b':' => &host[..at],
        _ => host,
    }
}

/// A page of another site may make a browser send requests, but not without saying where from.
fn is_no_foreign_page(headers: &HeaderMap) -> Result<(), Refusal> {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    let is_own_site = matches!(site, None | Some(b"same-origin" | b"none"));
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let is_own_origin = headers.get(ORIGIN).is_none_or(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    });
    if is_own_site && is_own_origin && headers.get_all(ORIGIN).iter().count() <= 1 {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::FORBIDDEN,
        "foreign-page",
        "a page of another site may change nothing here",
        "send it from `caje`, or without `Origin` and `Sec-Fetch-Site`",
    ))
}

pub(super) async fn identity(Extension(identity): Extension<Identity>) -> Told<Identity> {
    Told(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_failures_are_waited_out() {
        let gate = Gate::default();
        let start = Instant::now();
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        for _ in 0..MAX_FAILURES {
            assert_eq!(gate.blocked(address, start), None);
            gate.note(address, start);
        }
        let neighbour = "2001:db8::2".parse().unwrap();
        assert!(gate.blocked(neighbour, start).is_some());
        assert_eq!(gate.blocked("192.0.2.1".parse().unwrap(), start), None);
        assert_eq!(
            gate.blocked(address, start + WINDOW + Duration::from_secs(1)),
            None
        );
    }

    #[test]
    fn addresses_are_remembered_within_bounds() {
        let gate = Gate::default();
        let start = Instant::now();
        for n in 0..MAX_ADDRESSES as u32 + MAX_FAILURES {
            gate.note(IpAddr::from(n.to_be_bytes()), start);
        }
        assert!(gate.failures.lock().len() <= MAX_ADDRESSES + 1);
        assert!(
            gate.blocked("198.51.100.1".parse().unwrap(), start)
                .is_some()
        );
    }

    #[test]
    fn hosts_without_their_ports() {
        for (host, name) in [
            ("a:1", "a"),
            ("[::1]:9180", "[::1]"),
            ("[::1]", "[::1]"),
            ("a", "a"),
        ] {
            assert_eq!(name_of(host), name);
        }
    }
}
