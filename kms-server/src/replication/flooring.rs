//! Receive floors of the other site: asked for at an interval, whoever writes, since both sites open what meters send.

use std::{sync::Arc, time::Duration};

use super::{fencing::Fencing, grounds::Grounds};
use kms_core::{floors::FloorPlace, ports::FloorSink};

/// How often the peer is asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// The same, of a peer that is away, or whose release does not know of floors.
const AWAY: Duration = Duration::from_secs(20);

/// The most that the clocks of a peer's nodes are apart: what one wrote so long before is asked for again.
const CLOCKS_APART_MS: u64 = 60_000;

/// Takes in the peer's floors.
pub struct Flooring {
    grounds: Grounds,
    fencing: Arc<Fencing>,
    sink: Arc<dyn FloorSink>,
}

impl Flooring {
    /// Into `sink`.
    pub fn new(grounds: Grounds, fencing: Arc<Fencing>, sink: Arc<dyn FloorSink>) -> Self {
        Self { grounds, fencing, sink }
    }

    /// Runs until the process ends. A peer that can't be asked is asked again: others say that it is away.
    pub async fn run(&self) {
        let mut heard_ms = 0;
        loop {
            match self.round(heard_ms).await {
                Ok(newest_ms) => {
                    heard_ms = newest_ms;
                    tokio::time::sleep(INTERVAL).await;
                }
                Err(reason) => {
                    tracing::debug!(reason, "the peer's receive floors are not had");
                    tokio::time::sleep(AWAY).await;
                }
            }
        }
    }

    /// Takes in what the peer stored since; the time of the newest.
    pub async fn round(&self, since_ms: u64) -> Result<u64, String> {
        let mut place = FloorPlace::since(since_ms.saturating_sub(CLOCKS_APART_MS));
        let mut newest_ms = since_ms;
        loop {
            let ours = self.grounds.cards.now().await.map_err(|error| error.to_string())?;
            let asked = self.grounds.peer.floors(ours, place).await;
            let (card, rows) = asked.map_err(|error| error.to_string())?;
            // Before anything is taken from a site that names a higher epoch.
            self.fencing.meet(&card).await.map_err(|error| error.to_string())?;
            let Some(last) = rows.last().map(|row| row.place()) else { return Ok(newest_ms) };
            if last <= place {
                return Err("the peer's receive floors are not in order".to_owned());
            }
            place = last;
            newest_ms = newest_ms.max(place.at_ms);
            // What could not be taken in is told by who takes it.
            let _ = self.sink.take_peers(&self.grounds.config.peer, rows).await;
        }
    }
}
