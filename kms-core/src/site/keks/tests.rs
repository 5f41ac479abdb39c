use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use super::*;

const ME: [u8; 16] = [9; 16];
const WHOLE: Looked = Looked { blocks: 4, blocks_sealed: 4, seals: 5, proved: 5 };

fn wish(in_use: u8, new: u8) -> KekWish {
    KekWish {
        domain: DomainId([1; 16]),
        site: "north".to_owned(),
        signing: [4; 65],
        in_use: Kek { id: [in_use; 16], proof: vec![in_use; 3] },
        new: [new; 16],
        maker: ME,
    }
}

/// Each row of a rotation that nothing disturbs.
fn rows() -> Vec<SiteKeks> {
    let asked = SiteKeks::ask(None, wish(1, 2), 10).unwrap();
    let made = asked.made(vec![2; 3], 11).unwrap();
    let moved = made.sealed(&WHOLE, 12).unwrap();
    let closed = moved.sealed(&WHOLE, 13).unwrap();
    let retired = closed.retired(&WHOLE, 14).unwrap();
    let destroying = retired.destroying(15).unwrap();
    let destroyed = destroying.destroyed(16).unwrap();
    vec![asked, made, moved, closed, retired, destroying, destroyed]
}

#[test]
fn a_row_comes_back_as_it_was_and_cut_or_longer_it_does_not() {
    for row in rows() {
        let bytes = row.message();
        assert_eq!(SiteKeks::decode(&bytes), Ok(row));
        for len in 0..bytes.len() {
            assert_eq!(SiteKeks::decode(&bytes[..len]), Err(BadEncoding), "{len}");
        }
        assert_eq!(SiteKeks::decode(&[&bytes[..], &[0]].concat()), Err(BadEncoding));
    }
}

#[test]
fn each_step_has_its_turn_and_the_sequence_rises_with_each() {
    let rows = rows();
    let stages: Vec<KekStage> = rows.iter().map(|row| row.stage).collect();
    assert_eq!(stages, KekStage::ALL);
    for (at, row) in rows.iter().enumerate() {
        assert_eq!(row.sequence, at as u64 + 1);
        assert_eq!(row.generation, 1);
        let taken = [
            row.made(vec![7], 1).is_ok(),
            row.sealed(&WHOLE, 1).is_ok(),
            row.retired(&WHOLE, 1).is_ok(),
            row.destroying(1).is_ok(),
            row.destroyed(1).is_ok(),
            row.taken_over([8; 16], [3; 16], 1).is_ok(),
        ];
        let wanted = match row.stage {
            KekStage::Asked => [true, false, false, false, false, true],
            KekStage::Made | KekStage::Moved => [false, true, false, false, false, false],
            KekStage::Closed => [false, false, true, false, false, false],
            KekStage::Retired => [false, false, false, true, false, false],
            KekStage::Destroying => [false, false, false, false, true, false],
            KekStage::Destroyed => [false; 6],
        };
        assert_eq!(taken, wanted, "{:?}", row.stage);
        let again = SiteKeks::ask(Some(row), wish(2, 3), 20);
        assert_eq!(again.is_ok(), row.is_over(), "{:?}", row.stage);
    }
}

#[test]
fn the_former_kek_is_neither_left_nor_retired_while_one_secret_is_not_proved_under_the_new_one() {
    let lacking = [
        Looked { proved: 4, ..WHOLE },
        Looked { blocks_sealed: 3, ..WHOLE },
        Looked { seals: 6, ..WHOLE },
        Looked::default(),
    ];
    let rows = rows();
    for looked in lacking {
        assert!(!looked.is_whole());
        assert_eq!(rows[1].sealed(&looked, 1), Err(NoStep::NotProved));
        assert_eq!(rows[2].sealed(&looked, 1), Err(NoStep::NotProved));
        assert_eq!(rows[3].retired(&looked, 1), Err(NoStep::NotProved));
    }
}

