//! Every call there is, by name.

use std::fmt;

macro_rules! verbs {
    ($($(#[$doc:meta])* $verb:ident = $service:literal / $method:literal;)*) => {
        /// One call of the gRPC package, or one of the two standard services. A policy grants verbs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verb {
            $($(#[$doc])* $verb,)*
            /// All of `grpc.health.v1.Health`: open to every known caller.
            Health,
            /// All of `grpc.reflection.v1.ServerReflection`: open to every known caller.
            Reflection,
        }

        impl Verb {
            /// The verbs that a policy grants, in the order of the .proto files.
            pub const GRANTABLE: &'static [Self] = &[$(Self::$verb,)*];

            /// Every verb there is, at its number.
            pub const ALL: &'static [Self] = &[$(Self::$verb,)* Self::Health, Self::Reflection];

            /// As a policy writes it: `Ciphering/Decrypt`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$verb => concat!($service, "/", $method),)*
                    Self::Health => "Health",
                    Self::Reflection => "Reflection",
                }
            }

            /// The verb that an HTTP path calls.
            pub fn of_path(path: &str) -> Option<Self> {
                match path {
                    $(concat!("/ami.kms.v1.", $service, "/", $method) => Some(Self::$verb),)*
                    _ if path.starts_with("/grpc.health.v1.Health/") => Some(Self::Health),
                    _ if path.starts_with("/grpc.reflection.v1.ServerReflection/") => {
                        Some(Self::Reflection)
                    }
                    _ => None,
                }
            }
        }
    };
}

verbs! {
    /// Open one APDU.
    Decrypt = "Ciphering" / "Decrypt";
    /// Open many.
    DecryptBatch = "Ciphering" / "DecryptBatch";
    /// Open batch after batch.
    DecryptStream = "Ciphering" / "DecryptStream";
    /// Check the MIC of one APDU.
    VerifyMic = "Ciphering" / "VerifyMic";
    /// Check many MICs.
    VerifyMicBatch = "Ciphering" / "VerifyMicBatch";
    /// Check MICs batch after batch.
    VerifyMicStream = "Ciphering" / "VerifyMicStream";
    /// Make a meter known.
    CreateMeter = "Meters" / "CreateMeter";
    /// Look at a meter.
    GetMeter = "Meters" / "GetMeter";
    /// Look at many meters.
    ListMeters = "Meters" / "ListMeters";
    /// Forget a meter.
    DeleteMeter = "Meters" / "DeleteMeter";
    /// Bring in meters and keys.
    ImportMeters = "Meters" / "ImportMeters";
    /// What sealed import files are sealed to.
    GetImportKey = "Meters" / "GetImportKey";
    /// Look at the site.
    GetStatus = "Site" / "GetStatus";
    /// Read the audit log.
    ListEvents = "Audit" / "ListEvents";
    /// Read the audit log as it grows.
    FollowEvents = "Audit" / "FollowEvents";
    /// Check the audit log.
    VerifyChain = "Audit" / "VerifyChain";
}

impl Verb {
    /// The grantable verb with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::GRANTABLE.iter().copied().find(|verb| verb.name() == name)
    }

    /// Whether a line of the log is due for each call: those that change or show more than what meters
    /// have sent. There are too many of the others.
    pub fn is_privileged(self) -> bool {
        !self.is_open() && !self.name().starts_with("Ciphering/")
    }

    /// Whether every known caller may use it, whatever its roles.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Reflection)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn every_verb_has_its_own_name() {
        for verb in Verb::GRANTABLE {
            assert_eq!(Verb::of_name(verb.name()), Some(*verb));
            assert_eq!(Verb::of_path(&format!("/ami.kms.v1.{verb}")), Some(*verb));
            assert!(!verb.is_open());
            assert_eq!(verb.is_privileged(), !verb.name().starts_with("Ciphering/"));
        }
    }

    #[test]
    fn a_path_that_only_looks_like_a_verb_is_none() {
        for path in [
            "",
            "/",
            "/ami.kms.v1.Ciphering/decrypt",
            "/ami.kms.v1.Ciphering/Decrypt/",
            "/ami.kms.v1.Ciphering/Decrypt?x",
            "ami.kms.v1.Ciphering/Decrypt",
            "/grpc.health.v1.Health",
            "/grpc.health.v1.HealthX/Check",
        ] {
            assert_eq!(Verb::of_path(path), None, "{path}");
        }
    }
}
