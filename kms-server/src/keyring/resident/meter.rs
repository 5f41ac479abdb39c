//! One meter of an open block, as it is read.

use kms_core::{Fingerprint, KeyKind, SecuritySetup, SystemTitle, profile::FloorRule};

use super::{
    candidate::{Candidate, KeyMaterial, Standing},
    extra::Extra,
    ids::IdTag,
    policy::PolicyBits,
    table::{
        DAMAGED, EXTRA, FIRST, FLAGS, GAK, GAK_PROTECTS, GAK_VERSION, GUEK, GUEK_PROTECTS,
        GUEK_VERSION, HAS_GAK, HAS_GUEK, ID_CHECK, ID_HASH, INLINE_LEN, PLAIN, POLICY,
        ResidentMeter, TITLE, array,
    },
};

impl<'a> ResidentMeter<'a> {
    /// Its title.
    pub fn title(&self) -> SystemTitle {
        SystemTitle::new(array(self.entry, TITLE))
    }

    /// Its policy: what is accepted from it.
    pub fn policy(&self) -> PolicyBits {
        PolicyBits::from_byte(self.entry[POLICY])
    }

    /// Its record failed its MAC or is of no use; nothing of it may be used.
    pub fn is_damaged(&self) -> bool {
        self.entry[FLAGS] & DAMAGED != 0
    }

    /// The title for its own APDUs that carry none.
    pub fn own_title(&self) -> SystemTitle {
        self.extra().and_then(|extra| extra.default_title).unwrap_or_else(|| self.title())
    }

    /// The utility's title towards it.
    pub fn client_title(&self) -> Option<SystemTitle> {
        self.extra().and_then(|extra| extra.client_title)
    }

    /// The utility's title towards it, as this client of a setup.
    pub fn client_title_of(&self, setup: SecuritySetup, client: u16) -> Option<SystemTitle> {
        let said = self.extra().and_then(|extra| extra.client_titles.of(setup, client));
        said.or_else(|| self.client_title())
    }

    /// All titles of the utility towards it.
    pub fn client_titles(&self) -> impl Iterator<Item = SystemTitle> {
        let single = self.extra().map_or(&[][..], |extra| extra.client_titles.as_slice());
        self.client_title().into_iter().chain(single.iter().map(|entry| entry.title))
    }

    /// The time at which something of its keys is due.
    pub(in crate::keyring) fn due_ms(&self) -> Option<u64> {
        self.extra()?.due_ms
    }

    /// Whether it is the title of one of the utility's clients towards it.
    pub fn is_clients(&self, title: SystemTitle) -> bool {
        self.client_title() == Some(title)
            || self.extra().is_some_and(|extra| {
                extra.client_titles.as_slice().iter().any(|entry| entry.title == title)
            })
    }

    /// The rule of its receive floors, and the identity of one of its keys, if there is a floor for what comes
    /// under that key.
    pub fn floored_key(
        &self,
        kind: KeyKind,
        setup: SecuritySetup,
        version: u16,
    ) -> Option<(FloorRule, Fingerprint)> {
        self.extra()?.floors.as_deref()?.key(kind, setup, version)
    }

    /// The one GUEK of a meter that has nothing else.
    #[inline]
    pub fn plain_guek(&self) -> Option<(&'a [u8; INLINE_LEN], u16)> {
        self.inline(PLAIN | HAS_GUEK, GUEK, GUEK_VERSION)
    }

    /// Its one GAK.
    #[inline]
    pub fn plain_gak(&self) -> Option<(&'a [u8; INLINE_LEN], u16)> {
        self.inline(PLAIN | HAS_GAK, GAK, GAK_VERSION)
    }

    /// The GUEK and the GAK that are tried first, if nothing has to be said of what they open: the fast path. They are the
    /// first of [`Self::candidates`], and the only ones of a [plain](Self::is_plain) meter.
    #[inline]
    pub fn first_pair(&self) -> Option<[(&'a [u8; INLINE_LEN], u16); 2]> {
        let is_there = self.entry[FLAGS] & (PLAIN | FIRST) != 0;
        let guek = self.inline(HAS_GUEK, GUEK, GUEK_VERSION).filter(|_| is_there)?;
        Some([guek, self.inline(HAS_GAK, GAK, GAK_VERSION)?])
    }

    /// Whether the entry has all of its keys.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.entry[FLAGS] & PLAIN != 0
    }

    /// All live versions of `kind`, in the order to try them; of one setup or of all.
    pub fn candidates(
        &self,
        kind: KeyKind,
        setup: Option<SecuritySetup>,
    ) -> impl Iterator<Item = Candidate<'a>> {
        let table = self.table;
        let plain = match kind {
            KeyKind::Guek => self.plain_guek(),
            KeyKind::Gak => self.plain_gak(),
            _ => None,
        };
        let active = if kind == KeyKind::Gak { GAK_PROTECTS } else { GUEK_PROTECTS };
        let plain = plain.map(|(key, version)| Candidate {
            setup: SecuritySetup(0),
            version,
            standing: plain_standing(self.entry[FLAGS] & active != 0),
            key: KeyMaterial::Bytes(key),
        });
        let slots = self.extra().map_or(&[][..], |extra| &extra.keys);
        let slots = slots.iter().filter(move |slot| slot.kind == kind).map(move |slot| Candidate {
            setup: slot.setup,
            version: slot.version,
            standing: slot.standing,
            key: table.material(&slot.held),
        });
        plain
            .into_iter()
            .chain(slots)
            .filter(move |candidate| setup.is_none_or(|setup| candidate.setup == setup))
    }

    /// Of the id in its record; of nothing if that is damaged.
    pub(in crate::keyring) fn id(&self) -> IdTag {
        IdTag {
            hash: u64::from_le_bytes(array(self.entry, ID_HASH)),
            check: u32::from_le_bytes(array(self.entry, ID_CHECK)),
        }
    }

    #[inline]
    fn inline(&self, flags: u8, key: usize, version: usize) -> Option<(&'a [u8; INLINE_LEN], u16)> {
        if self.entry[FLAGS] & flags != flags {
            return None;
        }
        let key = self.entry[key..].first_chunk()?;
        Some((key, u16::from_le_bytes(array(self.entry, version))))
    }

    /// The block's subkeys.
    pub(super) fn subkeys(&self) -> Option<&'a [u8]> {
        self.table.subkeys()
    }

    pub(super) fn extra(&self) -> Option<&'a Extra> {
        let number = u32::from_le_bytes(array(self.entry, EXTRA));
        self.table.extras.get(number as usize)
    }
}

/// Of the only version of a plain meter: active, or not.
const fn plain_standing(active: bool) -> Standing {
    Standing {
        protects: active,
        active,
        carries: active,
        compromised: false,
        sent: false,
        awaits: None,
    }
}
