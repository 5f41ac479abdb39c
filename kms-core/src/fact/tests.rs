use super::*;
use crate::{BlockCount, BlockNo};

fn list(number: Option<&[u8]>, this_update_ms: u64) -> NewestList {
    let number = number.map(<[u8]>::to_vec);
    NewestList { authority: [1; 32], number, this_update_ms, resets: 0 }
}

fn file(header: u8, taken_ms: u64) -> Fact {
    let (signer, file_id, header) = ([1; 32], [2; 16], [header; 32]);
    Fact::File(AcceptedFile { signer, file_id, header, sealed_ms: 5, taken_ms })
}

#[test]
fn a_list_merges_by_maximum_and_a_file_to_the_same_one_at_either_site() {
    for (a, b, both) in [
        (list(Some(&[2]), 10), list(Some(&[1, 0]), 5), list(Some(&[1, 0]), 10)),
        (list(Some(&[2]), 10), list(Some(&[3]), 5), list(Some(&[3]), 10)),
        (list(None, 10), list(Some(&[0]), 5), list(Some(&[0]), 10)),
        (list(None, 10), list(None, 11), list(None, 11)),
    ] {
        assert_eq!((a.merged(&b), b.merged(&a)), (both.clone(), both));
    }
    // The one that was taken first; of one moment, always the same.
    for (a, b) in [(file(9, 1), file(3, 2)), (file(3, 2), file(9, 2))] {
        assert_eq!((a.merged(&b), b.merged(&a)), (a.clone(), a));
    }
    let other = Fact::List(list(None, 1));
    assert_eq!(file(1, 1).merged(&other), file(1, 1));
}

#[test]
fn a_fact_is_read_as_it_was_put_and_in_no_other_form() {
    for fact in [file(1, 2), Fact::List(list(Some(&[7, 0]), 3)), Fact::List(list(Some(&[0]), 3))] {
        let mut bytes = Vec::new();
        fact.put(&mut bytes);
        assert_eq!(Fact::take(&bytes), Ok(fact));
        for cut in 0..bytes.len() {
            assert_eq!(Fact::take(&bytes[..cut]), Err(BadEncoding));
        }
        bytes.push(0);
        assert_eq!(Fact::take(&bytes), Err(BadEncoding));
    }
    for number in [&[0, 1][..], &[], &[1; NUMBER_MAX + 1]] {
        let mut bytes = Vec::new();
        Fact::List(list(Some(number), 3)).put(&mut bytes);
        assert_eq!(Fact::take(&bytes), Err(BadEncoding), "{number:?}");
    }
}

#[test]
fn a_list_that_two_people_had_forgotten_counts_from_a_lower_number_on() {
    let huge = list(Some(&[0xFF; NUMBER_MAX]), u64::MAX);
    let forgotten = huge.forgotten(&[0xFF; NUMBER_MAX], &[7]).unwrap();
    assert_eq!(forgotten, NewestList { resets: 1, ..list(Some(&[7]), 0) });
    // From then on it rises as ever, and what was remembered before says nothing, in whichever order they meet.
    assert_eq!(forgotten.merged(&huge), forgotten);
    assert_eq!(huge.merged(&forgotten), forgotten);
    let next = NewestList { resets: 1, ..list(Some(&[8]), 3) };
    assert_eq!(forgotten.merged(&next), next);
    let fact = Fact::List(next.clone());
    let mut bytes = Vec::new();
    fact.put(&mut bytes);
    assert_eq!(Fact::take(&bytes), Ok(fact));
    assert!((0..bytes.len()).all(|end| Fact::take(&bytes[..end]).is_err()));
    // Only what is remembered, only downwards, and once by each word of two people.
    let refused = |number: &[u8], from: &[u8]| next.forgotten(number, from).unwrap_err();
    assert_eq!(refused(&[9], &[1]), NotForgotten::Moved);
    for from in [&[8][..], &[1, 0], &[], &[0, 1]] {
        assert_eq!(refused(&[8], from), NotForgotten::NotLower, "{from:?}");
    }
    let often = NewestList { resets: u32::MAX, ..next };
    assert_eq!(often.forgotten(&[8], &[0]), Err(NotForgotten::TooOften));
}

fn secrets() -> BlockSecrets {
    BlockSecrets {
        block: BlockNo(3),
        blocks: BlockCount::DEFAULT,
        generation: 1,
        from: 1,
        version: 2,
        stage: SecretStage::Staged,
        made_ms: 9,
        link: [7; 16],
        wrapped: vec![([1; 32], vec![5; 384]), ([2; 32], vec![6; 384])],
    }
}

#[test]
fn the_fact_of_a_blocks_secrets_is_a_record_of_that_very_block() {
    for count in [1, 2, 3, 7, 4_096, 65_535, 65_536] {
        let blocks = BlockCount::new(count).unwrap();
        for block in (0..count).map(BlockNo) {
            assert_eq!(FactName::of_secrets(block, blocks).block(blocks), block, "{count}");
        }
    }
}

#[test]
fn facts_of_a_rotation_come_back_whole_and_in_no_other_form() {
    let wish = Fact::Wish(SecretsWish { generation: 3, asked_ms: 8 });
    for fact in [Fact::Secrets(secrets()), wish] {
        let mut bytes = Vec::new();
        fact.put(&mut bytes);
        assert_eq!(Fact::take(&bytes), Ok(fact));
        for len in 0..bytes.len() {
            assert!(Fact::take(&bytes[..len]).is_err(), "{len}");
        }
        bytes.push(0);
        assert!(Fact::take(&bytes).is_err());
    }
    let mut twice = secrets();
    twice.wrapped[1].0 = [1; 32];
    let outside = BlockSecrets { block: BlockNo(4_096), ..secrets() };
    let backwards = BlockSecrets { version: 1, ..secrets() };
    for fact in [twice, outside, backwards] {
        let mut bytes = Vec::new();
        Fact::Secrets(fact.clone()).put(&mut bytes);
        assert!(Fact::take(&bytes).is_err(), "{fact:?}");
    }
}
