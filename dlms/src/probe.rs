//! Reads that find out which keys a meter holds: its answer tells nothing else worth having.

/// get-request-normal.
const GET_REQUEST_NORMAL: [u8; 2] = [0xC0, 0x01];

/// Whether a plain APDU is, whole, a read of one attribute that every association may see: the clock, the logical device
/// name, an invocation counter, or a security setup's policy or suite.
pub fn is_probe(plain: &[u8]) -> bool {
    let [tag, choice, _invoke, class_high, class_low, a, b, c, d, e, f, attribute, selection] =
        *plain
    else {
        return false;
    };
    let is_known = matches!(
        ([class_high, class_low], [a, b, c, d, f], e, attribute),
        ([0, 8], [0, 0, 1, 0, 255], 0, 2)
            | ([0, 1], [0, 0, 42, 0, 255], 0, 2)
            | ([0, 1], [0, 0, 43, 1, 255], _, 2)
            | ([0, 64], [0, 0, 43, 0, 255], _, 2 | 3)
    );
    [tag, choice] == GET_REQUEST_NORMAL && is_known && selection == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: [u8; 13] = [0xC0, 1, 0xC1, 0, 8, 0, 0, 1, 0, 0, 255, 2, 0];

    #[test]
    fn reads_of_clock_name_counter_and_policy_are_probes() {
        for (class, obis, attribute) in [
            (8, [0, 0, 1, 0, 0, 255], 2),
            (1, [0, 0, 42, 0, 0, 255], 2),
            (1, [0, 0, 43, 1, 0, 255], 2),
            (1, [0, 0, 43, 1, 7, 255], 2),
            (64, [0, 0, 43, 0, 0, 255], 2),
            (64, [0, 0, 43, 0, 3, 255], 3),
        ] {
            let [a, b, c, d, e, f] = obis;
            assert!(is_probe(&[0xC0, 1, 0x41, 0, class, a, b, c, d, e, f, attribute, 0]));
        }
    }

    #[test]
    fn nothing_else_is_one() {
        assert!(is_probe(&CLOCK));
        for at in (0..CLOCK.len()).filter(|at| *at != 2) {
            let mut other = CLOCK;
            other[at] ^= 0x40;
            assert!(!is_probe(&other), "{at}");
            assert!(!is_probe(&CLOCK[..at]), "{at}");
        }
        assert!(!is_probe(&[&CLOCK[..], &[0]].concat()));
        // Class 64, attribute 4: the client's title is no secret, and no attribute of these.
        assert!(!is_probe(&[0xC0, 1, 0xC1, 0, 64, 0, 0, 43, 0, 0, 255, 4, 0]));
    }
}
