//! The other site is kept told of our marks, and asked what it knows of them.

use std::time::Duration;

use super::counters::Counters;

/// The interval at which marks that rose are told.
const TELL: Duration = Duration::from_millis(500);
/// The interval at which it is asked although there is nothing to tell.
const ASK: u32 = 60;
impl Counters {
    /// Runs until the process ends: asks the witness at the start, whatever the role, and tells it what rose.
    pub(super) async fn keep_witness(&self) {
        if self.parts.single_site || !self.parts.has_peer {
            return;
        }
        for round in 0u32.. {
            // Told nothing, it says all that it knows.
            let all = !self.witnessing.was_asked() || round.is_multiple_of(ASK);
            let to_tell = if all { Vec::new() } else { self.witnessing.to_tell() };
            if all || !to_tell.is_empty() {
                match self.parts.witness.ask(to_tell.clone(), None).await {
                    Some(said) => self.witnessing.take(said),
                    None => self.witnessing.note_all(to_tell),
                }
            }
            tokio::time::sleep(TELL).await;
        }
    }
}
