//! The phases of a shutdown, for everyone who has to act on them.

use tokio::sync::watch;

/// The phase of the shutdown. Phases only go down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// No shutdown.
    Serving,
    /// No new connections, no new calls; running calls go on.
    Draining,
    /// Streams that are still open are told to go elsewhere.
    Closing,
    /// Connections are cut.
    Cut,
}

/// Owned by the server.
pub(crate) struct Drain(watch::Sender<Phase>);

/// A view of it, for everyone else.
#[derive(Clone)]
pub(crate) struct DrainWatch(watch::Receiver<Phase>);

impl Drain {
    /// Starts in [`Phase::Serving`].
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }

    /// Goes on to `phase`; never back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    /// A view.
    pub(crate) fn watch(&self) -> DrainWatch {
        DrainWatch(self.0.subscribe())
    }
}

impl Drop for Drain {
    /// A server that is gone serves nobody, however it came to go.
    fn drop(&mut self) {
        self.enter(Phase::Cut);
    }
}

impl DrainWatch {
    /// Whether the shutdown is that far.
    pub(crate) fn is(&self, phase: Phase) -> bool {
        *self.0.borrow() >= phase
    }

    /// Ends once the shutdown is that far.
    pub(crate) async fn reached(mut self, phase: Phase) {
        // An error says that the server is gone: that is further than any phase.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_do_not_go_back() {
        let drain = Drain::new();
        let watch = drain.watch();
        drain.enter(Phase::Closing);
        drain.enter(Phase::Draining);
        assert!(watch.is(Phase::Closing) && !watch.is(Phase::Cut));
        watch.clone().reached(Phase::Draining).await;
        drop(drain);
        watch.reached(Phase::Cut).await;
    }
}
