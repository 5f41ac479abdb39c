//! Device profiles, checked.

use super::name::ProfileName;
use crate::{KeyKind, Numbered as _};

crate::numbered! {
    /// What a meter does with its counters when it is given a new encryption key.
    #[derive(Default)]
    pub enum CountersOnNewKey "counters_on_new_key" {
        /// Both directions begin at 0 (Green Book).
        Reset = 1 "RESET",
        /// They go on: a counter below the old key's last one is refused.
        Kept = 2 "KEPT",
        /// Nobody knows: what holds for KEPT is on the safe side.
        #[default]
        Unknown = 3 "UNKNOWN",
    }
}

crate::numbered! {
    /// The dialect of HLS mechanism 2, which the standard leaves to the manufacturer.
    #[derive(Default)]
    pub enum HlsMechanism2 "hls_mechanism_2" {
        /// AES-128 of each block of the challenge on its own: what most have.
        #[default]
        Ecb = 1 "AES_ECB",
        /// AES-128 in CBC mode, initialization vector zero.
        Cbc = 2 "AES_CBC",
    }
}

/// Which of a meter's keys have receive floors, and how much may come out of order under them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloorRule {
    /// What comes under a GUEK.
    pub guek: bool,
    /// What comes under a GBEK.
    pub gbek: bool,
    /// What comes under a dedicated key.
    pub dedicated: bool,
    /// So far below the highest counter seen a message that was not seen yet is taken; 0: it is not, as in the
    /// Green Book. At most [`FloorRule::WINDOW_MAX`].
    pub window: u8,
}

impl FloorRule {
    /// No key has one.
    pub const OFF: Self = Self { guek: false, gbek: false, dedicated: false, window: 0 };
    /// All keys have one, and nothing may come out of order.
    pub const STRICT: Self = Self { guek: true, gbek: true, dedicated: true, window: 0 };
    /// The widest window: what a line keeps of the counters below its highest one is one word of bits.
    pub const WINDOW_MAX: u8 = 64;

    /// Whether what comes under a key of this kind has a floor.
    pub const fn keeps(self, kind: KeyKind) -> bool {
        match kind {
            KeyKind::Guek => self.guek,
            KeyKind::Gbek => self.gbek,
            KeyKind::Dedicated => self.dedicated,
            // Nothing is encrypted under them.
            KeyKind::Gak | KeyKind::Kek | KeyKind::HlsSecret | KeyKind::LlsPassword => false,
        }
    }

    /// Whether no key has one.
    pub const fn is_off(self) -> bool {
        !self.guek && !self.gbek && !self.dedicated
    }
}

/// How the meters of one make differ from others, as far as keys and counters go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProfile {
    /// Its name.
    pub name: ProfileName,
    /// What it is for, in one line for people.
    pub description: String,
    /// What becomes of counters when the encryption key changes.
    pub counters_on_new_key: CountersOnNewKey,
    /// The largest step from one counter to the next that the meter takes. `None`: any. Compared between sites, and
    /// not kept to yet.
    pub largest_gap: Option<u32>,
    /// Its receive floors.
    pub floors: FloorRule,
    /// Its dialect of HLS mechanism 2.
    pub hls_mechanism_2: HlsMechanism2,
}

impl DeviceProfile {
    /// The longest description, in bytes.
    pub const DESCRIPTION_MAX: usize = 200;

    /// What holds of meters whose profile is not known here: all that any profile demands.
    pub fn strictest(name: ProfileName) -> Self {
        Self {
            name,
            description: "not known at this site: the strictest of all rules holds".to_owned(),
            counters_on_new_key: CountersOnNewKey::Kept,
            largest_gap: Some(1),
            floors: FloorRule::STRICT,
            hls_mechanism_2: HlsMechanism2::default(),
        }
    }

    /// Whether a counter is given out only when the peer has acknowledged that it will be.
    pub const fn waits_for_peer(&self) -> bool {
        self.largest_gap.is_some()
    }

    /// What two sites compare: injective.
    pub(super) fn put_digested(&self, out: &mut Vec<u8>) {
        let Self {
            name,
            description: _,
            counters_on_new_key,
            largest_gap,
            floors,
            hls_mechanism_2,
        } = self;
        let FloorRule { guek, gbek, dedicated, window } = *floors;
        let name = name.as_str().as_bytes();
        out.push(name.len() as u8); // At most 32.
        out.extend_from_slice(name);
        out.push(counters_on_new_key.number());
        match largest_gap {
            None => out.push(0),
            Some(gap) => {
                out.push(1);
                out.extend_from_slice(&gap.to_be_bytes());
            }
        }
        out.extend_from_slice(&[guek, gbek, dedicated].map(u8::from));
        out.push(window);
        // As releases before this one have it where nothing is said; no name is so long.
        if *hls_mechanism_2 != HlsMechanism2::default() {
            out.extend_from_slice(&[0xFF, hls_mechanism_2.number()]);
        }
    }
}
