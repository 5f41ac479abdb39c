//! Mechanism 5 of high-level security: the answer to a challenge is its GMAC.

use crate::{
    frame::{Under, control, gmac},
    octets::Octets,
};

/// Length of an answer.
pub const ANSWER: usize = 17;

/// The answer to `challenge` with this counter: control, counter, tag.
pub fn answer(under: Under<'_>, suite: u8, counter: u32, challenge: &[u8]) -> Option<Vec<u8>> {
    gmac(under, (suite, counter), challenge)
}

/// The counter inside an answer, if that is one.
pub fn counter_in(answer: &[u8]) -> Option<u32> {
    let mut octets = Octets(answer);
    let form = octets.byte()? & !control::SUITE == control::AUTHENTICATED;
    (form && answer.len() == ANSWER).then(|| octets.number()).flatten()
}

/// Whether `given` answers `challenge` under these keys.
pub fn answers(under: Under<'_>, suite: u8, challenge: &[u8], given: &[u8]) -> bool {
    let Some(counter) = counter_in(given) else { return false };
    let expected = answer(under, suite, counter, challenge);
    expected.is_some_and(|it| it == given)
}
