//! Role records of all kinds, shown to a site: those that count, and those that do not.

use std::sync::LazyLock;

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use super::*;
use crate::{
    BlockCount, Position, Sequence, audit::PublicKey, site::DomainId, site::peer::FormerSigner,
    site::role::Role,
};

const FOUNDING: Epoch = Epoch(2);

struct Token(EcdsaKeyPair);

impl Token {
    fn new() -> Self {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap())
    }

    fn public(&self) -> PublicKey {
        self.0.public_key().as_ref().try_into().unwrap()
    }

    fn sign(&self, record: RoleRecord) -> SignedRoleRecord {
        let signature = self.0.sign(&SystemRandom::new(), &record.message()).unwrap();
        SignedRoleRecord { signature: signature.as_ref().try_into().unwrap(), record }
    }
}

/// The tokens of the two sites, even and odd, and one of neither.
static TOKENS: LazyLock<[Token; 3]> = LazyLock::new(|| [Token::new(), Token::new(), Token::new()]);

fn token(epoch: u64) -> &'static Token {
    &TOKENS[(epoch % 2) as usize]
}

fn writers() -> Writers {
    writers_of(true)
}

fn writers_of(even: bool) -> Writers {
    let of = |token: &Token| Some(token.public().into());
    Writers { even: of(&TOKENS[0]), odd: of(&TOKENS[1]), own: Some(even) }
}

/// The domain as the site of this parity has it.
fn domain(even: bool) -> DomainRecord {
    DomainRecord {
        domain: DomainId([7; 16]),
        blocks: BlockCount::new(2).unwrap(),
        site: if even { "north" } else { "south" }.to_owned(),
        epoch: FOUNDING,
        kind: PeerKind::of_epochs(even),
        canaries: Vec::new(),
        created_ms: 0,
        signature: None,
    }
}

fn record(change: RoleChange, epoch: u64, after: u64) -> RoleRecord {
    let head = |n: u64| {
        (Position { epoch: Epoch(after), sequence: Sequence(10 * epoch + n) }, [n as u8; 32])
    };
    RoleRecord {
        domain: DomainId([7; 16]),
        site: "s".to_owned(),
        change,
        epoch: Epoch(epoch),
        after: Epoch(after),
        at_ms: 1,
        heads: (0..2).map(head).collect(),
    }
}

fn promotion(epoch: u64, after: u64) -> SignedRoleRecord {
    token(epoch).sign(record(RoleChange::Promotion, epoch, after))
}

fn demotion(epoch: u64) -> SignedRoleRecord {
    token(epoch).sign(record(RoleChange::Demotion, epoch, epoch))
}

/// Shown to the site of a parity that knows these.
fn shown(
    even: bool,
    known: &[&SignedRoleRecord],
    new: &SignedRoleRecord,
) -> Result<Admitted, NotAdmitted> {
    shown_to_two(even, known, new, false)
}

fn shown_to_two(
    even: bool,
    known: &[&SignedRoleRecord],
    new: &SignedRoleRecord,
    two_people: bool,
) -> Result<Admitted, NotAdmitted> {
    let known: Vec<&RoleRecord> = known.iter().map(|known| &known.record).collect();
    let view =
        View { domain: &domain(even), known: &known, writers: &writers_of(even), peers: &[] };
    admit(&view, new, two_people)
}

fn news(role: Role, epoch: u64, open: bool) -> Result<Admitted, NotAdmitted> {
    Ok(Admitted::News(Standing { role, epoch: Epoch(epoch), open }))
}

#[test]
fn the_other_sites_promotion_makes_a_secondary_of_the_primary() {
    let three = promotion(3, 2);
    assert_eq!(shown(true, &[], &three), news(Role::Secondary, 3, true));
    assert_eq!(shown(true, &[&three], &three), Ok(Admitted::Known));
    let four = promotion(4, 3);
    assert_eq!(shown(false, &[&three], &four), news(Role::Secondary, 4, true));
}

