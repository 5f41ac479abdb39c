//! Following the other servers of one database: what they changed is opened anew here, verified as at
//! its first opening; the token is not asked while the block's secret stays. Only resident blocks: the
//! others are read when they are asked for. A store without other writers is not followed at all.
//!
//! The choice of what is read, closed or left is [`Follower`](kms_core::following::Follower)'s; here are the
//! reading and the waiting.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{error::KeyringError, opening::Opener, patrol::Patrol, renewing::Renewer};
use crate::store::{FollowBlocks, Positions, StoreError};
use kms_core::{
    BlockNo, Position,
    following::{Heard, Input, Output},
};

/// The longest time for reading one block anew: with the wait before it, within the second that is
/// promised. It waits for a change of this process's own to the same block, and that for the token.
const RENEW_PATIENCE: Duration = Duration::from_millis(500);

/// The interval at which blocks that wait are looked at while nothing is heard.
const TICK: Duration = Duration::from_millis(50);

/// Messages heard and not yet acted upon; acting upon one never waits.
const HEARD_AHEAD: usize = 16;

/// Pause after a failure to hear anything.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// The positions that were heard, or why none were.
type Told = Result<Positions, StoreError>;

/// Keeps resident blocks at what other servers write.
pub(super) struct Following {
    opener: Arc<Opener>,
    renewer: Arc<Renewer>,
    patrol: Arc<Patrol>,
}

/// Blocks that are being read anew.
type Renewing = FuturesUnordered<BoxFuture<'static, Input>>;

impl Following {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>, renewer: Arc<Renewer>, patrol: Arc<Patrol>) -> Self {
        Self { opener, renewer, patrol }
    }

    /// Runs until the process ends, or not at all where there can't be others.
    pub(super) async fn run(&self) {
        let Some(others) = self.opener.store.follow() else { return };
        self.renewer.follower().begin();
        let (told, mut hearing) = mpsc::channel(HEARD_AHEAD);
        tokio::spawn(hear(others, told));
        let mut renewing = Renewing::new();
        loop {
            let is_waiting = self.renewer.follower().is_waiting();
            let input = tokio::select! {
                told = hearing.recv() => match told {
                    Some(told) => self.input_of(told),
                    None => return,
                },
                Some(renewed) = renewing.next() => renewed,
                () = sleep(TICK), if is_waiting => Input::Tick,
            };
            let outputs = self.renewer.follower().step(self.opener.now(), input);
            for output in outputs {
                self.carry_out(output, &mut renewing);
            }
        }
    }

    fn input_of(&self, told: Told) -> Input {
        let positions = match told {
            Ok(positions) => positions,
            Err(error) => return Input::Nothing(error.to_string()),
        };
        self.patrol.note_rows(&positions);
        let resident = |block| self.opener.resident.table(block).map(|table| table.position());
        let heard = |(block, stored)| Heard { block, stored, resident: resident(block) };
        Input::Positions(positions.at.into_iter().map(heard).collect())
    }

    fn carry_out(&self, output: Output, renewing: &mut Renewing) {
        match output {
            Output::Renew(block, stored) => {
                let renew =
                    renew(Arc::clone(&self.opener), Arc::clone(&self.renewer), block, stored);
                renewing.push(Box::pin(renew));
            }
            Output::CloseLate(blocks) => {
                let count = blocks.len();
                tracing::warn!(blocks = count, "changed blocks are closed: not renewed in time");
                self.opener.resident.close(blocks);
            }
            Output::Close(block) => self.opener.resident.close([block]),
            Output::FellSilent(error) => {
                tracing::warn!(error, "not following the other servers; what is resident stays");
            }
            Output::HeardAgain(silent_ms) => {
                tracing::info!(silent_ms, "following the other servers again");
            }
        }
    }
}

/// Reads one block anew, and says how that ended.
async fn renew(
    opener: Arc<Opener>,
    renewer: Arc<Renewer>,
    block: BlockNo,
    stored: Position,
) -> Input {
    match timeout(RENEW_PATIENCE, renewer.renew(block, Some(stored))).await {
        Err(_too_long) => Input::TooSlow(block),
        Ok(Ok(_)) => Input::Renewed(block),
        Ok(Err(KeyringError::Store(error @ StoreError::Unreachable { .. }))) => {
            Input::Away { block, reason: error.to_string() }
        }
        // The resident block stays: that the stored head is another one shows no change while it does not
        // verify. It is closed where an authentic state is known to be newer, and where there is no room
        // for the new one.
        Ok(Err(error)) => {
            tracing::error!(block = block.0, %error, "a changed block can't be read anew");
            let close = matches!(error, KeyringError::ArenaFull { .. }) || opener.is_past(block);
            Input::Failed { block, reason: error.to_string(), close }
        }
    }
}

/// Passes on what is heard, without waiting until it is acted upon.
async fn hear(mut others: Box<dyn FollowBlocks>, told: mpsc::Sender<Told>) {
    loop {
        let heard = others.next().await;
        let silence = heard.is_err();
        if told.send(heard).await.is_err() {
            return;
        }
        if silence {
            sleep(AFTER_FAILURE).await;
        }
    }
}
