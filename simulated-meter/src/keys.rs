//! Keys of a security setup, by the names and numbers of class 64.

/// A system title.
pub type Title = [u8; 8];

/// `key_id` of a key transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyId {
    /// Global unicast encryption key.
    Unicast = 0,
    /// Global broadcast encryption key.
    Broadcast = 1,
    /// Global authentication key.
    Authentication = 2,
    /// Master key: wraps the others, and its successor.
    Kek = 3,
}

impl KeyId {
    /// The key of this number.
    pub fn of(number: u8) -> Option<Self> {
        [Self::Unicast, Self::Broadcast, Self::Authentication, Self::Kek]
            .get(usize::from(number))
            .copied()
    }
}

/// The four keys of one security setup. All of tests: they are not hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// GUEK.
    pub unicast: Vec<u8>,
    /// GBEK.
    pub broadcast: Vec<u8>,
    /// GAK.
    pub authentication: Vec<u8>,
    /// KEK.
    pub kek: Vec<u8>,
}

impl Keys {
    /// The key of this name.
    pub fn key(&self, id: KeyId) -> &[u8] {
        match id {
            KeyId::Unicast => &self.unicast,
            KeyId::Broadcast => &self.broadcast,
            KeyId::Authentication => &self.authentication,
            KeyId::Kek => &self.kek,
        }
    }

    /// Puts another value in a key's place.
    pub fn replace(&mut self, id: KeyId, value: Vec<u8>) {
        *match id {
            KeyId::Unicast => &mut self.unicast,
            KeyId::Broadcast => &mut self.broadcast,
            KeyId::Authentication => &mut self.authentication,
            KeyId::Kek => &mut self.kek,
        } = value;
    }
}
