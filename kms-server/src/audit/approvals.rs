//! Calls that wait for their second person: rows that the token signs, written with the events about them. That one was
//! used stands in the chains alone, which nobody takes back unseen: a row that is put back is found used. So it stands
//! in a chain only that the row names: one that is gone with all of its events would be missed by nobody else.

use super::{error::AuditError, log::Audit, paging::PAGE_MAX, written::Written};
use crate::store::{
    StoreError,
    approvals::{ApprovalStep, StoredApproval},
};
use kms_core::{
    audit::{AuditEntry, AuditEvent, AuditOutcome, ChainTip, Detail, Verifier, is_signed},
    two_people::{NotSigned, PROMOTED, USED, WaitingCall},
};

impl Audit {
    /// All calls that wait, as the database says. Not verified.
    pub async fn approvals(&self) -> Result<Vec<StoredApproval>, AuditError> {
        self.store.approvals().await.map_err(AuditError::of_read)
    }

    /// The call in a row, if a token of this site signed it.
    pub fn open_approval(&self, row: &StoredApproval) -> Result<WaitingCall, NotSigned> {
        let place = (&row.name, row.number);
        WaitingCall::open(place, &row.body, &row.signature, (&self.domain, &self.keys()))
    }

    /// The row of a call, signed by the token.
    pub async fn sign_approval(&self, call: &WaitingCall) -> Result<StoredApproval, AuditError> {
        let body = call.encode();
        let message = WaitingCall::message(&self.domain, &body);
        let signature = self.hsm.sign(message.clone()).await?;
        if !is_signed(self.keys().first(), &message, &signature) {
            return Err(AuditError::NotSigned("the token signs with another key".to_owned()));
        }
        let (name, number, expires_ms) = (call.name(), call.number, call.expires_ms());
        Ok(StoredApproval { name, number, expires_ms, body, signature })
    }

    /// Changes one row, with what is said of it. False: somebody else was first, and nothing was written or said.
    pub async fn put_approval(
        &self,
        step: ApprovalStep,
        entry: AuditEntry,
    ) -> Result<bool, AuditError> {
        match self.chain.commit(Written::Approval(Box::new(step)), vec![entry]).await {
            Ok(()) => Ok(true),
            Err(StoreError::Taken { .. }) => Ok(false),
            Err(error) => Err(AuditError::of_write(&error)),
        }
    }

    /// Whether this server's chain is named by the row of the call, so that its end can't go unseen.
    pub fn is_older_than(&self, call: &WaitingCall) -> bool {
        call.end_of(self.chain.tip().node).sequence > 0
    }

    /// The times that an approval came to its end, by all servers of this site: the call was made under it, or the site was
    /// promoted since it was asked.
    pub async fn uses(&self, call: &WaitingCall) -> Result<usize, AuditError> {
        // First what is known: chains go on meanwhile.
        let known = self.tables.known_ends().await?;
        let chains = self.chains().await?;
        let is_there = |tip: &ChainTip| {
            chains.iter().any(|end| end.node == tip.node && end.sequence >= tip.sequence)
        };
        if let Some(ChainTip { node, sequence, .. }) = known.iter().find(|tip| !is_there(tip)) {
            return Err(went_back(format!(
                "event {sequence} of node {node}, which was signed, is gone"
            )));
        }
        let gone = |end: &&ChainTip| !chains.iter().any(|chain| chain.node == end.node);
        if let Some(end) = call.ends.iter().filter(|end| end.sequence > 0).find(gone) {
            return Err(went_back(format!("the chain of node {} is missing", end.node)));
        }
        let mut uses = 0;
        for end in chains {
            uses += self.uses_in(call, end, &known).await?;
        }
        Ok(uses)
    }

    async fn uses_in(
        &self,
        call: &WaitingCall,
        end: ChainTip,
        known: &[ChainTip],
    ) -> Result<usize, AuditError> {
        let from = call.end_of(end.node);
        if end.sequence < from.sequence {
            let (node, at) = (end.node, end.sequence);
            return Err(went_back(format!("the chain of node {node} ends at event {at} again")));
        }
        let (mut verifier, mut uses) = (Verifier::new(from, self.keys()), 0);
        while verifier.tip().sequence < end.sequence {
            let after = verifier.tip().sequence;
            let events = self.store.audit_events(&end.node, after, PAGE_MAX).await;
            let events = events.map_err(AuditError::of_read)?;
            if events.is_empty() {
                let (node, missing) = (end.node, after + 1);
                return Err(went_back(format!("event {missing} of node {node} is missing")));
            }
            for stored in &events {
                let event = verifier.event(stored);
                let event = event.map_err(|broken| went_back(broken.to_string()))?;
                uses += usize::from(ends(call.number, &event));
                let tip = verifier.tip();
                let mut here =
                    known.iter().filter(|it| (it.node, it.sequence) == (tip.node, tip.sequence));
                if here.any(|it| it.hash != tip.hash) {
                    let (node, at) = (tip.node, tip.sequence);
                    return Err(went_back(format!(
                        "event {at} of node {node} is another than was signed"
                    )));
                }
            }
        }
        let whole = verifier.finish(Some(end));
        whole.map(|()| uses).map_err(|broken| went_back(broken.to_string()))
    }
}

fn ends(number: u64, event: &AuditEvent) -> bool {
    let AuditEntry { call, outcome, details, .. } = &event.entry;
    match call.verb.as_str() {
        USED => details.contains(&(Detail::Approval, number)),
        PROMOTED => *outcome == AuditOutcome::Done,
        _ => false,
    }
}

/// Whether an approval was used can't be told from such a log.
fn went_back(what: String) -> AuditError {
    tracing::error!(what, "whether an approval was used can't be told: the audit log went back");
    AuditError::NotReadable(what)
}
