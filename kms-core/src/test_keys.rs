//! Keys that everybody knows: refused in an import unless it says that it is a test.

/// Published keys: the Green Book's and those of widespread stacks and examples.
const PUBLISHED: [[u8; 16]; 9] = [
    // Green Book examples: EK, AK, and their neighbours.
    hex16(0x0001_0203_0405_0607, 0x0809_0A0B_0C0D_0E0F),
    hex16(0xD0D1_D2D3_D4D5_D6D7, 0xD8D9_DADB_DCDD_DEDF),
    hex16(0x1011_1213_1415_1617, 0x1819_1A1B_1C1D_1E1F),
    // Key wrap examples of RFC 3394, also the AK printed in the Luxembourg P1 specification.
    hex16(0x0011_2233_4455_6677, 0x8899_AABB_CCDD_EEFF),
    hex16(0xFFEE_DDCC_BBAA_9988, 0x7766_5544_3322_1100),
    // The ASCII defaults of common stacks.
    *b"1111111111111111",
    *b"0123456789ABCDEF",
    *b"0123456789abcdef",
    *b"MYDUMMYGLOBALKEY",
];

const fn hex16(high: u64, low: u64) -> [u8; 16] {
    (((high as u128) << 64) | low as u128).to_be_bytes()
}

/// Whether `value` is a published test key or one byte repeated (all zeros among them). A 32-byte key
/// is one if it continues a published key in the published way, or repeats it.
pub fn is_test_key(value: &[u8]) -> bool {
    let one_byte = value.windows(2).all(|pair| pair[0] == pair[1]);
    let counting = value.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1));
    let published = !value.is_empty()
        && value.chunks(16).all(|half| PUBLISHED.iter().any(|known| known.as_slice() == half));
    one_byte || counting || published
}

/// All test keys of 16 and of 32 bytes: for comparing fingerprints where a value is not to be seen.
pub fn all() -> impl Iterator<Item = Vec<u8>> {
    let runs = [16u8, 32].into_iter().flat_map(|len| {
        (0..=u8::MAX).flat_map(move |first| {
            let one_byte = vec![first; len.into()];
            let counting = (0..len).map(|step| first.wrapping_add(step)).collect();
            [one_byte, counting]
        })
    });
    let pairs = PUBLISHED.iter().flat_map(|a| PUBLISHED.iter().map(|b| [&a[..], b].concat()));
    PUBLISHED.iter().map(|key| key.to_vec()).chain(pairs).chain(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_and_uniform_keys_are_known() {
        for key in PUBLISHED {
            assert!(is_test_key(&key));
        }
        assert!(is_test_key(&[0; 16]));
        assert!(is_test_key(&[0xAA; 32]));
        assert!(is_test_key(&core::array::from_fn::<u8, 32, _>(|i| i as u8)));
    }

    #[test]
    fn all_are_test_keys_and_none_is_left_out() {
        let all: std::collections::HashSet<Vec<u8>> = all().collect();
        assert!(all.iter().all(|key| is_test_key(key)));
        // One byte, counting, published and pairs of those; three published ones count upwards.
        assert!(all.len() > 4 * 256 + 81, "{}", all.len());
        for key in PUBLISHED {
            assert!(all.contains(&key[..]) && all.contains(&key.repeat(2)));
        }
        assert!(all.contains(&vec![0xAA; 32]));
        assert!(all.contains(&(250..=255).chain(0..26).collect::<Vec<u8>>()));
    }

    #[test]
    fn a_random_key_is_not() {
        assert!(!is_test_key(&hex16(0xD491_470F_4712_6332, 0xB07D_1923_B350_4188)));
    }
}
