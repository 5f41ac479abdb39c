//! A read-only replica turns to the one of the two sites that it is to follow: the one that writes in the highest epoch, or
//! the one that answers.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::{either::EitherSite, fencing::Fencing, grounds::Grounds};

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
        let mut seen = either.cards(&ours).await;
        seen.sort_by_key(|(at, card)| Reverse((card.epoch, card.writes, *at == before)));
        for (at, card) in seen {
            either.turn_to(at);
            if card.epoch > ours.epoch
                && let Err(error) = self.fencing.meet(&card).await
            {
                tracing::debug!(%error, site = card.site, "a site is not followed");
                continue;
            }
            self.grounds.status.heard(&card);
            return at != before;
        }
        either.turn_to(before);
        false
    }
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
