//! One row: cells in, a meter out.

use dlms::SystemTitle;
use kms_core::Numbered;
use kms_core::numbered::Expected;

use super::column::Column;
use crate::digits::{self, BadDigits};
use crate::meter::{KeyKind, MeterPolicy, NewKey, NewMeter, ProfileName, Protection};
use crate::names::MeterId;
use crate::secret::KeyBytes;

/// Said of a number in place of a text.
const NUMBER: &str = "a spreadsheet turned this into a number (such as 1.2E+31) and its digits are lost: \
                      format the column as text, and enter the values again";
const ROUNDED: &str = "a spreadsheet turned this into a number, of which it keeps 15 digits, and put zeros \
                       in the place of the others: format the column as text, and enter the values again";

/// One row under way.
#[derive(Default)]
pub(super) struct Row {
    meter_id: Option<MeterId>,
    system_title: Option<SystemTitle>,
    logical_device_name: String,
    keys: Vec<(KeyKind, KeyBytes)>,
    protection: Option<Protection>,
    security_setup: u8,
    policy: Option<MeterPolicy>,
}

impl Row {
    /// Takes one cell that is not empty.
    pub(super) fn take(&mut self, column: Column, text: &str) -> Result<(), String> {
        match column {
            Column::MeterId => self.meter_id = Some(meter_id(text)?),
            Column::SystemTitle => self.system_title = Some(title(text)?),
            Column::LogicalDeviceName => self.logical_device_name = text.to_owned(),
            Column::Key(kind) => self.keys.push((kind, key(kind, text)?)),
            Column::Protection => {
                self.protection = Some(item(text)?);
            }
            Column::SecuritySetup => {
                let expected = "security_setup is a number from 0 to 255";
                self.security_setup = text.parse().map_err(|_| expected)?;
            }
            Column::MinimumProtection => {
                self.policy().minimum_protection = Some(item(text)?);
            }
            Column::AllowEncryptionOnly => self.policy().allow_encryption_only = yes(text)?,
            Column::AllowWithheldAuthenticationKey => {
                self.policy().allow_withheld_authentication_key = yes(text)?;
            }
            Column::DefaultSystemTitle => self.policy().default_system_title = Some(title(text)?),
            Column::ClientTitle => self.policy().client_title = Some(title(text)?),
            Column::GeneralCipheringOmitHeader => {
                self.policy().general_ciphering_omit_header = yes(text)?;
            }
            Column::Profile => {
                let name = ProfileName::new(text).map_err(|error| error.to_string())?;
                self.policy().profile = Some(name);
            }
            Column::AllowCompromised => self.policy().allow_compromised = yes(text)?,
        }
        Ok(())
    }

    fn policy(&mut self) -> &mut MeterPolicy {
        self.policy.get_or_insert_default()
    }

    pub(super) fn into_meter(self) -> Result<NewMeter, String> {
        let Self { security_setup, protection, .. } = self;
        let key = |(kind, value)| NewKey {
            kind,
            value,
            security_setup,
            // Only these two have a choice.
            protection: protection.filter(|_| matches!(kind, KeyKind::Guek | KeyKind::Gbek)),
        };
        Ok(NewMeter {
            meter_id: self.meter_id.ok_or("meter_id is empty")?,
            system_title: self.system_title.ok_or("system_title is empty")?,
            logical_device_name: self.logical_device_name,
            keys: self.keys.into_iter().map(key).collect(),
            policy: self.policy,
        })
    }
}

fn meter_id(text: &str) -> Result<MeterId, String> {
    if digits::is_number(text) {
        return Err(NUMBER.into());
    }
    MeterId::new(text).map_err(|error| error.to_string())
}

fn title(text: &str) -> Result<SystemTitle, String> {
    const DIGITS: usize = 16;
    let fits = |found| {
        let lost = if found < DIGITS { LEADING_ZEROS } else { "" };
        format!("{found} hex digits, where a system title has {DIGITS}{lost}")
    };
    match digits::read(text, DIGITS / 2) {
        Ok(read) => SystemTitle::try_from(&read.bytes[..]).map_err(|_| fits(2 * read.bytes.len())),
        Err(BadDigits::Number) => Err(NUMBER.into()),
        Err(BadDigits::Odd(found)) => Err(fits(found)),
        Err(_) => Err("a system title is 8 bytes: 16 hex digits".into()),
    }
}

const LEADING_ZEROS: &str =
    "; a spreadsheet drops leading zeros: format the column as text, and enter the values again";

fn key(kind: KeyKind, text: &str) -> Result<KeyBytes, String> {
    if digits::is_rounded(text) {
        return Err(ROUNDED.into());
    }
    let value = KeyBytes::from_hex(text).map_err(|error| error.to_string())?;
    let found = 2 * value.expose_key_bytes().len();
    match kind {
        KeyKind::HlsSecret | KeyKind::LlsPassword => Ok(value),
        _ if matches!(found, 32 | 64) => Ok(value),
        _ => {
            let lost = if found < 32 { LEADING_ZEROS } else { "" };
            Err(format!("{found} hex digits, where a {kind} has 32, or 64 in suite 2{lost}"))
        }
    }
}

/// The item of this word, in either case, with blanks or dashes where the wire has underscores.
fn item<T: Numbered>(text: &str) -> Result<T, String> {
    let word = text.to_ascii_uppercase().replace([' ', '-'], "_");
    T::from_word(&word).ok_or_else(|| Expected::<T>::new().to_string())
}

fn yes(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}
