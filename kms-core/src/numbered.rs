//! Enumerations whose items have a number, in records and on the wire, and a word, for people.
//!
//! Each stands in one place, [`numbered!`](crate::numbered!). Tables over one have [`Numbered::COUNT`]
//! entries, at [`Numbered::index`]: an item that is new has its place in all of them. What has to be decided
//! for each item is a `match` without a `_` arm.

/// The names and numbers that [`numbered!`](crate::numbered!) gives an enumeration.
pub trait Numbered: Copy + Eq + Sized + 'static {
    /// As the message of an error names it.
    const WHAT: &'static str;
    /// All items, in the order of their numbers.
    const ALL: &'static [Self];
    /// The count of its items.
    const COUNT: usize = Self::ALL.len();

    /// Of the item, from 1 on.
    fn number(self) -> u8;

    /// The item's place in a table with [`Numbered::COUNT`] entries.
    fn index(self) -> usize {
        usize::from(self.number()) - 1
    }

    /// The item's name, on the wire and for people.
    fn word(self) -> &'static str;

    /// The item with this number.
    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The item with this word.
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|item| item.word() == word)
    }
}

/// Defines an enumeration: what it is called, and its items, each with its number and its word. Numbers run
/// from 1 on without a gap; another one does not compile.
#[macro_export]
macro_rules! numbered {
    ($(#[$doc:meta])* $vis:vis enum $name:ident $what:literal {
        $($(#[$item_doc:meta])* $item:ident = $number:literal $word:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        $vis enum $name {
            $($(#[$item_doc])* $item = $number,)+
        }

        impl $name {
            /// All items, in the order of their numbers.
            #[allow(dead_code, reason = "not every enumeration is listed")]
            $vis const ALL: &'static [Self] = &[$(Self::$item),+];

            /// As on the wire.
            #[allow(dead_code, reason = "not every enumeration is shown")]
            $vis const fn word(self) -> &'static str {
                match self { $(Self::$item => $word,)+ }
            }
        }

        const _: () = {
            let mut at = 0;
            while at < $name::ALL.len() {
                assert!($name::ALL[at] as usize == at + 1, "numbers run from 1 on without a gap");
                at += 1;
            }
        };

        impl $crate::numbered::Numbered for $name {
            const WHAT: &'static str = $what;
            const ALL: &'static [Self] = Self::ALL;

            #[inline]
            fn number(self) -> u8 {
                self as u8
            }

            fn word(self) -> &'static str {
                $name::word(self)
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad($name::word(*self))
            }
        }
    };
}

/// Makes numbered enumerations be read and written as their words. What stands in an error is the words that
/// are taken, never the one that was read.
#[cfg(feature = "serde")]
macro_rules! serde_by_word {
    ($($name:ty),+) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use $crate::numbered::Numbered as _;
                let word = <String as serde::Deserialize>::deserialize(deserializer)?;
                Self::from_word(&word).ok_or_else(|| serde::de::Error::custom($crate::numbered::Expected::<$name>::new()))
            }
        }
    )+};
}

#[cfg(feature = "serde")]
pub(crate) use serde_by_word;

/// The words of an enumeration, as a sentence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected<T>(std::marker::PhantomData<T>);

impl<T> Expected<T> {
    /// Of one enumeration.
    pub const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T: Numbered> std::fmt::Display for Expected<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is one of", T::WHAT)?;
        T::ALL.iter().try_for_each(|item| write!(f, " {}", item.word()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyKind, Verdict};

    #[test]
    fn an_item_is_found_by_its_number_and_its_word_and_no_other_is() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(
                (verdict.index(), Verdict::from_number(verdict.number())),
                (index, Some(*verdict))
            );
            assert_eq!(Verdict::from_word(verdict.word()), Some(*verdict));
        }
        assert_eq!((Verdict::from_number(0), Verdict::from_number(u8::MAX)), (None, None));
        assert_eq!(Verdict::from_number(Verdict::COUNT as u8 + 1), None);
        assert_eq!(Verdict::from_word("ok"), None);
    }

    #[test]
    fn an_enumeration_says_which_words_it_takes() {
        let expected = "kind is one of GUEK GBEK GAK KEK DEDICATED HLS_SECRET LLS_PASSWORD";
        assert_eq!(Expected::<KeyKind>::new().to_string(), expected);
    }
}
