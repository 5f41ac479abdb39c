//! A call that waits for its second person, as the token of its site signs it: what is asked, by whom, until when, and
//! who has approved it. A database keeps these; nobody believes one before its signature.

use sha2::{Digest as _, Sha256};

use crate::{
    BlockNo, DomainId, MeterId, SystemTitle,
    audit::{ChainTip, NodeId, Signature, Subject, Verifies, is_signed},
    codec::{BadEncoding, Reader, put_bytes},
};

/// From the first call to its repetition, in milliseconds. Long enough to ring somebody up, short enough that both
/// still know what it was about.
pub const LIFE_MS: u64 = 15 * 60 * 1_000;
/// A server's clock that is further behind the one of the server that was asked does not judge what is over.
pub const CLOCKS_MAX_MS: u64 = 30_000;
/// The audit log's word for the use of an approval, which makes it one that was used.
pub const USED: &str = "Approvals/Use";
/// Its word for a promotion, which ends all approvals of its site.
pub const PROMOTED: &str = "Site/Promote";

const LABEL: &[u8] = b"ami.kms/waiting-call/1";

/// A call of one person: who asks for what, byte by byte. The same call has the same name.
pub type CallName = [u8; 32];

/// A call that waits, or that a second person has approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingCall {
    /// Nine digits, to be said on the telephone.
    pub number: u64,
    /// As a policy writes it: `Meters/DeleteMeter`.
    pub verb: String,
    /// The name in the first person's certificate.
    pub requester: String,
    /// A digest of all that counts of the request.
    pub digest: [u8; 32],
    /// The matter, as the second person is shown it.
    pub line: String,
    /// The matter, as the audit log names it.
    pub subject: Subject,
    /// When it was asked, by the clock of the server that was asked.
    pub asked_ms: u64,
    /// The name in the second person's certificate.
    pub approver: Option<String>,
    /// The ends of the site's audit chains when it was asked: its use stands behind them.
    pub ends: Vec<ChainTip>,
}

/// Not what the token of this site has signed for this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not what this site's token has signed for this call")]
pub struct NotSigned;

/// The age of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It waits, or may be made: for so many milliseconds.
    Lives(u64),
    /// It is over.
    Over,
    /// It was asked in the future of this clock, by so many milliseconds.
    OfAnotherClock(u64),
}

/// The name of a call.
pub fn name_of(verb: &str, requester: &str, digest: &[u8; 32]) -> CallName {
    let mut named = b"ami.kms/call-of-one-person/1".to_vec();
    put_bytes(&mut named, verb.as_bytes());
    put_bytes(&mut named, requester.as_bytes());
    named.extend_from_slice(digest);
    Sha256::digest(named).into()
}

impl WaitingCall {
    /// Its name.
    pub fn name(&self) -> CallName {
        name_of(&self.verb, &self.requester, &self.digest)
    }

    /// The end of its life, in milliseconds since 1970.
    pub const fn expires_ms(&self) -> u64 {
        self.asked_ms.saturating_add(LIFE_MS)
    }

    /// Its age by a clock that says `now_ms`.
    pub const fn age(&self, now_ms: u64) -> Age {
        let ahead = self.asked_ms.saturating_sub(now_ms);
        if ahead > CLOCKS_MAX_MS {
            Age::OfAnotherClock(ahead)
        } else if now_ms >= self.expires_ms() {
            Age::Over
        } else {
            Age::Lives(now_ms.saturating_sub(self.asked_ms))
        }
    }

    /// The end of a chain behind which its use stands.
    pub fn end_of(&self, node: NodeId) -> ChainTip {
        let known = self.ends.iter().find(|end| end.node == node);
        known.copied().unwrap_or(ChainTip::empty(node))
    }

    /// The bytes that a database keeps.
    pub fn encode(&self) -> Vec<u8> {
        let Self { number, verb, requester, digest, line, subject, asked_ms, approver, ends } =
            self;
        let mut out = LABEL.to_vec();
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&asked_ms.to_be_bytes());
        out.extend_from_slice(digest);
        for text in [verb, requester, line, approver.as_deref().unwrap_or_default()] {
            put_bytes(&mut out, text.as_bytes());
        }
        let Subject { meter_id, system_title, block } = subject;
        put_bytes(&mut out, meter_id.as_ref().map_or("", MeterId::as_str).as_bytes());
        put_bytes(&mut out, system_title.as_ref().map_or(&[][..], |title| title.as_bytes()));
        put_bytes(&mut out, block.map(|block| block.0.to_be_bytes()).as_ref().map_or(&[], |b| b));
        out.extend_from_slice(&(ends.len() as u32).to_be_bytes());
        for ChainTip { node, sequence, hash } in ends {
            out.extend_from_slice(&node.0);
            out.extend_from_slice(&sequence.to_be_bytes());
            out.extend_from_slice(hash);
        }
        out
    }

    /// The call in these bytes; refuses anything that [`WaitingCall::encode`] would not write.
    pub fn decode(body: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(body.strip_prefix(LABEL).ok_or(BadEncoding)?);
        let (number, asked_ms, digest) = (input.u64()?, input.u64()?, input.array()?);
        let (verb, requester) = (input.text()?.to_owned(), input.text()?.to_owned());
        let line = input.text()?.to_owned();
        let approver = Some(input.text()?.to_owned()).filter(|name| !name.is_empty());
        let subject = subject(&mut input)?;
        let count = input.u32()?;
        let ends = (0..count).map(|_| {
            Ok(ChainTip {
                node: NodeId(input.array()?),
                sequence: input.u64()?,
                hash: input.array()?,
            })
        });
        let ends = ends.collect::<Result<_, BadEncoding>>()?;
        input.end()?;
        Ok(Self { number, verb, requester, digest, line, subject, asked_ms, approver, ends })
    }

    /// The message that is signed.
    pub fn message(domain: &DomainId, body: &[u8]) -> Vec<u8> {
        [&b"ami.kms/waiting-call-of/1"[..], &domain.0, body].concat()
    }

    /// The call that was kept under this name and number, if the holder of `key` signed it so.
    pub fn open(
        kept: (&CallName, u64),
        body: &[u8],
        signature: &Signature,
        (domain, key): (&DomainId, &impl Verifies),
    ) -> Result<Self, NotSigned> {
        if !is_signed(key, &Self::message(domain, body), signature) {
            return Err(NotSigned);
        }
        let call = Self::decode(body).map_err(|BadEncoding| NotSigned)?;
        // A row that was copied is signed, and stands elsewhere.
        if (&call.name(), call.number) == kept { Ok(call) } else { Err(NotSigned) }
    }
}

