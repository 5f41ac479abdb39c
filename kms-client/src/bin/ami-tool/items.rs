//! Questions about a telegram, and their answers for people and machines.

use std::io::{self, Write as _};

use dlms::frame::{FrameKind, unframe};
use dlms::plain::{Beginning, beginning};
use kms_client::{Apdu, Checked, Opened, Verdict, title_text};
use serde_json::{Value, json};

use crate::failure::{Exit, Failure};
use crate::hex_digits::parse_hex;
use crate::item_args::{Frame, Items};
use crate::text::{block, say, say_json};

const NAME_THE_METER: &str = "the APDU carries no system title, so its meter must be named: --meter ID or --system-title HEX (in a line: \"meter\" or \"system_title\")";

const LOOKS_WRONG: &str = "nothing was authenticated, and the plaintext begins as neither an APDU nor a P1 telegram: it may have been opened with a wrong key";

/// The telegram that was asked about: an APDU, and the frames that it was taken out of.
#[derive(Clone)]
pub(crate) struct Telegram {
    pub(crate) apdu: Apdu,
    pub(crate) frames: Vec<FrameKind>,
}

impl Telegram {
    /// Reads hex digits; white space, colons and dashes between them are passed over, and a frame is
    /// taken off.
    pub(crate) fn parse(digits: &str, frame: Frame) -> Result<Self, String> {
        let bytes = parse_hex(digits)?;
        let unframed = match frame {
            Frame::None => None,
            frame => unframe(&bytes, frame.kind()).map_err(|error| error.to_string())?,
        };
        let (bytes, frames) = match unframed {
            Some(unframed) => (unframed.apdu, unframed.layers),
            None => (bytes, Vec::new()),
        };
        let apdu = Apdu::new(bytes).map_err(|error| error.to_string())?;
        Ok(Self { apdu, frames })
    }

    fn frame_names(&self) -> Vec<&'static str> {
        self.frames.iter().map(|kind| kind.name()).collect()
    }
}

