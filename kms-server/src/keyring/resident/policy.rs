//! Policies of resident meters, in a byte each.

use kms_core::{MeterPolicy, MinimumProtection, profile::FloorRule};

/// A meter's policy as bits of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyBits(u8);

impl PolicyBits {
    /// Of a meter's policy, and what its profile says of receive floors.
    pub(super) fn of(policy: &MeterPolicy, floors: FloorRule) -> Self {
        let both = policy.minimum_protection == MinimumProtection::AuthenticatedEncrypted;
        Self(
            u8::from(both)
                | u8::from(policy.allow_encryption_only) << 1
                | u8::from(policy.allow_withheld_authentication_key) << 2
                | u8::from(policy.general_ciphering_omit_header) << 3
                | u8::from(!floors.is_off()) << 4
                | u8::from(policy.allow_compromised) << 5,
        )
    }

    /// As it is stored.
    pub(super) const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// To be stored.
    pub(super) const fn byte(self) -> u8 {
        self.0
    }

    /// Authentication alone is not enough.
    pub const fn demands_encryption(self) -> bool {
        self.0 & 1 != 0
    }

    /// Encryption-only APDUs are let through, marked.
    pub const fn allows_encryption_only(self) -> bool {
        self.0 & 2 != 0
    }

    /// Tagged APDUs are let through, marked, although the GAK is withheld.
    pub const fn allows_withheld_authentication_key(self) -> bool {
        self.0 & 4 != 0
    }

    /// General-ciphering's header is left out of the additional data.
    pub const fn omits_general_ciphering_header(self) -> bool {
        self.0 & 8 != 0
    }

    /// The plaintext of what opens under a compromised key is given, marked.
    pub const fn allows_compromised(self) -> bool {
        self.0 & 32 != 0
    }

    /// The meter has receive floors: an APDU that opened is not yet one that is new.
    #[inline]
    pub const fn has_floors(self) -> bool {
        self.0 & 16 != 0
    }
}
