//! A read-only replica turns to the one of the two sites that it is to follow: the one that writes in the highest epoch, or
//! the one that answers.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::{card::SiteCard, either::EitherSite, fencing::Fencing, grounds::Grounds};
use kms_core::site::peer::PeerKind;

/// The interval at which is looked which of the two it is.
const LOOK_AROUND: Duration = Duration::from_secs(2);

/// Turns to the site that is to be followed.
#[derive(Clone)]
pub(super) struct Turning {
    /// `None`: there is one site to follow.
    either: Option<Arc<EitherSite>>,
    grounds: Grounds,
    fencing: Arc<Fencing>,
}

impl Turning {
    /// Between the sites of `grounds`; learns of promotions by `fencing`.
    pub(super) fn new(grounds: &Grounds, fencing: &Arc<Fencing>) -> Self {
        let (grounds, fencing) = (grounds.clone(), Arc::clone(fencing));
        Self { either: grounds.either.clone(), grounds, fencing }
    }

    /// Turns to the site of the highest epoch, before others to one that writes in it. An epoch above ours counts once its
    /// signed records are taken in: who names one and can't prove it is not followed. Whether it is another site than
    /// before.
    pub(super) async fn turn(&self) -> bool {
        let Some(either) = &self.either else { return false };
        let Ok(ours) = self.grounds.cards.now().await else { return false };
        let before = either.at();
        for (at, card) in self.seen(either, &ours).await {
            // Nobody is turned to before he has proved what he names.
            if card.epoch > ours.epoch
                && let Err(error) = self.fencing.meet_at(&card, either.of(at)).await
            {
                tracing::debug!(%error, site = card.site, "a site is not followed");
                continue;
            }
            either.turn_to(at);
            self.grounds.status.heard(&card);
            return at != before;
        }
        false
    }

    /// The sites that answer, the one first that is to be followed if it proves what it names.
    async fn seen(&self, either: &EitherSite, ours: &SiteCard) -> Vec<(usize, SiteCard)> {
        let (before, kinds) = (either.at(), self.fencing.kinds().await);
        let mut seen = either.cards(ours).await;
        let place = |(at, card): &(usize, SiteCard)| {
            let writes = writes(card, kinds.get(&card.site).copied());
            Reverse((card.epoch, writes, *at == before))
        };
        seen.sort_by_key(place);
        seen
    }
}

/// Whether a site writes, as it says: it can in an epoch of its own alone.
fn writes(card: &SiteCard, kind: Option<PeerKind>) -> bool {
    card.writes && kind.is_some_and(|kind| kind.owns(card.epoch))
}

/// Looks around again and again.
pub(super) struct Looks {
    of: Turning,
    ticks: Interval,
    /// One at a time, and none beyond this turn.
    looking: JoinSet<bool>,
}

impl Looks {
    /// The first look is an interval from now.
    pub(super) fn of(turning: &Turning) -> Self {
        let mut ticks = interval_at(Instant::now() + LOOK_AROUND, LOOK_AROUND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { of: turning.clone(), ticks, looking: JoinSet::new() }
    }

    /// Ends when another site is to be followed; never where there is one. Dropped and begun anew, it loses nothing.
    pub(super) async fn turned(&mut self) {
        if self.of.either.is_none() {
            std::future::pending::<()>().await;
        }
        loop {
            tokio::select! {
                _ = self.ticks.tick(), if self.looking.is_empty() => {
                    let of = self.of.clone();
                    self.looking.spawn(async move { of.turn().await });
                }
                Some(turned) = self.looking.join_next() => {
                    if turned.is_ok_and(|turned| turned) {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_core::{DomainId, Epoch};

    use super::*;

    #[test]
    fn a_site_is_believed_to_write_in_an_epoch_of_its_own_alone() {
        let card = |epoch, writes| SiteCard {
            site: "north".to_owned(),
            domain: DomainId([1; 16]),
            blocks: 16,
            release: String::new(),
            record_schema: 3,
            epoch: Epoch(epoch),
            writes,
            makeup: None,
            token: None,
        };
        assert!(writes(&card(2, true), Some(PeerKind::Even)));
        assert!(writes(&card(3, true), Some(PeerKind::Odd)));
        assert!(!writes(&card(2, false), Some(PeerKind::Even)));
        for kind in [Some(PeerKind::Odd), Some(PeerKind::Replica), None] {
            assert!(!writes(&card(2, true), kind), "{kind:?}");
        }
    }
}
