//! The writer of one chain. Number and hash are taken under one lock, which is held until the
//! transaction has ended: so concurrent calls chain correctly, and a failed one leaves no gap.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{Mutex as AsyncMutex, watch};

use super::lock;
use crate::store::{BlockChange, ChainLink, StoreError, WriteStore};
use kms_core::{
    BlockNo,
    audit::{AuditEntry, ChainTip},
    block::BlockMark,
    ports::HeadWitness,
};

pub(super) struct Chain {
    store: Arc<dyn WriteStore>,
    state: AsyncMutex<State>,
    tip: watch::Sender<ChainTip>,
    fault: Mutex<Option<String>>,
    witness: Arc<dyn HeadWitness>,
    witness_fault: Mutex<Option<String>>,
    own: Mutex<Own>,
}

/// What this process's own commits say of blocks: all of `from` to `to`, the newest of each block.
#[derive(Clone)]
pub(super) struct Own {
    pub(super) from: ChainTip,
    pub(super) to: ChainTip,
    pub(super) marks: HashMap<BlockNo, BlockMark>,
}

impl Own {
    fn new(tip: ChainTip) -> Self {
        Self { from: tip, to: tip, marks: HashMap::new() }
    }
}

struct State {
    tip: ChainTip,
    /// The end after a commit whose outcome is not known.
    attempted: Option<ChainTip>,
    /// Earlier ones behind the same end, looked for and not found: each may still come to its end, and
    /// then none of the others can.
    late: Vec<ChainTip>,
}

/// Ends that are remembered as late. A transaction outlives its caller by seconds, not by so many
/// further commits.
const LATE_MAX: usize = 64;

impl Chain {
    pub(super) fn new(
        tip: ChainTip,
        store: Arc<dyn WriteStore>,
        witness: Arc<dyn HeadWitness>,
    ) -> Self {
        let state = AsyncMutex::new(State { tip, attempted: None, late: Vec::new() });
        let (fault, witness_fault) = <(Mutex<_>, Mutex<_>)>::default();
        let own = Mutex::new(Own::new(tip));
        Self { store, state, tip: watch::Sender::new(tip), fault, witness, witness_fault, own }
    }

    pub(super) fn witness(&self) -> &dyn HeadWitness {
        &*self.witness
    }

    /// Why the end was not noted outside the database the last time.
    pub(super) fn witness_fault(&self) -> Option<String> {
        lock(&self.witness_fault).clone()
    }

    /// What this process knows of its own commits, so that it needs not be read.
    pub(super) fn own(&self) -> Own {
        lock(&self.own).clone()
    }

    /// What was known to `tip` is in the head table now.
    pub(super) fn taken(&self, tip: ChainTip) {
        let mut own = lock(&self.own);
        // Short of where these marks begin, some are not among them.
        if tip.sequence >= own.from.sequence {
            own.from = tip;
        }
        if own.to == tip {
            own.marks.clear();
        }
    }

    /// The chain ends here now: committed, and then noted outside the database. `entries` were committed;
    /// `None`: that is not known.
    fn ends_at(&self, tip: ChainTip, entries: Option<&[AuditEntry]>) {
        let mut own = lock(&self.own);
        match entries {
            Some(entries) => {
                own.to = tip;
                let marks = entries.iter().flat_map(|entry| &entry.heads);
                own.marks.extend(marks.map(|mark| (mark.block, *mark)));
            }
            None => *own = Own::new(tip),
        }
        drop(own);
        if let Err(error) = self.witness.note(&tip) {
            let first = lock(&self.witness_fault).replace(error.to_string()).is_none();
            if first {
                tracing::error!(%error, "the audit chain's end is not noted outside the database");
            }
        } else {
            lock(&self.witness_fault).take();
        }
        self.tip.send_replace(tip);
    }

    pub(super) fn tip(&self) -> ChainTip {
        *self.tip.borrow()
    }

    pub(super) fn follow(&self) -> watch::Receiver<ChainTip> {
        self.tip.subscribe()
    }

