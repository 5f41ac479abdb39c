//! The head table: the newest state of each block, signed with the ends of all chains. At the start it
//! and the events since say which states of blocks may be used; while the service runs it is kept at
//! what all nodes wrote, and signed anew. No start takes longer because the log is old.

use std::{collections::HashMap, sync::Mutex};

use tokio::sync::Mutex as AsyncMutex;

use super::{
    chain::Chain,
    error::AuditError,
    lock::lock,
    paging::PAGE_MAX,
    scope::{Parts, Scope},
};
use crate::{hsm::Hsm, store::StoreError};
use kms_core::{
    BlockNo, DomainId, Head,
    audit::{ChainTip, NodeId, PublicKey, SiteKeys, Verifier, is_signed},
    block::BlockMark,
    freshness::{HeadTable, SignedHeadTable},
    moment::Moment,
    ports::KnownTips,
};

/// Events after which the table is signed before its time: what a start has to read at most, about.
const EVENTS_MAX: u64 = 20_000;

/// The interval at which a table that could not be relied upon is looked at again, in milliseconds.
const LOOK_AGAIN_MS: u64 = 5_000;

/// The way out where the newest state of the blocks can't be told.
const WAY_OUT: &str = "put the newest copy of the database back; after a restore, see the handbook: \
                       move node-id in [site] data_dir away on each server, and start again";

/// Keeps the site's head table.
pub(super) struct Tables {
    scope: Scope,
    key: PublicKey,
    state: AsyncMutex<State>,
    /// Why the table could not be signed, or what was found wrong with it while the service ran.
    fault: Mutex<Option<String>>,
    /// An event that this service did not write, as long as it is there.
    made_up: Mutex<Option<MadeUp>>,
    /// A fault that was mended without a person, and is told until the next start.
    mended: Mutex<Option<String>>,
    parts: Parts,
}

struct State {
    /// As it was signed last; `None`: nothing can be relied upon.
    table: Option<HeadTable>,
    /// When it was signed, or looked at in vain, by the clock's monotonic time; `None`: not by us.
    at: Option<Moment>,
}

/// Use of the marks of events that nobody signed yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// Use no older state.
    Hear,
    /// The same, and stop at the first that is not known to be true.
    Confirm,
}

/// An event that no server of this site can have written.
#[derive(PartialEq, Eq)]
struct MadeUp {
    node: NodeId,
    what: String,
}

impl MadeUp {
    fn new(at: ChainTip, block: BlockNo) -> Self {
        let (node, sequence) = (at.node, at.sequence);
        let what = format!(
            "event {sequence} of node {node}'s audit chain speaks of a state of block {block} that never was: \
             see the handbook"
        );
        Self { node, what }
    }
}

/// Why a table can't be relied upon, or not signed.
enum Failed {
    /// The database is not what it was.
    WentBack(String),
    /// Nothing is known.
    Error(AuditError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Damaged(what) => Self::WentBack(what),
            error => Self::Error(AuditError::of_read(error)),
        }
    }
}

impl From<AuditError> for Failed {
    fn from(error: AuditError) -> Self {
        Self::Error(error)
    }
}

impl Tables {
    /// Reads the table and the events since, and tells the scope's `freshness` what is to be expected of
    /// the blocks; or that none may be used, and why.
    pub(super) async fn open(
        scope: Scope,
        key: PublicKey,
        parts: Parts,
    ) -> Result<Self, AuditError> {
        let state = AsyncMutex::new(State { table: None, at: None });
        let this = Self {
            scope,
            key,
            state,
            fault: Mutex::default(),
            made_up: Mutex::default(),
            mended: Mutex::default(),
            parts,
        };
        this.load(&mut *this.state.lock().await).await?;
        Ok(this)
    }

    pub(super) fn fault(&self) -> Option<String> {
        let made_up = || lock(&self.made_up).as_ref().map(|made_up| made_up.what.clone());
        lock(&self.fault).clone().or_else(made_up).or_else(|| lock(&self.mended).clone())
    }

    /// The event that stands in this node's chain and was made up.
    pub(super) fn made_up_in(&self, node: NodeId) -> Option<String> {
        let made_up = lock(&self.made_up);
        made_up.as_ref().filter(|made_up| made_up.node == node).map(|made_up| made_up.what.clone())
    }

    async fn load(&self, state: &mut State) -> Result<(), AuditError> {
        let freshness = &self.scope.freshness;
        match self.read().await {
            Ok(table) => {
                freshness.refuse(None);
                *state = State { table: Some(table), at: None };
                Ok(())
            }
            Err(Failed::WentBack(what)) => {
                let reason = format!("the database is not the newest: {what}; {WAY_OUT}");
                if freshness.refusal().as_deref() != Some(&reason) {
                    tracing::error!(reason, "no block is used");
                }
                freshness.refuse(Some(&reason));
                state.at = Some(self.parts.clock.now());
                Ok(())
            }
            Err(Failed::Error(error)) => Err(error),
        }
    }

