//! Contents of a column, by the name in its header.

use kms_core::Numbered as _;

use crate::digits;
use crate::meter::KeyKind;

/// Defines the columns that hold no key, and their names.
macro_rules! columns {
    ($($(#[$doc:meta])* $column:ident $name:literal,)+) => {
        /// Contents of a column.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Column {
            $($(#[$doc])* $column,)+
            /// Keys of one kind.
            Key(KeyKind),
        }

        const OTHERS: &[(Column, &str)] = &[$((Column::$column, $name)),+];
    };
}

columns! {
    MeterId "meter_id",
    SystemTitle "system_title",
    LogicalDeviceName "logical_device_name",
    Protection "protection",
    SecuritySetup "security_setup",
    MinimumProtection "minimum_protection",
    AllowEncryptionOnly "allow_encryption_only",
    AllowWithheldAuthenticationKey "allow_withheld_authentication_key",
    DefaultSystemTitle "default_system_title",
    ClientTitle "client_title",
    GeneralCipheringOmitHeader "general_ciphering_omit_header",
    Profile "profile",
    AllowCompromised "allow_compromised",
}

/// The names of all columns that a CSV file may have.
pub const CSV_COLUMNS: &[&str] = &[
    "meter_id",
    "system_title",
    "logical_device_name",
    "GUEK",
    "GAK",
    "GBEK",
    "KEK",
    "DEDICATED",
    "HLS_SECRET",
    "LLS_PASSWORD",
    "protection",
    "security_setup",
    "minimum_protection",
    "allow_encryption_only",
    "allow_withheld_authentication_key",
    "default_system_title",
    "client_title",
    "general_ciphering_omit_header",
    "profile",
    "allow_compromised",
];

impl Column {
    /// In either case; blanks around it do not matter, and within it may stand for underscores.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let name: String = digits::bare(name)
            .chars()
            .map(|letter| match letter {
                letter if digits::is_blank(letter) => '_',
                '-' => '_',
                letter => letter.to_ascii_lowercase(),
            })
            .collect();
        let other = OTHERS.iter().find(|(_, known)| *known == name).map(|(column, _)| *column);
        other.or_else(|| KeyKind::from_word(&name.to_ascii_uppercase()).map(Self::Key))
    }

    pub(super) fn name(self) -> &'static str {
        if let Self::Key(kind) = self {
            return kind.word();
        }
        OTHERS.iter().find(|(column, _)| *column == self).map_or("", |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_columns_and_every_column_has_its_name() {
        for name in CSV_COLUMNS {
            assert_eq!(Column::from_name(name).unwrap().name(), *name);
        }
        let keys = KeyKind::ALL.iter().map(|kind| kind.word());
        for name in OTHERS.iter().map(|(_, name)| *name).chain(keys) {
            assert!(CSV_COLUMNS.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_name_may_be_written_as_people_write_it() {
        for name in [" Meter ID", "METER_ID", "meter-id\u{a0}", "\u{feff}meter_id"] {
            assert_eq!(Column::from_name(name), Some(Column::MeterId), "{name}");
        }
        assert_eq!(Column::from_name("guek "), Some(Column::Key(KeyKind::Guek)));
        assert_eq!(Column::from_name("D491470F47126332B07D1923B3504188"), None);
    }
}
