//! Refusals of a supplier's file, one sentence each. None repeats a value of the file.

/// The reason why nothing was taken of a supplier's file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShipmentError {
    /// More than is held in memory.
    #[error("the file has more than {limit} {what}: have the supplier deliver it in parts")]
    TooLarge {
        /// The unit: bytes, elements, levels.
        what: &'static str,
        /// The most that is read.
        limit: usize,
    },
    /// No XML, or none that is taken.
    #[error("{what}, at line {line}, column {column}")]
    NotXml {
        /// Its fault.
        what: &'static str,
        /// From 1.
        line: u32,
        /// From 1.
        column: u32,
    },
    /// XML, and not the form that it should have.
    #[error("{what}: the file is not taken; ask its supplier")]
    Form {
        /// Its fault.
        what: &'static str,
    },
    /// Nobody signed it.
    #[error("the file is not signed: nothing of it is taken; ask its supplier for a signed one")]
    Unsigned,
    /// The signature, or what it covers.
    #[error("{what}: the file was changed, or is not what its supplier signed")]
    Signature {
        /// Its fault.
        what: &'static str,
    },
    /// Somebody else signed it.
    #[error(
        "the signature is of none whom trust_anchor of the supplier's settings names: {what}; compare the \
         certificate with the supplier before it is believed"
    )]
    Untrusted {
        /// Its fault.
        what: &'static str,
    },
    /// An algorithm that is not taken.
    #[error("{what} is not taken here: {instead}")]
    Algorithm {
        /// The algorithm's place.
        what: &'static str,
        /// Its remedy.
        instead: &'static str,
    },
    /// One answer to whatever may be wrong with what is encrypted: more would tell who made it how to go on.
    #[error(
        "what is encrypted does not open: it is encrypted to another key (or with another password), or was \
         changed; nothing of the file is taken"
    )]
    DoesNotOpen,
    /// The supplier's settings.
    #[error("the supplier's settings: {what}")]
    Settings {
        /// Its fault.
        what: String,
    },
}

impl ShipmentError {
    /// A word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "SHIPMENT_TOO_LARGE",
            Self::NotXml { .. } | Self::Form { .. } => "SHIPMENT_MALFORMED",
            Self::Unsigned => "SHIPMENT_UNSIGNED",
            Self::Signature { .. } => "SHIPMENT_SIGNATURE",
            Self::Untrusted { .. } => "SHIPMENT_UNTRUSTED",
            Self::Algorithm { .. } => "SHIPMENT_ALGORITHM",
            Self::DoesNotOpen => "SHIPMENT_DOES_NOT_OPEN",
            Self::Settings { .. } => "SUPPLIER_SETTINGS",
        }
    }
}