    /// The table as it was signed, once the events since were heard.
    async fn read(&self) -> Result<HeadTable, Failed> {
        let missing = || Failed::WentBack("its signed head table is missing".to_owned());
        let stored = self.parts.store.head_table().await?.ok_or_else(missing)?;
        let mut table = self.opened(&stored)?;
        let KnownTips { tips: known, table: number } =
            self.parts.witness.known().await.map_err(|error| AuditError::Witness(error.0))?;
        let mut wanted: HashMap<NodeId, Vec<ChainTip>> = HashMap::new();
        for tip in known.into_iter().filter(|tip| tip.sequence > 0) {
            wanted.entry(tip.node).or_default().push(tip);
        }
        self.follow_chains(&mut table.clone(), &mut wanted, Marks::Hear).await?;
        if let Some(tip) = wanted.into_values().flatten().next() {
            return Err(Failed::WentBack(format!(
                "event {} of node {}'s audit chain, which this server knows, is not in it",
                tip.sequence, tip.node
            )));
        }
        if table.number < number {
            // The events since say all the same; the next one to be signed replaces it.
            let what = format!(
                "the signed head table was number {number}, and somebody put number {} in its place",
                table.number
            );
            tracing::error!(what, "an older head table");
            *lock(&self.mended) = Some(what);
            table.number = number;
        }
        table.marks().for_each(|mark| self.scope.freshness.know(&mark));
        Ok(table)
    }

    /// Whose tables and heads count: those of all tokens of this site.
    fn keys(&self) -> SiteKeys {
        self.parts.hsm.site_keys_with(self.key)
    }

    fn opened(&self, stored: &SignedHeadTable) -> Result<HeadTable, Failed> {
        let table = stored.open(&self.scope.domain, &self.keys());
        table.filter(|table| table.heads.len() == self.scope.blocks.get() as usize).ok_or_else(
            || Failed::WentBack("its head table was not signed by the token's key".to_owned()),
        )
    }

    /// Takes in what stands in all chains behind the ends that the table has. Ends that are found are
    /// taken out of `wanted`.
    async fn follow_chains(
        &self,
        table: &mut HeadTable,
        wanted: &mut HashMap<NodeId, Vec<ChainTip>>,
        marks: Marks,
    ) -> Result<(), Failed> {
        for tip in &table.tips {
            // An end behind a signed one was signed for with it.
            found(wanted, tip.node, |wanted| wanted.sequence < tip.sequence || wanted == tip);
        }
        let ends = self.parts.store.audit_chains().await?;
        for known in &table.tips {
            if !ends.iter().any(|end| end.node == known.node) {
                let what = format!("the audit chain of node {} is missing", known.node);
                return Err(Failed::WentBack(what));
            }
        }
        let mut made_up = None;
        for end in ends {
            let from = table.tip_of(end.node);
            if end.sequence < from.sequence || (end.sequence == from.sequence && end != from) {
                return Err(Failed::WentBack(format!(
                    "the audit chain of node {} ends at event {}, and event {} of it was signed",
                    end.node, end.sequence, from.sequence
                )));
            }
            let found = self.follow_chain(table, end, wanted, marks).await?;
            // Rather the one in this node's own chain: behind it nothing more is written.
            let is_told = |found: &MadeUp| made_up.is_none() || found.node == self.scope.node;
            made_up = found.filter(is_told).or(made_up);
        }
        let mut told = lock(&self.made_up);
        if let Some(made_up) = made_up.as_ref().filter(|made_up| told.as_ref() != Some(*made_up)) {
            tracing::error!(made_up.what, "an event that this service did not write");
        }
        *told = made_up;
        Ok(())
    }

