//! The phases of a shutdown, for everyone who has to act on them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

/// Between two looks whether calls still run.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The phase of the shutdown. Phases only go down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// No shutdown.
    Serving,
    /// No new connections, no new calls; running calls go on.
    Draining,
    /// No call runs any more but streams without an end of their own, which are told to go elsewhere. Not earlier: the
    /// answers of changes wait for what such a stream carries to the other site.
    Idle,
    /// Streams that are still open are told to go elsewhere.
    Closing,
    /// Connections are cut.
    Cut,
}

/// Owned by the server.
pub(crate) struct Drain {
    phase: watch::Sender<Phase>,
    working: Arc<AtomicUsize>,
}

/// A view of it, for everyone else.
#[derive(Clone)]
pub(crate) struct DrainWatch {
    phase: watch::Receiver<Phase>,
    working: Arc<AtomicUsize>,
}

/// A call that the end waits for, until it is dropped.
pub(crate) struct Work(Arc<AtomicUsize>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drain {
    /// Starts in [`Phase::Serving`].
    pub(crate) fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), working: Arc::default() }
    }

    /// The number of calls that the end waits for.
    pub(crate) fn working(&self) -> usize {
        self.working.load(Ordering::Acquire)
    }

    /// Ends once there is none.
    pub(crate) async fn idle(&self) {
        while self.working() > 0 {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Goes on to `phase`; never back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    /// A view.
    pub(crate) fn watch(&self) -> DrainWatch {
        DrainWatch { phase: self.phase.subscribe(), working: Arc::clone(&self.working) }
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
        *self.phase.borrow() >= phase
    }

    /// Ends once the shutdown is that far.
    pub(crate) async fn reached(mut self, phase: Phase) {
        // An error says that the server is gone: that is further than any phase.
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }

    /// A call that the end waits for.
    pub(crate) fn work(&self) -> Work {
        self.working.fetch_add(1, Ordering::AcqRel);
        Work(Arc::clone(&self.working))
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

    #[tokio::test]
    async fn it_is_idle_once_no_call_is_left_that_the_end_waits_for() {
        let drain = Drain::new();
        let work = [drain.watch().work(), drain.watch().work()];
        assert_eq!(drain.working(), 2);
        let mut idle = std::pin::pin!(drain.idle());
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut idle).await.is_err());
        drop(work);
        idle.await;
    }
}
