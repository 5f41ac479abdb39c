//! Reasons why nothing is sent to a meter, as the wire and people name them.

crate::numbered! {
    /// The reason why an APDU was not protected, where its verdict does not say enough.
    pub enum Refusal "refusal" {
        /// This site does not write, so it does not transmit either.
        NotPrimary = 1 "NOT_PRIMARY",
        /// The key came from elsewhere, and nobody has declared the last counter that it was used with there.
        CounterUndeclared = 2 "COUNTER_UNDECLARED",
        /// The other site does not have the key's counter line as it is: it could go on below it.
        LineNotReplicated = 3 "LINE_NOT_REPLICATED",
        /// Another node of this site transmits for the block.
        HeldByAnotherNode = 4 "HELD_BY_ANOTHER_NODE",
        /// More counters were reserved than the database knows of: it was rolled back.
        CountersRolledBack = 5 "COUNTERS_ROLLED_BACK",
        /// No witness outside the database was asked since the start where the counters stand.
        CountersNotWitnessed = 6 "COUNTERS_NOT_WITNESSED",
        /// No counter is left in this epoch, those for key transfer aside.
        CountersUsedUp = 7 "COUNTERS_USED_UP",
        /// No counter epoch is left above what the key was used with: the meter needs another key first.
        RekeyFirst = 8 "REKEY_FIRST",
        /// The meter has no client title for this security setup and client.
        NoClientTitle = 9 "NO_CLIENT_TITLE",
        /// What is stored of the counters was changed outside this service.
        CountersDamaged = 10 "COUNTERS_DAMAGED",
        /// The message is not what it is said to be for.
        PurposeMismatch = 11 "PURPOSE_MISMATCH",
    }
}