#[test]
fn invariant_7_a_promotion_counts_with_the_signature_of_the_site_that_its_epoch_belongs_to() {
    let by_the_other = TOKENS[0].sign(record(RoleChange::Promotion, 3, 2));
    assert_eq!(shown(true, &[], &by_the_other), Err(NotAdmitted::NotSigned(Epoch(3))));
    let by_nobody = TOKENS[2].sign(record(RoleChange::Promotion, 3, 2));
    assert_eq!(shown(true, &[], &by_nobody), Err(NotAdmitted::NotSigned(Epoch(3))));
    let mut changed = promotion(3, 2);
    changed.record.heads[1].1[5] ^= 1;
    assert_eq!(shown(true, &[], &changed), Err(NotAdmitted::NotSigned(Epoch(3))));
}

#[test]
fn a_replicas_signature_is_nobodys() {
    let peer = |kind, token: &Token| Peer {
        domain: DomainId([7; 16]),
        site: "x".to_owned(),
        kind,
        signing: token.public(),
        transport_block: Vec::new(),
        enrolled_ms: 0,
        former: Vec::new(),
        enrolled_in: None,
        tokens: None,
    };
    let peers = [peer(PeerKind::Odd, &TOKENS[1]), peer(PeerKind::Replica, &TOKENS[2])];
    let writers = Writers::of_peers(&peers);
    assert_eq!((&writers.even, &writers.odd), (&None, &Some(TOKENS[1].public().into())));
    let own = writers.with_own(&domain(true), TOKENS[0].public());
    assert_eq!(own, self::writers());
    let usurped = [peer(PeerKind::Even, &TOKENS[2]), peer(PeerKind::Odd, &TOKENS[1])];
    let own = Writers::of_peers(&usurped).with_own(&domain(true), TOKENS[0].public());
    assert_eq!(own.even, Some(TOKENS[0].public().into()), "our own parity is ours");
    let both = [peer(PeerKind::Even, &TOKENS[0]), peer(PeerKind::Odd, &TOKENS[1])];
    let replica = DomainRecord { kind: PeerKind::Replica, ..domain(true) };
    let own = Writers::of_peers(&both).with_own(&replica, TOKENS[2].public());
    assert_eq!(own, Writers { own: None, ..self::writers() }, "no epoch is a replica's");
}

#[test]
fn a_replica_follows_whoever_is_promoted_and_no_record_is_its_own() {
    let writers = Writers { own: None, ..writers() };
    let domain = DomainRecord { kind: PeerKind::Replica, ..domain(true) };
    for epoch in [3, 4] {
        let view =
            View { domain: &domain, known: &[] as &[RoleRecord], writers: &writers, peers: &[] };
        let admitted = admit(&view, &promotion(epoch, 2), false);
        assert_eq!(admitted, news(Role::Replica, epoch, true));
    }
    for records in [vec![], vec![promotion(3, 2)], vec![promotion(3, 2), promotion(4, 3)]] {
        assert_eq!(Standing::of(&domain, &records).role, Role::Replica);
    }
}

#[test]
fn a_record_of_another_domain_or_of_some_of_the_blocks_does_not_count() {
    let mut other = record(RoleChange::Promotion, 3, 2);
    other.domain = DomainId([8; 16]);
    assert_eq!(shown(true, &[], &TOKENS[1].sign(other)), Err(NotAdmitted::OtherDomain));
    let mut short = record(RoleChange::Promotion, 3, 2);
    short.heads.pop();
    assert_eq!(shown(true, &[], &TOKENS[1].sign(short)), Err(NotAdmitted::Blocks));
}

#[test]
fn a_step_of_more_than_one_epoch_counts_if_two_people_say_so() {
    let five = promotion(5, 2);
    let too_far = Err(NotAdmitted::TooFar { epoch: Epoch(5), known: FOUNDING });
    assert_eq!(shown(true, &[], &five), too_far);
    assert_eq!(shown_to_two(true, &[], &five, true), news(Role::Secondary, 5, true));
    // A restored primary's next epoch is one step: its parity allows no lower one.
    assert_eq!(shown(false, &[], &promotion(4, 2)), news(Role::Secondary, 4, true));
    // It knew nothing of ours.
    let three = promotion(3, 2);
    assert_eq!(shown(false, &[&three], &promotion(4, 2)), news(Role::Secondary, 4, true));
}

