//! The arguments of `key`.

use clap::{Args, Subcommand, ValueEnum};
use kms_client::{
    AssociationForm, KeyCarrier, KeyKind, KeyPlace, MeterId, Protection, StageOptions,
    TransferOptions, TransferResult,
};

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Have the HSM make a key for a meter. Asked again, it is the same one, whoever asks
    Stage(Stage),
    /// Protect the transfer of what is staged, to be sent at once: each time the same wrapped key, and a new counter
    NextTransfer(NextTransfer),
    /// Say what the meter answered to the transfer
    Confirm(Confirm),
    /// Prefer another version that is ACTIVE: the former one, of a meter that fell back, or the newer one again
    Rollback(Version),
    /// Use a DEACTIVATED key again, of a meter that was set back to it; takes a second person
    Revive(Version),
    /// Say that a version is known to others. It still carries the transfer of its successor
    Compromise(Compromise),
    /// Have a version destroyed when the site's delay is over
    Destroy(Destroy),
    /// Take that back before the delay is over
    Restore(Version),
    /// Put a meter under a legal hold: nothing of it is destroyed until it is lifted
    Hold(Hold),
}

/// A key of a meter.
#[derive(Args)]
pub(crate) struct Place {
    /// The operator's name of the meter
    #[arg(value_name = "ID")]
    meter_id: MeterId,
    /// GUEK, GBEK, GAK or KEK
    #[arg(value_name = "KIND", value_parser = kind)]
    kind: KeyKind,
    /// e in 0.0.43.0.e.255: the security setup that the key belongs to
    #[arg(long, value_name = "N", default_value_t = 0)]
    security_setup: u8,
}

impl Place {
    pub(crate) fn key(&self) -> KeyPlace {
        let Self { meter_id, kind, security_setup } = self;
        KeyPlace { meter_id: meter_id.clone(), kind: *kind, security_setup: *security_setup }
    }
}

fn kind(text: &str) -> Result<KeyKind, String> {
    let kinds = [KeyKind::Guek, KeyKind::Gbek, KeyKind::Gak, KeyKind::Kek];
    let found = kinds.into_iter().find(|kind| kind.word().eq_ignore_ascii_case(text));
    found.ok_or_else(|| "keys that are rotated are GUEK, GBEK, GAK and KEK".to_owned())
}

/// The form of an association's messages.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Form {
    /// The service's own glo- form
    Glo,
    /// The service's own ded- form
    Ded,
    /// general-glo-ciphering
    GeneralGlo,
    /// general-ciphering with an identified key
    GeneralCiphering,
}

impl Form {
    pub(crate) fn wanted(self) -> AssociationForm {
        match self {
            Self::Glo => AssociationForm::Glo,
            Self::Ded => AssociationForm::Ded,
            Self::GeneralGlo => AssociationForm::GeneralGlo,
            Self::GeneralCiphering => AssociationForm::GeneralCiphering,
        }
    }
}

/// Where a key's clear bytes may be.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Level {
    /// Used inside the HSM alone
    Hsm,
    /// Released into locked memory of the server
    Memory,
}

#[derive(Args)]
pub(crate) struct Stage {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Of COSEM class 64 in the meter, 0 or 1. Version 0 can't change the KEK
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=1))]
    class_version: u8,
    /// The security setup of the association that carries it; the key's own otherwise. Keys of a customer port travel
    /// over the management association
    #[arg(long, value_name = "N")]
    carrier_setup: Option<u8>,
    /// The client (its address) of that association; the meter's default otherwise
    #[arg(long, value_name = "N")]
    carrier_client: Option<u16>,
    /// The form of that association's messages; general-glo otherwise
    #[arg(long, value_enum, value_name = "FORM")]
    carrier_form: Option<Form>,
    /// The version of the KEK that it is to travel under; the preferred one otherwise
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    kek_version: u16,
    /// Where its clear bytes may be; as its predecessor's otherwise
    #[arg(long, value_enum, value_name = "LEVEL")]
    protection: Option<Level>,
    /// It may be sent although the other site has not proved that it has it: if this site is lost then, so is the meter
    #[arg(long)]
    allow_unreplicated: bool,
    /// The KEK is known to others, and so may be the new key; takes a second person
    #[arg(long)]
    under_compromised_kek: bool,
}

impl Stage {
    pub(crate) fn options(&self) -> StageOptions {
        StageOptions {
            class_version: self.class_version,
            carrier: self.carrier(),
            kek_version: self.kek_version,
            protection: self.protection.map(|level| match level {
                Level::Hsm => Protection::Hsm,
                Level::Memory => Protection::Memory,
            }),
            allow_unreplicated: self.allow_unreplicated,
            under_compromised_kek: self.under_compromised_kek,
        }
    }

    /// What is not said of the carrier is as without it.
    fn carrier(&self) -> Option<KeyCarrier> {
        let Self { carrier_setup, carrier_client, carrier_form, .. } = self;
        let said = carrier_setup.is_some() || carrier_client.is_some() || carrier_form.is_some();
        said.then(|| KeyCarrier {
            security_setup: carrier_setup.unwrap_or(self.place.security_setup),
            client: carrier_client.unwrap_or_default(),
            form: carrier_form.map(Form::wanted).unwrap_or_default(),
        })
    }
}