    /// The first event that is made up, if there is one. Its marks say nothing. To `Confirm` ends before it, and
    /// before what is not known to be true; what stands behind is heard all the same.
    async fn follow_chain(
        &self,
        table: &mut HeadTable,
        end: ChainTip,
        wanted: &mut HashMap<NodeId, Vec<ChainTip>>,
        marks: Marks,
    ) -> Result<Option<MadeUp>, Failed> {
        let freshness = &self.scope.freshness;
        let mut verifier = Verifier::new(table.tip_of(end.node), self.keys());
        let (mut made_up, mut follows) = (None, true);
        while verifier.tip().sequence < end.sequence {
            let after = verifier.tip().sequence;
            let events = self.parts.store.audit_events(&end.node, after, PAGE_MAX).await?;
            if events.is_empty() {
                let what = format!("event {} of node {} is missing", after + 1, end.node);
                return Err(Failed::WentBack(what));
            }
            for stored in &events {
                let event = verifier.event(stored);
                let event = event.map_err(|broken| Failed::WentBack(broken.to_string()))?;
                let mut heads = event.entry.heads;
                let strange =
                    heads.iter().find(|mark| self.is_made_up(mark)).map(|mark| mark.block);
                if let Some(block) = strange {
                    made_up.get_or_insert_with(|| MadeUp::new(verifier.tip(), block));
                    heads.clear();
                }
                heads.iter().for_each(|mark| freshness.hear(mark));
                // Nobody signed this event yet, and whoever writes to the database can make one up: it is
                // signed for when its blocks were seen so.
                let is_true =
                    || strange.is_none() && heads.iter().all(|mark| freshness.confirms(mark));
                follows &= marks == Marks::Hear || is_true();
                if follows {
                    heads.iter().for_each(|mark| table.raise(mark));
                    table.set_tip(verifier.tip());
                    found(wanted, end.node, |wanted| *wanted == verifier.tip());
                }
            }
        }
        Ok(made_up)
    }

    /// Whether no block was ever so: there is none of this number, or it was in another state at that
    /// position.
    fn is_made_up(&self, mark: &BlockMark) -> bool {
        mark.block.0 >= self.scope.blocks.get() || self.scope.freshness.contradicts(mark)
    }

    /// Takes in what the other nodes signed and wrote, once in `interval_ms`, and signs the table if
    /// something is new; sooner if there is much in `chain`, this node's own, or `now`.
    pub(super) async fn care(&self, chain: &Chain, interval_ms: u64, now: bool) {
        let end = chain.tip();
        let mut state = self.state.lock().await;
        let since = state.at.map(|at| self.parts.clock.now().ms_since(at));
        let Some(table) = &state.table else {
            if since.is_none_or(|since| since >= LOOK_AGAIN_MS)
                && let Err(error) = self.load(&mut state).await
            {
                tracing::warn!(%error, "the head table can't be read");
            }
            return;
        };
        let new = end.sequence.saturating_sub(table.tip_of(end.node).sequence);
        let due = since.is_none_or(|since| since >= interval_ms);
        let much = new >= EVENTS_MAX && since.is_none_or(|since| since >= LOOK_AGAIN_MS);
        if !(due || (now && new > 0) || much) {
            return;
        }
        let mut table = table.clone();
        let outcome = self.sign(&mut table, chain).await;
        if let Some(what) = self.made_up_in(end.node).filter(|_| chain.fault().is_none()) {
            chain.fail(what);
        }
        state.at = Some(self.parts.clock.now());
        match outcome {
            Ok(true) => {
                chain.taken(table.tip_of(end.node));
                state.table = Some(table);
                *lock(&self.fault) = None;
            }
            // Another node was first: what it signed is taken in at once.
            Ok(false) => state.at = None,
            Err(Failed::Error(AuditError::ReadOnly)) => {}
            Err(Failed::WentBack(what)) => self.failed(format!(
                "the database went back under the running server: {what}; {WAY_OUT}"
            )),
            Err(Failed::Error(error)) => self.failed(format!("the head table: {error}")),
        }
    }

    fn failed(&self, what: String) {
        tracing::error!(what, "the head table is not signed");
        *lock(&self.fault) = Some(what);
    }

    /// Takes in what all nodes wrote since, and signs it. False: another one did, meanwhile.
    async fn sign(&self, table: &mut HeadTable, chain: &Chain) -> Result<bool, Failed> {
        let stored = self.parts.store.head_table().await?;
        let there = stored.as_ref().map(|stored| stored.number);
        if let Some(stored) = stored.as_ref().filter(|stored| stored.number > table.number) {
            self.take_in(table, stored).await?;
        }
        if there.is_none_or(|there| there < table.number) {
            let what = format!(
                "the signed head table was number {}, and somebody put {} in its place; it was replaced",
                table.number,
                there.map_or("nothing".to_owned(), |there| format!("number {there}"))
            );
            tracing::error!(what, "an older head table");
            *lock(&self.mended) = Some(what);
        }
        let before = table.tips.clone();
        let own = chain.own();
        let confirms = |mark| self.scope.freshness.confirms(mark);
        if table.tip_of(own.to.node) == own.from && own.marks.values().all(confirms) {
            own.marks.values().for_each(|mark| table.raise(mark));
            table.set_tip(own.to);
        }
        self.follow_chains(table, &mut HashMap::new(), Marks::Confirm).await?;
        if table.tips == before && there == Some(table.number) {
            return Ok(true);
        }
        table.number += 1;
        table.at_ms = self.parts.clock.unix_ms();
        let domain = &self.scope.domain;
        let signed = sign_head_table(&self.parts.hsm, &self.key, domain, table).await?;
        let done = self.parts.store.put_head_table(there, &signed).await;
        let done = done.map_err(|error| AuditError::of_write(&error))?;
        if done {
            self.keep_known(table).await?;
        }
        Ok(done)
    }

