//! High level security: the answers to challenges, by mechanism.
//!
//! Green Book, "High Level Security authentication"; passes 3 and 4 of the four-pass authentication.
//! Mechanism 5 is a GMAC under the meter's keys ([`compute`], [`verify`]); 2, 3, 4 and 6 are made with a secret of
//! free length ([`compute_with_secret`], [`verify_with_secret`]). Every challenge that is answered was looked at first:
//! its length, and whether it could be read as an APDU.

mod challenge;
mod error;
mod gmac;
mod lengths;
mod passes;
mod secret;

pub use challenge::{check_challenge, reads_as_apdu};
pub use error::HlsError;
pub use gmac::{ANSWER_LEN, compute, verify};
pub use lengths::{CHALLENGE_LEN_MAX, CHALLENGE_LEN_MIN};
pub use passes::{answer_in, is_reply, reply};
pub use secret::{
    Answer, Exchange, SecretMechanism, check_secret, compute_with_secret, verify_with_secret,
};
