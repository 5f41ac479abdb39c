//! Values as the file has them, checked: numbers within bounds, texts, addresses, paths.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::error::ConfigError;

/// `value`, if it is within `bounds`.
pub(super) fn within<T: TryFrom<u64>>(
    key: &'static str,
    value: u64,
    bounds: RangeInclusive<u64>,
) -> Result<T, ConfigError> {
    let refusal =
        || ConfigError::OutOfRange { key, value, least: *bounds.start(), most: *bounds.end() };
    let inside = bounds.contains(&value).then_some(value).ok_or_else(refusal)?;
    T::try_from(inside).map_err(|_| refusal())
}

pub(super) fn millis(
    key: &'static str,
    value: u64,
    bounds: RangeInclusive<u64>,
) -> Result<Duration, ConfigError> {
    within(key, value, bounds).map(Duration::from_millis)
}

pub(super) fn seconds(
    key: &'static str,
    value: u64,
    bounds: RangeInclusive<u64>,
) -> Result<Duration, ConfigError> {
    within(key, value, bounds).map(Duration::from_secs)
}

pub(super) fn text(key: &'static str, value: String, most: usize) -> Result<String, ConfigError> {
    let is_printable = !value.trim().is_empty() && !value.contains(|c: char| c.is_control());
    if is_printable && value.len() <= most {
        Ok(value)
    } else {
        Err(ConfigError::Text { key, value, most })
    }
}

pub(super) fn address(
    key: &'static str,
    value: String,
    example: &'static str,
) -> Result<SocketAddr, ConfigError> {
    value.parse().map_err(|_| ConfigError::Listen { key, value, example })
}

pub(super) fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() { Ok(path) } else { Err(ConfigError::RelativePath { key, path }) }
}
