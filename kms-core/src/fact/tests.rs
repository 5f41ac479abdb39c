use super::*;

fn list(number: Option<&[u8]>, this_update_ms: u64) -> NewestList {
    NewestList { authority: [1; 32], number: number.map(<[u8]>::to_vec), this_update_ms }
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
