//! The newest revocation list of each authority, as the domain remembers it. Each node remembers in a file of its own
//! which lists it has used; here both sites do, so that a list which one of them has replaced is not good at the other
//! one either, nor at a node that begins with an empty directory.

use super::{
    error::LifecycleError,
    refusal::refusal,
    verbs::{Lifecycle, TRIES},
};
use crate::{keyring::KeyringError, store::StoreError};
use kms_core::{
    Record, RefusalCode,
    audit::{AuditOutcome, AuditedCall, Subject},
    block::BlockMark,
    fact::{Fact, FactName, NewestList, NotForgotten},
};

/// A list that two people have the domain forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForgetList {
    /// Its authority.
    pub authority: [u8; 32],
    /// The number that is remembered.
    pub number: Vec<u8>,
    /// Lists from this number on count again.
    pub from: Vec<u8>,
}

impl Lifecycle {
    /// The newest list of these authorities that a site of the domain has used, as far as it is known here. Verified.
    pub async fn known_lists(
        &self,
        authorities: &[[u8; 32]],
    ) -> Result<Vec<NewestList>, LifecycleError> {
        let mut known = Vec::with_capacity(authorities.len());
        for authority in authorities {
            if let Some(Fact::List(list)) = self.records.fact(&FactName::of_list(authority)).await?
            {
                known.push(list);
            }
        }
        Ok(known)
    }

    /// Has the domain remember lists that are in use here; true: something was written. A site that does not write
    /// leaves it at that: it does so when it is promoted.
    pub async fn remember_lists(&self, used: &[NewestList]) -> Result<bool, LifecycleError> {
        let mut written = false;
        for list in used {
            match self.remember_list(list).await {
                Ok(one) => written |= one,
                // Another node was first, or this site is none that writes.
                Err(
                    KeyringError::Store(StoreError::Conflict(_) | StoreError::NotWriter(_))
                    | KeyringError::PutBack(_),
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    /// Has the domain forget how new the list of an authority was: how often that was done, and the block's state. A list
    /// of a number that its authority never reaches would keep every true one from being used.
    pub async fn forget_list(
        &self,
        call: &AuditedCall,
        forget: &ForgetList,
    ) -> Result<(u32, Vec<BlockMark>), LifecycleError> {
        for attempt in 0..TRIES {
            match self.forget_once(call, forget).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                outcome => return outcome,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn forget_once(
        &self,
        call: &AuditedCall,
        forget: &ForgetList,
    ) -> Result<(u32, Vec<BlockMark>), LifecycleError> {
        self.writer.check_writes()?;
        let name = FactName::of_list(&forget.authority);
        let block = self.records.block_of_fact(&name);
        let mut changes = self.writer.change(&[block]).await?;
        let change = changes.first_mut();
        let change =
            change.ok_or_else(|| LifecycleError::OurFault { reason: "no change".to_owned() })?;
        let forgotten = match change.fact(&name) {
            Some(Fact::List(known)) => known.forgotten(&forget.number, &forget.from),
            _ => Err(NotForgotten::Moved),
        };
        let forgotten = forgotten.map_err(|why| {
            LifecycleError::Refused(refusal(RefusalCode::ListMoved, why.to_string()))
        })?;
        let resets = forgotten.resets;
        change.put(Record::Fact(Fact::List(forgotten)));
        let subject = Subject { block: Some(block), ..Subject::NONE };
        let entry = call.entry(self.clock.unix_ms(), subject, AuditOutcome::Done);
        let states = self.writer.commit(changes, vec![entry]).await?;
        Ok((resets, states))
    }

    async fn remember_list(&self, list: &NewestList) -> Result<bool, KeyringError> {
        let name = FactName::of_list(&list.authority);
        let news = |known: Option<Fact>| {
            let list = Fact::List(list.clone());
            let merged = known.as_ref().map_or_else(|| list.clone(), |known| known.merged(&list));
            (known != Some(merged.clone())).then_some(merged)
        };
        // Most of the time it is known: no block is taken for change to find that out.
        if news(self.records.fact(&name).await?).is_none() {
            return Ok(false);
        }
        self.writer.check_writes()?;
        let block = self.records.block_of_fact(&name);
        let mut changes = self.writer.change(&[block]).await?;
        let Some(change) = changes.first_mut() else { return Ok(false) };
        let Some(merged) = news(change.fact(&name)) else { return Ok(false) };
        change.put(Record::Fact(merged));
        let call = AuditedCall::new("kms-server", "RevocationLists/Remember");
        let subject = Subject { block: Some(block), ..Subject::NONE };
        let entry = call.entry(self.clock.unix_ms(), subject, AuditOutcome::Done);
        self.writer.commit(changes, vec![entry]).await?;
        Ok(true)
    }
}
