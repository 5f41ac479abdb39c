//! `hls`: the steps of an association with HLS authentication, one call each. What goes between the meter and the service is
//! carried by whoever calls.

use clap::{Args, Subcommand, ValueEnum};
use kms_client::{
    ApduProtection, CipheringForm, HlsAction, HlsAnswered, HlsAssociation, HlsBegin, HlsBegun,
    HlsChallenge, HlsGiven, HlsVerified, HlsVersions, KmsClient, MeterId, MeterName, SystemTitle,
    Verdict, parse_system_title, title_text,
};
use serde_json::json;

use crate::failure::{Exit, Failure};
use crate::hex_digits::parse_hex;
use crate::text::{block, say, say_json};

#[derive(Subcommand)]
pub(crate) enum HlsCommand {
    /// Begin an association: our challenge (CtoS) and the title for the AARQ, and the handle for the next steps
    Challenge(Begin),
    /// Answer the meter's challenge (StoC)
    Answer(Answer),
    /// Verify the meter's answer to our challenge
    Verify(Verify),
}

#[derive(Args)]
pub(crate) struct Begin {
    /// The meter, by the operator's name
    #[arg(long, value_name = "ID", conflicts_with = "system_title")]
    meter: Option<MeterId>,
    /// The meter, by its name on the wire, 16 hex digits
    #[arg(long, value_name = "HEX", value_parser = parse_system_title)]
    system_title: Option<SystemTitle>,
    /// e in 0.0.43.0.e.255
    #[arg(long, value_name = "N", default_value_t = 0)]
    security_setup: u8,
    /// The client (its address) that associates; 0: the meter's default
    #[arg(long, value_name = "N", default_value_t = 0)]
    client: u16,
    /// HLS_authentication_mechanism_id: 2 to 6
    #[arg(long, value_name = "N", default_value_t = 5)]
    mechanism: u8,
    /// Bytes of our challenge, 8 to 64; 0: 16
    #[arg(long, value_name = "N", default_value_t = 0)]
    challenge_length: u8,
    /// Of mechanism 5: 0, 1 or 2; by the key's length otherwise
    #[arg(long, value_name = "N")]
    security_suite: Option<u8>,
    #[command(flatten)]
    pair: Pair,
}

/// The pair of keys that the meter is presumed to hold.
#[derive(Args)]
struct Pair {
    /// The version of the GUEK that the meter is presumed to hold: staged, active or compromised
    #[arg(long, value_name = "N", requires = "authentication_version",
        value_parser = clap::value_parser!(u16).range(1..))]
    encryption_version: Option<u16>,
    /// The version of its GAK
    #[arg(long, value_name = "N", requires = "encryption_version",
        value_parser = clap::value_parser!(u16).range(1..))]
    authentication_version: Option<u16>,
}

impl Pair {
    fn versions(&self) -> Option<HlsVersions> {
        let (encryption, authentication) =
            self.encryption_version.zip(self.authentication_version)?;
        Some(HlsVersions { encryption, authentication })
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// general-glo-ciphering
    GeneralGlo,
    /// glo-action-request
    Glo,
}

#[derive(Args)]
pub(crate) struct Answer {
    /// The handle that `hls challenge` gave: whoever has it goes on with the association
    #[arg(value_name = "HANDLE", value_parser = handle)]
    association: HlsAssociation,
    /// StoC, in hex: the responding-authentication-value of the AARE
    #[arg(value_name = "STOC", value_parser = parse_hex)]
    challenge: std::vec::Vec<u8>,
    /// The answer is wanted as the ciphered ACTION request that carries it, in this form; else bare
    #[arg(long, value_enum, value_name = "FORM")]
    action: Option<Form>,
    /// Of that request: one byte in hex
    #[arg(long, value_name = "HEX", default_value = "C1", requires = "action", value_parser = byte)]
    invoke_id: u8,
    #[command(flatten)]
    pair: Pair,
}

#[derive(Args)]
pub(crate) struct Verify {
    /// The handle that `hls challenge` gave
    #[arg(value_name = "HANDLE", value_parser = handle)]
    association: HlsAssociation,
    /// f(CtoS) itself, in hex
    #[arg(long, value_name = "HEX", conflicts_with = "apdu", value_parser = parse_hex)]
    answer: Option<std::vec::Vec<u8>>,
    /// The ciphered APDU that carries it, in hex, as it came
    #[arg(long, value_name = "HEX", value_parser = parse_hex)]
    apdu: Option<std::vec::Vec<u8>>,
    #[command(flatten)]
    pair: Pair,
}

fn handle(digits: &str) -> Result<HlsAssociation, String> {
    let bytes = parse_hex(digits)?;
    HlsAssociation::from_bytes(bytes).ok_or_else(|| "a handle has 64 hex digits".to_owned())
}

fn byte(digits: &str) -> Result<u8, String> {
    u8::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16)
        .map_err(|_| "it is one byte in hex".to_owned())
}

