//! Names to addresses: the system's resolver on a blocking thread, with a short memory.
//!
//! One lookup per name at a time; whoever asks meanwhile shares its answer. A lookup that fails
//! falls back on the last addresses known, since an origin's name seldom changes its mind while the
//! resolver is away.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{ErrorKind, OriginError};

/// How long addresses are believed without asking again.
const FRESH_FOR: Duration = Duration::from_secs(10);
/// How long a failure is believed.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// Names kept; beyond it the expired go, then all that are not being looked up.
const MOST_NAMES: usize = 1024;

type Answer = Result<Rc<[IpAddr]>, OriginError>;

#[derive(Clone, Default)]
pub(super) struct Resolver {
    names: Rc<RefCell<HashMap<Box<str>, Entry>>>,
}

#[derive(Default)]
struct Entry {
    answer: Option<(Answer, Instant)>,
    /// The last addresses found, however old.
    last_good: Option<Rc<[IpAddr]>>,
    /// Present while a lookup runs.
    waiters: Option<Vec<oneshot::Sender<Answer>>>,
}

impl Resolver {
    /// Addresses of `host` in the resolver's order, at least one. A literal address is itself.
    pub(super) async fn resolve(&self, host: &str) -> Answer {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Rc::new([address]));
        }
        let receiver = {
            let mut names = self.names.borrow_mut();
            if names.len() >= MOST_NAMES && !names.contains_key(host) {
                make_room(&mut names);
            }
            let entry = names.entry(host.into()).or_default();
            if let Some((answer, until)) = &entry.answer
                && Instant::now() < *until
            {
                return answer.clone();
            }
            let (sender, receiver) = oneshot::channel();
            if let Some(waiters) = &mut entry.waiters {
                waiters.push(sender);
            } else {
                entry.waiters = Some(vec![sender]);
                tokio::task::spawn_local(self.clone().look_up(host.into()));
            }
            receiver
        };
        receiver
            .await
            .unwrap_or_else(|_| Err(OriginError::new(ErrorKind::Dns, "the lookup was abandoned")))
    }

    async fn look_up(self, host: Box<str>) {
        let found = tokio::net::lookup_host((&*host, 0)).await;
        let waiters = self.settle(&host, found.map(|found| found.map(|a| a.ip()).collect()));
        let Some((waiters, answer)) = waiters else {
            return;
        };
        for waiter in waiters {
            // A waiter that left needs no answer.
            let _ = waiter.send(answer.clone());
        }
    }

    fn settle(
        &self,
        host: &str,
        found: io::Result<Vec<IpAddr>>,
    ) -> Option<(Vec<oneshot::Sender<Answer>>, Answer)> {
        let mut names = self.names.borrow_mut();
        let entry = names.get_mut(host)?;
        let (answer, lasts) = match found {
            Ok(mut addresses) if !addresses.is_empty() => {
                addresses.dedup();
                let addresses: Rc<[IpAddr]> = addresses.into();
                entry.last_good = Some(Rc::clone(&addresses));
                (Ok(addresses), FRESH_FOR)
            }
            failed => match &entry.last_good {
                Some(addresses) => (Ok(Rc::clone(addresses)), FAILED_FOR),
                None => {
                    let reason = failed.err().map_or("no address".into(), |e| e.to_string());
                    (
                        Err(OriginError::new(
                            ErrorKind::Dns,
                            format!("{host}: {reason}"),
                        )),
                        FAILED_FOR,
                    )
                }
            },
        };
        entry.answer = Some((answer.clone(), Instant::now() + lasts));
        entry.waiters.take().map(|waiters| (waiters, answer))
    }
}

fn make_room(names: &mut HashMap<Box<str>, Entry>) {
    let now = Instant::now();
    names.retain(|_, e| e.waiters.is_some() || e.answer.as_ref().is_some_and(|(_, t)| now < *t));
    if names.len() >= MOST_NAMES {
        names.retain(|_, e| e.waiters.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    #[tokio::test(flavor = "current_thread")]
    async fn literals_names_and_failures() {
        LocalSet::new()
            .run_until(async {
                let resolver = Resolver::default();
                let answer = resolver.resolve("::1").await.unwrap();
                assert_eq!(*answer, ["::1".parse::<IpAddr>().unwrap()]);
                assert!(
                    resolver.names.borrow().is_empty(),
                    "a literal is never looked up"
                );

                let (a, b) =
                    tokio::join!(resolver.resolve("localhost"), resolver.resolve("localhost"));
                assert!(
                    Rc::ptr_eq(&a.unwrap(), &b.unwrap()),
                    "one lookup answers both"
                );

                let error = resolver.resolve("no such name.invalid").await.unwrap_err();
                assert_eq!(error.kind, ErrorKind::Dns);
            })
            .await;
    }

    #[test]
    fn a_failed_lookup_falls_back_on_the_last_addresses() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        let resolver = Resolver::default();
        resolver
            .names
            .borrow_mut()
            .insert("o".into(), Entry::default());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        resolver.settle("o", Ok(vec![address]));
        resolver.settle("o", Err(io::Error::other("gone")));
        let names = resolver.names.borrow();
        let (answer, _) = names["o"].answer.as_ref().unwrap();
        assert_eq!(**answer.as_ref().unwrap(), [address]);
    }
}
