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
use kms_core::{Epoch, moment::Moment, ports::Clock};

/// From the first call to its repetition. Long enough to ring somebody up, short enough that both
/// still know what it was about.
pub(crate) const LIFE: Duration = Duration::from_secs(15 * 60);
/// Calls that wait at once, of all callers. Each takes less than a kilobyte.
pub(crate) const WAITING_MAX: usize = 256;
/// Calls of one caller that wait at once, so that none takes all the room.
pub(crate) const WAITING_OF_ONE_MAX: usize = 32;
/// The smallest number of nine digits.
const NUMBER_MIN: u64 = 100_000_000;

/// The epochs above the highest one of the signed records that one person may name for a site that was put back: it has
/// missed some promotions, and each epoch is one counter epoch less, of 256, for every key.
pub(crate) const ABOVE_MAX: u64 = 8;

/// The promotions above an epoch that a site may have by its signed records, whoever approved them, for one person to ask
/// for another one: who makes a site think again and again that it was put back does not use up the counter epochs.
pub(crate) const ABOVE_TIMES_MAX: u32 = 8;

/// Tells of a site, as it is now, whether it was put back, the highest epoch that signed records say, and the number of its
/// promotions above one.
pub(crate) type PutBack = Box<dyn Fn() -> (bool, Epoch, u32) + Send + Sync>;

/// The calls that wait for their second person.
pub(crate) struct Approvals {
    verbs: BTreeSet<Verb>,
    /// `None`: no site is behind this server, and nothing is promoted.
    put_back: Option<PutBack>,
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
    pub(crate) fn new(
        verbs: BTreeSet<Verb>,
        clock: Arc<dyn Clock>,
        put_back: Option<PutBack>,
    ) -> Self {
        Self { verbs, put_back, clock, secret: RandomState::new(), waiting: Mutex::default() }
    }

    /// Whether the call may need two people: it is read before that is known.
    pub(crate) fn concern(&self, verb: Verb) -> bool {
        self.need(verb) || verb == Verb::Promote && self.put_back.is_some()
    }

    /// Whether this call takes one person only. A promotion above an epoch that somebody names takes two, whatever the
    /// policy says, unless the site was put back, it is not far, and it was not done often.
    pub(crate) fn take_one(&self, verb: Verb, asked: &Asked) -> bool {
        let above = asked.promotion.as_ref().and_then(|promotion| promotion.above_epoch);
        let is_near = |above: u64| {
            let known = self.put_back.as_ref().map(|put_back| put_back());
            known.is_some_and(|(is_put_back, known, times)| {
                let is_near = above <= known.0.saturating_add(ABOVE_MAX);
                is_put_back && is_near && times < ABOVE_TIMES_MAX
            })
        };
        !self.need(verb) && above.is_none_or(is_near)
    }

    fn need(&self, verb: Verb) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use kms_core::moment::Moment;
    use kms_proto::v1::PromoteRequest;
    use tonic::body::Body;

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Moment {
            Moment::default()
        }
        fn unix_ms(&self) -> u64 {
            0
        }
    }

    fn promotion(above_epoch: Option<u64>) -> Asked {
        let promotion = Some(PromoteRequest { above_epoch, ..PromoteRequest::default() });
        Asked {
            digest: [0; 32],
            about: About::default(),
            may_go_on: false,
            is_question: false,
            promotion,
            request: Request::new(Body::empty()),
        }
    }

    #[test]
    fn one_person_names_an_epoch_only_for_a_site_that_was_put_back_and_only_a_near_one() {
        let takes_one_of = |is_put_back, above, times| {
            let put_back: PutBack = Box::new(move || (is_put_back, Epoch(4), times));
            let approvals = Approvals::new(BTreeSet::new(), Arc::new(Still), Some(put_back));
            assert!(approvals.concern(Verb::Promote) && !approvals.concern(Verb::Demote));
            approvals.take_one(Verb::Promote, &promotion(above))
        };
        let takes_one = |is_put_back, above| takes_one_of(is_put_back, above, ABOVE_TIMES_MAX - 1);
        assert!(takes_one(false, None) && takes_one(true, None));
        assert!(takes_one_of(true, None, ABOVE_TIMES_MAX));
        assert!(!takes_one_of(true, Some(4), ABOVE_TIMES_MAX));
        assert!(takes_one(true, Some(1)) && takes_one(true, Some(4 + ABOVE_MAX)));
        assert!(!takes_one(true, Some(5 + ABOVE_MAX)) && !takes_one(true, Some(u64::MAX)));
        assert!(!takes_one(false, Some(4)) && !takes_one(false, Some(1)));
        // Where the policy asks for two it takes two, near or not.
        let verbs = BTreeSet::from([Verb::Promote]);
        let approvals = Approvals::new(verbs, Arc::new(Still), None);
        assert!(!approvals.take_one(Verb::Promote, &promotion(None)));
    }
}
