//! The tasks of one data thread that outlive the request which began them.
//!
//! Everything spawned on a data thread is spawned here, so that a draining node can wait for it and the
//! metrics can count it.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

#[derive(Clone)]
pub struct Tasks(Rc<Inner>);

struct Inner {
    live: Cell<usize>,
    idle: Notify,
    /// Live tasks of all threads.
    total: Arc<AtomicUsize>,
}

struct Live(Tasks);

impl Drop for Live {
    fn drop(&mut self) {
        let inner = &self.0.0;
        inner.live.set(inner.live.get() - 1);
        inner.total.fetch_sub(1, Ordering::Relaxed);
        if inner.live.get() == 0 {
            inner.idle.notify_waiters();
        }
    }
}

impl Tasks {
    pub fn new(total: Arc<AtomicUsize>) -> Tasks {
        Tasks(Rc::new(Inner {
            live: Cell::new(0),
            idle: Notify::new(),
            total,
        }))
    }

    /// Runs `task` on this thread until it ends, whoever loses interest in it.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.live.set(self.0.live.get() + 1);
        self.0.total.fetch_add(1, Ordering::Relaxed);
        let live = Live(self.clone());
        tokio::task::spawn_local(async move {
            let _live = live;
            task.await;
        });
    }

    /// Completes when no task is left.
    pub async fn idle(&self) {
        while self.0.live.get() > 0 {
            self.0.idle.notified().await;
        }
    }
}
