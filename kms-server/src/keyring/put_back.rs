//! A database that is older than what this site wrote: it says so itself, by its mark, or the peer has what it has not.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use super::{
    error::KeyringError,
    roles::{NotChanged, Roles},
    seen_epochs::EpochMemory,
    seen_peers::PeerMemory,
};
use crate::{
    hsm::TokenError,
    store::{
        StoreError,
        whole::{RollBack, WholeStore},
    },
};
use kms_core::{
    BlockNo, Epoch, Head,
    audit::{
        AuditOutcome, AuditedCall, Detail, PublicKey, Signature, SiteKeys, Subject, is_signed,
    },
    block::BlockMark,
    counters::standing::remembers_since,
    freshness::SignedHeadTable,
    site::{
        restored::{Condition, RestoreMark, RolledBackBy, SignedRestoreMark},
        role::{RoleRecord, SignedRoleRecord, Standing},
    },
};

impl Roles {
    /// Why this site changes nothing although its role says that it writes.
    pub fn rolled_back(&self) -> Option<Arc<str>> {
        self.opener.role.rolled_back()
    }

    /// Why this site does not write, where the mark of its database says so.
    pub fn put_back_sentence(&self) -> Option<Arc<str>> {
        self.opener.role.put_back()
    }

    /// Remembers enrolments beyond this process. What can't be read says so.
    pub fn remember_peers_in(&self, memory: Box<dyn PeerMemory>) -> io::Result<()> {
        self.seen_peers.remember_in(memory)
    }

    /// Where the mark is stored of a database that the peer shows to be an older one. Without it this process alone goes by
    /// what it was shown.
    pub fn keep_marks_in(&self, store: Arc<dyn WholeStore>) {
        let _ = self.marks.set(store);
    }

    /// From now on epochs are kept there.
    pub fn keep_epochs_in(&self, memory: Arc<dyn EpochMemory>) {
        let _ = self.epochs.set(memory);
    }

    /// This process goes by a role that is stored. One of a higher epoch is seen before anything is done in it; as long as
    /// that fails, the process stays with what it knew, and looks again.
    pub(super) async fn goes_by(&self, standing: Standing) {
        let role = &self.opener.role;
        if standing.epoch > role.now().epoch
            && let Some(memory) = self.epochs.get()
            && !memory.see(standing.epoch).await
        {
            tracing::warn!(
                epoch = standing.epoch.0,
                "the database does not say now whether it failed over: this server looks again before it goes by this epoch"
            );
            return;
        }
        role.becomes(standing);
    }

