//! The outcome of one item of a crypto call.

crate::numbered! {
    /// The outcome of one APDU. The numbers are those of the wire.
    pub enum Verdict "verdict" {
        /// The tag verified.
        Ok = 1 "OK",
        /// Opened under an explicit policy; nothing was authenticated.
        OkUnauthenticated = 2 "OK_UNAUTHENTICATED",
        /// The tag did not verify under any live key version.
        MicFailure = 3 "MIC_FAILURE",
        /// Invocation counter seen before or below the receive floor.
        Replayed = 4 "REPLAYED",
        /// No such meter, or the system title is not this meter's.
        UnknownMeter = 5 "UNKNOWN_METER",
        /// The meter has no key that this APDU may be opened with.
        NoUsableKey = 6 "NO_USABLE_KEY",
        /// Protected less than the meter's policy demands.
        PolicyRefused = 7 "POLICY_REFUSED",
        /// Not a ciphered APDU.
        Malformed = 8 "MALFORMED",
        /// A ciphered APDU of a kind that this service does not open.
        Unsupported = 9 "UNSUPPORTED",
        /// The key could not be reached; try again.
        Unavailable = 10 "UNAVAILABLE",
        /// Opened under a key that is known to others: anybody may have made it. Plaintext comes back where the
        /// meter's policy allows that, and of answers to actions, which a key transfer needs.
        CompromisedKey = 11 "COMPROMISED_KEY",
    }
}

impl Verdict {
    /// What verified under a key that vouches for it, or under one that is known to others.
    pub const fn of_authentic(vouches: bool) -> Self {
        if vouches { Self::Ok } else { Self::CompromisedKey }
    }

    /// Whether plaintext may come back: with what opened, and with what opened under a compromised key.
    pub const fn may_have_plaintext(self) -> bool {
        self.opened() || matches!(self, Self::CompromisedKey)
    }

    /// Whether it opened, and plaintext comes back.
    pub const fn opened(self) -> bool {
        match self {
            Self::Ok | Self::OkUnauthenticated => true,
            Self::MicFailure
            | Self::Replayed
            | Self::UnknownMeter
            | Self::NoUsableKey
            | Self::PolicyRefused
            | Self::Malformed
            | Self::Unsupported
            | Self::Unavailable
            | Self::CompromisedKey => false,
        }
    }
}
