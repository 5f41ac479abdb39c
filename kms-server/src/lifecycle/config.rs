//! The configuration of meters' lives.

use kms_core::life::Times;

/// The settings of `lifecycle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Accept key bytes in clear. Off but in demonstrations and development.
    pub allow_clear: bool,
    /// Graces and delays in the lives of keys.
    pub times: Times,
}
