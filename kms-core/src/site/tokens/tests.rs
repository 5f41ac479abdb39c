use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use super::*;
use crate::site::peer::PeerKind;

const DOMAIN: DomainId = DomainId([7; 16]);

struct Token(EcdsaKeyPair, SystemRandom);

impl Token {
    fn new() -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap(), random)
    }

    fn key(&self) -> PublicKey {
        self.0.public_key().as_ref().try_into().unwrap()
    }

    fn sign(&self, tokens: SiteTokens) -> SignedSiteTokens {
        let signature = self.0.sign(&self.1, &tokens.message()).unwrap();
        SignedSiteTokens { tokens, signature: signature.as_ref().try_into().unwrap() }
    }
}

fn list(number: u64, signing: &[PublicKey]) -> SiteTokens {
    let (site, signing) = ("north".to_owned(), signing.to_vec());
    SiteTokens { domain: DOMAIN, site, number, signing, canaries: vec![1, 2, 3] }
}

fn peer(signing: PublicKey) -> Peer {
    Peer {
        domain: DOMAIN,
        site: "north".to_owned(),
        kind: PeerKind::Even,
        signing,
        transport_block: vec![9; 422],
        enrolled_ms: 12,
        former: Vec::new(),
        enrolled_in: None,
        tokens: None,
    }
}

#[test]
fn a_list_comes_back_from_its_message_and_from_no_other() {
    let list = list(2, &[[4; 65], [5; 65]]);
    let message = list.message();
    assert_eq!(SiteTokens::decode(&message), Ok(list.clone()));
    for end in 0..message.len() {
        assert_eq!(SiteTokens::decode(&message[..end]), Err(BadEncoding), "cut at {end}");
    }
    assert_eq!(SiteTokens::decode(&[message, vec![0]].concat()), Err(BadEncoding));
    for keys in [vec![], vec![[4; 65]; 3]] {
        let other = SiteTokens { signing: keys, ..list.clone() };
        assert_eq!(SiteTokens::decode(&other.message()), Err(BadEncoding));
    }
}

#[test]
fn a_token_believes_the_list_that_it_signed_and_no_other_one() {
    let (first, second, stranger) = (Token::new(), Token::new(), Token::new());
    let both = [first.key(), second.key()];
    let signed = second.sign(list(2, &both));
    let keys = signed.believed_by(&second.key(), &DOMAIN, "north").unwrap();
    assert_eq!((keys.first(), keys.iter().count()), (&second.key(), 2));
    for foreign in [
        signed.believed_by(&first.key(), &DOMAIN, "north"),
        signed.believed_by(&second.key(), &DomainId([8; 16]), "north"),
        signed.believed_by(&second.key(), &DOMAIN, "south"),
        stranger.sign(list(2, &both)).believed_by(&second.key(), &DOMAIN, "north"),
        stranger.sign(list(2, &both)).believed_by(&stranger.key(), &DOMAIN, "north"),
    ] {
        assert_eq!(foreign, None);
    }
}

#[test]
fn a_peer_shows_a_further_token_with_a_signature_that_is_known_and_never_an_older_list() {
    let (first, second, stranger) = (Token::new(), Token::new(), Token::new());
    let (one, both) = (peer(first.key()), [first.key(), second.key()]);
    let knows = one.showing(&first.sign(list(1_700_000_000_000, &both))).unwrap();
    assert_eq!(knows.keys(), SiteKeys::new(first.key(), [second.key()]));
    assert_eq!((knows.signing, knows.enrolled_ms, knows.former.len()), (first.key(), 13, 0));
    assert_eq!(Peer::decode(&knows.message()), Ok(knows.clone()));
    let three = [first.key(), stranger.key()];
    let elsewhere = SiteTokens { site: "south".to_owned(), ..list(2, &both) };
    let other_domain = SiteTokens { domain: DomainId([8; 16]), ..list(2, &both) };
    for (peer, shown) in [
        (&one, second.sign(list(2, &both))),
        (&one, stranger.sign(list(2, &three))),
        (&one, first.sign(elsewhere)),
        (&one, first.sign(other_domain)),
        (&one, first.sign(list(2, &[second.key(), stranger.key()]))),
        (&knows, first.sign(list(2, &three))),
        (&knows, first.sign(list(1, &both))),
        // No list is the last one for good, comes twice, or takes a key away.
        (&one, first.sign(list(u64::MAX, &both))),
        (&one, first.sign(list(1, &both))),
        (&one, first.sign(list(2, &[first.key()]))),
        (&knows, first.sign(list(2, &both))),
        (&knows, second.sign(list(3, &[second.key()]))),
        (&knows, second.sign(list(3, &[second.key(), stranger.key()]))),
    ] {
        assert_eq!(peer.showing(&shown), None);
    }
    // One that was made anew is named, and so is one that only a stranger signed for.
    let id = |token: &Token| TokenId::of(&token.key());
    for anew in [first.sign(list(9, &three)), stranger.sign(list(9, &three))] {
        assert_eq!(knows.strangers(&anew), [id(&stranger)]);
    }
    assert_eq!(one.strangers(&first.sign(list(9, &both))), [id(&second)]);
    assert_eq!(knows.strangers(&first.sign(list(9, &both))), []);
    let elsewhere = SiteTokens { site: "south".to_owned(), ..list(9, &three) };
    assert_eq!(knows.strangers(&first.sign(elsewhere)), []);
}
