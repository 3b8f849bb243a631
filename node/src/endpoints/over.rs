//! One question for several nodes: `scope=cluster` or `scope=local`, `node=NAME`, `region=NAME`.
//!
//! ```text
//! request ──► which nodes? ──► this one: the handler, as ever
//!                          └─► others, all at once, the same request (`talk`) ──► their answers ──► one answer
//! ```
//!
//! What nodes are asked by one another is about themselves alone, so a question never goes round. One answer is made
//! of several by joining their lists: every answer that tells of nodes has one. Who has not answered stands in
//! `unanswered`.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use caje_admin_api::{ErrorBody, Unanswered, path};
use http::uri::PathAndQuery;
use http::{StatusCode, Uri};
use serde_json::{Map, Value, json};

use super::Node;
use super::access::FromNode;
use super::refusal::{MAX_ASK, Refusal, json as told};
use crate::talk::{MAX_ANSWER, Peer, Reply, Silence, TO};

/// Whom an endpoint is about, if the request does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// All nodes.
    Cluster,
    /// The one that is asked.
    Local,
    /// The one that is asked, or another, but one.
    One,
    /// The one that has it: if it is not this one all are asked, and what one of them answers is the answer.
    Holder,
}

/// Whom the endpoint of this path is about. `None`: never another node.
pub(super) fn of_path(path: &str) -> Option<Over> {
    Some(match path {
        path::INSPECT | path::NODES | path::STATUS | path::COVERAGE => Over::Cluster,
        path::OBJECTS | path::LIST | path::EXPLAIN | path::NODE | path::NODE_CACHE => Over::One,
        path::JOB | path::JOB_RESUME => Over::Holder,
        path::STATS
        | path::STATS_HISTORY
        | path::CONFIG
        | path::CONFIG_DIFF
        | path::ORIGINS
        | path::ORIGIN_CHECK
        | path::ORIGIN_DISABLE
        | path::ORIGIN_ENABLE
        | path::SUPPORT_DUMP
        | path::STORAGE
        | path::STORAGE_VERIFY
        | path::DRAIN
        | path::DOCTOR
        | path::JOBS
        | path::CLEAR_FS
        | path::POPULATE => Over::Local,
        _ => return None,
    })
}

/// What a node of that name has answered.
type Answered = (String, Result<(StatusCode, Bytes), Silence>);

#[derive(Clone)]
pub(super) struct Way {
    pub(super) node: Node,
    pub(super) over: Over,
}

/// Whom a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whom {
    Local,
    Cluster,
    Node(String),
    Region(String),
}

const SCOPE: &str = "scope";
const NODE: &str = "node";
const REGION: &str = "region";

