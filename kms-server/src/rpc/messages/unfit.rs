//! Approvals that are there, and are not believed.

/// Why nothing is done under an approval that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error(
        "what the database keeps of this call was not signed by the site's token: somebody changed or copied it. It was \
         taken away; find out who writes to the database, then let the call be made again"
    )]
    Changed,
    #[error(
        "this approval was used before, or the site was promoted since, and somebody put it back into the database. It was taken away; find out who writes \
         to the database, then let the call be made again"
    )]
    Used,
    #[error(
        "the audit log of this server began after the call was asked, so it is not made here under that approval, which was \
         taken away: make the call again, which asks anew at this server, or at one that ran when it is asked"
    )]
    YoungerServer,
    #[error(
        "the clock of this server is {} s behind that of the server where the call was asked, so how old it is can't be \
         told; set the clocks, or go to the other server", .by_ms / 1_000
    )]
    Clocks { by_ms: u64 },
}

impl Unfit {
    /// The reason word.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Changed => "APPROVAL_CHANGED",
            Self::Used => "APPROVAL_USED",
            Self::YoungerServer => "SERVER_YOUNGER",
            Self::Clocks { .. } => "CLOCKS_DIFFER",
        }
    }
}