pub(crate) async fn run(
    client: &KmsClient,
    command: HlsCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        HlsCommand::Challenge(what) => begin(client, what, json).await,
        HlsCommand::Answer(what) => answer(client, what, json).await,
        HlsCommand::Verify(what) => verify(client, what, json).await,
    }
}

async fn begin(client: &KmsClient, what: Begin, json: bool) -> Result<Exit, Failure> {
    let meter = match (&what.meter, what.system_title) {
        (Some(id), None) => MeterName::Id(id.clone()),
        (None, Some(title)) => MeterName::Title(title),
        _ => return Err(Failure::usage("name the meter: --meter ID, or --system-title HEX")),
    };
    let begun = client
        .begin_hls(&HlsBegin {
            meter,
            security_setup: what.security_setup,
            client: what.client,
            mechanism: what.mechanism,
            challenge_length: what.challenge_length,
            security_suite: what.security_suite,
            versions: what.pair.versions(),
        })
        .await?;
    match json {
        true => say_json(&begun_json(&begun))?,
        false => say(&block(&begun_rows(&begun)))?,
    }
    Ok(Exit::good_if(begun.verdict == Verdict::Ok))
}

async fn answer(client: &KmsClient, what: Answer, json: bool) -> Result<Exit, Failure> {
    let action = what.action.map(|form| HlsAction {
        invoke_id_and_priority: what.invoke_id,
        form: match form {
            Form::GeneralGlo => CipheringForm::GeneralGlo,
            Form::Glo => CipheringForm::Glo,
        },
        protection: ApduProtection::AuthenticatedEncrypted,
    });
    let (challenge, versions) = (what.challenge.into(), what.pair.versions());
    let asked = HlsChallenge { challenge, action, versions };
    let answered = client.answer_hls_challenge(&what.association, asked).await?;
    match json {
        true => say_json(&answered_json(&answered, action.is_some()))?,
        false => say(&block(&answered_rows(&answered, action.is_some())))?,
    }
    Ok(Exit::good_if(answered.verdict == Verdict::Ok))
}

async fn verify(client: &KmsClient, what: Verify, json: bool) -> Result<Exit, Failure> {
    let given = match (what.answer, what.apdu) {
        (Some(answer), None) => HlsGiven::Bare(answer.into()),
        (None, Some(apdu)) => HlsGiven::Carried(apdu.into()),
        _ => return Err(Failure::usage("give the answer: --answer HEX, or --apdu HEX")),
    };
    let verified = client.verify_hls_answer(&what.association, given, what.pair.versions()).await?;
    match json {
        true => say_json(&verified_json(&verified))?,
        false => say(&block(&verified_rows(&verified)))?,
    }
    Ok(Exit::good_if(verified.verdict == Verdict::Ok))
}