pub(super) async fn over_nodes(State(way): State<Way>, request: Request, next: Next) -> Response {
    let is_from_node = request.extensions().get::<FromNode>().is_some();
    let (whom, target) = match parse(request.uri(), way.over) {
        Ok(parsed) => parsed,
        Err(refusal) => return refusal.into_response(),
    };
    let (mut parts, body) = request.into_parts();
    // Handlers know nothing of any of this.
    if let Some(uri) = without(&parts.uri, &target) {
        parts.uri = uri;
    }
    let node = &way.node;
    let talk = &node.control.talk;
    let own = |name: &str| name == node.name() || name == talk.id();
    let peers = match &whom {
        _ if is_from_node => Vec::new(),
        Whom::Local => Vec::new(),
        Whom::Node(name) if own(name) => Vec::new(),
        Whom::Cluster | Whom::Node(_) | Whom::Region(_) => talk.peers(),
    };
    let chosen: Vec<Peer> = match &whom {
        Whom::Region(region) => {
            let is_there = |peer: &Peer| peer.region.as_ref() == Some(region);
            peers.into_iter().filter(is_there).collect()
        }
        Whom::Node(name) if !is_from_node && !own(name) => {
            let known = peers.iter().map(Peer::name).collect();
            let found = peers.into_iter().find(|peer| peer.name() == *name);
            match found {
                Some(peer) => vec![peer],
                None => return unknown(name, &node.name(), known).into_response(),
            }
        }
        _ => peers,
    };
    let region = node.control.config.load().node.region.clone();
    let is_asked = match &whom {
        _ if is_from_node => true,
        Whom::Node(name) => own(name),
        Whom::Region(wanted) => region.as_ref() == Some(wanted),
        Whom::Local | Whom::Cluster => true,
    };
    if chosen.is_empty() {
        return match is_asked {
            true => next.run(Request::from_parts(parts, body)).await,
            false => {
                let name = match &whom {
                    Whom::Region(region) => region,
                    _ => "",
                };
                no_region(name).into_response()
            }
        };
    }
    let Ok(body) = to_bytes(body, MAX_ASK).await else {
        let message = format!("the body is longer than {MAX_ASK} bytes, or was cut off");
        return Refusal::bad(message, "send it in several requests").into_response();
    };
    let (method, again) = (parts.method.clone(), parts.method == Method::GET);
    if let (Whom::Node(_), [peer]) = (&whom, chosen.as_slice()) {
        let reply = talk.ask(peer, &method, &target, body, again).await;
        return match reply {
            Ok(reply) => as_it_is(reply),
            Err(silence) => silent(&peer.name(), &silence).into_response(),
        };
    }
    let others = talk.ask_all(chosen, &method, &target, &body, again);
    let here = async {
        match is_asked {
            true => {
                let request = Request::from_parts(parts, Body::from(body.clone()));
                Some(read(next.run(request).await).await)
            }
            false => None,
        }
    };
    let (here, others) = match way.over {
        Over::Holder => {
            let here = here.await;
            if let Some((status, body)) = &here
                && status.is_success()
            {
                let value = serde_json::from_slice::<Value>(body).unwrap_or_default();
                return told(*status, &value);
            }
            (here, others.await)
        }
        _ => tokio::join!(here, others),
    };
    let mut answers: Vec<Answered> = Vec::new();
    answers.extend(here.map(|here| (node.name(), Ok(here))));
    answers.extend(others.into_iter().map(|(peer, reply)| {
        let reply = reply.map(|reply| (reply.status, reply.body));
        (peer.name(), reply)
    }));
    match way.over {
        Over::Holder => holder_s(answers),
        Over::Cluster | Over::Local | Over::One => joined(answers, |name| talk.heard_ms(name)),
    }
}

/// Whether a request says whom it is about.
pub(super) fn names_nodes(uri: &Uri) -> bool {
    let mut parts = uri.query().unwrap_or_default().split('&');
    parts.any(|part| {
        let name = part.split('=').next().unwrap_or_default();
        [SCOPE, NODE, REGION].contains(&name)
    })
}

/// Whom a request is about, and its target without that.
fn parse(uri: &Uri, over: Over) -> Result<(Whom, String), Refusal> {
    let mut whom = match over {
        Over::Cluster | Over::Holder => Whom::Cluster,
        Over::Local | Over::One => Whom::Local,
    };
    let mut rest: Vec<&str> = Vec::new();
    for part in uri.query().unwrap_or_default().split('&') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        match name {
            SCOPE => {
                whom = match value {
                    "cluster" | "all" if over == Over::One => {
                        let message = "this is asked of one node at a time";
                        return Err(Refusal::bad(message, "name it with `node`"));
                    }
                    "cluster" | "all" => Whom::Cluster,
                    "local" => Whom::Local,
                    _ => {
                        let message = "`scope` is neither `cluster` nor `local`";
                        return Err(Refusal::bad(
                            message,
                            "leave it out, or write one of the two",
                        ));
                    }
                }
            }
            NODE => whom = Whom::Node(decoded(value)),
            REGION => whom = Whom::Region(decoded(value)),
            TO | "" => {}
            _ => rest.push(part),
        }
    }
    let path = uri.path();
    Ok(match rest.is_empty() {
        true => (whom, path.to_owned()),
        false => (whom, format!("{path}?{}", rest.join("&"))),
    })
}

fn without(uri: &Uri, target: &str) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

