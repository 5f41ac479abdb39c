//! The outcome of one item of a crypto call.

/// What became of one APDU. The numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verdict {
    /// The tag verified.
    Ok = 1,
    /// Opened under an explicit policy; nothing was authenticated.
    OkUnauthenticated = 2,
    /// The tag did not verify under any live key version.
    MicFailure = 3,
    /// Invocation counter seen before or below the receive floor.
    Replayed = 4,
    /// No such meter, or the system title is not this meter's.
    UnknownMeter = 5,
    /// The meter has no key that this APDU may be opened with.
    NoUsableKey = 6,
    /// Protected less than the meter's policy demands.
    PolicyRefused = 7,
    /// Not a ciphered APDU.
    Malformed = 8,
    /// A ciphered APDU of a kind that this service does not open.
    Unsupported = 9,
    /// The key could not be reached; try again.
    Unavailable = 10,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::OkUnauthenticated,
        Self::MicFailure,
        Self::Replayed,
        Self::UnknownMeter,
        Self::NoUsableKey,
        Self::PolicyRefused,
        Self::Malformed,
        Self::Unsupported,
        Self::Unavailable,
    ];

    /// As on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::OkUnauthenticated => "OK_UNAUTHENTICATED",
            Self::MicFailure => "MIC_FAILURE",
            Self::Replayed => "REPLAYED",
            Self::UnknownMeter => "UNKNOWN_METER",
            Self::NoUsableKey => "NO_USABLE_KEY",
            Self::PolicyRefused => "POLICY_REFUSED",
            Self::Malformed => "MALFORMED",
            Self::Unsupported => "UNSUPPORTED",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    /// Whether plaintext comes back.
    pub const fn opened(self) -> bool {
        matches!(self, Self::Ok | Self::OkUnauthenticated)
    }
}
