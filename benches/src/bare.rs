//! The bound below: the same cryptography with nothing around it. Keys from one flat table, fields of
//! the APDU at fixed places, no question asked.

use std::sync::Arc;

use aes::Aes128Enc;
use aes_gcm::{
    AeadInOut, AesGcm, KeyInit, Nonce, Tag,
    aead::{consts::U12, inout::InOutBuf},
    aes::cipher::{BlockCipherEncrypt, BlockSizeUser, KeySizeUser, consts::U16},
};
use kms_server::keyring::arena::{Arena, Segment};

use crate::{
    Error,
    fleet::{APDU_LEN, CIPHERTEXT_AT, CONTROL_AT, COUNTER_AT, PLAINTEXT_LEN, TAG_LEN, TITLE_AT},
};

/// As in `ciphering`.
pub const AHEAD: usize = 16;
/// One cache line a meter, as in the keyring.
const LINE: usize = 64;

/// Decryption with AES-128 as `dlms` uses it: only its encryption is expanded.
pub type Cipher = AesGcm<Aes128Enc, U12, U12>;

/// A block cipher that GCM can be made of: `Aes128`, `Aes128Enc`.
pub trait BlockCipher:
    BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + KeyInit + KeySizeUser<KeySize = U16>
{
}
impl<Aes> BlockCipher for Aes where
    Aes: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + KeyInit + KeySizeUser<KeySize = U16>
{
}

/// GUEK and GAK of every meter, by its number, in the same kind of memory as the keyring's.
pub struct FlatTable {
    lines: Segment,
}

impl FlatTable {
    /// Of meters 0 to `meters` - 1.
    pub fn new(meters: u32) -> Result<Self, Error> {
        let len = meters as usize * LINE;
        let arena: Arc<Arena> = Arena::new(len, true)?;
        let mut lines = arena.allocate(len).ok_or("no room for the flat table")?;
        for (line, n) in lines.bytes_mut().chunks_exact_mut(LINE).zip(0..) {
            let (guek, gak) = crate::fleet::keys(n);
            line[..16].copy_from_slice(&guek);
            line[16..32].copy_from_slice(&gak);
        }
        Ok(Self { lines })
    }

    /// Asks for the line of a meter.
    #[inline]
    pub fn prefetch(&self, meter: u32) {
        self.lines.prefetch(meter as usize * LINE);
    }

    /// GUEK, then GAK.
    #[inline]
    pub fn keys(&self, meter: u32) -> (&[u8; 16], &[u8; 16]) {
        const NONE: &[u8; 16] = &[0; 16];
        let line = self.lines.bytes().get(meter as usize * LINE..).unwrap_or_default();
        let (keys, _) = line.as_chunks::<16>();
        match keys {
            [guek, gak, ..] => (guek, gak),
            _ => (NONE, NONE),
        }
    }
}

/// Opens `items` into `out`, one plaintext after the other; how many tags verified.
pub fn open_all(table: &FlatTable, items: &[(u32, &[u8])], out: &mut [u8]) -> usize {
    let mut opened = 0;
    for (few, out) in items.chunks(AHEAD).zip(out.chunks_mut(AHEAD * PLAINTEXT_LEN)) {
        for (meter, _) in few {
            table.prefetch(*meter);
        }
        for ((meter, apdu), out) in few.iter().zip(out.chunks_exact_mut(PLAINTEXT_LEN)) {
            let (guek, gak) = table.keys(*meter);
            opened += usize::from(open_one::<Aes128Enc>(guek, gak, apdu, out));
        }
    }
    opened
}

/// Opens one; the cipher is built for it, as a meter sends one message and then another meter does.
#[inline]
pub fn open_one<Aes: BlockCipher>(
    guek: &[u8; 16],
    gak: &[u8; 16],
    apdu: &[u8],
    out: &mut [u8],
) -> bool {
    let cipher = AesGcm::<Aes, U12, U12>::new(guek.into());
    open_with(&cipher, gak, apdu, out)
}

/// Opens one with a cipher that was built before.
#[inline]
pub fn open_with<Aes: BlockCipher>(
    cipher: &AesGcm<Aes, U12, U12>,
    gak: &[u8; 16],
    apdu: &[u8],
    out: &mut [u8],
) -> bool {
    let Ok(apdu) = <&[u8; APDU_LEN]>::try_from(apdu) else { return false };
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&apdu[TITLE_AT..TITLE_AT + 8]);
    nonce[8..].copy_from_slice(&apdu[COUNTER_AT..CIPHERTEXT_AT]);
    let mut additional_data = [0; 17];
    additional_data[0] = apdu[CONTROL_AT];
    additional_data[1..].copy_from_slice(gak);
    let (ciphertext, tag) = apdu[CIPHERTEXT_AT..].split_at(PLAINTEXT_LEN);
    let (Ok(buffer), Some(tag)) = (InOutBuf::new(ciphertext, out), tag.first_chunk::<TAG_LEN>())
    else {
        return false;
    };
    let (nonce, tag): (&Nonce<U12>, &Tag<U12>) = ((&nonce).into(), tag.into());
    cipher.decrypt_inout_detached(nonce, &additional_data, buffer, tag).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Telegrams;

    #[test]
    fn the_bare_loop_opens_what_meters_send() {
        let telegrams = Telegrams::of_random_meters(40, 50).unwrap();
        let items: Vec<_> = telegrams.iter().collect();
        let mut out = vec![0; items.len() * PLAINTEXT_LEN];
        assert_eq!(open_all(&FlatTable::new(40).unwrap(), &items, &mut out), 50);
    }
}
