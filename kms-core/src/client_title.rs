//! The utility's titles towards one meter: one for each client of a security setup, where they differ.

use dlms::SystemTitle;

use crate::SecuritySetup;

/// The title that messages of one client carry, within one security setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientTitle {
    /// e in `0.0.43.0.e.255`.
    pub setup: SecuritySetup,
    /// The client's address (SAP), as 16 is the public client's.
    pub client: u16,
    /// The originator's title: the first 8 bytes of the nonce.
    pub title: SystemTitle,
}

/// Client titles that are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadClientTitles {
    /// There are too many.
    #[error("a meter has at most {most} client titles, not {0}", most = ClientTitles::MAX)]
    TooMany(usize),
    /// One client of a setup has two.
    #[error("client {client} of security setup {} has two titles: leave one of them", setup.0)]
    Twice {
        /// The security setup.
        setup: SecuritySetup,
        /// The client.
        client: u16,
    },
}

/// All client titles of a meter, in the order of (setup, client), one each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTitles(Vec<ClientTitle>);

impl ClientTitles {
    /// Four setups with four clients each. Part of the meter's record, which every change of its block reads.
    pub const MAX: usize = 16;
    /// None.
    pub const NONE: Self = Self(Vec::new());

    /// Puts them in order, and refuses two for one client.
    pub fn new(mut titles: Vec<ClientTitle>) -> Result<Self, BadClientTitles> {
        if titles.len() > Self::MAX {
            return Err(BadClientTitles::TooMany(titles.len()));
        }
        titles.sort_unstable();
        let same = |a: &ClientTitle, b: &ClientTitle| (a.setup, a.client) == (b.setup, b.client);
        for pair in titles.windows(2) {
            if let [a, b] = pair
                && same(a, b)
            {
                return Err(BadClientTitles::Twice { setup: a.setup, client: a.client });
            }
        }
        Ok(Self(titles))
    }

    /// The title of a client, if one is said.
    pub fn of(&self, setup: SecuritySetup, client: u16) -> Option<SystemTitle> {
        let found = self.0.iter().find(|title| title.setup == setup && title.client == client);
        found.map(|found| found.title)
    }

    /// All of them, in order.
    pub fn as_slice(&self) -> &[ClientTitle] {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn title(setup: u8, client: u16, byte: u8) -> ClientTitle {
        ClientTitle { setup: SecuritySetup(setup), client, title: SystemTitle::new([byte; 8]) }
    }

    #[test]
    fn a_client_of_a_setup_has_one_title() {
        let titles =
            ClientTitles::new(vec![title(1, 2, 9), title(0, 300, 7), title(0, 2, 8)]).unwrap();
        assert_eq!(titles.as_slice(), [title(0, 2, 8), title(0, 300, 7), title(1, 2, 9)]);
        assert_eq!(titles.of(SecuritySetup(0), 300), Some(SystemTitle::new([7; 8])));
        assert_eq!(titles.of(SecuritySetup(1), 300), None);
        let twice = ClientTitles::new(vec![title(0, 2, 8), title(0, 2, 9)]);
        assert_eq!(twice, Err(BadClientTitles::Twice { setup: SecuritySetup(0), client: 2 }));
        let many = (0..17).map(|client| title(0, client, 1)).collect();
        assert_eq!(ClientTitles::new(many), Err(BadClientTitles::TooMany(17)));
    }
}