#[derive(Args)]
pub(crate) struct NextTransfer {
    #[command(flatten)]
    pub(crate) place: Place,
    /// The version of the encryption key that the meter is presumed to hold; the preferred one otherwise
    #[arg(long, value_name = "N", requires = "authentication_version")]
    encryption_version: Option<u16>,
    /// The same of the authentication key
    #[arg(long, value_name = "N", requires = "encryption_version")]
    authentication_version: Option<u16>,
    /// In another form than the one that was staged
    #[arg(long, value_enum, value_name = "FORM")]
    form: Option<Form>,
    /// Invoke-id and priority of the action, the whole byte: decimal, or hex with 0x
    #[arg(long, value_name = "N", default_value = "0xC1", value_parser = byte)]
    invoke_id: u8,
}

impl NextTransfer {
    pub(crate) fn options(&self) -> TransferOptions {
        TransferOptions {
            encryption_key_version: self.encryption_version.unwrap_or_default(),
            authentication_key_version: self.authentication_version.unwrap_or_default(),
            invoke_id_and_priority: self.invoke_id,
            form: self.form.map(Form::wanted),
            lease: 0,
        }
    }
}

fn byte(text: &str) -> Result<u8, String> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let number = hex.map_or_else(|| text.parse(), |digits| u8::from_str_radix(digits, 16));
    number.map_err(|_| "it is one byte: 0 to 255, or 0x0 to 0xFF".to_owned())
}

/// The meter's answer.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Reply {
    /// action-result success
    Success,
    /// Any other action-result
    Refused,
    /// None came
    NoAnswer,
}

impl Reply {
    pub(crate) fn result(self) -> TransferResult {
        match self {
            Self::Success => TransferResult::Success,
            Self::Refused => TransferResult::Refused,
            Self::NoAnswer => TransferResult::NoAnswer,
        }
    }
}

#[derive(Args)]
pub(crate) struct Confirm {
    #[command(flatten)]
    pub(crate) place: Place,
    /// The meter's answer
    #[arg(long, value_enum, value_name = "ANSWER")]
    pub(crate) result: Reply,
}

/// A version of a key.
#[derive(Args)]
pub(crate) struct Version {
    #[command(flatten)]
    pub(crate) place: Place,
    /// The version, as `meter get` shows it
    #[arg(value_name = "VERSION", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) version: u16,
}

#[derive(Args)]
pub(crate) struct Compromise {
    #[command(flatten)]
    pub(crate) which: Version,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct Destroy {
    #[command(flatten)]
    pub(crate) which: Version,
    /// Also if the meter can't be reached without it; takes a second person
    #[arg(long)]
    pub(crate) last_way: bool,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct Hold {
    /// The operator's name of the meter
    #[arg(value_name = "ID")]
    pub(crate) meter_id: MeterId,
    /// Lift it
    #[arg(long)]
    pub(crate) lift: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(subcommand)]
        command: KeyCommand,
    }

    fn parse(line: &str) -> Result<KeyCommand, clap::Error> {
        let words = ["key"].into_iter().chain(line.split(' '));
        Only::try_parse_from(words).map(|only| only.command)
    }

    fn staging(line: &str) -> StageOptions {
        let Ok(KeyCommand::Stage(stage)) = parse(line) else { panic!("{line}") };
        stage.options()
    }

    #[test]
    fn a_key_is_staged_as_the_flags_say_and_by_default_as_its_predecessor() {
        assert_eq!(staging("stage m guek"), StageOptions::default());
        let all = staging(
            "stage m KEK --security-setup 1 --class-version 1 --carrier-setup 2 --carrier-client 16 --carrier-form \
             general-ciphering --kek-version 3 --protection hsm --allow-unreplicated --under-compromised-kek",
        );
        assert_eq!(
            all,
            StageOptions {
                class_version: 1,
                carrier: Some(KeyCarrier {
                    security_setup: 2,
                    client: 16,
                    form: AssociationForm::GeneralCiphering,
                }),
                kek_version: 3,
                protection: Some(Protection::Hsm),
                allow_unreplicated: true,
                under_compromised_kek: true,
            }
        );
        // A carrier of which one thing is said is of the key's own setup.
        let carrier =
            KeyCarrier { security_setup: 5, client: 1, form: AssociationForm::GeneralGlo };
        let of_client = staging("stage m guek --security-setup 5 --carrier-client 1");
        assert_eq!(of_client.carrier, Some(carrier));
    }

    #[test]
    fn a_transfer_names_both_versions_or_none_and_an_invoke_id_of_one_byte() {
        let sending = |line: &str| match parse(line) {
            Ok(KeyCommand::NextTransfer(next)) => Some(next.options()),
            _ => None,
        };
        let plain = sending("next-transfer m gak").unwrap();
        assert_eq!(plain, TransferOptions { invoke_id_and_priority: 0xC1, ..plain });
        assert_eq!((plain.encryption_key_version, plain.form), (0, None));
        let line = "next-transfer m gak --encryption-version 1 --authentication-version 2 --invoke-id 66 --form glo";
        let named = TransferOptions {
            encryption_key_version: 1,
            authentication_key_version: 2,
            invoke_id_and_priority: 66,
            form: Some(AssociationForm::Glo),
            lease: 0,
        };
        assert_eq!(sending(line), Some(named));
        for bad in ["--encryption-version 1", "--authentication-version 1", "--invoke-id 256"] {
            assert_eq!(sending(&format!("next-transfer m gak {bad}")), None, "{bad}");
        }
    }

    #[test]
    fn what_is_not_rotated_is_no_kind_and_no_version_is_0() {
        for bad in [
            "stage m DEDICATED",
            "stage m HLS_SECRET",
            "stage m",
            "stage m guek --class-version 2",
            "confirm m guek",
            "rollback m guek",
            "rollback m guek 0",
            "destroy m guek 65536",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("destroy m GaK 65535 --last-way --yes").is_ok());
        assert!(parse("hold m --lift").is_ok());
    }
}
