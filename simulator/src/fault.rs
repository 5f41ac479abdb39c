//! What happens to the world, and how often it hit what: the table of a run. A fault that never hit a site in one of its
//! states was not tried.

use std::fmt;

use kms_core::{Numbered as _, numbered};

numbered! {
    /// A fault.
    pub enum Fault "fault" {
        /// A message is lost, and its connection with it.
        Loss = 1 "loss",
        /// A message overtakes another one.
        Reordering = 2 "reordering",
        /// A message comes twice.
        Duplication = 3 "duplication",
        /// An old message comes once more.
        Replay = 4 "replay",
        /// A bit of a message is turned, or two records are exchanged.
        Tampering = 5 "tampering",
        /// Two sites don't reach each other.
        Partition = 6 "partition",
        /// A process ends between two steps.
        Crash = 7 "crash",
        /// All processes of a site end, and what was on its way.
        PowerLoss = 8 "power loss",
        /// The database is put back to a backup.
        Rollback = 9 "rollback",
        /// The database fails over to a standby that lacks its tail.
        Failover = 10 "database failover",
        /// A process is frozen; its clock goes on.
        Freeze = 11 "frozen process",
        /// A machine is paused; its clock stands still.
        Pause = 12 "paused machine",
        /// The clock jumps.
        ClockJump = 13 "clock jump",
        /// A commit is done, and its caller never learns it.
        UnknownOutcome = 14 "unknown outcome",
        /// A site is promoted although the other one lives.
        Promotion = 15 "promotion",
        /// A site ends to write.
        Demotion = 16 "demotion",
        /// A site takes over in order.
        Switchover = 17 "switchover",
        /// A counter is used on a value that meters of several blocks share.
        SharedValue = 18 "shared value",
        /// The site's token has lost one of its KEKs.
        MissingKek = 19 "missing KEK",
        /// The site's token no longer opens a block.
        ShutBlock = 20 "shut block",
    }
}

numbered! {
    /// The state of the site that was hit.
    pub enum Hit "state" {
        /// It writes, and knows all.
        Primary = 1 "primary",
        /// It follows.
        Secondary = 2 "secondary",
        /// It writes, and was replaced without knowing it.
        Replaced = 3 "replaced",
        /// It was rolled back.
        Restored = 4 "restored",
        /// It is the replica.
        Replica = 5 "replica",
    }
}

/// How often each fault hit a site in each state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits([[u64; Hit::ALL.len()]; Fault::ALL.len()]);

impl Hits {
    /// One more.
    pub fn count(&mut self, fault: Fault, hit: Hit) {
        self.0[fault.index()][hit.index()] += 1;
    }

    /// Those of another run, too.
    pub fn add(&mut self, other: &Self) {
        for (row, others) in self.0.iter_mut().zip(&other.0) {
            for (count, other) in row.iter_mut().zip(others) {
                *count += other;
            }
        }
    }

    /// Where none is expected: a replica neither writes nor is promoted, and only who writes transmits or ends.
    fn is_possible(fault: Fault, hit: Hit) -> bool {
        match fault {
            Fault::Promotion => !matches!(hit, Hit::Primary | Hit::Replica | Hit::Replaced),
            Fault::Demotion | Fault::SharedValue | Fault::UnknownOutcome => {
                matches!(hit, Hit::Primary | Hit::Replaced)
            }
            Fault::Switchover => hit == Hit::Secondary,
            _ => true,
        }
    }

    /// The faults that never hit a site in a state in which they can.
    pub fn missing(&self) -> Vec<(Fault, Hit)> {
        let all = Fault::ALL.iter().flat_map(|fault| Hit::ALL.iter().map(|hit| (*fault, *hit)));
        all.filter(|(fault, hit)| {
            Self::is_possible(*fault, *hit) && self.0[fault.index()][hit.index()] == 0
        })
        .collect()
    }
}

impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18}", "")?;
        Hit::ALL.iter().try_for_each(|hit| write!(f, "{:>12}", hit.word()))?;
        for fault in Fault::ALL {
            write!(f, "\n{:<18}", fault.word())?;
            for hit in Hit::ALL {
                match Self::is_possible(*fault, *hit) {
                    true => write!(f, "{:>12}", self.0[fault.index()][hit.index()])?,
                    false => write!(f, "{:>12}", "-")?,
                }
            }
        }
        Ok(())
    }
}
