//! A node that is gone for good: what it listed and said of itself is taken out of the manifest, for all nodes.

use std::time::Duration;

use axum::extract::{Path, State};
use bytes::Bytes;
use caje_admin_api::Forgotten;
use http::{Method, StatusCode};

use super::coverage::{open, unreadable};
use super::refusal::{Answer, Refusal, Told};
use super::{Node, over};
use crate::talk::{HELLO, Peer, Silence};

/// How long to wait until it is done: LiteFS may take ten seconds for a lock, and be asked again.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn forget(State(node): State<Node>, Path(id): Path<String>) -> Answer<Forgotten> {
    let talk = &node.control.talk;
    if id == node.name() || id == talk.id() {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "oneself",
            "a node does not forget itself",
            "end it, and then ask another node; `caje clear --disk` empties one that stays",
        ));
    }
    let manifest = open(&node)?;
    let known = {
        let id = id.clone();
        let known = node.apart(move |shared| {
            let manifest = open(shared)?;
            let said = manifest.reader().and_then(|reader| reader.author(&id));
            let said = said.map_err(|error| unreadable(&error))?;
            // A name that nobody has used has no database to look at.
            let is_here = said.is_some() && manifest.is_author_here(&id);
            Ok((said, is_here))
        });
        known.await??
    };
    let (said, is_here) = known;
    let row = talk.row(&id);
    if said.is_none() && row.is_none() {
        let others = talk.peers().iter().map(Peer::name).collect();
        return Err(over::unknown(&id, &node.name(), others));
    }
    if is_here {
        return Err(runs(&id, "a process of this host writes under its name"));
    }
    let silence = match (row, talk.has_secret()) {
        (Some(row), true) => {
            let asked = talk.ask(&row, &Method::GET, HELLO, Bytes::new(), true);
            match asked.await {
                Ok(_) => return Err(runs(&id, "it has answered just now")),
                // It may be the node, with another clock or secret.
                Err(Silence::Stranger) => {
                    return Err(runs(
                        &id,
                        "something answers there that cannot prove who it is",
                    ));
                }
                Err(silence) => Some(silence.to_string()),
            }
        }
        (None, true) => None,
        // Where nodes share a host, its name would be taken.
        (_, false)
            if node.control.config.load().manifest.engine == crate::config::Engine::Local =>
        {
            None
        }
        (_, false) => {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "no-secret",
                "without `cluster.secret` it cannot be asked, so nobody knows that it is gone",
                "set the same cluster.secret on all nodes, and ask again",
            ));
        }
    };
    let resources = said.map_or(0, |said| said.resources);
    let mut findings = Vec::new();
    if talk.is_named(&id) {
        findings.push(format!(
            "`cluster.peers` of {} still names it: take it out there, and on the other nodes",
            node.name()
        ));
    }
    let mut changed = manifest.watch();
    manifest.forget_author(&id);
    tracing::info!(node = id, resources, "a node is forgotten");
    let gone = async {
        loop {
            changed.borrow_and_update();
            let name = id.clone();
            let said = node.apart(move |shared| {
                let said = open(shared)?
                    .reader()
                    .and_then(|reader| reader.author(&name));
                said.map_err(|error| unreadable(&error))
            });
            if said.await??.is_none() {
                return Ok::<_, Refusal>(());
            }
            changed.changed().await.map_err(|_| Refusal::internal())?;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, gone).await;
    in_time.map_err(|_| {
        let why = (node.control.manifest_failure)();
        let why = why.unwrap_or_else(|| "the manifest's folder takes its time".to_owned());
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-yet",
            format!("it is not done yet: {why}"),
            "it goes on by itself as long as this node runs; `caje nodes` shows when it is done",
        )
    })??;
    talk.forget(&id);
    Ok(Told(Forgotten {
        node: id,
        resources,
        silence,
        findings,
    }))
}

fn runs(id: &str, why: &str) -> Refusal {
    Refusal::new(
        StatusCode::CONFLICT,
        "still-runs",
        format!("{id} is not gone: {why}"),
        "end it first, for good; `caje drain --node NAME` takes a node out of rotation that will be back",
    )
}
