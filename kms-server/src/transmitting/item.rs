//! APDUs as they go out, and what became of them.

use dlms::{KeySet, Suite};

use super::refused::NotSent;
use kms_core::{
    SecuritySetup, SystemTitle, Verdict,
    counters::{allocator::Purpose, refusal::Refusal},
};

/// The caller's name for the meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// By its system title.
    Title(SystemTitle),
    /// By the operator's id.
    Id(&'a str),
}

/// The envelope that an APDU is to travel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// general-glo-ciphering, with the client's title.
    GeneralGlo,
    /// The service's own glo-* form.
    Service,
    /// general-ciphering with an identified key.
    GeneralCiphering,
    /// None: the item is no APDU but a meter's challenge, and what comes out is f(StoC) of HLS mechanism 5.
    HlsAnswer,
}

/// One APDU to protect.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// One whole plain APDU, from its tag byte on.
    pub apdu: &'a [u8],
    /// The meter.
    pub whose: Whose<'a>,
    /// Under which security setup.
    pub setup: SecuritySetup,
    /// As which client.
    pub client: u16,
    /// Under the meter's own key or the one that it shares.
    pub key_set: KeySet,
    /// How it travels.
    pub envelope: Envelope,
    /// Whether it gets a tag, and whether it is enciphered.
    pub protection: (bool, bool),
    /// `None`: by the key's length, 0 or 2.
    pub suite: Option<Suite>,
    /// The use of its counter.
    pub purpose: Purpose,
    /// The versions that the meter is presumed to hold; 0: the preferred ones.
    pub versions: (u16, u16),
}

/// One that is kept for a call that its caller need not wait for.
pub(super) struct Kept {
    apdu: Vec<u8>,
    /// Where the meter is named by it.
    id: Option<String>,
    like: Plain<'static>,
}

impl Kept {
    pub(super) fn of(item: &Plain<'_>) -> Self {
        let Plain {
            setup, client, key_set, envelope, protection, suite, purpose, versions, ..
        } = *item;
        let (whose, id) = match item.whose {
            Whose::Title(title) => (Whose::Title(title), None),
            Whose::Id(id) => (Whose::Id(""), Some(id.to_owned())),
        };
        let apdu = &[];
        let like = Plain {
            apdu,
            whose,
            setup,
            client,
            key_set,
            envelope,
            protection,
            suite,
            purpose,
            versions,
        };
        Self { apdu: item.apdu.to_vec(), id, like }
    }

    pub(super) fn plain(&self) -> Plain<'_> {
        let whose = self.id.as_deref().map_or(self.like.whose, Whose::Id);
        Plain { apdu: &self.apdu, whose, ..self.like }
    }
}

/// The outcome of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `OK`, or why it was not protected.
    pub verdict: Verdict,
    /// Says more.
    pub refusal: Option<Refusal>,
    /// The meter.
    pub system_title: Option<SystemTitle>,
    /// 0 unless it was protected.
    pub invocation_counter: u32,
    /// Version of the key that it is under; 0: none.
    pub encryption_key_version: u16,
    /// Version of the GAK that took part; 0: none.
    pub authentication_key_version: u16,
    /// One sentence for people, where the verdict alone does not say enough.
    pub reason: Option<Box<str>>,
    /// Another node of this site has said so, and has counted it.
    pub by_another: bool,
}

/// A batch in columns, in the order of its items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtectedBatch {
    /// One ciphered APDU after the other.
    pub apdus: Vec<u8>,
    /// Their lengths; 0 for what was not protected.
    pub lengths: Vec<u32>,
    /// One an item.
    pub outcomes: Vec<Outcome>,
}

impl Outcome {
    /// With this verdict, and nothing more.
    pub fn of(verdict: Verdict) -> Self {
        Self {
            verdict,
            refusal: None,
            system_title: None,
            invocation_counter: 0,
            encryption_key_version: 0,
            authentication_key_version: 0,
            reason: None,
            by_another: false,
        }
    }

    /// Says why.
    #[must_use]
    pub fn because(mut self, reason: impl Into<Box<str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Says of which meter.
    #[must_use]
    pub fn about(mut self, title: SystemTitle) -> Self {
        self.system_title = Some(title);
        self
    }

    /// No counter was given out.
    pub(super) fn refused(why: &NotSent) -> Self {
        let refusal = why.refusal();
        Self { refusal, ..Self::of(why.verdict()).because(why.to_string()) }
    }
}
