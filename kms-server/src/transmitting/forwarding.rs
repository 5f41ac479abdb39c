//! What another node of this site holds the counters of: that node protects it, in one call and one hop. A counter is
//! spent by the call whatever becomes of its answer, so nothing is forwarded a second time.

use std::{collections::BTreeMap, time::Instant};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};

use super::{
    counters::Counters,
    item::{Outcome, Plain, ProtectedBatch},
    keys::{Given, Prepared},
    refused::{NotForwarded, NotSent},
};
use kms_core::{
    Verdict,
    audit::NodeId,
    counters::{allocator::NotReserved, refusal::Refusal},
};

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
    pub(super) nodes: &'a dyn OtherNodes,
    pub(super) counters: &'a Counters,
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

/// Asks one holder for the items at these places.
async fn ask(
    way: &Way<'_>,
    holder: NodeId,
    places: &[usize],
    (items, prepared): (&[Plain<'_>], &[Result<Prepared, Outcome>]),
) -> Result<Vec<(Outcome, Vec<u8>)>, NotForwarded> {
    let theirs: Vec<_> = places.iter().filter_map(|at| items.get(*at).copied()).collect();
    // Silent until it has served: a caller who goes away takes this call with him, and nobody would ever say so of a
    // holder that hangs.
    hear(way.counters, holder, (places, prepared), false).await;
    let outcomes = split(way.nodes.protect(holder, way.origin, &theirs).await?)?;
    let serving = places.iter().zip(&outcomes).filter(|(_, (outcome, _))| serves(outcome));
    let serving: Vec<_> = serving.map(|(at, _)| *at).collect();
    hear(way.counters, holder, (&serving, prepared), true).await;
    Ok(outcomes)
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

/// Whoever serves is not taken over from.
async fn hear(
    counters: &Counters,
    holder: NodeId,
    (places, prepared): (&[usize], &[Result<Prepared, Outcome>]),
    serves: bool,
) {
    let lines = places.iter().filter_map(|at| Some(prepared.get(*at)?.as_ref().ok()?.line));
    let block = |line| (counters.parts.counting.block_of(&line), line);
    let blocks: BTreeMap<_, _> = lines.map(block).collect();
    for line in blocks.values() {
        counters.heard(line, holder, serves).await;
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