fn subject(input: &mut Reader<'_>) -> Result<Subject, BadEncoding> {
    let meter_id = match input.text()? {
        "" => None,
        id => Some(MeterId::new(id).map_err(|_| BadEncoding)?),
    };
    let system_title = fixed(input.bytes()?)?.map(SystemTitle::new);
    let block = fixed(input.bytes()?)?.map(|block| BlockNo(u32::from_be_bytes(block)));
    Ok(Subject { meter_id, system_title, block })
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<Option<[u8; N]>, BadEncoding> {
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.try_into().map(Some).map_err(|_| BadEncoding)
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };

    use super::*;
    use crate::audit::PublicKey;

    fn call() -> WaitingCall {
        WaitingCall {
            number: 493_028_117,
            verb: "Meters/DeleteMeter".to_owned(),
            requester: "ann".to_owned(),
            digest: [7; 32],
            line: "meter \"m-1\"".to_owned(),
            subject: Subject {
                meter_id: Some(MeterId::new("m-1").unwrap()),
                system_title: Some(SystemTitle::new([3; 8])),
                block: Some(BlockNo(9)),
            },
            asked_ms: 1_000_000,
            approver: Some("bob".to_owned()),
            ends: vec![ChainTip { node: NodeId([1; 16]), sequence: 5, hash: [9; 32] }],
        }
    }

    #[test]
    fn a_call_comes_back_from_its_bytes_and_from_no_others() {
        let bare = WaitingCall {
            subject: Subject::NONE,
            approver: None,
            ends: Vec::new(),
            line: String::new(),
            ..call()
        };
        for call in [call(), bare] {
            let body = call.encode();
            assert_eq!(WaitingCall::decode(&body).as_ref(), Ok(&call));
            assert!((0..body.len()).all(|end| WaitingCall::decode(&body[..end]).is_err()));
            assert!(WaitingCall::decode(&[&body[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn what_another_wrote_changed_or_copied_opens_as_nothing() {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let key: PublicKey = pair.public_key().as_ref().try_into().unwrap();
        let (domain, body) = (DomainId([5; 16]), call().encode());
        let message = WaitingCall::message(&domain, &body);
        let signature: Signature =
            pair.sign(&random, &message).unwrap().as_ref().try_into().unwrap();
        let open = |name: &CallName, number, body: &[u8], domain: &DomainId| {
            WaitingCall::open((name, number), body, &signature, (domain, &key))
        };
        let (name, number) = (call().name(), call().number);
        assert_eq!(open(&name, number, &body, &domain), Ok(call()));
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert_eq!(open(&name, number, &changed, &domain), Err(NotSigned), "{at}");
        }
        let other = WaitingCall { requester: "cid".to_owned(), ..call() }.name();
        assert_eq!(open(&other, number, &body, &domain), Err(NotSigned));
        assert_eq!(open(&name, number + 1, &body, &domain), Err(NotSigned));
        assert_eq!(open(&name, number, &body, &DomainId([6; 16])), Err(NotSigned));
    }

    #[test]
    fn a_call_is_over_after_its_life_and_is_not_judged_by_a_clock_that_is_behind() {
        let (call, asked) = (call(), call().asked_ms);
        assert_eq!(call.age(asked), Age::Lives(0));
        assert_eq!(call.age(asked + LIFE_MS - 1), Age::Lives(LIFE_MS - 1));
        assert_eq!(call.age(asked + LIFE_MS), Age::Over);
        assert_eq!(call.age(asked - CLOCKS_MAX_MS), Age::Lives(0));
        assert_eq!(call.age(asked - CLOCKS_MAX_MS - 1), Age::OfAnotherClock(CLOCKS_MAX_MS + 1));
    }

    #[test]
    fn no_two_calls_have_one_name() {
        let digest = [7; 32];
        let name = name_of("a/b", "ann", &digest);
        assert_ne!(name, name_of("a/ba", "nn", &digest));
        assert_ne!(name, name_of("a/b", "bob", &digest));
        assert_ne!(name, name_of("a/b", "ann", &[8; 32]));
    }
}
