//! Each site keeps a copy of the other one's audit chains, events and signed heads: so that an auditor reads here who did
//! what there when that site is gone, and so that a chain which is cut or changed there is known of here.
//!
//! A copy goes on from where it ends, piece by piece; there is no other cursor. Each piece is verified by the rules of a
//! whole chain and by the key of the other site's token before it is kept.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    grounds::Grounds,
    messages::{AuditAsked, AuditSaid},
    reporting::Reporting,
    witnessing::Witnessing,
};
use crate::store::{AuditStore, StoreError, peer_audit::PeerAuditStore};
use kms_core::{
    audit::{
        Broken, ChainTip, NodeId, PublicKey, SiteKeys, StoredEvent, What,
        copying::{Copied, Ends, Look, Piece, signer_of},
        room::{NotTaken, PIECE_BYTES, PIECE_EVENTS, Room},
    },
    freshness::HeadTable,
    site::peer::Peer as Enrolled,
};

/// Between two looks: so much of what was done last may be lost with the other site.
const LOOK: Duration = Duration::from_secs(2);
/// Pieces that are copied in one look. The next one goes on from there.
const PIECES_A_LOOK: usize = 32;

/// Where our own chains are, and the copies of the other site's.
pub trait Chains: AuditStore + PeerAuditStore {}
impl<T: AuditStore + PeerAuditStore + ?Sized> Chains for T {}

/// Copies the other site's chains, shows the copies, and gives pieces of our own.
pub struct Auditing {
    grounds: Grounds,
    reporting: Arc<Reporting>,
    witnessing: Arc<Witnessing>,
    pub(super) chains: Arc<dyn Chains>,
    known: Mutex<Known>,
}

/// Why a copy does not go on.
enum Fault {
    /// The chain is not what it was: that is kept.
    Broken(Broken),
    /// More than is taken: that holds for as long as it is given.
    NotTaken(NotTaken),
}

/// How a look goes on with each chain.
struct Taking<'a> {
    keys: SiteKeys,
    pieces: &'a mut usize,
    room: Room,
}

/// What came of the looks so far.
#[derive(Default)]
struct Known {
    ends: Ends,
    /// Chains that are not what they were, at the last look that was answered.
    broken: Vec<String>,
    /// The chain with which the next look begins: the last one had taken enough before it. Else the first chains could
    /// keep the others from being copied.
    from: Option<NodeId>,
}

impl Auditing {
    /// Keeps copies in `chains`, and holds them against what `witnessing` keeps.
    pub fn new(
        grounds: Grounds,
        (reporting, witnessing): (Arc<Reporting>, Arc<Witnessing>),
        chains: Arc<dyn Chains>,
    ) -> Self {
        Self { grounds, reporting, witnessing, chains, known: Mutex::default() }
    }

