//! Hedges: one read, asked of a second site where the first one is late or found to be down meanwhile. The
//! first answer counts.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::time::sleep;
use tonic::Status;

use crate::board::Board;
use crate::places::Place;
use crate::retry::is_gone;

/// The end of a race.
pub(crate) struct Raced<T> {
    /// The answer and its site, or the failure of the place that was asked first.
    pub(crate) result: Result<(usize, T), Status>,
    /// A second site was asked.
    pub(crate) asked_twice: bool,
}

/// When a call is late, and whether it may be asked twice then.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) late_after: Duration,
    pub(crate) may_ask: bool,
}

/// Asks `first`, and a second site if need be.
pub(crate) async fn race<T, F>(
    board: &Arc<Board>,
    first: Place,
    patience: Patience,
    ask: impl Fn(Place) -> F,
) -> Raced<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let sent = board.now();
    let mut changes = board.changes();
    let mut asked = pin!(ask(first));
    let mut late = pin!(sleep(patience.late_after));
    let (mut is_late, mut asked_twice) = (false, false);
    let mut failed: Option<Status> = None;
    let mut other: OptionFuture<Pin<Box<F>>> = None.into();
    let mut other_site: Option<usize> = None;
    loop {
        let ask_now = tokio::select! {
            answer = &mut asked, if failed.is_none() => match answer {
                Ok(answer) => return Raced { result: Ok((first.site, answer)), asked_twice },
                Err(status) if other_site.is_some() => {
                    failed = Some(status);
                    None
                }
                Err(status) => return Raced { result: Err(status), asked_twice },
            },
            answer = &mut other, if other_site.is_some() => {
                let site = other_site.take();
                match (answer, site, failed.take()) {
                    (Some(Ok(answer)), Some(site), failed) => {
                        if failed.is_some_and(|status| is_gone(&status)) {
                            board.server_failed(first);
                        }
                        return Raced { result: Ok((site, answer)), asked_twice };
                    }
                    // What the second one refuses, the first may still do; and it is tried again by the rules.
                    (_, _, Some(status)) => return Raced { result: Err(status), asked_twice },
                    _ => None,
                }
            }
            () = &mut late, if !is_late => {
                is_late = true;
                board.overdue(first.site, sent, patience.may_ask && !asked_twice)
            }
            // Its sender is the board's.
            Ok(()) = changes.changed(), if !asked_twice => board.instead_of(first.site),
        };
        if let Some(site) = ask_now.filter(|_| !asked_twice) {
            let server = board.servers()[site].current();
            other = Some(Box::pin(ask(Place { site, server }))).into();
            (other_site, asked_twice) = (Some(site), true);
        }
    }
}
