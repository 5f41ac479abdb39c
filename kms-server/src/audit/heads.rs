//! Signed heads: made while the service runs, and held against the chain when it starts.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use super::{error::AuditError, lock::lock, paging::PAGE_MAX, scope::Parts};
use crate::store::StoreError;
use kms_core::audit::{
    Broken, ChainTip, Checkpoint, NodeId, PublicKey, SiteKeys, Verifier, What, chain_hash,
};

pub(super) struct Heads {
    node: NodeId,
    key: PublicKey,
    /// Number of the last event that was signed.
    signed: AtomicU64,
    /// When; 0 if never.
    signed_ms: AtomicU64,
    fault: Mutex<Option<String>>,
    signing: tokio::sync::Mutex<()>,
    parts: Parts,
}

impl Heads {
    pub(super) async fn open(node: NodeId, parts: Parts) -> Result<Self, AuditError> {
        Ok(Self {
            node,
            key: parts.hsm.public_key().await?,
            signed: AtomicU64::new(0),
            signed_ms: AtomicU64::new(0),
            fault: Mutex::default(),
            signing: Default::default(),
            parts,
        })
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// Whose heads count: those of all tokens of this site.
    pub(super) fn keys(&self) -> SiteKeys {
        self.parts.hsm.site_keys_with(self.key)
    }

    pub(super) fn signed(&self) -> u64 {
        self.signed.load(Ordering::Acquire)
    }

    /// Age of the last signed head in milliseconds.
    pub(super) fn age_ms(&self) -> Option<u64> {
        let signed_ms = self.signed_ms.load(Ordering::Acquire);
        (signed_ms > 0).then(|| self.parts.clock.unix_ms().saturating_sub(signed_ms))
    }

    fn signed_to(&self, head: &Checkpoint) {
        self.signed_ms.store(head.at_ms, Ordering::Release);
        self.signed.store(head.tip.sequence, Ordering::Release);
    }

    /// Why the end could not be signed the last time.
    pub(super) fn fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// The contradiction between the chain's end and the last signed heads, the database's and the
    /// witness's; `None` if all does.
    pub(super) async fn examine(&self, tip: &ChainTip) -> Result<Option<String>, AuditError> {
        let stored = match self.parts.store.last_audit_checkpoint(&self.node).await {
            Err(StoreError::Damaged(what)) => return Ok(Some(what)),
            stored => stored.map_err(AuditError::of_read)?,
        };
        let kept = self.parts.witness.last().await.map_err(|error| AuditError::Witness(error.0))?;
        // A head of another node's chain is of no use here: the node's name is new.
        let kept = kept.filter(|head| head.tip.node == self.node);
        let mut heads: Vec<Checkpoint> = stored.into_iter().chain(kept).collect();
        heads.sort_by_key(|head| head.tip.sequence);
        match self.walk(tip, &heads).await {
            Ok(()) => {
                if let Some(last) = heads.last() {
                    self.signed_to(last);
                }
                Ok(None)
            }
            Err(Failed::Broken(broken)) => Ok(Some(broken.to_string())),
            Err(Failed::Store(StoreError::Damaged(what))) => Ok(Some(what)),
            Err(Failed::Store(error)) => Err(AuditError::of_read(error)),
        }
    }

    async fn walk(&self, tip: &ChainTip, heads: &[Checkpoint]) -> Result<(), Failed> {
        let broken = |sequence, what| Broken { node: self.node, sequence, what };
        for head in heads {
            if !head.is_signed_by(&self.keys()) {
                return Err(broken(head.tip.sequence, What::BadSignature).into());
            }
            if head.tip.sequence > tip.sequence {
                return Err(broken(tip.sequence + 1, What::TailCut).into());
            }
            self.check_place(head).await?;
        }
        let from = heads.last().map_or(ChainTip::empty(self.node), |head| head.tip);
        let mut verifier = Verifier::new(from, self.keys());
        loop {
            let after = verifier.tip().sequence;
            let events = self.parts.store.audit_events(&self.node, after, PAGE_MAX).await?;
            for event in &events {
                verifier.event(event)?;
            }
            if events.len() < PAGE_MAX as usize {
                break;
            }
        }
        verifier.finish(Some(*tip))?;
        if verifier.tip() != *tip {
            return Err(broken(tip.sequence + 1, What::OutOfOrder).into());
        }
        Ok(())
    }

    /// That the signed event stands where it was signed, behind the one that it stood behind.
    async fn check_place(&self, head: &Checkpoint) -> Result<(), Failed> {
        let broken = |what| Broken { node: self.node, sequence: head.tip.sequence, what };
        let sequence = head.tip.sequence;
        let after = sequence.saturating_sub(2);
        let events = self.parts.store.audit_events(&self.node, after, 2).await?;
        let (before, event) = match events.as_slice() {
            [event, ..] if sequence == 1 && event.sequence == 1 => {
                (ChainTip::empty(self.node).hash, event)
            }
            [before, event] if event.sequence == sequence => (before.hash, event),
            _ => return Err(broken(What::OutOfOrder).into()),
        };
        if event.hash != head.tip.hash {
            return Err(broken(What::OtherThanSigned).into());
        }
        if chain_hash(&before, &event.body) != event.hash {
            return Err(broken(What::Changed).into());
        }
        Ok(())
    }

    /// Signs `tip`, unless it is signed already. What fails is tried again at the next occasion, and
    /// told by [`Heads::fault`] until then.
    pub(super) async fn sign(&self, tip: ChainTip) {
        let _one_at_a_time = self.signing.lock().await;
        if tip.sequence <= self.signed() {
            return;
        }
        let outcome = self.try_sign(tip).await;
        if let Err(error) = &outcome {
            tracing::warn!(%error, sequence = tip.sequence, "the audit log's end is not signed");
        }
        *lock(&self.fault) = outcome.err().map(|error| error.to_string());
    }

    async fn try_sign(&self, tip: ChainTip) -> Result<(), AuditError> {
        let at_ms = self.parts.clock.unix_ms();
        let signature = self.parts.hsm.sign(Checkpoint::message(&tip, at_ms)).await?;
        let head = Checkpoint { tip, at_ms, signature };
        if !head.is_signed_by(&self.key) {
            return Err(AuditError::NotSigned("the token signs with another key".to_owned()));
        }
        let not_written = |error: StoreError| AuditError::NotWritable(error.to_string());
        self.parts.store.add_audit_checkpoint(&head).await.map_err(not_written)?;
        self.parts.witness.keep(&head).await.map_err(|error| AuditError::Witness(error.0))?;
        self.signed_to(&head);
        Ok(())
    }
}

enum Failed {
    Broken(Broken),
    Store(StoreError),
}

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
