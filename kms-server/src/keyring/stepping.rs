//! The step from our state of a block to the peer's: what is taken over, what is set aside, and with which secret.

use super::{
    adopting::{Adopter, Arrived, Moved, Taken},
    error::KeyringError,
    opening::Unsealed,
    secrets::Received,
};
use crate::store::{SealedSecret, sites::BlockAdoption};
use kms_core::{
    StoredRecord,
    block::{
        accepting::{Accepted, Adoption, NotAccepted, PeersBlock, accept},
        returning::{Return, bring_back},
        rotating::{accept_rewritten, bring_back_rewritten, was_rewritten_apart},
        verified::Verified,
    },
    site::{
        admission::{fork_of, lineage},
        role::SignedRoleRecord,
    },
};

/// The adoption, the block after it, the number of records that are new, and the keys that it is under then. `None`:
/// there is nothing to do.
type Step = Option<(BlockAdoption, Verified, usize, Unsealed)>;

/// What came, and what stands here.
type Came = (Arrived, Verified, Unsealed);

impl Adopter {
    /// The inner error says what became of it instead.
    pub(super) async fn step(
        &self,
        (arrived, ours, unsealed): Came,
        roles: &[SignedRoleRecord],
    ) -> Result<Result<Step, Taken>, KeyringError> {
        if arrived.head.secret_version != ours.head().secret_version {
            return self.step_to_secret((arrived, ours, unsealed), roles).await;
        }
        let seals = match self.staged_seal(&arrived, &ours, &unsealed).await? {
            Ok(seal) => Vec::from_iter(seal),
            Err(why) => {
                // The block is taken over all the same: it is not under that secret yet, and is not proved.
                tracing::warn!(
                    block = ours.block().0,
                    why,
                    "a staged block secret is not received"
                );
                Vec::new()
            }
        };
        let step = step(arrived, ours, &unsealed, roles);
        Ok(step.map(|step| {
            step.map(|(mut adoption, verified, records)| {
                adoption.seals = seals;
                (adoption, verified, records, unsealed)
            })
        }))
    }

    /// The seal of a secret that came staged and is not here yet.
    async fn staged_seal(
        &self,
        arrived: &Arrived,
        ours: &Verified,
        unsealed: &Unsealed,
    ) -> Result<Result<Option<SealedSecret>, String>, KeyringError> {
        let block = ours.block();
        let came = self.opener.secrets_among(block, &arrived.records);
        // A block that is under it already would have come so.
        let came = came.filter(|came| came.version > ours.head().secret_version);
        let Some(came) = came else { return Ok(Ok(None)) };
        let seals = self.opener.own_seals(block).await?;
        if seals.iter().any(|seal| seal.secret_version == came.version) {
            return Ok(Ok(None));
        }
        Ok(self.opener.receive(&came, unsealed).await?.map(|received| received.seal))
    }

    /// The same where the peer's block is under another secret than ours.
    async fn step_to_secret(
        &self,
        (arrived, ours, unsealed): Came,
        roles: &[SignedRoleRecord],
    ) -> Result<Result<Step, Taken>, KeyringError> {
        let Received { unsealed: under, seal } =
            match self.opener.secret_for(&arrived, &unsealed).await? {
                Ok(received) => received,
                // All of it says more, its secret among it.
                Err(_) if !arrived.is_whole => {
                    let at = arrived.head.position;
                    return Ok(Err(Taken::NotAccepted(NotAccepted::Incomplete(at))));
                }
                Err(why) => return Ok(Err(Taken::Refused(why))),
            };
        let step = rewritten_step(arrived, ours, (&unsealed, &under), roles);
        Ok(step.map(|(mut adoption, verified, records)| {
            adoption.seals = Vec::from_iter(seal);
            Some((adoption, verified, records, under))
        }))
    }
}

