//! `decrypt` and `verify`.

use kms_client::{Apdu, Checked, KmsClient, Opened, Verdict, title_text};
use serde_json::{Value, json};

use crate::args::Items;
use crate::failure::{Exit, Failure};
use crate::lines;
use crate::text::{block, say, say_json};

const NAME_THE_METER: &str = "the APDU carries no system title, so its meter must be named: --meter ID or --system-title HEX (in a line: \"meter\" or \"system_title\")";

pub(crate) async fn decrypt(client: &KmsClient, what: Items, json: bool) -> Result<Exit, Failure> {
    if what.reads_lines() {
        return lines::answer(what, |apdus| client.decrypt_stream(apdus)).await;
    }
    let apdu = one(&what)?;
    show(&apdu, &client.decrypt(&apdu).await?, json)
}

pub(crate) async fn verify(client: &KmsClient, what: Items, json: bool) -> Result<Exit, Failure> {
    if what.reads_lines() {
        return lines::answer(what, |apdus| client.verify_mic_stream(apdus)).await;
    }
    let apdu = one(&what)?;
    show(&apdu, &client.verify_mic(&apdu).await?, json)
}

/// What can be shown of an APDU that was asked about.
pub(crate) trait Answer: Send + 'static {
    fn checked(&self) -> &Checked;
    /// In upper-case hex, where there is one.
    fn plaintext(&self) -> Option<String>;

    fn verdict(&self) -> Verdict {
        self.checked().verdict
    }

    fn to_json(&self, apdu: &Apdu) -> Value {
        let checked = self.checked();
        let mut object = json!({
            "meter": apdu.meter_id(),
            "system_title": checked.system_title.as_ref().map(title_text),
            "verdict": checked.verdict.name(),
            "authenticated": checked.authenticated,
            "encryption_key_version": checked.encryption_key_version,
            "authentication_key_version": checked.authentication_key_version,
            "security_setup": checked.security_setup,
            "invocation_counter": checked.invocation_counter,
        });
        if let Some(plaintext) = self.plaintext() {
            object["plaintext"] = plaintext.into();
        }
        if let Some(reason) = reason(apdu, checked) {
            object["reason"] = reason.into();
        }
        object
    }

    fn to_text(&self, apdu: &Apdu) -> String {
        let checked = self.checked();
        let number = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
        let mut rows = vec![("verdict", checked.verdict.to_string())];
        let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
        row("reason", reason(apdu, checked));
        row("meter", apdu.meter_id().map(ToString::to_string));
        row("system title", checked.system_title.as_ref().map(title_text));
        row("authenticated", Some(if checked.authenticated { "yes" } else { "no" }.into()));
        row("security setup", Some(number(checked.security_setup)));
        row("encryption key version", Some(number(checked.encryption_key_version)));
        row("authentication key version", Some(number(checked.authentication_key_version)));
        row("invocation counter", Some(number(checked.invocation_counter)));
        row("plaintext", self.plaintext());
        block(&rows)
    }
}

impl Answer for Opened {
    fn checked(&self) -> &Checked {
        &self.checked
    }

    fn plaintext(&self) -> Option<String> {
        self.plaintext.as_ref().map(hex::encode_upper)
    }
}

impl Answer for Checked {
    fn checked(&self) -> &Checked {
        self
    }

    fn plaintext(&self) -> Option<String> {
        None
    }
}

/// The service's reason, and the next step where the tool knows it.
fn reason(apdu: &Apdu, checked: &Checked) -> Option<String> {
    let nameless = !checked.verdict.opened() && !apdu.names_its_meter() && !apdu.carries_title();
    match (&checked.reason, nameless) {
        (Some(reason), true) => Some(format!("{reason}; {NAME_THE_METER}")),
        (None, true) => Some(NAME_THE_METER.to_owned()),
        (reason, false) => reason.clone(),
    }
}

fn show(apdu: &Apdu, answer: &impl Answer, json: bool) -> Result<Exit, Failure> {
    if json {
        say_json(&answer.to_json(apdu))?
    } else {
        say(&answer.to_text(apdu))?
    }
    Ok(Exit::good_if(answer.verdict().opened()))
}

fn one(what: &Items) -> Result<Apdu, Failure> {
    let digits = what.apdu.as_deref().unwrap_or_default();
    let mut apdu = parse_apdu(digits).map_err(Failure::usage)?;
    if let Some(meter) = what.meter.clone() {
        apdu = apdu.of_meter(meter);
    }
    if let Some(title) = what.system_title {
        apdu = apdu.of_system_title(title);
    }
    if let Some(setup) = what.security_setup {
        apdu = apdu.under_setup(setup);
    }
    Ok(apdu)
}

/// Reads hex digits; white space between them is passed over.
pub(crate) fn parse_apdu(digits: &str) -> Result<Apdu, String> {
    let digits: String = digits.chars().filter(|digit| !digit.is_whitespace()).collect();
    let bytes = hex::decode(digits).map_err(|error| format!("the APDU is not hex: {error}"))?;
    Apdu::new(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_between_the_digits_of_an_apdu_do_not_matter() {
        assert_eq!(parse_apdu(" db 08\n4D4d ").unwrap().bytes(), [0xDB, 0x08, 0x4D, 0x4D]);
        assert!(parse_apdu("db 0").is_err());
        assert!(parse_apdu("xx").is_err());
    }
}