/// An answer about an APDU, as it can be shown.
pub(crate) trait Answer: Send + 'static {
    fn checked(&self) -> &Checked;
    fn plain(&self) -> Option<&[u8]>;

    /// In upper-case hex, where there is one.
    fn plaintext(&self) -> Option<String> {
        self.plain().map(hex::encode_upper)
    }

    /// A warning about a plaintext that nothing vouches for: it does not even look right.
    fn warning(&self) -> Option<&'static str> {
        let unauthenticated = self.verdict() == Verdict::OkUnauthenticated;
        let plain = self.plain().filter(|_| unauthenticated)?;
        (beginning(plain) == Beginning::Neither).then_some(LOOKS_WRONG)
    }

    fn verdict(&self) -> Verdict {
        self.checked().verdict
    }

    fn to_json(&self, telegram: &Telegram) -> Value {
        let (apdu, checked) = (&telegram.apdu, self.checked());
        let mut object = json!({
            "meter": apdu.meter_id(),
            "system_title": checked.system_title.as_ref().map(title_text),
            "verdict": checked.verdict.word(),
            "authenticated": checked.authenticated,
            "duplicate": checked.duplicate,
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
        if let Some(warning) = self.warning() {
            object["warning"] = warning.into();
        }
        if !telegram.frames.is_empty() {
            object["frame"] = telegram.frame_names().into();
        }
        object
    }

    fn to_text(&self, telegram: &Telegram) -> String {
        let (apdu, checked) = (&telegram.apdu, self.checked());
        let number = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
        let mut rows = vec![("verdict", checked.verdict.to_string())];
        let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
        row("reason", reason(apdu, checked));
        row("frame", Some(telegram.frame_names().join(", ")).filter(|names| !names.is_empty()));
        row("meter", apdu.meter_id().map(ToString::to_string));
        row("system title", checked.system_title.as_ref().map(title_text));
        row("authenticated", Some(if checked.authenticated { "yes" } else { "no" }.into()));
        row("opened before", checked.duplicate.then(|| "yes".into()));
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

    fn plain(&self) -> Option<&[u8]> {
        self.plaintext.as_deref()
    }
}

impl Answer for Checked {
    fn checked(&self) -> &Checked {
        self
    }

    fn plain(&self) -> Option<&[u8]> {
        None
    }
}

/// The service's reason, and the next step where the tool knows it.
fn reason(apdu: &Apdu, checked: &Checked) -> Option<String> {
    // Of what is no APDU, nobody knows whether it would carry a title.
    let could_help = matches!(checked.verdict, Verdict::UnknownMeter | Verdict::MicFailure);
    let nameless = could_help && !apdu.names_its_meter() && !apdu.carries_title();
    match (&checked.reason, nameless) {
        (Some(reason), true) => Some(format!("{reason}; {NAME_THE_METER}")),
        (None, true) => Some(NAME_THE_METER.to_owned()),
        (reason, false) => reason.clone(),
    }
}

pub(crate) fn show(telegram: &Telegram, answer: &impl Answer, json: bool) -> Result<Exit, Failure> {
    if json {
        say_json(&answer.to_json(telegram))?
    } else {
        say(&answer.to_text(telegram))?
    }
    if let Some(warning) = answer.warning() {
        // Whoever closed standard error does not want to know.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    Ok(Exit::good_if(answer.verdict().opened()))
}

pub(crate) fn one(what: &Items) -> Result<Telegram, Failure> {
    let digits = what.apdu.as_deref().unwrap_or_default();
    let mut telegram = Telegram::parse(digits, what.frame).map_err(Failure::usage)?;
    if let Some(meter) = what.meter.clone() {
        telegram.apdu = telegram.apdu.of_meter(meter);
    }
    if let Some(title) = what.system_title {
        telegram.apdu = telegram.apdu.of_system_title(title);
    }
    if let Some(setup) = what.security_setup {
        telegram.apdu = telegram.apdu.under_setup(setup);
    }
    Ok(telegram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(digits: &str) -> Result<Vec<u8>, String> {
        Telegram::parse(digits, Frame::Auto).map(|telegram| telegram.apdu.bytes().to_vec())
    }

    #[test]
    fn what_stands_between_the_digits_of_an_apdu_does_not_matter() {
        for digits in [" db 08\n4D4d ", "0xDB084D4D", "DB:08:4d:4d", "db-08-4d-4d"] {
            assert_eq!(bytes(digits).unwrap(), [0xDB, 0x08, 0x4D, 0x4D], "{digits}");
        }
        assert!(bytes("db 0").is_err());
        assert!(bytes("xx").is_err());
    }

    #[test]
    fn a_frame_is_taken_off_unless_it_is_to_stay() {
        let wrapped = "0001 0001 0010 0003 C80100";
        assert_eq!(bytes(wrapped).unwrap(), [0xC8, 1, 0]);
        let telegram = Telegram::parse(wrapped, Frame::Wrapper).unwrap();
        assert_eq!(telegram.frame_names(), ["wrapper"]);
        let whole = Telegram::parse(wrapped, Frame::None).unwrap();
        assert_eq!((whole.apdu.bytes().len(), whole.frames.len()), (11, 0));
        let other = Telegram::parse(wrapped, Frame::Hdlc).err().unwrap();
        assert!(other.contains("HDLC, frame 1: it does not begin as"), "{other}");
        let cut = bytes("0001 0001 0010 0004 C80100").unwrap_err();
        assert!(cut.contains("wrapper, frame 1: the bytes end inside it"), "{cut}");
    }

    proptest! {
        #[test]
        fn no_digits_make_it_panic(digits in "(7E|68|0001|E6E700|E0)?[0-9A-F ]{0,80}") {
            let _ = bytes(&digits);
        }
    }
}
