//! The configuration of meters' lives.

/// The settings of `lifecycle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Accept key bytes in clear. Off but in demonstrations and development.
    pub allow_clear: bool,
}
