//! Readiness: what the site that follows has proved, in a report that the site which asked for it has signed.

use sha2::{Digest as _, Sha256};

use super::{DomainId, makeup::Difference, tokens::TokenId};
use crate::{
    Epoch, Numbered as _,
    audit::{Signature, Verifies, is_signed},
    block::{BlockMark, Digest},
    codec::{BadEncoding, Reader, put_bytes},
};

crate::numbered! {
    /// Readiness at a glance.
    pub enum Colour "colour" {
        /// All is proved, and both sites are alike.
        Green = 1 "GREEN",
        /// All is proved, and the sites differ in something that is named, or the site does not follow.
        Yellow = 2 "YELLOW",
        /// Not all is proved.
        Red = 3 "RED",
    }
}

/// What a site has proved of the blocks as they are stored there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadinessReport {
    /// The key domain.
    pub domain: DomainId,
    /// The site whose readiness it is.
    pub site: String,
    /// The site that asked for the proofs, held them against its own blocks, and signs. The same as `site`: its peer is
    /// not there, and it has opened all blocks for itself.
    pub by: String,
    /// The epoch that the asker knew as the highest.
    pub epoch: Epoch,
    /// The end of the round; milliseconds since 1970.
    pub at_ms: u64,
    /// The domain's blocks.
    pub blocks: u32,
    /// Of them, proved within the stated age.
    pub proved: u32,
    /// Of them, those that could not be proved.
    pub failed: u32,
    /// The time of the oldest proof; 0: not all are proved.
    pub oldest_ms: u64,
    /// The site's token opened the canary of each of its KEKs in this round, both sealed ones among them.
    pub keks: bool,
    /// Over the states of all blocks that were proved: [`heads_digest`]. Zeros: not all are.
    pub heads: Digest,
    /// In what the two sites differ.
    pub differences: Vec<Difference>,
    /// The first failures, as sentences.
    pub failures: Vec<String>,
    /// The token of the site that all of it is about; `None`: a release signed this that asked no token for its name.
    pub token: Option<TokenId>,
}

/// A report, and the signature of the site that asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReadiness {
    /// The report.
    pub report: ReadinessReport,
    /// Of `by`'s signing key, over [`ReadinessReport::message`].
    pub signature: Signature,
}

/// The digest over states of blocks, in their order.
pub fn heads_digest<'a>(marks: impl IntoIterator<Item = &'a BlockMark>) -> Digest {
    let mut digest = Sha256::new();
    digest.update(b"ami.kms/proved/1");
    for BlockMark { block, position, digest: state } in marks {
        digest.update(block.0.to_be_bytes());
        digest.update(position.epoch.0.to_be_bytes());
        digest.update(position.sequence.0.to_be_bytes());
        digest.update(state);
    }
    digest.finalize().into()
}

impl ReadinessReport {
    /// The most failures that are named.
    pub const FAILURES_MAX: usize = 16;
    /// The bytes of a failure's sentence, at most.
    pub const FAILURE_LEN_MAX: usize = 600;

    /// Blocks that were not proved and did not fail either.
    pub const fn unproved(&self) -> u32 {
        self.blocks.saturating_sub(self.proved.saturating_add(self.failed))
    }

    /// Whether every block and every KEK is proved.
    pub const fn is_complete(&self) -> bool {
        self.keks && self.failed == 0 && self.proved == self.blocks && self.blocks > 0
    }

    /// Readiness as it was found.
    pub fn colour(&self) -> Colour {
        match (self.is_complete(), self.differences.is_empty()) {
            (false, _) => Colour::Red,
            (true, false) => Colour::Yellow,
            (true, true) => Colour::Green,
        }
    }

    /// The message that is signed, which is its encoding. What is too long or too much of the failures is left out.
    pub fn message(&self) -> Vec<u8> {
        let Self { domain, site, by, epoch, at_ms, blocks, proved, failed, .. } = self;
        let Self { oldest_ms, keks, heads, differences, failures, token, .. } = self;
        let label = if token.is_some() { LABEL_WITH_TOKEN } else { LABEL };
        let mut out = [label, &domain.0[..]].concat();
        put_bytes(&mut out, site.as_bytes());
        put_bytes(&mut out, by.as_bytes());
        out.extend_from_slice(&epoch.0.to_be_bytes());
        out.extend_from_slice(&at_ms.to_be_bytes());
        for count in [blocks, proved, failed] {
            out.extend_from_slice(&count.to_be_bytes());
        }
        out.extend_from_slice(&oldest_ms.to_be_bytes());
        out.push(u8::from(*keks));
        out.extend_from_slice(heads);
        out.push(differences.len() as u8); // each at most once
        out.extend(differences.iter().map(|difference| *difference as u8));
        let failures = &failures[..failures.len().min(Self::FAILURES_MAX)];
        out.push(failures.len() as u8);
        for failure in failures {
            let end = failure.floor_char_boundary(Self::FAILURE_LEN_MAX);
            put_bytes(&mut out, &failure.as_bytes()[..end]);
        }
        out.extend(token.iter().flat_map(|token| token.0));
        out
    }

