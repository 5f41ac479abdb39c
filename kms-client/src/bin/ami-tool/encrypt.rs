//! `encrypt` and `meter declare-counter`.

use clap::{Args, ValueEnum};
use kms_client::{
    ApduProtection, CipheringForm, CounterDeclaration, CounterPurpose, KmsClient, MeterId,
    MeterName, PlainApdu, Protected, Protecting, Replicated, SystemTitle, Verdict,
    parse_system_title, title_text,
};
use serde_json::json;

use crate::failure::{Exit, Failure};
use crate::hex_digits::parse_hex;
use crate::text::{UNREPLICATED, block, say, say_json};

#[derive(Args)]
pub(crate) struct Meter {
    /// The meter, by the operator's name
    #[arg(long, value_name = "ID", conflicts_with = "system_title")]
    meter: Option<MeterId>,
    /// The meter, by its name on the wire, 16 hex digits
    #[arg(long, value_name = "HEX", value_parser = parse_system_title)]
    system_title: Option<SystemTitle>,
    /// e in 0.0.43.0.e.255
    #[arg(long, value_name = "N", default_value_t = 0)]
    security_setup: u8,
    /// The client (its address) whose title begins the nonce; 0: the meter's default
    #[arg(long, value_name = "N", default_value_t = 0)]
    client: u16,
    /// The key that the meter shares with others (GBEK), and not its own
    #[arg(long)]
    broadcast: bool,
}

