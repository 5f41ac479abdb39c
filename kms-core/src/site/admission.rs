//! Role records that are shown to a site: which of them count, and what follows from those that do. A higher epoch
//! counts with the signature of the site that it belongs to, and one step at a time unless two people say otherwise.

use std::borrow::Borrow;

use super::{
    DomainRecord,
    peer::{Peer, PeerKind},
    role::{RoleChange, RoleRecord, SignedRoleRecord, Standing},
};
use crate::{BlockNo, Epoch, audit::SiteKeys, block::BlockMark, block::lineage::Lineage};

/// The signing keys of the two sites that may write, by the parity of their epochs. There is no third one: a replica's
/// signature is nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writers {
    /// Of the site of even epochs.
    pub even: Option<SiteKeys>,
    /// Of the site of odd epochs.
    pub odd: Option<SiteKeys>,
    /// Whether this site is the one of even epochs; `None`: it is a replica, and no record is its own.
    pub own: Option<bool>,
}

impl Writers {
    /// Those among the enrolled peers, whose signatures were verified.
    pub fn of_peers<'a>(peers: impl IntoIterator<Item = &'a Peer>) -> Self {
        let mut writers = Self::default();
        for peer in peers {
            match peer.kind {
                PeerKind::Even => writers.even = Some(peer.keys()),
                PeerKind::Odd => writers.odd = Some(peer.keys()),
                PeerKind::Replica => {}
            }
        }
        writers
    }

    /// With our own keys, which count for our parity whatever a peer's record says; a replica's counts for nothing.
    #[must_use]
    pub fn with_own(self, domain: &DomainRecord, own: impl Into<SiteKeys>) -> Self {
        let own = own.into();
        let writers = Self { own: domain.kind.parity(), ..self };
        match domain.kind {
            PeerKind::Even => Self { even: Some(own), ..writers },
            PeerKind::Odd => Self { odd: Some(own), ..writers },
            PeerKind::Replica => writers,
        }
    }

    fn of(&self, epoch: Epoch) -> Option<&SiteKeys> {
        if epoch.is_even() { self.even.as_ref() } else { self.odd.as_ref() }
    }
}

/// What a role record that counts changes. It is to be kept in its place among the others, unless it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Nothing: it is known.
    Known,
    /// Nothing of who writes: it tells of a time that is over. Blocks that went through it are understood.
    Past,
    /// Who writes: the standing that follows.
    News(Standing),
    /// We signed it, and our own database does not know it: it was rolled back. It is kept, since all that comes after
    /// follows from it, and this site writes nothing before it was promoted above every epoch that its peer, a
    /// coordinator or two people name.
    Forgotten(Standing),
}

/// The reason why a role record does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It is another key domain's.
    #[error("it is of another key domain")]
    OtherDomain,
    /// It does not say of each block where it stood.
    #[error("it does not tell the state of each block")]
    Blocks,
    /// The site that its epoch belongs to has not signed it, or nobody knows that site's key.
    #[error("it is not signed by the site that epoch {} belongs to", .0.0)]
    NotSigned(Epoch),
    /// Another record of that place is known: one site signed twice.
    #[error("another record of epoch {} is known: its site was rolled back, or signs what it likes", .0.0)]
    Contradicts(Epoch),
    /// It follows an epoch of which nothing is known here: the records before it come first.
    #[error("it follows epoch {}, of which no record is known: ask for that first", after.0)]
    Gap {
        /// The epoch that it follows.
        after: Epoch,
    },
    /// Its epoch does not follow the one that it says, or is one that was never promoted to.
    #[error("epoch {} does not follow epoch {}", epoch.0, after.0)]
    Order {
        /// Its epoch.
        epoch: Epoch,
        /// The epoch that it says it follows.
        after: Epoch,
    },
    /// It is more than one step ahead of all that is known, which two people may admit.
    #[error("epoch {} is more than one step ahead of epoch {}: two people have to admit it", epoch.0, known.0)]
    TooFar {
        /// Its epoch.
        epoch: Epoch,
        /// The highest one that is known.
        known: Epoch,
    },
}

/// A site's view of who writes, against which role records are held.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, R> {
    /// The domain, and this site's parity.
    pub domain: &'a DomainRecord,
    /// The role records that are known: verified, and in their places.
    pub known: &'a [R],
    /// Whose signatures count.
    pub writers: &'a Writers,
    /// The enrolled peers, with the keys that they had before: these count for what is over.
    pub peers: &'a [Peer],
}

