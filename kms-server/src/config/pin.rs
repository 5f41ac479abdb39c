//! The token's PIN and the database's password: read once, kept where they are wiped, never shown.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::ConfigError;
use crate::hsm::Pin;

/// In bytes; PKCS #11 tokens allow far less.
const MAX_LEN: usize = 255;

/// The PIN from whichever place the file names; exactly one.
pub(super) fn read(file: Option<PathBuf>, variable: Option<String>) -> Result<Pin, ConfigError> {
    match (file, variable) {
        (Some(file), None) => from_file(&file),
        (None, Some(variable)) if is_variable(&variable) => from_environment(&variable),
        (None, Some(_)) => Err(ConfigError::PinVariable),
        (None, None) | (Some(_), Some(_)) => Err(ConfigError::PinPlace),
    }
}

/// The database's password from whichever place the file names; at most one. `None`: the database
/// asks for none.
pub(super) fn password(
    file: Option<PathBuf>,
    variable: Option<String>,
) -> Result<Option<String>, ConfigError> {
    if file.is_none() && variable.is_none() {
        return Ok(None);
    }
    let secret = read(file, variable).map_err(|error| ConfigError::Password(Box::new(error)))?;
    Ok(Some(secret.expose_pin().to_owned()))
}

/// Whether this can be a variable's name. If not, it may be the PIN itself, by mistake, and must not
/// be repeated in a message.
fn is_variable(name: &str) -> bool {
    let is_word =
        name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    is_word && name.starts_with(|first: char| first.is_ascii_uppercase() || first == '_')
}

/// The first line of a file that only its owner can read.
pub(crate) fn from_file(path: &Path) -> Result<Pin, ConfigError> {
    let unreadable = |source| ConfigError::PinUnreadable { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(unreadable)?;
    // Asked of the open file: the one that is read, whatever the name points at by now.
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::PinExposed { path: path.to_owned(), mode });
    }
    // Room for all of it from the start: growing would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * MAX_LEN));
    let place = path.display().to_string();
    match file.take(MAX_LEN as u64 + 2).read_to_string(&mut text) {
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(ConfigError::PinMalformed { place })
        }
        Err(error) => Err(unreadable(error)),
        Ok(_) => checked(&text, place),
    }
}

/// The value of an environment variable.
fn from_environment(name: &str) -> Result<Pin, ConfigError> {
    #[expect(clippy::disallowed_methods, reason = "this is where settings come in")]
    let value = std::env::var(name).map(Zeroizing::new);
    let value = value.map_err(|_| ConfigError::PinNotInEnvironment { name: name.to_owned() })?;
    checked(&value, format!("the environment variable {name}"))
}

fn checked(text: &str, place: String) -> Result<Pin, ConfigError> {
    let pin = text.trim_end_matches(['\r', '\n']);
    let is_one_line = !pin.contains(['\r', '\n', '\0', '\u{FEFF}']);
    if is_one_line && (1..=MAX_LEN).contains(&pin.len()) {
        Ok(Pin::new(pin.to_owned()))
    } else {
        Err(ConfigError::PinMalformed { place })
    }
}