    /// The number of the table that is there, and a signed one that has these heads besides: to be written with
    /// them. Its ends of chains are those of the one before, so what came since is read once more.
    pub(super) async fn with(
        &self,
        heads: impl Iterator<Item = &Head>,
    ) -> Result<(Option<u64>, SignedHeadTable), AuditError> {
        let state = self.state.lock().await;
        let table = state.table.as_ref().ok_or_else(|| {
            AuditError::NotSigned("the head table that is there can't be relied upon".to_owned())
        })?;
        let stored = self.parts.store.head_table().await.map_err(AuditError::of_read)?;
        let there = stored.as_ref().map(|stored| stored.number);
        let newer = stored.and_then(|stored| stored.open(&self.scope.domain, &self.keys()));
        let mut table =
            newer.filter(|newer| newer.number > table.number).unwrap_or_else(|| table.clone());
        for Head { block, position, digest, .. } in heads {
            table.raise(&BlockMark { block: *block, position: *position, digest: *digest });
        }
        table.number += 1;
        table.at_ms = self.parts.clock.unix_ms();
        let domain = &self.scope.domain;
        Ok((there, sign_head_table(&self.parts.hsm, &self.key, domain, &table).await?))
    }

    /// A table was written beside this: with the change of a role. What it says counts at once, and is
    /// remembered outside the database: it alone says where the blocks stand.
    pub(super) async fn take(&self, signed: &SignedHeadTable) {
        let mut state = self.state.lock().await;
        let Some(mut table) = state.table.clone() else { return };
        if signed.number <= table.number {
            return;
        }
        match self.take_in(&mut table, signed).await {
            Ok(()) => state.table = Some(table),
            // As it stands in the database it is taken in the next time.
            Err(Failed::WentBack(what)) => self.failed(what),
            Err(Failed::Error(error)) => self.failed(format!("the head table: {error}")),
        }
    }

    /// The ends of the site's chains that this server knows of: those of the newest table that it has seen signed, and
    /// what it has noted outside the database. The table that the database has counts if it is signed.
    pub(super) async fn known_ends(&self) -> Result<Vec<ChainTip>, AuditError> {
        let KnownTips { tips: mut known, .. } =
            self.parts.witness.known().await.map_err(|error| AuditError::Witness(error.0))?;
        let stored = self.parts.store.head_table().await.map_err(AuditError::of_read)?;
        let stored = stored.and_then(|stored| stored.open(&self.scope.domain, &self.keys()));
        let state = self.state.lock().await;
        let tables = [&state.table, &stored];
        known.extend(tables.into_iter().flatten().flat_map(|table| &table.tips).copied());
        known.retain(|tip| tip.sequence > 0);
        Ok(known)
    }

    /// Brings `table` to what a newer one says.
    async fn take_in(&self, table: &mut HeadTable, stored: &SignedHeadTable) -> Result<(), Failed> {
        let newer = self.opened(stored)?;
        for tip in &newer.tips {
            if table.tip_of(tip.node).sequence < tip.sequence {
                table.set_tip(*tip);
            }
        }
        for mark in newer.marks() {
            self.scope.freshness.know(&mark);
            table.raise(&mark);
        }
        table.number = newer.number;
        Ok(self.keep_known(table).await?)
    }

    /// Remembers outside the database what a signed table says.
    async fn keep_known(&self, table: &HeadTable) -> Result<(), AuditError> {
        let known = KnownTips { tips: table.tips.clone(), table: table.number };
        let kept = self.parts.witness.keep_known(&known).await;
        kept.map_err(|error| AuditError::Witness(error.0))
    }
}

fn found(
    wanted: &mut HashMap<NodeId, Vec<ChainTip>>,
    node: NodeId,
    is: impl Fn(&ChainTip) -> bool,
) {
    if let Some(tips) = wanted.get_mut(&node) {
        tips.retain(|tip| !is(tip));
    }
}

/// Has the token sign a table.
pub async fn sign_head_table(
    hsm: &Hsm,
    key: &PublicKey,
    domain: &DomainId,
    table: &HeadTable,
) -> Result<SignedHeadTable, AuditError> {
    let body = table.encode();
    let message = HeadTable::message(domain, &body);
    let signature = hsm.sign(message.clone()).await?;
    if !is_signed(key, &message, &signature) {
        return Err(AuditError::NotSigned("the token signs with another key".to_owned()));
    }
    Ok(SignedHeadTable { number: table.number, body, signature })
}