    /// The report in the bytes of a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEncoding> {
        let with_token = bytes.strip_prefix(LABEL_WITH_TOKEN);
        let rest = with_token.or_else(|| bytes.strip_prefix(LABEL)).ok_or(BadEncoding)?;
        let mut input = Reader::new(rest);
        let mut report = Self {
            domain: DomainId(input.array()?),
            site: input.text()?.to_owned(),
            by: input.text()?.to_owned(),
            epoch: Epoch(input.u64()?),
            at_ms: input.u64()?,
            blocks: input.u32()?,
            proved: input.u32()?,
            failed: input.u32()?,
            oldest_ms: input.u64()?,
            keks: input.flag()?,
            heads: input.array()?,
            differences: differences(&mut input)?,
            failures: failures(&mut input)?,
            token: None,
        };
        if with_token.is_some() {
            report.token = Some(TokenId(input.array()?));
        }
        input.end()?;
        Ok(report)
    }
}

fn differences(input: &mut Reader<'_>) -> Result<Vec<Difference>, BadEncoding> {
    let count = input.u8()?;
    let one = |input: &mut Reader<'_>| Difference::from_number(input.u8()?).ok_or(BadEncoding);
    (0..count).map(|_| one(input)).collect()
}

fn failures(input: &mut Reader<'_>) -> Result<Vec<String>, BadEncoding> {
    let count = usize::from(input.u8()?);
    if count > ReadinessReport::FAILURES_MAX {
        return Err(BadEncoding);
    }
    let one = |input: &mut Reader<'_>| match input.text()? {
        text if text.len() > ReadinessReport::FAILURE_LEN_MAX => Err(BadEncoding),
        text => Ok(text.to_owned()),
    };
    (0..count).map(|_| one(input)).collect()
}

impl SignedReadiness {
    /// Whether the holder of `key` signed it.
    pub fn is_signed_by(&self, key: &impl Verifies) -> bool {
        is_signed(key, &self.report.message(), &self.signature)
    }
}

const LABEL: &[u8] = b"ami.kms/readiness/1";
const LABEL_WITH_TOKEN: &[u8] = b"ami.kms/readiness/2";

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ReadinessReport {
        ReadinessReport {
            domain: DomainId([7; 16]),
            site: "south".to_owned(),
            by: "north".to_owned(),
            epoch: Epoch(2),
            at_ms: 12,
            blocks: 16,
            proved: 16,
            failed: 0,
            oldest_ms: 9,
            keks: true,
            heads: [3; 32],
            differences: vec![Difference::AccessPolicy],
            failures: vec!["block 3: x".to_owned()],
            token: Some(TokenId([9; 8])),
        }
    }

    #[test]
    fn a_report_comes_back_from_its_message_and_from_no_other() {
        let message = report().message();
        assert_eq!(ReadinessReport::decode(&message), Ok(report()));
        for end in 0..message.len() {
            assert_eq!(ReadinessReport::decode(&message[..end]), Err(BadEncoding), "cut at {end}");
        }
        assert_eq!(ReadinessReport::decode(&[&message[..], &[0]].concat()), Err(BadEncoding));
        let nameless = ReadinessReport { token: None, ..report() };
        assert_eq!(ReadinessReport::decode(&nameless.message()), Ok(nameless));
        for at in 0..message.len() {
            for bit in 0..8 {
                let mut flipped = message.clone();
                flipped[at] ^= 1 << bit;
                assert_ne!(ReadinessReport::decode(&flipped), Ok(report()), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn failures_without_an_end_are_cut_and_still_a_report() {
        let long = ReadinessReport { failures: vec!["ä".repeat(2_000); 40], ..report() };
        let back = ReadinessReport::decode(&long.message()).unwrap();
        assert_eq!(back.failures.len(), ReadinessReport::FAILURES_MAX);
        assert!(back.failures[0].len() <= ReadinessReport::FAILURE_LEN_MAX);
    }

    #[test]
    fn invariant_11_a_report_is_red_while_one_block_or_one_kek_is_not_proved() {
        let alike = ReadinessReport { differences: Vec::new(), ..report() };
        assert_eq!(alike.colour(), Colour::Green);
        assert_eq!(report().colour(), Colour::Yellow);
        for red in [
            ReadinessReport { proved: 15, ..alike.clone() },
            ReadinessReport { proved: 15, failed: 1, ..alike.clone() },
            ReadinessReport { keks: false, ..alike.clone() },
            ReadinessReport { proved: 15, ..report() },
            ReadinessReport { blocks: 0, proved: 0, ..alike },
        ] {
            assert_eq!(red.colour(), Colour::Red, "{red:?}");
        }
    }
}