/// `%` with two digits is a byte.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let Some((&byte, rest)) = left.split_first() {
        let digits = rest
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, value) {
            (b'%', Some(value)) => {
                bytes.push(value);
                left = &rest[2..];
            }
            _ => {
                bytes.push(if byte == b'+' { b' ' } else { byte });
                left = rest;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn read(response: Response) -> (StatusCode, Bytes) {
    let (parts, body) = response.into_parts();
    match to_bytes(body, MAX_ANSWER).await {
        Ok(body) => (parts.status, body),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
    }
}

pub(super) fn as_it_is(reply: Reply) -> Response {
    match serde_json::from_slice::<Value>(&reply.body) {
        Ok(value) => told(reply.status, &value),
        Err(_) => Refusal::internal().into_response(),
    }
}

/// What one of them has answered; or why none has: the word of who has it, then that somebody who may have it is
/// silent, then that nobody has it.
fn holder_s(answers: Vec<Answered>) -> Response {
    let mut refused = None;
    let mut silence = None;
    let mut unknown = None;
    for (node, answer) in answers {
        match answer {
            Ok((status, body)) => {
                let value = serde_json::from_slice::<Value>(&body);
                let response = told(status, &value.unwrap_or_default());
                if status.is_success() {
                    return response;
                }
                let place = match status {
                    StatusCode::NOT_FOUND => &mut unknown,
                    _ => &mut refused,
                };
                place.get_or_insert(response);
            }
            Err(reason) => silence = Some(silent(&node, &reason).into_response()),
        }
    }
    let worst = refused.or(silence).or(unknown);
    worst.unwrap_or_else(|| Refusal::internal().into_response())
}

/// The lists of all answers in one, and who has none.
fn joined(answers: Vec<Answered>, heard_ms: impl Fn(&str) -> Option<u64>) -> Response {
    let mut all: Option<(StatusCode, Map<String, Value>)> = None;
    let mut unanswered: Vec<Unanswered> = Vec::new();
    let mut refused: Option<Response> = None;
    for (node, answer) in answers {
        let (status, body) = match answer {
            Ok(answer) => answer,
            Err(silence) => {
                unanswered.push(Unanswered {
                    heard_ms: heard_ms(&node),
                    node,
                    error: silence.to_string(),
                });
                continue;
            }
        };
        let value = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        if !status.is_success() {
            let said = serde_json::from_value::<ErrorBody>(value.clone());
            let error = said.map_or_else(
                |_| format!("it answers with {status}"),
                |said| said.error.message,
            );
            unanswered.push(Unanswered {
                heard_ms: heard_ms(&node),
                node,
                error,
            });
            refused = refused.or_else(|| Some(told(status, &value)));
            continue;
        }
        let mut answer = match value {
            Value::Object(answer) => answer,
            _ => Map::new(),
        };
        // A job that was begun stands for itself where one node is asked.
        if answer.contains_key("id") && answer.contains_key("kind") {
            answer = Map::from_iter([("jobs".to_owned(), json!([answer]))]);
        }
        match &mut all {
            None => all = Some((status, answer)),
            Some((_, all)) => join(all, answer),
        }
    }
    match all {
        None => refused.unwrap_or_else(|| {
            let silent = unanswered.first().map(|silent| silent.error.clone());
            no_answer(&silent.unwrap_or_default()).into_response()
        }),
        Some((status, mut all)) => {
            if !unanswered.is_empty() {
                let list = all.entry("unanswered").or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    list.extend(unanswered.iter().map(|silent| json!(silent)));
                }
            }
            told(status, &Value::Object(all))
        }
    }
}

/// From well to worse.
const STATES: [&str; 3] = ["ok", "degraded", "draining"];

fn join(all: &mut Map<String, Value>, other: Map<String, Value>) {
    for (name, value) in other {
        match (all.get_mut(&name), value) {
            (Some(Value::Array(list)), Value::Array(more)) => list.extend(more),
            (None, value) => drop(all.insert(name, value)),
            (Some(Value::String(state)), Value::String(other)) if name == "state" => {
                let rank = |state: &str| STATES.iter().position(|known| *known == state);
                if rank(&other) > rank(state) {
                    *state = other;
                }
            }
            _ => {}
        }
    }
}

pub(super) fn unknown(name: &str, own: &str, known: Vec<String>) -> Refusal {
    let mut known = known;
    known.insert(0, own.to_owned());
    Refusal::new(
        StatusCode::NOT_FOUND,
        "unknown-node",
        format!("no node here is called `{}`", name.escape_default()),
        format!("take one of: {}", known.join(", ")),
    )
}

fn no_region(name: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "unknown-region",
        format!("no node here is in the region `{}`", name.escape_default()),
        "`caje nodes` lists the nodes with their regions",
    )
}