#[test]
fn a_server_has_both_keks_from_the_making_of_the_new_one_until_the_former_is_destroyed() {
    let in_use: Vec<(u8, Option<u8>)> = rows()
        .iter()
        .map(|row| {
            let (current, further) = row.in_use();
            (current.id[0], further.map(|kek| kek.id[0]))
        })
        .collect();
    let both =
        [(1, None), (1, Some(2)), (2, Some(1)), (2, Some(1)), (2, Some(1)), (2, None), (2, None)];
    assert_eq!(in_use, both);
    for row in rows() {
        let ids = row.twins().map(|(new, former)| (new.id[0], former.id[0]));
        assert!(ids.is_none_or(|ids| ids == (2, 1)), "{:?}", row.stage);
    }
}

#[test]
fn a_process_that_comes_after_the_maker_takes_another_name_and_the_first_one_is_destroyed_at_the_end()
 {
    let asked = SiteKeks::ask(None, wish(1, 2), 10).unwrap();
    let late = 10 + SiteKeks::MAKER_PATIENCE_MS;
    assert_eq!(asked.work(&ME, late), KekWork::Make);
    assert_eq!(asked.work(&[8; 16], late - 1), KekWork::Nothing);
    assert_eq!(asked.work(&[8; 16], late), KekWork::TakeOver);
    let taken = asked.taken_over([8; 16], [3; 16], 11).unwrap();
    assert_eq!((taken.other.id, taken.left.clone()), ([3; 16], vec![[2; 16]]));
    assert_eq!(taken.work(&ME, late + 1), KekWork::TakeOver);
    let mut row = taken.made(vec![3], 12).unwrap();
    for _ in 0..2 {
        row = row.sealed(&WHOLE, 13).unwrap();
    }
    let row = row.retired(&WHOLE, 14).unwrap();
    assert_eq!(row.to_destroy(), [[2; 16], [1; 16]]);
    let row = row.destroying(15).unwrap().destroyed(16).unwrap();
    assert_eq!(row.left, Vec::<KekId>::new());
    let mut row = SiteKeks::ask(None, wish(1, 2), 10).unwrap();
    row.left = vec![[0; 16]; SiteKeks::LEFT_MAX - 1];
    // However often makers are killed, it goes on, and no KEK that was in use is forgotten.
    for n in 0..100 {
        row = row.taken_over([8; 16], [n + 3; 16], 11).unwrap();
        assert_eq!(row.left[..SiteKeks::LEFT_MAX - 1], [[0; 16]; SiteKeks::LEFT_MAX - 1]);
        assert_eq!(row.left.len(), SiteKeks::LEFT_MAX);
        assert_eq!(SiteKeks::decode(&row.message()), Ok(row.clone()));
    }
    let retired = SiteKeks { stage: KekStage::Retired, ..row };
    assert_eq!(SiteKeks::ask(Some(&retired), wish(1, 2), 10), Err(NoStep::TooMany));
}

#[test]
fn former_keks_that_nobody_destroyed_stay_known_and_the_one_in_use_is_never_among_them() {
    let mut row = SiteKeks::ask(None, wish(1, 2), 10).unwrap();
    for n in 0..3 {
        row = row.made(vec![2], 11).unwrap();
        for _ in 0..2 {
            row = row.sealed(&WHOLE, 13).unwrap();
        }
        row = row.retired(&WHOLE, 14).unwrap();
        assert_eq!(row.current.id, [n + 2; 16]);
        assert!(!row.to_destroy().contains(&row.current.id));
        assert_eq!(row.to_destroy().len(), usize::from(n) + 1);
        row = SiteKeks::ask(Some(&row), wish(n + 2, n + 3), 20).unwrap();
    }
    assert_eq!((row.generation, row.left.len()), (4, 3));
}

#[test]
fn a_row_counts_for_the_token_that_signed_it_and_for_no_other() {
    let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
    let public: PublicKey = key.public_key().as_ref().try_into().unwrap();
    let keks = SiteKeks { signing: public, ..rows().remove(0) };
    let signature = key.sign(&random, &keks.message()).unwrap();
    let signed = SignedSiteKeks { keks, signature: signature.as_ref().try_into().unwrap() };
    let domain = DomainId([1; 16]);
    assert!(signed.is_of(&public, &domain, "north"));
    assert!(!signed.is_of(&public, &domain, "south"));
    assert!(!signed.is_of(&public, &DomainId([2; 16]), "north"));
    assert!(!signed.is_of(&[5; 65], &domain, "north"));
    let mut other = signed.clone();
    other.keks.current.id = [7; 16];
    assert!(!other.is_of(&public, &domain, "north"));
}
