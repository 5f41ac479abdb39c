//! What another node of this site holds the counters of: that node protects it, in one call and one hop. A counter is
//! spent by the call whatever becomes of its answer, so nothing is forwarded a second time.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{
    counters::Counters,
    holders::Holders,
    item::{Kept, Outcome, Plain, ProtectedBatch},
    keys::{Given, Prepared},
    refused::{NotForwarded, NotSent},
};
use kms_core::{
    Verdict,
    audit::NodeId,
    counters::{LineName, allocator::NotReserved, refusal::Refusal},
};

/// The longest wait for an answer, if the caller named none.
const PATIENCE: Duration = Duration::from_secs(30);
/// This part of the caller's time is kept to tell him what became of it.
const KEPT: u32 = 8;
/// A holder is silent that did not answer for so long, whatever its callers' patience.
const SILENCE: Duration = Duration::from_secs(5);
/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;

/// The caller, and until when he waits: goes with what is forwarded.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// His name, as this node has authenticated him.
    pub caller: &'a str,
    /// His roles by this node's policy.
    pub roles: Vec<&'static str>,
    /// The call that he made, as a policy writes it.
    pub call: &'static str,
    /// The name of his request; empty: it has none.
    pub request_id: &'a str,
    /// The end of his patience; `None`: he named none.
    pub until: Option<Instant>,
}

/// The same, for a call that its caller need not wait for.
struct OwnOrigin {
    caller: String,
    roles: Vec<&'static str>,
    call: &'static str,
    request_id: String,
    until: Instant,
}

impl OwnOrigin {
    /// With so much time for the answer.
    fn of(origin: &Origin<'_>, wait: Duration) -> Self {
        let Origin { caller, request_id, ref roles, call, .. } = *origin;
        Self {
            caller: caller.to_owned(),
            roles: roles.clone(),
            call,
            request_id: request_id.to_owned(),
            // A part of it is kept from the other node, as from each caller's.
            until: Instant::now() + wait + wait / (KEPT - 1),
        }
    }

    fn origin(&self) -> Origin<'_> {
        Origin {
            caller: &self.caller,
            roles: self.roles.clone(),
            call: self.call,
            request_id: &self.request_id,
            until: Some(self.until),
        }
    }
}

/// The other nodes of this site.
#[async_trait]
pub trait OtherNodes: Send + Sync + 'static {
    /// Has `node` protect these items of one call, which are all protected alike. Never made a second time.
    async fn protect(
        &self,
        node: NodeId,
        origin: &Origin<'_>,
        items: &[Plain<'_>],
    ) -> Result<ProtectedBatch, NotForwarded>;
}

/// A node whose site has no others, or does not say where they are.
pub(super) struct NoOtherNodes;

#[async_trait]
impl OtherNodes for NoOtherNodes {
    async fn protect(
        &self,
        _: NodeId,
        _: &Origin<'_>,
        _: &[Plain<'_>],
    ) -> Result<ProtectedBatch, NotForwarded> {
        Err(NotForwarded::NoAddress)
    }
}

/// What other nodes made of items, by their places.
pub(super) type Forwarded = BTreeMap<usize, (Outcome, Vec<u8>)>;

/// The way of one call to other nodes.
pub(super) struct Way<'a> {
    pub(super) nodes: &'a Arc<dyn OtherNodes>,
    pub(super) counters: &'a Arc<Counters>,
    pub(super) holders: &'a Arc<Holders>,
    pub(super) origin: &'a Origin<'a>,
}

