//! Bytes as people write them.

/// Reads hex digits; `0x` before them, and white space, colons and dashes between them, do not matter.
pub(crate) fn parse_hex(digits: &str) -> Result<Vec<u8>, String> {
    let digits = digits.trim();
    let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(digits);
    let between = |digit: &char| !digit.is_whitespace() && !matches!(digit, ':' | '-');
    let digits: String = digits.chars().filter(between).collect();
    hex::decode(digits).map_err(|error| format!("that is not hex: {error}"))
}
