//! AES key wrap of RFC 3394, in the form in which keys are sent to a meter.

use crate::aes::Aes;

const MARK: [u8; 8] = [0xa6; 8];

/// `key` under `kek`. Nothing if `kek` has not 16 or 32 bytes, or `key` is not whole words of eight.
pub fn wrap(kek: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let aes = Aes::new(kek)?;
    let (words, rest) = key.as_chunks::<8>();
    if words.len() < 2 || !rest.is_empty() {
        return None;
    }
    let (mut head, mut words) = (MARK, words.to_vec());
    let count = words.len();
    for step in 0..6 * count {
        let word = &mut words[step % count];
        let mixed = aes.encrypt(joined(&head, word));
        (head, *word) = halves(&mixed, step + 1);
    }
    Some([&head[..], words.as_flattened()].concat())
}

/// What was wrapped, if `kek` wrapped it.
pub fn unwrap(kek: &[u8], wrapped: &[u8]) -> Option<Vec<u8>> {
    let aes = Aes::new(kek)?;
    let (chunks, rest) = wrapped.as_chunks::<8>();
    let (head, words) = chunks.split_first()?;
    if words.len() < 2 || !rest.is_empty() {
        return None;
    }
    let (mut head, mut words) = (*head, words.to_vec());
    let count = words.len();
    for step in (0..6 * count).rev() {
        let word = &mut words[step % count];
        // The step's number is exclusive-or'ed before the cipher is turned round.
        (head, _) = halves(&joined(&head, word), step + 1);
        let mixed = aes.decrypt(joined(&head, word));
        (head, *word) = halves(&mixed, 0);
    }
    (head == MARK).then(|| words.as_flattened().to_vec())
}

fn joined(head: &[u8; 8], word: &[u8; 8]) -> [u8; 16] {
    std::array::from_fn(|at| if at < 8 { head[at] } else { word[at - 8] })
}

fn halves(block: &[u8; 16], step: usize) -> ([u8; 8], [u8; 8]) {
    let step = (step as u64).to_be_bytes();
    (std::array::from_fn(|at| block[at] ^ step[at]), std::array::from_fn(|at| block[8 + at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3394, 4.1 and 4.6.
    #[test]
    fn the_examples_of_rfc_3394_come_out_both_ways() {
        let key: Vec<u8> = (0..16).map(|it| it * 0x11).collect();
        let kek: Vec<u8> = (0..32).collect();
        let wrapped = *b"\x1f\xa6\x8b\x0a\x81\x12\xb4\x47\xae\xf3\x4b\xd8\xfb\x5a\x7b\x82\x9d\x3e\x86\x23\x71\xd2\xcf\xe5";
        assert_eq!(wrap(&kek[..16], &key).unwrap(), wrapped);
        assert_eq!(unwrap(&kek[..16], &wrapped).unwrap(), key);
        let long: Vec<u8> = key.iter().copied().chain(0..16).collect();
        let wrapped = *b"\x28\xc9\xf4\x04\xc4\xb8\x10\xf4\xcb\xcc\xb3\x5c\xfb\x87\xf8\x26\x3f\x57\x86\xe2\xd8\x0e\xd3\x26\xcb\xc7\xf0\xe7\x1a\x99\xf4\x3b\xfb\x98\x8b\x9b\x7a\x02\xdd\x21";
        assert_eq!(wrap(&kek, &long).unwrap(), wrapped);
        assert_eq!(unwrap(&kek, &wrapped).unwrap(), long);
    }

    #[test]
    fn another_kek_a_changed_bit_and_a_wrong_length_unwrap_nothing() {
        let wrapped = wrap(&[1; 16], &[7; 16]).unwrap();
        assert!(unwrap(&[2; 16], &wrapped).is_none());
        for bit in 0..8 * wrapped.len() {
            let mut changed = wrapped.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(&[1; 16], &changed).is_none());
        }
        for length in 0..wrapped.len() {
            assert!(unwrap(&[1; 16], &wrapped[..length]).is_none());
        }
        assert!(wrap(&[1; 16], &[7; 8]).is_none());
        assert!(wrap(&[1; 24], &[7; 16]).is_none());
    }
}