/// The step to a block that is under the secret that ours is under.
fn step(
    arrived: Arrived,
    ours: Verified,
    unsealed: &Unsealed,
    roles: &[SignedRoleRecord],
) -> Result<Option<(BlockAdoption, Verified, usize)>, Taken> {
    let Arrived { head, records, is_whole } = arrived;
    let (block, expected) = (head.block, ours.mark());
    let promoted_at = fork_of(roles, block, expected.position.epoch, head.position.epoch);
    let theirs = PeersBlock { head: head.clone(), records: records.clone(), promoted_at };
    match accept(&ours, &unsealed.keys, theirs) {
        Ok(Accepted::Nothing) => Ok(None),
        Ok(Accepted::Adoption(adoption)) => Ok(Some(adopted(adoption, ours))),
        Err(
            NotAccepted::Forked(_) | NotAccepted::Incomplete(_) | NotAccepted::OlderRecord { .. },
        ) if is_whole && head.position.epoch > expected.position.epoch => {
            let theirs = Verified::of_any_age(head.clone(), in_key_order(records), &unsealed.keys)
                .map_err(|refused| Taken::Refused(format!("the peer's block: {refused}")))?;
            let lineage = lineage(roles, block, head.position.epoch);
            let both = (unsealed.under(), unsealed.under());
            let back = match was_rewritten_apart(&ours, &lineage) {
                true => bring_back_rewritten(&ours, theirs, &lineage, both),
                false => bring_back(&ours, theirs, &lineage),
            };
            let back = back.map_err(|why| Taken::Refused(why.to_string()))?;
            Ok(Some(returned(back, ours)))
        }
        Err(why) => Err(Taken::NotAccepted(why)),
    }
}

/// The step to a block that is under another secret than ours.
fn rewritten_step(
    arrived: Arrived,
    ours: Verified,
    (from, to): (&Unsealed, &Unsealed),
    roles: &[SignedRoleRecord],
) -> Result<(BlockAdoption, Verified, usize), Taken> {
    let Arrived { head, records, is_whole } = arrived;
    let (block, epoch) = (head.block, head.position.epoch);
    let promoted_at = fork_of(roles, block, ours.head().position.epoch, epoch);
    let theirs = PeersBlock { head: head.clone(), records: records.clone(), promoted_at };
    match accept_rewritten(&ours, &to.keys, theirs) {
        Ok(adoption) => Ok(adopted(adoption, ours)),
        Err(
            NotAccepted::Forked(_) | NotAccepted::Incomplete(_) | NotAccepted::OlderRecord { .. },
        ) if is_whole && epoch > ours.head().position.epoch => {
            let theirs = Verified::of_any_age(head, in_key_order(records), &to.keys)
                .map_err(|refused| Taken::Refused(format!("the peer's block: {refused}")))?;
            let lineage = lineage(roles, block, epoch);
            let back = bring_back_rewritten(&ours, theirs, &lineage, (from.under(), to.under()));
            Ok(returned(back.map_err(|why| Taken::Refused(why.to_string()))?, ours))
        }
        Err(why) => Err(Taken::NotAccepted(why)),
    }
}

fn adopted(adoption: Adoption, ours: Verified) -> (BlockAdoption, Verified, usize) {
    let Adoption { head, records, gone } = adoption.clone();
    let (count, set_aside) = (records.len(), Vec::new());
    let moved = Moved { head, records, gone, set_aside };
    (moved.adoption(ours.mark()), adoption.adopted(ours), count)
}

fn returned(back: Return, ours: Verified) -> (BlockAdoption, Verified, usize) {
    let Return { head, records, gone, set_aside } = back.clone();
    let count = records.len();
    let moved = Moved { head, records, gone, set_aside };
    (moved.adoption(ours.mark()), back.returned(ours), count)
}

fn in_key_order(mut records: Vec<StoredRecord>) -> Vec<StoredRecord> {
    records.sort_by_key(|record| record.key);
    records
}
