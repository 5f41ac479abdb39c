//! AES of FIPS 197, one block at a time, both ways: what RFC 3394 stands on and `ring` does not offer.
//!
//! For tests alone: it looks up tables by secret bytes, so its time tells of them.

const SBOX: [u8; 256] = sbox();
const INVERSE: [u8; 256] = inverse(&SBOX);
/// Products of every byte and a factor of the mixing matrices.
static PRODUCTS: [[u8; 256]; 16] = products();

/// A product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1b };
        b >>= 1;
    }
    product
}

/// Inverses by the generator 3: as it goes up through the field, its inverse 0xf6 goes down.
const fn sbox() -> [u8; 256] {
    let mut table = [0x63; 256];
    let (mut up, mut down) = (1u8, 1u8);
    loop {
        up = times(up, 3);
        down = times(down, 0xf6);
        table[up as usize] = down
            ^ down.rotate_left(1)
            ^ down.rotate_left(2)
            ^ down.rotate_left(3)
            ^ down.rotate_left(4)
            ^ 0x63;
        if up == 1 {
            return table;
        }
    }
}

const fn inverse(of: &[u8; 256]) -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        table[of[at] as usize] = at as u8;
        at += 1;
    }
    table
}

const fn products() -> [[u8; 256]; 16] {
    let mut table = [[0; 256]; 16];
    let mut at = 0;
    while at < 16 * 256 {
        table[at / 256][at % 256] = times((at % 256) as u8, (at / 256) as u8);
        at += 1;
    }
    table
}

type Block = [u8; 16];

/// A key's schedule.
pub(crate) struct Aes(Vec<Block>);

impl Aes {
    /// The schedule of a key of 16 or 32 bytes; DLMS knows no other length.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        let words = match key.len() {
            16 => 4,
            32 => 8,
            _ => return None,
        };
        let mut schedule: Vec<[u8; 4]> =
            key.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]).collect();
        let mut round = 1;
        for at in words..4 * (words + 7) {
            let mut word = schedule[at - 1];
            if at % words == 0 {
                word.rotate_left(1);
                word = word.map(|byte| SBOX[usize::from(byte)]);
                word[0] ^= round;
                round = times(round, 2);
            } else if words == 8 && at % words == 4 {
                word = word.map(|byte| SBOX[usize::from(byte)]);
            }
            let before = schedule[at - words];
            schedule.push([0, 1, 2, 3].map(|it: usize| before[it] ^ word[it]));
        }
        let block = |four: &[[u8; 4]]| {
            let mut block = [0; 16];
            block.iter_mut().zip(four.iter().flatten()).for_each(|(to, from)| *to = *from);
            block
        };
        Some(Self(schedule.chunks_exact(4).map(block).collect()))
    }

    pub(crate) fn encrypt(&self, mut state: Block) -> Block {
        let last = self.0.len() - 1;
        add(&mut state, &self.0[0]);
        for (round, key) in self.0.iter().enumerate().skip(1) {
            // Row r of column c comes from column c + r.
            let from = |at: usize| SBOX[usize::from(state[(at + 4 * (at % 4)) % 16])];
            state = std::array::from_fn(from);
            if round != last {
                mix(&mut state, [2, 3, 1, 1]);
            }
            add(&mut state, key);
        }
        state
    }

    pub(crate) fn decrypt(&self, mut state: Block) -> Block {
        let last = self.0.len() - 1;
        for (round, key) in self.0.iter().enumerate().skip(1).rev() {
            add(&mut state, key);
            if round != last {
                mix(&mut state, [14, 11, 13, 9]);
            }
            let from = |at: usize| INVERSE[usize::from(state[(at + 16 - 4 * (at % 4)) % 16])];
            state = std::array::from_fn(from);
        }
        add(&mut state, &self.0[0]);
        state
    }
}

fn add(state: &mut Block, key: &Block) {
    state.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
}

/// Each column times the circulant matrix of `row`.
fn mix(state: &mut Block, row: [usize; 4]) {
    let old = *state;
    for (at, byte) in state.iter_mut().enumerate() {
        let (column, line) = (at - at % 4, at % 4);
        let product = |it: usize| PRODUCTS[row[(4 + it - line) % 4]][usize::from(old[column + it])];
        *byte = product(0) ^ product(1) ^ product(2) ^ product(3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_fips_197_come_out_both_ways() {
        let text: Block = std::array::from_fn(|at| 0x11 * at as u8);
        let examples: [(u8, Block); 2] = [
            (16, *b"\x69\xc4\xe0\xd8\x6a\x7b\x04\x30\xd8\xcd\xb7\x80\x70\xb4\xc5\x5a"),
            (32, *b"\x8e\xa2\xb7\xca\x51\x67\x45\xbf\xea\xfc\x49\x90\x4b\x49\x60\x89"),
        ];
        for (length, expected) in examples {
            let key: Vec<u8> = (0..length).collect();
            let aes = Aes::new(&key).unwrap();
            assert_eq!(aes.encrypt(text), expected);
            assert_eq!(aes.decrypt(expected), text);
        }
        assert!(Aes::new(&[0; 24]).is_none());
    }

    /// GCM's key stream begins with the cipher's block of (nonce, 2): two implementations of AES agree.
    #[test]
    fn it_agrees_with_ring() {
        for length in [16, 32] {
            let key: Vec<u8> = (0..length).map(|it| it * 7 + 3).collect();
            let stream = crate::gcm::Gcm::new(&key).unwrap().stream([9; 12], &[0; 16]).unwrap();
            let mut block = [9; 16];
            block[12..].copy_from_slice(&[0, 0, 0, 2]);
            assert_eq!(Aes::new(&key).unwrap().encrypt(block).to_vec(), stream);
        }
    }
}
