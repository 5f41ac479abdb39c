//! Calls that need two people: what the first has asked for, and that the second has agreed.
//!
//! The first person's call is refused and remembered: its verb, the digest of its request's bytes, and
//! who asked. A second person of another name approves what was remembered; then the first person's
//! same call passes, once. What is remembered is in this process's memory and nowhere else: whoever can
//! write to the database can't forge it, a restart forgets it, and both people talk to one server.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{summary::About, whole::Asked};
use crate::rpc::{
    access::{
        policy::{CallerName, Permit, Second},
        verb::Verb,
    },
    messages::status::Refused,
};
use kms_core::{moment::Moment, ports::Clock};

/// From the first call to its repetition. Long enough to ring somebody up, short enough that both
/// still know what it was about.
pub(crate) const LIFE: Duration = Duration::from_secs(15 * 60);
/// Calls that wait at once, of all callers. Each takes less than a kilobyte.
pub(crate) const WAITING_MAX: usize = 256;
/// Calls of one caller that wait at once, so that none takes all the room.
pub(crate) const WAITING_OF_ONE_MAX: usize = 32;
/// The smallest number of nine digits.
const NUMBER_MIN: u64 = 100_000_000;

/// The calls that wait for their second person.
pub(crate) struct Approvals {
    verbs: BTreeSet<Verb>,
    clock: Arc<dyn Clock>,
    /// For the numbers: one from before a restart must not name another call.
    secret: RandomState,
    /// A std lock: held for a look, never across an `.await`.
    waiting: Mutex<Table>,
}

/// By their numbers, and how many there ever were.
#[derive(Default)]
struct Table {
    calls: BTreeMap<u64, Waiting>,
    numbered: u64,
}

/// One call that waits.
#[derive(Clone, Debug)]
struct Waiting {
    verb: Verb,
    digest: [u8; 32],
    requester: CallerName,
    about: About,
    asked: Moment,
    approved_by: Option<CallerName>,
}

/// A call that waits, as others may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) number: u64,
    pub(crate) verb: Verb,
    pub(crate) requester: CallerName,
    pub(crate) about: About,
    pub(crate) age_ms: u64,
    pub(crate) approved_by: Option<CallerName>,
}

impl Approvals {
    pub(crate) fn new(verbs: BTreeSet<Verb>, clock: Arc<dyn Clock>) -> Self {
        Self { verbs, clock, secret: RandomState::new(), waiting: Mutex::default() }
    }

    /// Whether the call needs two people.
    pub(crate) fn concern(&self, verb: Verb) -> bool {
        verb.always_needs_two_people() || self.verbs.contains(&verb)
    }

    /// Lets an approved call through, once, and says who approved it; any other is remembered and
    /// refused with its number.
    pub(crate) fn pass(&self, permit: &Permit, asked: &Asked) -> Result<Second, Refused> {
        let (verb, requester) = (permit.verb(), permit.caller());
        let digest = asked.digest;
        let now = self.clock.now();
        let mut table = self.live(now);
        let mut calls = table.calls.iter();
        let same = calls
            .find(|(_, one)| (one.verb, one.digest, &one.requester) == (verb, digest, requester));
        let known = same.map(|(number, one)| (*number, one.asked, one.approved_by.clone()));
        let asked_before = known.is_some();
        let (number, asked) = match known {
            Some((number, _, Some(approver))) => {
                if !asked.may_go_on {
                    table.calls.remove(&number);
                }
                return Ok(Second { approver, number });
            }
            Some((number, asked, None)) => (number, asked),
            None => {
                table.check_room(requester)?;
                let number = table.next_number(&self.secret);
                let (requester, about) = (requester.clone(), asked.about.clone());
                tracing::info!(%verb, %requester, number, "a second person is needed");
                let one = Waiting { verb, digest, requester, about, asked: now, approved_by: None };
                table.calls.insert(number, one);
                (number, now)
            }
        };
        let left_ms = (asked + LIFE).ms_since(now);
        Err(Refused::SecondPersonNeeded {
            verb,
            number,
            expires_ms: self.clock.unix_ms().saturating_add(left_ms),
            asked_before,
        })
    }

    /// The calls that wait, the oldest first.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let now = self.clock.now();
        let table = self.live(now);
        let mut listed: Vec<Listed> =
            table.calls.iter().map(|(number, one)| one.listed(*number, now)).collect();
        listed.sort_by_key(|one| std::cmp::Reverse(one.age_ms));
        listed
    }

    /// The call that `approver` would approve, if he may.
    pub(crate) fn look(&self, number: u64, approver: &CallerName) -> Result<Listed, Refused> {
        let now = self.clock.now();
        let mut table = self.live(now);
        table.open_to(number, approver).map(|one| one.listed(number, now))
    }

    /// The second person agrees. To agree again changes nothing.
    pub(crate) fn approve(&self, number: u64, approver: &CallerName) -> Result<Listed, Refused> {
        let now = self.clock.now();
        let mut table = self.live(now);
        let one = table.open_to(number, approver)?;
        if one.approved_by.is_none() {
            let Waiting { verb, requester, .. } = &*one;
            tracing::info!(%verb, %requester, %approver, number, "a call was approved");
            one.approved_by = Some(approver.clone());
        }
        Ok(one.listed(number, now))
    }

    /// The calls that wait and are not over.
    fn live(&self, now: Moment) -> MutexGuard<'_, Table> {
        let mut table = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        table.calls.retain(|_, one| now < one.asked + LIFE);
        table
    }
}

impl Table {
    fn check_room(&self, requester: &CallerName) -> Result<(), Refused> {
        let own = self.calls.values().filter(|one| one.requester == *requester).count();
        if own >= WAITING_OF_ONE_MAX {
            return Err(Refused::TooManyWaiting(WAITING_OF_ONE_MAX));
        }
        if self.calls.len() >= WAITING_MAX {
            return Err(Refused::TooManyWaiting(WAITING_MAX));
        }
        Ok(())
    }

    /// Nine digits, to be said on the telephone; none that is in use.
    fn next_number(&mut self, secret: &RandomState) -> u64 {
        loop {
            self.numbered += 1;
            let number = NUMBER_MIN + secret.hash_one(self.numbered) % (9 * NUMBER_MIN);
            if !self.calls.contains_key(&number) {
                return number;
            }
        }
    }

    fn open_to(&mut self, number: u64, approver: &CallerName) -> Result<&mut Waiting, Refused> {
        let one = self.calls.get_mut(&number).ok_or(Refused::NothingWaits)?;
        if one.requester == *approver { Err(Refused::OwnCall) } else { Ok(one) }
    }
}

impl Waiting {
    fn listed(&self, number: u64, now: Moment) -> Listed {
        Listed {
            number,
            verb: self.verb,
            requester: self.requester.clone(),
            about: self.about.clone(),
            age_ms: now.ms_since(self.asked),
            approved_by: self.approved_by.clone(),
        }
    }
}
