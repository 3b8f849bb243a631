//! All that a node tells of itself in one answer, for who helps. Settings come without secrets, and no URL of a client.

use axum::extract::State;
use caje_admin_api::{NodeDump, SupportDump};

use super::objects::millis;
use super::refusal::{Answer, Told};
use super::{Node, coverage, jobs, origins, state};
use crate::clock;

pub(super) async fn dump(State(node): State<Node>) -> Answer<SupportDump> {
    let blocking = node.apart(|shared| (state::examined(shared), coverage::own(shared, None).ok()));
    let (doctor, coverage) = blocking.await?;
    let own = NodeDump {
        node: node.name(),
        at_ms: millis(clock::now()),
        info: state::info(&node),
        stats: state::counters(&node),
        settings: state::settings(&node)?,
        origins: origins::own(&node),
        storage: state::disk(&node),
        doctor: Some(doctor),
        coverage,
        jobs: jobs::all(&node),
        metrics: node.control.metrics.render(),
    };
    Ok(Told(SupportDump {
        nodes: vec![own],
        unanswered: Vec::new(),
    }))
}