    /// Stores that this site was put back, if that is known and not stored, and `signed` proves it: so each server of it goes
    /// by it, and after a restart, too. What another server or a promotion did meanwhile stays.
    pub async fn store_rolled_back(&self, signed: &SignedHeadTable) -> Result<(), NotChanged> {
        let (Some(reason), Some(marks)) = (self.rolled_back(), self.marks.get()) else {
            return Ok(());
        };
        let row = self.opener.store.role().await?;
        if !row.writes || row.epoch != self.opener.role.now().epoch {
            return self.look().await.map(drop);
        }
        if !self.has_lost(signed, row.epoch).await? {
            return Ok(());
        }
        let rolled_back = self.put_back(row.epoch, &reason).await?;
        match marks.mark_rolled_back(&rolled_back).await {
            Ok(()) | Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.look().await?;
        let call = AuditedCall::new("kms-server", "Site/RolledBack");
        let at_ms = self.opener.clock.unix_ms();
        let entry = call.entry(at_ms, Subject::NONE, AuditOutcome::Done);
        let entry = entry.with(Detail::Epoch, row.epoch.0);
        Ok(self.commits.commit(Vec::new(), vec![entry]).await?)
    }

    /// Whether our token has signed, in this table, a state of this epoch that the database has no more. Whoever has a
    /// block's keys can make the MAC of any head; this signature he can't.
    async fn has_lost(&self, signed: &SignedHeadTable, epoch: Epoch) -> Result<bool, NotChanged> {
        let opener = &self.opener;
        let table = signed.open(&opener.domain.domain, &opener.hsm.site_keys().await?);
        let Some(table) = table else { return Ok(false) };
        // Read after the table was shown: we only go on meanwhile.
        let heads = opener.store.heads().await?;
        let ours: BTreeMap<BlockNo, &Head> = heads.iter().map(|head| (head.block, head)).collect();
        let is_lost = |mark: BlockMark| {
            let BlockMark { block, position, digest } = mark;
            position.epoch == epoch
                && ours.get(&block).is_none_or(|ours| {
                    ours.position < position || ours.position == position && ours.digest != digest
                })
        };
        Ok(table.marks().any(is_lost))
    }

    async fn put_back(&self, epoch: Epoch, reason: &str) -> Result<RollBack, NotChanged> {
        let opener = &self.opener;
        let mut id = [0; 16];
        let random = opener.hsm.random(id.len()).await?;
        id.iter_mut().zip(random.as_slice()).for_each(|(to, from)| *to = *from);
        let mark = RestoreMark {
            domain: opener.domain.domain,
            site: opener.domain.site.clone(),
            id,
            by: RolledBackBy::Copy,
            at_ms: opener.clock.unix_ms(),
            epoch,
            from: format!("a copy: {reason}"),
        };
        let domain = self.signature(opener.domain.message_under(&mark)).await?;
        let signature = self.signature(mark.message()).await?;
        Ok(RollBack { mark: SignedRestoreMark { mark, signature }, domain })
    }

    pub(super) async fn sign(&self, record: RoleRecord) -> Result<SignedRoleRecord, NotChanged> {
        Ok(SignedRoleRecord { signature: self.signature(record.message()).await?, record })
    }

    pub(super) async fn signature(&self, message: Vec<u8>) -> Result<Signature, NotChanged> {
        let key: PublicKey = self.opener.hsm.public_key().await?;
        let signature = self.opener.hsm.sign(message.clone()).await?;
        if !is_signed(&key, &message, &signature) {
            let source = "the token signs with another key than the one it shows".into();
            return Err(TokenError::Refused { operation: "sign a role record", source }.into());
        }
        Ok(signature)
    }

    /// Whose signatures count for this site.
    pub async fn site_keys(&self) -> Result<SiteKeys, NotChanged> {
        Ok(self.opener.hsm.site_keys().await?)
    }

    /// Whether this site's epochs are the even ones; `None`: it is a read-only replica, and has none.
    pub fn parity(&self) -> Option<bool> {
        self.opener.domain.kind.parity()
    }

    /// The promotions of this site above an epoch that somebody named, as far as its signed records tell.
    pub fn promotions_above(&self) -> u32 {
        self.above.load(Ordering::Relaxed)
    }

    /// The epoch since which our database has lost nothing of a block that the site of this name may ask for; `None`: the two
    /// have not met.
    pub async fn remembers_since(
        &self,
        site: &str,
        block: BlockNo,
    ) -> Result<Option<Epoch>, NotChanged> {
        let (records, peers) = (self.records().await?, self.peers().await?);
        let met = peers.iter().find(|peer| peer.site == site).and_then(|peer| peer.enrolled_in);
        Ok(remembers_since(&self.opener.domain, &records, block, met))
    }

    /// Whether an epoch is one that this site may write in; a replica has none.
    pub fn owns(&self, epoch: Epoch) -> bool {
        self.opener.domain.kind.owns(epoch)
    }

    /// The epoch in which the domain was founded.
    pub fn founded(&self) -> Epoch {
        self.opener.domain.epoch
    }

    /// Holds a head that the peer says it has against ours. If it is authentic, of the epoch that we write in, and not a
    /// state that we came through or are at, our database was rolled back: nothing more is changed in this epoch, and
    /// the sentence says so.
    pub async fn hold_against(&self, theirs: &Head) -> Result<Option<Arc<str>>, KeyringError> {
        let (unsealed, ours) = self.opener.verified(theirs.block).await?;
        let head = ours.head();
        let now = self.opener.role.now();
        let is_of_epoch = theirs.position.epoch == now.epoch && now.writes();
        let is_beyond = theirs.position > head.position
            || theirs.position == head.position && theirs.digest != head.digest;
        if !is_of_epoch || !is_beyond || !unsealed.keys.head_is_authentic(theirs) {
            return Ok(None);
        }
        let reason = format!(
            "the peer has block {} at {}, and this database has it at {}: it was put back, and this site writes nothing \
             more in epoch {}. Promote the peer (`ami-tool site promote`), which has what is missing here; or, to give \
             that up, this site with `--above-epoch {}`",
            theirs.block, theirs.position, head.position, now.epoch.0, now.epoch.0
        );
        if self.opener.role.rolled_back().is_none() {
            tracing::error!("{reason}");
        }
        self.opener.role.is_rolled_back(&reason);
        Ok(self.opener.role.rolled_back())
    }

    /// The mark of the database, if it was rolled back and this site was not promoted since. Held against the token:
    /// a mark that somebody took away leaves a domain's record that the token did not sign.
    pub async fn restore_mark(&self) -> Result<Option<RestoreMark>, NotChanged> {
        Ok(self.signed_mark().await?.map(|signed| signed.mark))
    }

    /// The same, with its signature.
    pub(super) async fn signed_mark(&self) -> Result<Option<SignedRestoreMark>, NotChanged> {
        let store = &self.opener.store;
        let mark = store.restore_state().await?.mark();
        let domain = store.domain().await?.ok_or(NotChanged::Domain)?;
        match domain.condition(mark.as_ref(), &self.opener.hsm.site_keys().await?) {
            Condition::Whole => {
                self.keep_mark(None);
                Ok(None)
            }
            Condition::RolledBack => {
                self.keep_mark(mark.as_ref().map(|signed| signed.mark.clone()));
                Ok(mark)
            }
            Condition::Unknown => Err(NotChanged::Domain),
        }
    }

    pub(super) fn keep_mark(&self, mark: Option<RestoreMark>) {
        let why = mark.as_ref().map(|RestoreMark { by, from, .. }| {
            format!(
                "the database {} ({from}): this site was put back (ROLLED_BACK), and changes nothing until it is promoted \
                 above every epoch that is known: `ami-tool site promote --above-epoch N`; where the other site writes, \
                 changes go there",
                by.what()
            )
        });
        self.opener.role.is_put_back(why.map(Into::into));
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// The mark of the database, as far as this process knows: nobody is asked.
    pub fn known_mark(&self) -> Option<RestoreMark> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