impl Meter {
    fn name(&self) -> Result<MeterName, Failure> {
        match (&self.meter, self.system_title) {
            (Some(id), None) => Ok(MeterName::Id(id.clone())),
            (None, Some(title)) => Ok(MeterName::Title(title)),
            _ => Err(Failure::usage("name the meter: --meter ID, or --system-title HEX")),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// general-glo-ciphering
    GeneralGlo,
    /// The service's own form, such as glo-get-request
    Glo,
    /// general-ciphering with an identified key
    GeneralCiphering,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protection {
    /// Authenticated and encrypted
    Both,
    /// Authenticated, readable
    Authenticated,
    /// Encrypted without a tag, where the meter's policy allows that
    Encrypted,
}

#[derive(Args)]
pub(crate) struct Encrypt {
    #[command(flatten)]
    meter: Meter,
    /// The plain APDU in hex; spaces, colons and dashes do not matter. It is seen by whoever sees this machine's
    /// processes: what must not be seen goes through the library
    #[arg(long, value_name = "HEX")]
    apdu: String,
    /// The envelope
    #[arg(long, value_enum, default_value = "general-glo")]
    form: Form,
    /// How it is protected
    #[arg(long, value_enum, default_value = "both")]
    protection: Protection,
    /// 0, 1 or 2; by the key's length otherwise
    #[arg(long, value_name = "N")]
    security_suite: Option<u8>,
    /// It answers a challenge (class 15, method 1): also under a version that is staged or compromised
    #[arg(long)]
    hls: bool,
    /// It asks which keys the meter holds (a read of clock, logical device name, invocation counter, or a security setup's
    /// policy or suite): also under a version that is staged or compromised
    #[arg(long, conflicts_with = "hls")]
    probe: bool,
    /// Under this version of the encryption key, where the meter is presumed to hold another one than the preferred
    #[arg(long, value_name = "N", default_value_t = 0)]
    encryption_version: u16,
    /// The same of the authentication key
    #[arg(long, value_name = "N", default_value_t = 0)]
    authentication_version: u16,
}

#[derive(Args)]
pub(crate) struct DeclareCounter {
    #[command(flatten)]
    meter: Meter,
    /// The last invocation counter that the key was used with by this client: decimal, or hex with 0x. Nothing is
    /// sent with it or a lower one
    #[arg(long, value_name = "N", value_parser = counter, conflicts_with = "never_used")]
    last: Option<u32>,
    /// The key was never used by this client
    #[arg(long)]
    never_used: bool,
}

fn counter(text: &str) -> Result<u32, String> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let number = hex.map_or_else(|| text.parse(), |digits| u32::from_str_radix(digits, 16));
    number.map_err(|_| "a counter is 0 to 4294967295, or 0x0 to 0xFFFFFFFF".to_owned())
}

pub(crate) async fn encrypt(
    client: &KmsClient,
    what: Encrypt,
    json: bool,
) -> Result<Exit, Failure> {
    let Meter { security_setup, client: address, broadcast, .. } = what.meter;
    let how = Protecting {
        security_setup,
        client: address,
        broadcast,
        form: match what.form {
            Form::GeneralGlo => CipheringForm::GeneralGlo,
            Form::Glo => CipheringForm::Glo,
            Form::GeneralCiphering => CipheringForm::GeneralCiphering,
        },
        protection: match what.protection {
            Protection::Both => ApduProtection::AuthenticatedEncrypted,
            Protection::Authenticated => ApduProtection::Authenticated,
            Protection::Encrypted => ApduProtection::Encrypted,
        },
        encryption_key_version: what.encryption_version,
        authentication_key_version: what.authentication_version,
        security_suite: what.security_suite,
        purpose: match (what.hls, what.probe) {
            (true, _) => CounterPurpose::Hls,
            (_, true) => CounterPurpose::Probe,
            _ => CounterPurpose::Traffic,
        },
    };
    let bytes = parse_hex(&what.apdu).map_err(Failure::usage)?;
    let apdu = PlainApdu { bytes: bytes.into(), meter: what.meter.name()? };
    let protected = client.encrypt(&apdu, how).await?;
    show(&protected, json)?;
    Ok(Exit::good_if(protected.verdict == Verdict::Ok))
}

fn show(protected: &Protected, json: bool) -> Result<(), Failure> {
    match json {
        true => say_json(&protected_json(protected)),
        false => say(&block(&protected_rows(protected))),
    }
}

/// What became of an APDU, for programs.
pub(crate) fn protected_json(protected: &Protected) -> serde_json::Value {
    json!({
        "verdict": protected.verdict.word(),
        "refusal": protected.refusal.map(|refusal| refusal.word()),
        "apdu": protected.apdu.as_ref().map(hex::encode_upper),
        "invocation_counter": protected.invocation_counter,
        "encryption_key_version": protected.encryption_key_version,
        "authentication_key_version": protected.authentication_key_version,
        "reason": protected.reason,
    })
}

/// The same for people.
pub(crate) fn protected_rows(protected: &Protected) -> Vec<(&'static str, String)> {
    let apdu = protected.apdu.as_ref().map(hex::encode_upper);
    let refusal = protected.refusal.map(|refusal| refusal.word());
    let mut rows = vec![("verdict", protected.verdict.to_string())];
    let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    row("refusal", refusal.map(str::to_owned));
    row("reason", protected.reason.clone());
    row("invocation counter", protected.invocation_counter.map(|it| format!("{it} ({it:08X})")));
    if apdu.is_some() {
        row("encryption key version", Some(protected.encryption_key_version.to_string()));
        row("authentication key version", Some(protected.authentication_key_version.to_string()));
    }
    row("apdu", apdu);
    rows
}

pub(crate) async fn declare_counter(
    client: &KmsClient,
    what: DeclareCounter,
    json: bool,
) -> Result<Exit, Failure> {
    if what.last.is_none() && !what.never_used {
        return Err(Failure::usage("say --last N, or --never-used"));
    }
    let Meter { security_setup, client: address, broadcast, .. } = what.meter;
    let declaration = CounterDeclaration {
        meter: what.meter.name()?,
        security_setup,
        client: address,
        broadcast,
        last_invocation_counter: what.last,
    };
    let declared = client.meters().declare_counter(&declaration).await?;
    let title = |title: &Option<SystemTitle>| title.as_ref().map_or("-".into(), title_text);
    if json {
        say_json(&json!({
            "system_title": title(&declared.system_title),
            "client_title": title(&declared.client_title),
            "at_least": declared.at_least,
            "changed": declared.changed,
            "replicated": declared.replicated,
        }))?;
        return Ok(Exit::Good);
    }
    let changed = if declared.changed { "yes" } else { "no, it was so already" };
    say(&block(&[
        ("system title", title(&declared.system_title)),
        ("client title", title(&declared.client_title)),
        ("counters from", format!("{0} ({0:08X})", declared.at_least)),
        ("changed", changed.to_owned()),
    ]))?;
    if declared.replicated == Replicated::Unreplicated {
        say(&format!("the line is here and {UNREPLICATED}: nothing is sent on it before"))?;
    }
    Ok(Exit::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_in_both_notations() {
        assert_eq!((counter("255"), counter("0xFF"), counter("0XfF")), (Ok(255), Ok(255), Ok(255)));
        assert!(
            ["", "-1", "0x", "4294967296", "0x1FFFFFFFF", "FF"]
                .iter()
                .all(|it| counter(it).is_err())
        );
    }
}
