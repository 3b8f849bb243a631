//! Which objects go when room is needed: SIEVE, a queue with one hand; and of two such queues, which goes first.
//!
//! New objects enter at the head. The hand walks from the tail to the head: an object that has been
//! used since the hand last passed is let off once, the first other one goes. A use is one relaxed
//! store, and nothing moves, so that hits need no lock.
//!
//! What is spared stands in a queue of its own, of which nothing goes while there is anything in the other.

use std::sync::Arc;

/// What the queue asks of its members.
pub(crate) trait Used {
    /// Whether it has been used since this was last called.
    fn take_used(&self) -> bool;
}

/// The two queues.
pub(crate) struct Ranks<T> {
    ordinary: Sieve<T>,
    spared: Sieve<T>,
}

/// A member's place in one of them, good until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    seat: Seat,
    is_spared: bool,
}

impl<T: Used> Ranks<T> {
    pub(crate) fn new() -> Self {
        Self {
            ordinary: Sieve::new(),
            spared: Sieve::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ordinary.len() + self.spared.len()
    }

    /// Enters `member` as the newest of its rank.
    pub(crate) fn insert(&mut self, member: Arc<T>, is_spared: bool) -> Place {
        let seat = self.rank(is_spared).insert(member);
        Place { seat, is_spared }
    }

    /// Takes `member` out, as [`Sieve::remove`] does.
    pub(crate) fn remove(&mut self, place: Place, member: &T) -> Option<Arc<T>> {
        self.rank(place.is_spared).remove(place.seat, member)
    }

    /// Takes the next victim out: of those that are spared, if they may go too, when there is no other.
    pub(crate) fn evict(&mut self, may_take_spared: bool) -> Option<Arc<T>> {
        match self.ordinary.evict() {
            None if may_take_spared => self.spared.evict(),
            victim => victim,
        }
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<T>> {
        self.ordinary.members().chain(self.spared.members())
    }

    fn rank(&mut self, is_spared: bool) -> &mut Sieve<T> {
        match is_spared {
            true => &mut self.spared,
            false => &mut self.ordinary,
        }
    }
}

const NONE: u32 = u32::MAX;

/// A member's place in a queue, good until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat(u32);

struct Sieve<T> {
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
    head: u32,
    tail: u32,
    hand: u32,
    members: usize,
}

struct Node<T> {
    member: Option<Arc<T>>,
    /// Towards the head: younger.
    newer: u32,
    /// Towards the tail.
    older: u32,
}

impl<T: Used> Sieve<T> {
    fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            head: NONE,
            tail: NONE,
            hand: NONE,
            members: 0,
        }
    }

    fn len(&self) -> usize {
        self.members
    }

    /// Enters `member` as the newest.
    fn insert(&mut self, member: Arc<T>) -> Seat {
        let node = Node {
            member: Some(member),
            newer: NONE,
            older: self.head,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        if self.head == NONE {
            self.tail = at;
        } else {
            self.nodes[self.head as usize].newer = at;
        }
        self.head = at;
        self.members += 1;
        Seat(at)
    }

    /// Takes `member` out, unless it has gone and its seat is another's by now. The caller drops it
    /// after having let go of the queue's lock.
    fn remove(&mut self, Seat(at): Seat, member: &T) -> Option<Arc<T>> {
        let seated = self.nodes.get(at as usize)?.member.as_ref()?;
        if std::ptr::eq(seated.as_ref(), member) {
            self.unseat(at)
        } else {
            None
        }
    }

    fn unseat(&mut self, at: u32) -> Option<Arc<T>> {
        let node = &mut self.nodes[at as usize];
        let member = node.member.take()?;
        let (newer, older) = (node.newer, node.older);
        match newer {
            NONE => self.head = older,
            newer => self.nodes[newer as usize].older = older,
        }
        match older {
            NONE => self.tail = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        if self.hand == at {
            self.hand = newer;
        }
        self.free.push(at);
        self.members -= 1;
        Some(member)
    }

    /// Takes the next victim out.
    fn evict(&mut self) -> Option<Arc<T>> {
        // Twice round at most: the first round clears every mark.
        for _ in 0..=2 * self.members {
            let at = if self.hand == NONE {
                self.tail
            } else {
                self.hand
            };
            let node = self.nodes.get(at as usize)?;
            let member = node.member.as_ref()?;
            if member.take_used() {
                self.hand = node.newer;
            } else {
                return self.unseat(at);
            }
        }
        // Others use them faster than the hand walks.
        let at = if self.tail == NONE {
            return None;
        } else {
            self.tail
        };
        self.unseat(at)
    }

    fn members(&self) -> impl Iterator<Item = &Arc<T>> {
        self.nodes.iter().filter_map(|node| node.member.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Member(u32, AtomicBool);

    impl Used for Member {
        fn take_used(&self) -> bool {
            self.1.swap(false, Ordering::Relaxed)
        }
    }

    fn evicted(sieve: &mut Sieve<Member>) -> Option<u32> {
        sieve.evict().map(|member| member.0)
    }

    #[test]
    fn used_members_are_let_off_once() {
        let mut sieve = Sieve::new();
        let members: Vec<_> = (0..5)
            .map(|number| Arc::new(Member(number, AtomicBool::new(false))))
            .collect();
        let seats: Vec<_> = members
            .iter()
            .map(|member| sieve.insert(member.clone()))
            .collect();
        members[0].1.store(true, Ordering::Relaxed);
        members[2].1.store(true, Ordering::Relaxed);
        assert_eq!(evicted(&mut sieve), Some(1));
        sieve.remove(seats[3], &members[3]);
        assert!(sieve.remove(seats[3], &members[3]).is_none());
        assert_eq!(evicted(&mut sieve), Some(4));
        sieve.insert(Arc::new(Member(5, AtomicBool::new(false))));
        assert_eq!(sieve.len(), 3);
        assert_eq!(
            evicted(&mut sieve),
            Some(0),
            "the hand starts again at the tail"
        );
        assert_eq!(evicted(&mut sieve), Some(2));
        assert_eq!(evicted(&mut sieve), Some(5));
        assert_eq!(evicted(&mut sieve), None);
        assert_eq!(sieve.members().count(), 0);
    }

    #[test]
    fn what_is_spared_goes_last() {
        let mut ranks = Ranks::new();
        let member = |number| Arc::new(Member(number, AtomicBool::new(false)));
        let first = member(0);
        let place = ranks.insert(first.clone(), true);
        for number in 1..4 {
            ranks.insert(member(number), number == 2);
        }
        let evicted = |ranks: &mut Ranks<Member>| ranks.evict(true).map(|member| member.0);
        assert_eq!(evicted(&mut ranks), Some(1));
        // One that is spared no more goes as any other.
        let moved = ranks.remove(place, &first).expect("a member");
        ranks.insert(moved, false);
        assert_eq!(ranks.len(), 3);
        assert_eq!(evicted(&mut ranks), Some(3));
        assert_eq!(evicted(&mut ranks), Some(0));
        assert!(ranks.evict(false).is_none());
        assert_eq!(evicted(&mut ranks), Some(2), "nothing else is left");
        assert_eq!(evicted(&mut ranks), None);
    }
}
