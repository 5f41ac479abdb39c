//! Vigils: what a stream hears of its site while it waits, so that it neither hangs on a silent site nor stays
//! away for ever from the one that is preferred.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::board::Board;
use crate::sites::Errand;

/// The news that end a stream's stay at its site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The site is down and another is up.
    Down,
    /// Another site is preferred. What is under way may end here.
    Preferred,
}

/// One stream's watch over the site that it is at.
pub(crate) struct Vigil {
    /// `None`: there is no other site to go to.
    watched: Option<(Arc<Board>, watch::Receiver<u64>)>,
    site: usize,
    late_after: Duration,
    /// The site was last looked after then.
    looked: Instant,
}

impl Vigil {
    pub(crate) fn over(site: usize, board: Option<&Arc<Board>>, late_after: Duration) -> Self {
        let watched = board.map(|board| (Arc::clone(board), board.changes()));
        Self { watched, site, late_after, looked: Instant::now() }
    }

    /// Waits for news; the oldest message has been waiting since then. May be dropped and asked again.
    pub(crate) async fn news(&mut self, waiting_since: Option<Instant>) -> News {
        let Some((board, changes)) = &mut self.watched else {
            return std::future::pending().await;
        };
        loop {
            let since = waiting_since.map(|since| since.max(self.looked));
            let late = async {
                match since {
                    Some(since) => sleep_until(since + self.late_after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Its sender is the board's.
                Ok(()) = changes.changed() => {
                    if board.instead_of(self.site).is_some() {
                        return News::Down;
                    }
                    if board.is_up(self.site) && board.first(Errand::OneRead) != self.site {
                        return News::Preferred;
                    }
                }
                () = late => {
                    self.looked = Instant::now();
                    if let Some(since) = since {
                        // A stream is never asked of two sites; whether its site is there is found out.
                        board.overdue(self.site, board.moment(since), false);
                    }
                }
            }
        }
    }
}