#[test]
fn a_record_that_follows_an_unknown_epoch_asks_for_that_one_first() {
    let gap = Err(NotAdmitted::Gap { after: Epoch(3) });
    assert_eq!(shown(false, &[], &promotion(4, 3)), gap);
    assert_eq!(shown(true, &[], &demotion(3)), gap);
    // A demotion alone tells of no promotion.
    assert_eq!(shown(false, &[&demotion(3)], &promotion(4, 3)), gap);
    let backwards = Err(NotAdmitted::Order { epoch: Epoch(3), after: Epoch(4) });
    assert_eq!(shown(true, &[], &promotion(3, 4)), backwards);
    let of_the_founding = Err(NotAdmitted::Order { epoch: FOUNDING, after: Epoch(1) });
    assert_eq!(shown(false, &[], &promotion(2, 1)), of_the_founding);
    let strange = Err(NotAdmitted::Order { epoch: Epoch(3), after: Epoch(2) });
    let demoted = TOKENS[1].sign(record(RoleChange::Demotion, 3, 2));
    assert_eq!(shown(true, &[], &demoted), strange);
}

#[test]
fn a_promotion_below_the_newest_tells_of_the_past_and_changes_nobodys_role() {
    let (three, four) = (promotion(3, 2), promotion(4, 2));
    assert_eq!(shown(true, &[&four], &three), Ok(Admitted::Past));
    assert_eq!(shown(false, &[&three, &four], &demotion(3)), Ok(Admitted::Past));
}

#[test]
fn a_demotion_ends_the_newest_epoch_once() {
    assert_eq!(shown(false, &[], &demotion(2)), news(Role::Secondary, 2, false));
    let two = demotion(2);
    assert_eq!(shown(false, &[&two], &two), Ok(Admitted::Known));
    let mut other = two.record.clone();
    other.at_ms += 1;
    let contradicts = Err(NotAdmitted::Contradicts(FOUNDING));
    assert_eq!(shown(false, &[&two], &TOKENS[0].sign(other)), contradicts);
    assert_eq!(
        shown(false, &[&two], &TOKENS[1].sign(two.record.clone())),
        Err(NotAdmitted::NotSigned(FOUNDING))
    );
}

#[test]
fn invariant_7_a_site_that_signs_twice_for_one_epoch_is_named() {
    let three = promotion(3, 2);
    let mut other = three.record.clone();
    other.heads[0].0.sequence = Sequence(1);
    let other = TOKENS[1].sign(other);
    assert_eq!(shown(true, &[&three], &other), Err(NotAdmitted::Contradicts(Epoch(3))));
}

#[test]
fn invariant_3_our_own_promotion_that_our_database_does_not_know_says_that_it_was_rolled_back() {
    let forgotten = |epoch| {
        let (role, open) = (Role::Primary, false);
        Ok(Admitted::Forgotten(Standing { role, epoch: Epoch(epoch), open }))
    };
    let four = promotion(4, 2);
    assert_eq!(shown(true, &[], &four), forgotten(4));
    assert_eq!(shown(true, &[], &demotion(2)), forgotten(2));
    // What the peer did since follows from it.
    assert_eq!(shown(true, &[&four], &promotion(5, 4)), news(Role::Secondary, 5, true));
    let two = promotion(6, 4);
    // Behind a higher one that was taken since, it is the past.
    assert_eq!(shown(true, &[&promotion(4, 2), &promotion(8, 2)], &two), Ok(Admitted::Past));
}

#[test]
fn a_block_descends_through_the_promotions_that_found_it() {
    let (three, four, five) = (promotion(3, 2), promotion(4, 2), promotion(5, 3));
    let known = [&three.record, &four.record, &five.record];
    let found = |epoch: u64, sequence: u64| {
        let position = Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
        Some(BlockMark { block: BlockNo(1), position, digest: [1; 32] })
    };
    let fork = |ours, theirs| fork_of(&known, BlockNo(1), Epoch(ours), Epoch(theirs));
    assert_eq!(fork(2, 5), found(2, 31), "not where epoch 4 found it, which 5 does not come from");
    assert_eq!(fork(3, 5), found(3, 51));
    assert_eq!(fork(4, 5), found(3, 51));
    assert_eq!((fork(5, 5), fork(2, 7)), (None, None));
    assert_eq!(fork_of(&known, BlockNo(9), FOUNDING, Epoch(5)), None);
}

