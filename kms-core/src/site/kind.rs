//! What a site may become: one of the two that may write, each in the epochs of its parity, or one that follows for ever.

use crate::Epoch;

crate::numbered! {
    /// What a site may become.
    pub enum PeerKind "kind of peer" {
        /// The site of even epochs: it may be promoted.
        Even = 1 "EVEN",
        /// The site of odd epochs: it may be promoted.
        Odd = 2 "ODD",
        /// It follows for ever.
        Replica = 3 "REPLICA",
    }
}

impl PeerKind {
    /// The site that writes in the epochs of this parity.
    pub const fn of_epochs(even: bool) -> Self {
        if even { Self::Even } else { Self::Odd }
    }

    /// The kind of a site that is told by these two: of a read-only one, `even` says nothing.
    pub const fn of_site(even: bool, read_only: bool) -> Self {
        if read_only { Self::Replica } else { Self::of_epochs(even) }
    }

    /// Whether its epochs are the even ones; `None`: it has none.
    pub const fn parity(self) -> Option<bool> {
        match self {
            Self::Even => Some(true),
            Self::Odd => Some(false),
            Self::Replica => None,
        }
    }

    /// Whether this epoch is one of its own: nobody else signs for it, and a replica for none.
    pub fn owns(self, epoch: Epoch) -> bool {
        self.parity() == Some(epoch.is_even())
    }
}