/// Forwards each item whose counters another node holds. In the place of what was not answered stands the reason.
pub(super) async fn forward(
    way: &Way<'_>,
    items: &[Plain<'_>],
    prepared: &[Result<Prepared, Outcome>],
    given: &mut [Option<Given>],
) -> Forwarded {
    let asked = by_holder(given).into_iter().map(|(holder, places)| async move {
        let answer = ask(way, holder, &places, (items, prepared)).await;
        (holder, places, answer)
    });
    let mut forwarded = Forwarded::new();
    let mut answers = stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some((holder, places, answer)) = answers.next().await {
        match answer {
            Ok(outcomes) => forwarded.extend(places.into_iter().zip(outcomes)),
            Err(why) => refuse(given, &places, &NotSent::NotForwarded { holder, why }),
        }
    }
    name(&mut forwarded, prepared);
    forwarded
}

/// Asks one holder for the items at these places. Of each holder one call at a time tells whether it is silent: that one
/// goes on when its caller has gone, for a time of its own, since what a caller's patience cuts off says nothing of the
/// holder.
async fn ask(
    way: &Way<'_>,
    holder: NodeId,
    places: &[usize],
    (items, prepared): (&[Plain<'_>], &[Result<Prepared, Outcome>]),
) -> Result<Answered, NotForwarded> {
    let wait = time_left(way.origin.until, Instant::now()).ok_or(NotForwarded::Late)?;
    let theirs: Vec<_> = places.iter().filter_map(|at| items.get(*at).copied()).collect();
    let line = |at: &usize| Some(prepared.get(*at)?.as_ref().ok()?.line);
    let lines = places.iter().map(line).collect();
    let judging = Judging {
        counters: Arc::clone(way.counters),
        holders: Arc::clone(way.holders),
        holder,
        lines,
    };
    judging.begin().await;
    let Some(turn) = way.holders.begin(holder) else {
        let answer = timeout(wait, way.nodes.protect(holder, way.origin, &theirs)).await;
        let answer = answer.map_or_else(|_| silent(), answered);
        judging.end(&answer, wait >= SILENCE).await;
        return answer;
    };
    let kept: Vec<Kept> = theirs.iter().map(Kept::of).collect();
    let (nodes, origin) = (Arc::clone(way.nodes), OwnOrigin::of(way.origin, wait.max(SILENCE)));
    let asking = tokio::spawn(async move {
        let items: Vec<_> = kept.iter().map(Kept::plain).collect();
        let origin = origin.origin();
        let mut call = std::pin::pin!(nodes.protect(holder, &origin, &items));
        let mut answer = timeout(SILENCE, &mut call).await.ok();
        if answer.is_none() {
            judging.end(&silent(), true).await;
            answer = timeout(wait.saturating_sub(SILENCE), &mut call).await.ok();
        }
        let answer = answer.map_or_else(silent, answered);
        judging.end(&answer, true).await;
        drop(turn);
        answer
    });
    match timeout(wait, asking).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(NotForwarded::NoAnswer(format!("none within {wait:?}"))),
    }
}

type Answered = Vec<(Outcome, Vec<u8>)>;

fn silent() -> Result<Answered, NotForwarded> {
    Err(NotForwarded::NoAnswer("none in time".to_owned()))
}

fn answered(answer: Result<ProtectedBatch, NotForwarded>) -> Result<Answered, NotForwarded> {
    split(answer?)
}

/// The time that another node has for its answer, of what its caller has left; `None`: there is none.
pub fn time_left(until: Option<Instant>, now: Instant) -> Option<Duration> {
    let Some(until) = until else { return Some(PATIENCE) };
    let left = until.checked_duration_since(now)?;
    let wait = (left - left / KEPT).min(PATIENCE);
    (!wait.is_zero()).then_some(wait)
}

/// What a call tells of the holder that it goes to.
struct Judging {
    counters: Arc<Counters>,
    holders: Arc<Holders>,
    holder: NodeId,
    /// Of each item.
    lines: Vec<Option<LineName>>,
}

impl Judging {
    /// A holder that was found silent stays so until it has served.
    async fn begin(&self) {
        let is_silent = self.holders.is_silent(self.holder);
        for line in self.lines_of_blocks(|_| true) {
            match is_silent {
                true => self.counters.heard(&line, self.holder, false).await,
                false => self.counters.asks(&line, self.holder).await,
            }
        }
    }

    /// `whole`: it had a time of its own, however short its caller's was.
    async fn end(&self, answer: &Result<Answered, NotForwarded>, whole: bool) {
        let served = match answer {
            Ok(outcomes) => outcomes,
            // Nobody was asked.
            Err(NotForwarded::Late) => return,
            Err(NotForwarded::NoAnswer(_)) if !whole => return,
            Err(why) => {
                let is_silent = matches!(why, NotForwarded::NoAnswer(_));
                self.holders.found(self.holder, is_silent);
                return self.hear(|_| true, false).await;
            }
        };
        self.holders.found(self.holder, false);
        let is_served = |at: usize| served.get(at).is_some_and(|(outcome, _)| serves(outcome));
        self.hear(|at| !is_served(at), false).await;
        // Of a block that it serves one item of, it serves.
        self.hear(is_served, true).await;
    }

    async fn hear(&self, which: impl Fn(usize) -> bool, serves: bool) {
        for line in self.lines_of_blocks(which) {
            self.counters.heard(&line, self.holder, serves).await;
        }
    }

    /// One line of each block.
    fn lines_of_blocks(&self, which: impl Fn(usize) -> bool) -> Vec<LineName> {
        let lines = self.lines.iter().enumerate().filter(|(at, _)| which(*at));
        let counting = &self.counters.parts.counting;
        let blocks: BTreeMap<_, _> = lines
            .filter_map(|(_, line)| Some((counting.block_of(line.as_ref()?), (*line)?)))
            .collect();
        blocks.into_values().collect()
    }
}

/// Whether a holder that says so is to keep the block: one that can't give its counters, and may never again, is not, or the
/// block would have none for ever; but for one that remembers more than the database does.
fn serves(outcome: &Outcome) -> bool {
    let remembers = [Some(Refusal::CountersRolledBack), Some(Refusal::CountersDamaged)];
    outcome.verdict != Verdict::Unavailable || remembers.contains(&outcome.refusal)
}

/// Titles are ours to say: the other node was asked for what was looked up here.
fn name(forwarded: &mut Forwarded, prepared: &[Result<Prepared, Outcome>]) {
    for (at, (outcome, _)) in forwarded {
        outcome.system_title = prepared.get(*at).and_then(|it| Some(it.as_ref().ok()?.title));
        outcome.by_another = true;
    }
}

fn refuse(given: &mut [Option<Given>], places: &[usize], why: &NotSent) {
    for at in places {
        if let Some(place) = given.get_mut(*at) {
            *place = Some(Err(why.clone()));
        }
    }
}

/// The places of items that other nodes hold the counters of, in their order.
fn by_holder(given: &[Option<Given>]) -> BTreeMap<NodeId, Vec<usize>> {
    let mut places: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (at, given) in given.iter().enumerate() {
        if let Some(Err(NotSent::NotReserved(NotReserved::Held { holder }))) = given {
            places.entry(*holder).or_default().push(at);
        }
    }
    places
}

/// Each item's outcome, and its APDU.
fn split(batch: ProtectedBatch) -> Result<Vec<(Outcome, Vec<u8>)>, NotForwarded> {
    let ProtectedBatch { apdus, lengths, outcomes } = batch;
    let misfit = || NotForwarded::NoAnswer("an answer that does not fit the call".to_owned());
    let mut left = &apdus[..];
    let mut each = Vec::with_capacity(outcomes.len());
    for (len, outcome) in lengths.iter().zip(outcomes) {
        let (apdu, rest) = left.split_at_checked(*len as usize).ok_or_else(misfit)?;
        each.push((outcome, apdu.to_vec()));
        left = rest;
    }
    Ok(each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_is_kept_and_leaves_time_to_tell_him() {
        let now = Instant::now();
        assert_eq!(time_left(None, now), Some(PATIENCE));
        let after = |seconds| Some(now + Duration::from_secs(seconds));
        assert_eq!(time_left(after(8), now), Some(Duration::from_secs(7)));
        assert_eq!(time_left(after(3_600), now), Some(PATIENCE));
        assert_eq!(time_left(Some(now), now), None);
        assert_eq!(time_left(Some(now), now + Duration::from_secs(1)), None);
    }

    #[test]
    fn a_holder_serves_unless_it_can_not_give_counters_and_keeps_what_it_alone_remembers() {
        let says = |verdict, refusal| serves(&Outcome { refusal, ..Outcome::of(verdict) });
        assert!(says(Verdict::Ok, None) && says(Verdict::UnknownMeter, None));
        assert!(says(Verdict::NoUsableKey, Some(Refusal::CounterUndeclared)));
        assert!(!says(Verdict::Unavailable, None));
        for refusal in [
            Refusal::NotPrimary,
            Refusal::LineNotReplicated,
            Refusal::HeldByAnotherNode,
            Refusal::CountersNotWitnessed,
        ] {
            assert!(!says(Verdict::Unavailable, Some(refusal)), "{refusal:?}");
        }
        // Behind a mark that was put back counters would go out a second time.
        for refusal in [Refusal::CountersRolledBack, Refusal::CountersDamaged] {
            assert!(says(Verdict::Unavailable, Some(refusal)), "{refusal:?}");
        }
    }
}