#[test]
fn what_is_known_of_a_site_stays_known_when_its_token_is_lost_and_nothing_new_counts_with_it() {
    let peer = |signing: &Token, former: Vec<FormerSigner>| Peer {
        domain: DomainId([7; 16]),
        site: "x".to_owned(),
        kind: PeerKind::Odd,
        signing: signing.public(),
        transport_block: Vec::new(),
        enrolled_ms: 0,
        former,
        enrolled_in: None,
        tokens: None,
    };
    let (known, later) = (promotion(3, 2), promotion(5, 3));
    let lost = peer(&TOKENS[1], Vec::new());
    let rebuilt = [peer(&TOKENS[2], lost.former_with(&[TOKENS[2].public()], Epoch(3)))];
    let writers = Writers::of_peers(&rebuilt).with_own(&domain(true), TOKENS[0].public());
    let stored = [known.clone()];
    assert_eq!(verify(&domain(true), (&writers, &rebuilt), &stored), Ok(()));
    // What somebody signs with the lost token for a later epoch is not what was known.
    let forged = [known.clone(), later.clone()];
    let refused = verify(&domain(true), (&writers, &rebuilt), &forged);
    assert_eq!(refused, Err(NotAdmitted::NotSigned(Epoch(5))));
    let nobody = [peer(&TOKENS[2], Vec::new())];
    let refused = verify(&domain(true), (&writers, &nobody), &stored);
    assert_eq!(refused, Err(NotAdmitted::NotSigned(Epoch(3))));
    let view = View { domain: &domain(true), known: &stored, writers: &writers, peers: &[] };
    assert_eq!(admit(&view, &later, false), Err(NotAdmitted::NotSigned(Epoch(5))));
}

#[test]
fn what_a_lost_token_signed_is_taken_in_as_the_past_and_never_as_news() {
    let (three, four, five) = (promotion(3, 2), promotion(4, 3), promotion(5, 4));
    let rebuilt = [Peer {
        domain: DomainId([7; 16]),
        site: "south".to_owned(),
        kind: PeerKind::Odd,
        signing: TOKENS[2].public(),
        transport_block: Vec::new(),
        enrolled_ms: 0,
        former: vec![FormerSigner { key: TOKENS[1].public(), until: Epoch(4) }],
        enrolled_in: None,
        tokens: None,
    }];
    let writers = Writers::of_peers(&rebuilt).with_own(&domain(true), TOKENS[0].public());
    let domain = domain(true);
    let shown = |known: &[&SignedRoleRecord], new: &SignedRoleRecord| {
        let known: Vec<&RoleRecord> = known.iter().map(|known| &known.record).collect();
        let view = View { domain: &domain, known: &known, writers: &writers, peers: &rebuilt };
        admit(&view, new, true)
    };
    // Known, whichever of its keys signed it.
    let anew = TOKENS[2].sign(three.record.clone());
    for signed in [&three, &anew] {
        assert_eq!(shown(&[&three], signed), Ok(Admitted::Known));
    }
    // The rebuilt site itself knows nothing of its former keys, and is shown what they signed.
    let lost = TOKENS[2].sign(four.record.clone());
    assert_eq!(shown(&[&three, &four], &lost), Ok(Admitted::Known));
    assert_eq!(shown(&[&three], &lost), Err(NotAdmitted::NotSigned(Epoch(4))));
    assert_eq!(shown(&[&four], &three), Ok(Admitted::Past));
    assert_eq!(shown(&[], &three), Err(NotAdmitted::NotSigned(Epoch(3))), "not as news");
    assert_eq!(shown(&[&three, &four], &five), Err(NotAdmitted::NotSigned(Epoch(5))));
    let mut other = three.record.clone();
    other.at_ms = 7;
    let contradicts = Err(NotAdmitted::Contradicts(Epoch(3)));
    assert_eq!(shown(&[&three], &TOKENS[1].sign(other.clone())), contradicts);
    assert_eq!(shown(&[&three], &TOKENS[0].sign(other)), Err(NotAdmitted::NotSigned(Epoch(3))));
}