    /// Nothing more is written behind a chain that is broken: what comes after would only seem proved.
    pub(super) fn fail(&self, reason: String) {
        tracing::error!(reason, "the audit chain is broken: privileged calls are refused");
        lock(&self.fault).get_or_insert(reason);
    }

    /// What was said of the chain was said of an older copy of it: it ends at `tip`, and this is what is
    /// wrong with it.
    pub(super) async fn begin_again(&self, tip: ChainTip, fault: Option<String>) {
        let mut state = self.state.lock().await;
        *state = State { tip, attempted: None, late: Vec::new() };
        match &fault {
            Some(reason) => tracing::error!(reason, "the audit chain is broken"),
            None => tracing::info!(sequence = tip.sequence, "the audit chain goes on"),
        }
        *lock(&self.fault) = fault;
        self.ends_at(tip, None);
    }

    pub(super) fn fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// Commits `changes` and what is said of them, or neither. A caller that goes away does not end it:
    /// what becomes of a transaction that is dropped in the middle is not known for a while.
    pub(super) async fn commit(
        self: &Arc<Self>,
        changes: Vec<BlockChange>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        if entries.is_empty() {
            let reason = "nothing is said of a change".to_owned();
            return Err(StoreError::AuditNotWritten { reason });
        }
        let this = Arc::clone(self);
        let task = tokio::spawn(async move { this.commit_in_turn(&changes, &entries).await });
        task.await.unwrap_or_else(|lost| Err(StoreError::Unreachable { reason: lost.to_string() }))
    }

    async fn commit_in_turn(
        &self,
        changes: &[BlockChange],
        entries: &[AuditEntry],
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        if let Some(reason) = self.fault() {
            return Err(StoreError::AuditNotWritten { reason });
        }
        self.find_end(&mut state).await?;
        match self.extend(&mut state, changes, entries).await {
            // One that seemed lost has come to its end after all: if it is that, go on behind it.
            Err(StoreError::AuditMoved(_)) if !state.late.is_empty() => {
                state.attempted = state.late.pop();
                self.find_end(&mut state).await?;
            }
            done => return self.unless_moved(done),
        }
        let done = self.extend(&mut state, changes, entries).await;
        self.unless_moved(done)
    }

    fn unless_moved(&self, done: Result<(), StoreError>) -> Result<(), StoreError> {
        if let Err(error @ StoreError::AuditMoved(_)) = &done {
            self.fail(error.to_string());
        }
        done
    }

    async fn extend(
        &self,
        state: &mut State,
        changes: &[BlockChange],
        entries: &[AuditEntry],
    ) -> Result<(), StoreError> {
        let behind = state.tip;
        let mut tip = behind;
        let mut events = Vec::with_capacity(entries.len());
        for entry in entries {
            let (next, event) = tip.append(entry.clone());
            tip = next;
            events.push(event);
        }
        // Stays if the store does not know what became of it.
        state.attempted = Some(tip);
        let link = ChainLink { behind, events: &events };
        let done = self.store.commit(changes, link).await;
        match &done {
            Ok(()) => {
                *state = State { tip, attempted: None, late: Vec::new() };
                self.ends_at(tip, Some(entries));
            }
            Err(StoreError::Unreachable { .. }) => {}
            Err(_) => state.attempted = None,
        }
        done
    }

    /// Finds out what became of a commit whose outcome is not known: it is there or it is not (yet). Any
    /// other end was made by somebody else.
    async fn find_end(&self, state: &mut State) -> Result<(), StoreError> {
        let Some(attempted) = state.attempted else { return Ok(()) };
        let chains = self.store.audit_chains().await?;
        let node = state.tip.node;
        let found = chains.into_iter().find(|tip| tip.node == node);
        let found = found.unwrap_or(ChainTip::empty(node));
        if found == attempted || state.late.contains(&found) {
            *state = State { tip: found, attempted: None, late: Vec::new() };
            self.ends_at(found, None);
            return Ok(());
        }
        if found != state.tip {
            return self.unless_moved(Err(StoreError::AuditMoved(node)));
        }
        if state.late.len() == LATE_MAX {
            state.late.remove(0);
        }
        state.late.push(attempted);
        state.attempted = None;
        Ok(())
    }
}