fn begun_json(begun: &HlsBegun) -> serde_json::Value {
    json!({
        "verdict": begun.verdict.word(),
        "refusal": begun.refusal.map(|refusal| refusal.word()),
        "association": begun.association.as_ref().map(|it| hex::encode_upper(it.as_bytes())),
        "challenge": hex::encode_upper(&begun.challenge),
        "client_system_title": begun.client_title.as_ref().map(title_text),
        "system_title": begun.system_title.as_ref().map(title_text),
        "expires_in_ms": begun.expires_in.as_millis(),
        "reason": begun.reason,
    })
}

fn begun_rows(begun: &HlsBegun) -> Vec<(&'static str, String)> {
    let mut rows = vec![("verdict", begun.verdict.to_string())];
    let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    row("refusal", begun.refusal.map(|refusal| refusal.word().to_owned()));
    row("reason", begun.reason.clone());
    if let Some(association) = &begun.association {
        row("handle", Some(hex::encode_upper(association.as_bytes())));
        row("challenge (CtoS)", Some(hex::encode_upper(&begun.challenge)));
        row("client title", begun.client_title.as_ref().map(title_text));
        row("system title", begun.system_title.as_ref().map(title_text));
        row("good for", Some(format!("{} s", begun.expires_in.as_secs())));
    }
    rows
}

/// 0: none takes part.
fn taking_part(number: u32) -> Option<u32> {
    Some(number).filter(|number| *number > 0)
}

fn answered_json(answered: &HlsAnswered, carried: bool) -> serde_json::Value {
    let bytes = answered.bytes.as_ref().map(hex::encode_upper);
    let (answer, apdu) = if carried { (None, bytes) } else { (bytes, None) };
    json!({
        "verdict": answered.verdict.word(),
        "refusal": answered.refusal.map(|refusal| refusal.word()),
        "answer": answer,
        "apdu": apdu,
        "invocation_counter": taking_part(answered.invocation_counter),
        "apdu_invocation_counter": taking_part(answered.apdu_invocation_counter),
        "encryption_key_version": taking_part(answered.encryption_key_version),
        "authentication_key_version": taking_part(answered.authentication_key_version),
        "reason": answered.reason,
    })
}

fn answered_rows(answered: &HlsAnswered, carried: bool) -> Vec<(&'static str, String)> {
    let mut rows = vec![("verdict", answered.verdict.to_string())];
    let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    let number = |number| taking_part(number).map(|number| number.to_string());
    row("refusal", answered.refusal.map(|refusal| refusal.word().to_owned()));
    row("reason", answered.reason.clone());
    row("invocation counter", number(answered.invocation_counter));
    row("invocation counter of the APDU", number(answered.apdu_invocation_counter));
    row("encryption key version", number(answered.encryption_key_version));
    row("authentication key version", number(answered.authentication_key_version));
    let what = if carried { "apdu" } else { "answer f(StoC)" };
    row(what, answered.bytes.as_ref().map(hex::encode_upper));
    rows
}

fn verified_json(verified: &HlsVerified) -> serde_json::Value {
    json!({
        "verdict": verified.verdict.word(),
        "encryption_key_version": taking_part(verified.encryption_key_version),
        "authentication_key_version": taking_part(verified.authentication_key_version),
        "secret_version": taking_part(verified.secret_version),
        "invocation_counter": taking_part(verified.invocation_counter),
        "reason": verified.reason,
    })
}

fn verified_rows(verified: &HlsVerified) -> Vec<(&'static str, String)> {
    let mut rows = vec![("verdict", verified.verdict.to_string())];
    let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    let number = |number| taking_part(number).map(|number| number.to_string());
    row("reason", verified.reason.clone());
    row("encryption key version", number(verified.encryption_key_version));
    row("authentication key version", number(verified.authentication_key_version));
    row("HLS secret version", number(verified.secret_version));
    row("invocation counter", number(verified.invocation_counter));
    rows
}