    /// Runs until the process ends.
    pub async fn run(&self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look().await {
                tracing::debug!(error, "the peer's audit log was not copied");
            }
        }
    }

    /// Copies what is new, and says what is wrong with the peer's chains.
    pub async fn look(&self) -> Result<(), String> {
        let peer = self.enrolled().await?;
        // What is signed before the look has to be there at it.
        let signed = self.witnessing.witnessed().await?;
        let mut budget = PIECES_A_LOOK;
        let done = self.copy_all(&peer, signed.as_ref(), &mut budget).await;
        let look = match &done {
            Ok(_) if budget == 0 => Look::More,
            Ok(_) => Look::Whole,
            Err(_) => Look::Unanswered,
        };
        let copies = self.copies().await?;
        let (mut faults, answer) = {
            let mut known = self.known();
            let answer = done.map(|broken| known.broken = broken);
            let signed = signed.as_ref().map(|table| (table.number, &table.tips[..]));
            let withheld = signed.map(|signed| known.ends.looked(&copies, signed, look));
            let withheld = withheld.iter().flatten().map(|withheld| self.fault(withheld));
            let mut faults: Vec<String> = withheld.collect();
            let tips = signed.map_or(&[][..], |(_, tips)| tips);
            let unproved = known.ends.unproved(&copies, tips, look);
            faults.extend(unproved.iter().map(|unproved| self.fault(unproved)));
            (faults, answer.map(|()| known.broken.clone()))
        };
        let broken = answer.as_ref().map_or_else(|_| self.known().broken.clone(), Clone::clone);
        faults.extend(broken);
        self.grounds.status.audit_broken(faults);
        answer.map(drop)
    }

    /// Copies each chain; the sentences that say which are not what was copied before, or what was signed, or more than is
    /// taken.
    async fn copy_all(
        &self,
        peer: &Enrolled,
        signed: Option<&HeadTable>,
        pieces: &mut usize,
    ) -> Result<Vec<String>, String> {
        let said = self.ask(AuditAsked::default()).await?;
        let (epoch, promoted) = self.reporting.proved(peer.kind).await?;
        let mut copies = self.copies().await?;
        let room = Room::beside(&copies, signed.map_or(&[][..], |table| &table.tips));
        let mut taking = Taking { keys: peer.keys(), pieces, room };
        let mut faults = Vec::new();
        for told in &said.chains {
            if copies.iter().any(|it| is_of(it, told)) {
                continue;
            }
            match taking.room.begin(told.node) {
                Ok(()) => copies.push(Copied::nothing_of(told.node)),
                // One of them is named: there may be any number.
                Err(full) => faults = vec![self.fault(&full)],
            }
        }
        let mut from = None;
        for copy in self.in_turn(copies) {
            if *taking.pieces == 0 {
                from.get_or_insert(copy.tip.node);
            }
            let told = said.chains.iter().find(|told| is_of(&copy, told));
            // A chain of a token that the site has no more ended with it.
            if told.is_none() && self.signers(&copy.tip.node, peer).await? != taking.keys {
                continue;
            }
            let went_on = self.go_on(copy, told, &mut taking).await?;
            let broken = match self.and_as_signed(went_on, signed).await? {
                Ok(()) => continue,
                Err(Fault::NotTaken(why)) => {
                    faults.push(self.fault(&why));
                    continue;
                }
                Err(Fault::Broken(broken)) => broken,
            };
            // A standby can't note it, and tells it all the same.
            if let Err(error) = self.chains.note_peer_audit_broken(&copy.tip.node, epoch).await {
                tracing::debug!(%error, "a break of the peer's audit chain is not noted");
            }
            // A restored site cuts what it lost, begins another chain, and is promoted: its token signs that. What it only
            // says of its epoch hides nothing.
            if copy.broken_in.is_none_or(|known| promoted <= Some(known)) {
                faults.push(self.fault(&broken));
            }
        }
        self.known().from = from;
        Ok(faults)
    }

    /// The chains in the order of their nodes, from where the last look had taken enough.
    fn in_turn(&self, mut copies: Vec<Copied>) -> Vec<Copied> {
        copies.sort_by_key(|copy| copy.tip.node);
        let from = self.known().from;
        let first = copies.partition_point(|copy| from.is_some_and(|from| copy.tip.node < from));
        copies.rotate_left(first);
        copies
    }

    fn fault(&self, what: &dyn Display) -> String {
        format!(
            "site {}: {what}; what was copied here before stays: `ami-tool audit verify --of {0}`",
            self.peer()
        )
    }

    /// The copy has gone on: holds it against the end that the other site's token has signed.
    async fn and_as_signed(
        &self,
        went_on: Result<Copied, Fault>,
        signed: Option<&HeadTable>,
    ) -> Result<Result<(), Fault>, String> {
        let (copy, table) = match (went_on, signed) {
            (Ok(copy), Some(table)) => (copy, table),
            (went_on, _) => return Ok(went_on.map(drop)),
        };
        let ChainTip { node, sequence, hash } = table.tip_of(copy.tip.node);
        if !(1..=copy.tip.sequence).contains(&sequence) {
            return Ok(Ok(()));
        }
        let event = self.chains.peer_events(&node, sequence - 1, 1).await;
        let event = event.map_err(|error| error.to_string())?;
        let is_signed = event.first().is_some_and(|event| event.hash == hash);
        let broken = Broken { node, sequence, what: What::OtherThanSigned };
        Ok(if is_signed { Ok(()) } else { Err(Fault::Broken(broken)) })
    }

    /// Held for a few comparisons, never across an `.await`.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies what one chain has more, as far as the budget goes.
    async fn go_on(
        &self,
        mut copy: Copied,
        told: Option<&ChainTip>,
        taking: &mut Taking<'_>,
    ) -> Result<Result<Copied, Fault>, String> {
        match copy.held_against(told) {
            Err(broken) => return Ok(Err(Fault::Broken(broken))),
            Ok(false) if copy.signed == copy.tip.sequence => return Ok(Ok(copy)),
            Ok(_) => {}
        }
        while *taking.pieces > 0 {
            *taking.pieces -= 1;
            let asked = AuditAsked {
                node: Some(copy.tip.node),
                after: copy.tip.sequence,
                heads_after: copy.signed,
            };
            let AuditSaid { piece, .. } = self.ask(asked).await?;
            if piece.events.is_empty() && piece.heads.is_empty() {
                break;
            }
            if let Err(why) = piece.fits(copy.tip.node) {
                return Ok(Err(Fault::NotTaken(why)));
            }
            let copied = self.signed_again(&copy, &piece).await.map_err(|it| it.to_string())?;
            let next = match copy.with(&piece, &copied, &taking.keys) {
                Ok(next) => next,
                Err(broken) => return Ok(Err(Fault::Broken(broken))),
            };
            if let Err(why) = taking.room.go_on(&copy, &next) {
                return Ok(Err(Fault::NotTaken(why)));
            }
            let kept =
                self.chains.append_peer_audit(&self.grounds.config.peer, (&copy, &next), &piece);
            if !kept.await.map_err(|error| error.to_string())? {
                // Another server of this site copies it too.
                break;
            }
            copy = next;
        }
        Ok(Ok(copy))
    }

    /// The copied events that heads of this piece sign: heads are signed behind the events.
    async fn signed_again(
        &self,
        copy: &Copied,
        piece: &Piece,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let mut events = Vec::new();
        for head in &piece.heads {
            let sequence = head.tip.sequence;
            if (1..copy.tip.sequence).contains(&sequence) {
                events.extend(self.chains.peer_events(&copy.tip.node, sequence - 1, 1).await?);
            }
        }
        Ok(events)
    }

    async fn ask(&self, asked: AuditAsked) -> Result<AuditSaid, String> {
        let Grounds { peer, cards, status, config, .. } = &self.grounds;
        let card = cards.now().await.map_err(|error| error.to_string())?;
        let said = peer.audit(card, asked).await.map_err(|error| error.to_string())?;
        if said.card.site != config.peer {
            return Err(format!("site {} answers", said.card.site));
        }
        status.heard(&said.card);
        Ok(said)
    }

    /// For the peer: our chains, and a piece of the one that it asks for. What a database gives that somebody changed, is
    /// found by who verifies it.
    pub async fn piece(&self, asked: AuditAsked) -> Result<(Vec<ChainTip>, Piece), StoreError> {
        // First the ends: no piece is shorter than what is told.
        let chains = self.chains.audit_chains().await?;
        let Some(node) = asked.node else { return Ok((chains, Piece::default())) };
        let mut events = self.chains.audit_events(&node, asked.after, PIECE_EVENTS as u32).await?;
        let mut bytes = 0;
        let fit = events.iter().take_while(|event| {
            bytes += event.body.len();
            bytes <= PIECE_BYTES
        });
        let fit = fit.count().max(1);
        events.truncate(fit);
        let last = events.last().map_or(asked.after, |event| event.sequence);
        let heads =
            self.chains.audit_checkpoints(&node, asked.heads_after, PIECE_EVENTS as u32).await?;
        let heads = heads.into_iter().filter(|head| head.tip.sequence <= last).collect();
        Ok((chains, Piece { events, heads }))
    }

    /// The other site's name.
    pub fn peer(&self) -> &str {
        &self.grounds.config.peer
    }

    pub(super) async fn copies(&self) -> Result<Vec<Copied>, String> {
        self.chains.peer_chains(self.peer()).await.map_err(|error| error.to_string())
    }

    pub(super) async fn enrolled(&self) -> Result<Enrolled, String> {
        let peer = self.reporting.enrolled(self.peer()).await?;
        peer.ok_or_else(|| "the peer is not enrolled here".to_owned())
    }

    /// Whose heads count in a copy: those of the tokens that the site has now, or of one that it had before it was enrolled
    /// anew, if that one signed the first of them.
    pub(super) async fn signers(&self, node: &NodeId, peer: &Enrolled) -> Result<SiteKeys, String> {
        let heads = self.chains.peer_checkpoints(node, 0, 1).await;
        let heads = heads.map_err(|error| error.to_string())?;
        let (present, former) = (peer.keys(), peer.former.iter().rev().map(|former| former.key));
        let keys: Vec<PublicKey> = present.iter().copied().chain(former).collect();
        let signer = heads.first().and_then(|head| signer_of(head, &keys));
        Ok(signer.map_or(present, |signer| peer.keys_beside(&signer)))
    }
}

fn is_of(copy: &Copied, told: &ChainTip) -> bool {
    copy.tip.node == told.node
}