pub(super) fn silent(node: &str, silence: &Silence) -> Refusal {
    Refusal::new(
        StatusCode::GATEWAY_TIMEOUT,
        "silent-node",
        format!("{node} has not answered: {silence}"),
        "check that it runs, that its admin listener is reached from here, and that both have the same cluster.secret",
    )
}

fn no_answer(why: &str) -> Refusal {
    Refusal::new(
        StatusCode::GATEWAY_TIMEOUT,
        "silent-node",
        format!("none of the nodes has answered: {why}"),
        "`caje nodes` tells of each what is wrong",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_request_is_about() {
        let node = |name: &str| Whom::Node(name.into());
        for (uri, over, whom, target) in [
            ("/a", Over::Local, Whom::Local, "/a"),
            ("/a", Over::Cluster, Whom::Cluster, "/a"),
            ("/a?scope=all", Over::Local, Whom::Cluster, "/a"),
            (
                "/a?x=1&scope=local&y=",
                Over::Cluster,
                Whom::Local,
                "/a?x=1&y=",
            ),
            ("/a?node=b%2d1&x=1", Over::Local, node("b-1"), "/a?x=1"),
            (
                "/a?region=lhr",
                Over::Local,
                Whom::Region("lhr".into()),
                "/a",
            ),
            ("/a?x=1&to=b", Over::Local, Whom::Local, "/a?x=1"),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let (found, rest) = parse(&uri, over).unwrap();
            assert_eq!((found, rest.as_str()), (whom, target), "{uri}");
            let left = without(&uri, &rest).unwrap();
            assert_eq!(left.path_and_query().unwrap().as_str(), target);
        }
        assert!(parse(&"/a?scope=moon".parse().unwrap(), Over::Local).is_err());
    }

    #[tokio::test]
    async fn who_has_it_is_believed() {
        let refusal = |status: StatusCode, code: &str| {
            let body = json!({"error": {"code": code, "message": "m", "try": "t"}});
            Ok((status, Bytes::from(body.to_string())))
        };
        let unknown = || refusal(StatusCode::NOT_FOUND, "unknown-job");
        let conflict = || refusal(StatusCode::CONFLICT, "not-resumable");
        let silence = || Err(Silence::Stranger);
        let done = || Ok((StatusCode::OK, Bytes::from("{}")));
        for (answers, status) in [
            (vec![unknown(), unknown()], 404),
            (vec![unknown(), conflict()], 409),
            (vec![unknown(), silence()], 504),
            (vec![silence(), conflict(), unknown()], 409),
            (vec![unknown(), silence(), done()], 200),
        ] {
            let answers = answers.into_iter().map(|answer| ("a".to_owned(), answer));
            let (found, _) = read(holder_s(answers.collect())).await;
            assert_eq!(found.as_u16(), status);
        }
    }

    #[tokio::test]
    async fn lists_are_joined() {
        let ok = |value: Value| Ok((StatusCode::OK, Bytes::from(value.to_string())));
        let answers = vec![
            (
                "a".to_owned(),
                ok(json!({"state": "ok", "nodes": [1], "url": "u"})),
            ),
            ("b".to_owned(), Err(Silence::Stranger)),
            (
                "c".to_owned(),
                ok(json!({"state": "degraded", "nodes": [3], "more": 1})),
            ),
        ];
        let (status, body) = read(joined(answers, |_| Some(7))).await;
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(value["nodes"], json!([1, 3]));
        assert_eq!(
            (&value["state"], &value["url"]),
            (&json!("degraded"), &json!("u"))
        );
        assert_eq!(value["unanswered"][0]["node"], "b");
        let job = || ok(json!({"id": "x", "kind": "verify"}));
        let answers = vec![("a".to_owned(), job()), ("b".to_owned(), job())];
        let (_, body) = read(joined(answers, |_| None)).await;
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["jobs"].as_array().unwrap().len(), 2);
    }
}
