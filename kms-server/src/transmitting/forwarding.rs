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
use kms_core::{audit::NodeId, counters::allocator::NotReserved};

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
        let theirs: Vec<_> = places.iter().filter_map(|at| items.get(*at).copied()).collect();
        let answer = way.nodes.protect(holder, way.origin, &theirs).await;
        (holder, places, answer.and_then(split))
    });
    let mut forwarded = Forwarded::new();
    let mut answers = stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some((holder, places, answer)) = answers.next().await {
        if !matches!(answer, Err(NotForwarded::Late)) {
            hear(way.counters, holder, (&places, prepared), answer.is_ok()).await;
        }
        match answer {
            Ok(outcomes) => forwarded.extend(places.into_iter().zip(outcomes)),
            Err(why) => refuse(given, &places, &NotSent::NotForwarded { holder, why }),
        }
    }
    name(&mut forwarded, prepared);
    forwarded
}

/// Titles are ours to say: the other node was asked for what was looked up here.
fn name(forwarded: &mut Forwarded, prepared: &[Result<Prepared, Outcome>]) {
    for (at, (outcome, _)) in forwarded {
        outcome.system_title = prepared.get(*at).and_then(|it| Some(it.as_ref().ok()?.title));
        outcome.by_another = true;
    }
}

/// Whoever answers is not taken over from.
async fn hear(
    counters: &Counters,
    holder: NodeId,
    (places, prepared): (&[usize], &[Result<Prepared, Outcome>]),
    answers: bool,
) {
    let lines = places.iter().filter_map(|at| Some(prepared.get(*at)?.as_ref().ok()?.line));
    let block = |line| (counters.parts.counting.block_of(&line), line);
    let blocks: BTreeMap<_, _> = lines.map(block).collect();
    for line in blocks.values() {
        counters.heard(line, holder, answers).await;
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