/// Admits a role record, or says why it does not count. `two_people`: two people have said that a step of more than one
/// epoch is right.
pub fn admit<R: Borrow<RoleRecord>>(
    view: &View<'_, R>,
    new: &SignedRoleRecord,
    two_people: bool,
) -> Result<Admitted, NotAdmitted> {
    let record = &new.record;
    check_content(view.domain, record)?;
    let at_its_place = |known: &&RoleRecord| known.place() == record.place();
    let known = view.known.iter().map(Borrow::borrow).find(at_its_place);
    let is_same = known.is_some_and(|known| known == record);
    // A site that was rebuilt has signed its own anew, and is shown them as its lost token signed them.
    if is_same && view.writers.own == Some(record.epoch.is_even()) {
        return Ok(Admitted::Known);
    }
    let is_of_former = is_of_former(view.peers, new);
    if !is_of_former {
        check_signature(view.writers, new)?;
    }
    if known.is_some() {
        return if is_same {
            Ok(Admitted::Known)
        } else {
            Err(NotAdmitted::Contradicts(record.epoch))
        };
    }
    check_descent(view.domain, view.known, record)?;
    let standing = Standing::of(view.domain, view.known);
    let is_news = match record.change {
        RoleChange::Promotion => record.epoch > standing.epoch,
        RoleChange::Demotion => record.epoch == standing.epoch,
    };
    if !is_news {
        return Ok(Admitted::Past);
    }
    // A token that is lost says nothing new.
    if is_of_former {
        check_signature(view.writers, new)?;
    }
    // What our own token signed stands in our own database, in the transaction in which it counted.
    if view.writers.own == Some(record.epoch.is_even()) {
        let standing = Standing::of(view.domain, &[record]);
        return Ok(Admitted::Forgotten(Standing { open: false, ..standing }));
    }
    if record.epoch > standing.epoch.next_of(record.epoch.is_even()) && !two_people {
        return Err(NotAdmitted::TooFar { epoch: record.epoch, known: standing.epoch });
    }
    let standing = Standing::of(view.domain, &[record]);
    let is_replica = view.writers.own.is_none();
    Ok(Admitted::News(if is_replica { standing.of_replica() } else { standing }))
}

/// Verifies role records as our own database has them, in their places: each is signed by the site that its epoch belongs
/// to, be it with a key that it had before its token was lost, and follows one before it.
pub fn verify(
    domain: &DomainRecord,
    (writers, peers): (&Writers, &[Peer]),
    stored: &[SignedRoleRecord],
) -> Result<(), NotAdmitted> {
    for (at, signed) in stored.iter().enumerate() {
        let before = stored.get(..at).unwrap_or_default();
        check_content(domain, &signed.record)?;
        if !is_of_former(peers, signed) {
            check_signature(writers, signed)?;
        }
        check_descent(domain, before, &signed.record)?;
        if before.last().is_some_and(|last| last.record.place() >= signed.record.place()) {
            return Err(NotAdmitted::Contradicts(signed.record.epoch));
        }
    }
    Ok(())
}

/// Whether the site that the record's epoch belongs to signed it with a key that it has no more, up to the epoch at which
/// that was replaced.
pub fn is_of_former(peers: &[Peer], signed: &SignedRoleRecord) -> bool {
    let kind = PeerKind::of_epochs(signed.record.epoch.is_even());
    let mut former = peers.iter().filter(|peer| peer.kind == kind).flat_map(|peer| &peer.former);
    former.any(|it| signed.record.epoch <= it.until && signed.is_signed_by(&it.key))
}

fn check_content(domain: &DomainRecord, record: &RoleRecord) -> Result<(), NotAdmitted> {
    if record.domain != domain.domain {
        return Err(NotAdmitted::OtherDomain);
    }
    if !record.covers(domain.blocks) {
        return Err(NotAdmitted::Blocks);
    }
    Ok(())
}

fn check_signature(writers: &Writers, new: &SignedRoleRecord) -> Result<(), NotAdmitted> {
    let epoch = new.record.epoch;
    match writers.of(epoch).is_some_and(|key| new.is_signed_by(key)) {
        true => Ok(()),
        false => Err(NotAdmitted::NotSigned(epoch)),
    }
}

/// A promotion follows an epoch that is known, and a demotion ends one.
fn check_descent<R: Borrow<RoleRecord>>(
    domain: &DomainRecord,
    known: &[R],
    record: &RoleRecord,
) -> Result<(), NotAdmitted> {
    let RoleRecord { epoch, after, .. } = *record;
    let in_order = match record.change {
        RoleChange::Promotion => after < epoch && domain.epoch < epoch,
        RoleChange::Demotion => after == epoch,
    };
    if !in_order {
        return Err(NotAdmitted::Order { epoch, after });
    }
    let promoted = |known: &RoleRecord| known.place() == (after, RoleChange::Promotion);
    let is_known = after == domain.epoch || known.iter().map(Borrow::borrow).any(promoted);
    if is_known { Ok(()) } else { Err(NotAdmitted::Gap { after }) }
}

/// The lineage of a block that is written in `epoch`, out of verified role records.
pub fn lineage<R: Borrow<RoleRecord>>(known: &[R], block: BlockNo, epoch: Epoch) -> Lineage {
    Lineage::of(epoch, |epoch| {
        let promotion = |known: &&RoleRecord| known.place() == (epoch, RoleChange::Promotion);
        known.iter().map(Borrow::borrow).find(promotion)?.found(block)
    })
}

/// The state in which the first promotion after our epoch, of those that lead to `theirs`, found the block: what
/// [`accept`](crate::block::accepting::accept) asks for. `None`: no such promotion is known.
pub fn fork_of<R: Borrow<RoleRecord>>(
    known: &[R],
    block: BlockNo,
    ours: Epoch,
    theirs: Epoch,
) -> Option<BlockMark> {
    lineage(known, block, theirs).fork(ours)
}

#[cfg(test)]
mod tests;
