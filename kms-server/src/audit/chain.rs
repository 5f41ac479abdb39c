//! The writer of one chain, at the store: `kms_core::audit::writer` says what is done next, and here it is
//! done. Number and hash are taken under one lock, which is held until the transaction has ended: so
//! concurrent calls chain correctly, and a failed one leaves no gap.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{Mutex as AsyncMutex, watch};

use super::{lock::lock, written::Written};
use crate::store::{ChainLink, StoreError, WriteStore, rules};
use kms_core::{
    BlockNo,
    audit::{
        AuditEntry, ChainTip, NodeId,
        writer::{ChainWriter, Input, Step},
    },
    block::BlockMark,
    ports::HeadWitness,
};

pub(super) struct Chain {
    store: Arc<dyn WriteStore>,
    node: NodeId,
    writer: AsyncMutex<ChainWriter>,
    tip: watch::Sender<ChainTip>,
    fault: Mutex<Option<String>>,
    witness: Arc<dyn HeadWitness>,
    witness_fault: Mutex<Option<String>>,
    own: Mutex<Own>,
}

/// Marks that this process's own commits made: all of `from` to `to`, the newest of each block.
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

impl Chain {
    pub(super) fn new(
        tip: ChainTip,
        store: Arc<dyn WriteStore>,
        witness: Arc<dyn HeadWitness>,
    ) -> Self {
        Self {
            store,
            node: tip.node,
            writer: AsyncMutex::new(ChainWriter::new(tip)),
            tip: watch::Sender::new(tip),
            fault: Mutex::default(),
            witness,
            witness_fault: Mutex::default(),
            own: Mutex::new(Own::new(tip)),
        }
    }

    pub(super) fn witness(&self) -> &dyn HeadWitness {
        &*self.witness
    }

    /// Why the end was not noted outside the database the last time.
    pub(super) fn witness_fault(&self) -> Option<String> {
        lock(&self.witness_fault).clone()
    }

    /// Marks of this process's own commits: the head table is signed once a minute, and would read
    /// all of them back else.
    pub(super) fn own(&self) -> Own {
        lock(&self.own).clone()
    }

    /// The head table has everything up to `tip` now. Commits that came while it was signed stay.
    pub(super) fn taken(&self, tip: ChainTip) {
        let mut own = lock(&self.own);
        // Short of where these marks begin, some are not among them: then they are no continuation of the
        // table, and it is made from the log.
        if tip.sequence >= own.from.sequence {
            own.from = tip;
        }
        if own.to == tip {
            own.marks.clear();
        }
    }

    /// The chain ends here now: committed, and then noted outside the database, in this order: an end that
    /// was noted first and not committed would make this database an older copy of itself. `entries` were
    /// committed; `None`: which ones is not known, so the marks begin anew.
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

    /// The judgement of the chain was of an older copy of it, and is replaced: it ends at `tip`, and `fault` is what
    /// is wrong with it.
    pub(super) async fn begin_again(&self, tip: ChainTip, fault: Option<String>) {
        let mut writer = self.writer.lock().await;
        *writer = ChainWriter::new(tip);
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

    /// Writes `what` and what is said of it, or neither. A caller that goes away does not end it:
    /// what becomes of a transaction that is dropped in the middle is not known for a while.
    pub(super) async fn commit(
        self: &Arc<Self>,
        what: Written,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        if entries.is_empty() {
            let reason = rules::NOTHING_SAID.to_owned();
            return Err(StoreError::AuditNotWritten { reason });
        }
        let this = Arc::clone(self);
        let task = tokio::spawn(async move { this.commit_in_turn(&what, &entries).await });
        task.await.unwrap_or_else(|lost| Err(StoreError::Unreachable { reason: lost.to_string() }))
    }

    /// Does what the writer says next, until the turn is over. The lock is held over all of it: the next
    /// turn's number and hash depend on how this one ends.
    async fn commit_in_turn(
        &self,
        what: &Written,
        entries: &[AuditEntry],
    ) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        if let Some(reason) = self.fault() {
            return Err(StoreError::AuditNotWritten { reason });
        }
        let mut turn = writer.turn(entries);
        let mut answer = Ok(());
        let mut step = turn.step(Input::Begin);
        loop {
            let input = match step {
                Step::Look => match self.end_in_database().await {
                    Ok(end) => Input::Found(end),
                    // What was lost is said, and not that it was looked for in vain.
                    Err(error) => return answer.and(Err(error)),
                },
                Step::Write { behind, events, landed } => {
                    if landed {
                        self.ends_at(behind, None);
                    }
                    let link = ChainLink { behind, events: &events };
                    answer = what.write(&*self.store, link).await;
                    told(&answer)
                }
                Step::Done(tip) => {
                    self.ends_at(tip, Some(entries));
                    return Ok(());
                }
                Step::GiveUp => return answer,
                Step::Broken => return Err(self.moved()),
            };
            step = turn.step(input);
        }
    }

    async fn end_in_database(&self) -> Result<ChainTip, StoreError> {
        let chains = self.store.audit_chains().await?;
        let end = chains.into_iter().find(|tip| tip.node == self.node);
        Ok(end.unwrap_or(ChainTip::empty(self.node)))
    }

    fn moved(&self) -> StoreError {
        let error = StoreError::AuditMoved(self.node);
        self.fail(error.to_string());
        error
    }
}

/// A commit's outcome, as the writer knows it.
fn told(answer: &Result<(), StoreError>) -> Input {
    match answer {
        Ok(()) => Input::Committed,
        Err(StoreError::Unreachable { .. } | StoreError::Unknown { .. }) => Input::Lost,
        Err(StoreError::AuditMoved(_)) => Input::Moved,
        Err(_) => Input::Refused,
    }
}
