//! The templates of our keys: the attributes that held under attack (PKCS #11 v3.0, section 4).
//!
//! Three traps. Usage attributes that are not said may be *true* (`Quirk::GrantsTheUnsaid`). A key that can
//! be modified or copied gains any usage later. And CKA_MODIFIABLE=false must come last
//! (`Quirk::ModifiableLast`).

use cryptoki::{
    mechanism::MechanismType,
    object::{Attribute, AttributeType, KeyType, ObjectClass},
    types::Ulong,
};

use crate::hsm::{lengths::RSA_LEN, pkcs11::failure::Failure};
use kms_core::SealedKek;

/// Not in the crate's list of attributes.
pub(crate) const CKA_UNWRAP_TEMPLATE: AttributeType = AttributeType::VendorDefined(0x4000_0212);

/// AES-256.
const KEK_LEN: u64 = 32;
/// RSA-3072.
const RSA_BITS: u64 = RSA_LEN as u64 * 8;
/// 65,537.
const RSA_EXPONENT: [u8; 3] = [1, 0, 1];
/// DER of OID 1.2.840.10045.3.1.7, P-256.
const P256: [u8; 10] = [0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];

/// The keys that `init` makes, and the one of a ceremony.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OurKey {
    /// Seals block secrets.
    SiteKek,
    /// Wraps meters' KEKs.
    MeterKek,
    /// Wraps GUEK and GBEK.
    UseKek,
    /// Block secrets from the peer.
    TransportBlock,
    /// Ephemeral keys of import files.
    TransportImport,
    /// Signs bundles and heads.
    Signing,
    /// Receives sealed KEKs, once.
    Ceremony,
}

/// The place where a key of ours lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// On the token: the site's keys.
    OnToken,
    /// In its session, to be tried out: it leaves nothing behind, whatever ends the process.
    ForTrial,
}

impl Kept {
    /// CKA_TOKEN.
    pub(crate) fn attribute(self) -> Attribute {
        Attribute::Token(self == Self::OnToken)
    }

    /// A template of ours, for a key that is kept so.
    pub(crate) fn applied(self, mut template: Vec<Attribute>) -> Vec<Attribute> {
        for attribute in &mut template {
            if matches!(attribute, Attribute::Token(_)) {
                *attribute = self.attribute();
            }
        }
        template
    }
}

impl OurKey {
    /// The keys that `init` makes, in this order.
    pub(crate) const PERMANENT: [Self; 6] = [
        Self::SiteKek,
        Self::MeterKek,
        Self::UseKek,
        Self::TransportBlock,
        Self::TransportImport,
        Self::Signing,
    ];

    /// CKA_LABEL, of both halves of a pair.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::SiteKek => "ami-site-kek",
            Self::MeterKek => "ami-meter-kek",
            Self::UseKek => "ami-use-kek",
            Self::TransportBlock => "ami-transport-block",
            Self::TransportImport => "ami-transport-import",
            Self::Signing => "ami-signing",
            Self::Ceremony => "ami-ceremony",
        }
    }

    /// CKA_CLASS of the half that is secret.
    pub(crate) const fn class(self) -> ObjectClass {
        match self {
            Self::SiteKek | Self::MeterKek | Self::UseKek => ObjectClass::SECRET_KEY,
            _ => ObjectClass::PRIVATE_KEY,
        }
    }

    /// CKA_KEY_TYPE.
    pub(crate) const fn key_type(self) -> KeyType {
        match self {
            Self::SiteKek | Self::MeterKek | Self::UseKek => KeyType::AES,
            Self::Signing => KeyType::EC,
            Self::TransportBlock | Self::TransportImport | Self::Ceremony => KeyType::RSA,
        }
    }

    /// The usages of the secret half; every other one is denied by name.
    pub(crate) const fn usages(self) -> &'static [Usage] {
        match self {
            Self::SiteKek => &[Usage::Encrypt, Usage::Decrypt],
            Self::MeterKek | Self::UseKek => &[Usage::Wrap, Usage::Unwrap],
            Self::TransportBlock => &[Usage::Decrypt],
            Self::TransportImport | Self::Ceremony => &[Usage::Unwrap],
            Self::Signing => &[Usage::Sign],
        }
    }

    /// CKA_ALLOWED_MECHANISMS: one.
    pub(crate) const fn mechanism(self) -> MechanismType {
        match self {
            Self::SiteKek => MechanismType::AES_GCM,
            Self::MeterKek | Self::UseKek => MechanismType::AES_KEY_WRAP,
            Self::TransportBlock | Self::TransportImport | Self::Ceremony => {
                MechanismType::RSA_PKCS_OAEP
            }
            Self::Signing => MechanismType::ECDSA,
        }
    }

    /// Whether it may leave the token under a trusted key: the sealed KEKs, in a ceremony.
    pub(crate) const fn migrates(self) -> bool {
        matches!(self, Self::MeterKek | Self::UseKek)
    }

    /// The template that it demands of the keys it unwraps.
    pub(crate) fn unwraps(self) -> Option<Vec<Attribute>> {
        match self {
            Self::MeterKek => Some(unwrapped(SealedKek::MeterKek)),
            Self::UseKek => Some(unwrapped(SealedKek::Use)),
            Self::TransportImport => {
                Some(pinned(&[Usage::Unwrap], MechanismType::AES_KEY_WRAP, false, false))
            }
            Self::Ceremony => Some(received_kek()),
            _ => None,
        }
    }
}

impl From<SealedKek> for OurKey {
    fn from(kek: SealedKek) -> Self {
        match kek {
            SealedKek::MeterKek => Self::MeterKek,
            SealedKek::Use => Self::UseKek,
        }
    }
}

/// The uses of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Encrypt,
    Decrypt,
    Sign,
    Verify,
    Wrap,
    Unwrap,
    Derive,
}

impl Usage {
    /// The usages of a secret key.
    pub(crate) const ALL: [Self; 7] = [
        Self::Encrypt,
        Self::Decrypt,
        Self::Sign,
        Self::Verify,
        Self::Wrap,
        Self::Unwrap,
        Self::Derive,
    ];
    /// The usages of a private key, CKA_SIGN_RECOVER aside.
    pub(crate) const PRIVATE: [Self; 4] = [Self::Decrypt, Self::Sign, Self::Unwrap, Self::Derive];
    /// The usages of a public key, CKA_VERIFY_RECOVER aside.
    const PUBLIC: [Self; 4] = [Self::Encrypt, Self::Verify, Self::Wrap, Self::Derive];

    /// The attribute that grants or denies it.
    pub(crate) const fn attribute(self, granted: bool) -> Attribute {
        match self {
            Self::Encrypt => Attribute::Encrypt(granted),
            Self::Decrypt => Attribute::Decrypt(granted),
            Self::Sign => Attribute::Sign(granted),
            Self::Verify => Attribute::Verify(granted),
            Self::Wrap => Attribute::Wrap(granted),
            Self::Unwrap => Attribute::Unwrap(granted),
            Self::Derive => Attribute::Derive(granted),
        }
    }
}

fn each(usages: &[Usage], granted: &[Usage]) -> Vec<Attribute> {
    usages.iter().map(|usage| usage.attribute(granted.contains(usage))).collect()
}

/// A template that leaves nothing open: every usage, every way out, every later change.
pub(super) fn pinned(
    granted: &[Usage],
    mechanism: MechanismType,
    token: bool,
    extractable: bool,
) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(token),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(extractable),
    ];
    template.extend(each(&Usage::ALL, granted));
    template.push(Attribute::AllowedMechanisms(vec![mechanism]));
    template.push(Attribute::Copyable(false));
    template.push(Attribute::Modifiable(false));
    template
}

/// A key of protection `HSM` as it comes out of its wrapping: a meter's KEK may only wrap, a GUEK or
/// GBEK only encrypt and decrypt. The KEK's unwrap template demands exactly this.
pub(crate) fn unwrapped(under: SealedKek) -> Vec<Attribute> {
    let (usages, mechanism): (&[Usage], _) = match under {
        SealedKek::MeterKek => (&[Usage::Wrap], MechanismType::AES_KEY_WRAP),
        SealedKek::Use => (&[Usage::Encrypt, Usage::Decrypt], MechanismType::AES_GCM),
    };
    pinned(usages, mechanism, false, false)
}

/// A meter's key on its way from an import file to the store: it may be identified (CMAC) and wrapped.
pub(crate) fn taken() -> Vec<Attribute> {
    pinned(&[Usage::Sign], MechanismType::AES_CMAC, false, true)
}

/// A block's `wrap` key, for as long as one call.
pub(crate) fn wrap_only() -> Vec<Attribute> {
    pinned(&[Usage::Wrap], MechanismType::AES_KEY_WRAP, false, false)
}

/// A sealed KEK on its way in. Its own unwrap template can't be demanded here (nesting is refused), so
/// a ceremony checks it by reading it back and by its canary.
fn received_kek() -> Vec<Attribute> {
    let mut template = pinned(OurKey::MeterKek.usages(), MechanismType::AES_KEY_WRAP, true, true);
    // Before the last, CKA_MODIFIABLE.
    template.insert(template.len() - 1, Attribute::WrapWithTrusted(true));
    template
}

/// Bytes of a nested template, as C has them, for [`CKA_UNWRAP_TEMPLATE`].
///
/// The crate has no word for it. The bytes hold addresses of `inner`'s values: `inner` must live until
/// the call that uses them has returned, which the borrow in [`Nested`] sees to.
pub(crate) struct Nested<'a> {
    attribute: Attribute,
    _addressed: std::marker::PhantomData<&'a [Attribute]>,
}

impl<'a> Nested<'a> {
    /// Encodes `inner` as an array of CK_ATTRIBUTE { type, pValue, ulValueLen }, each a machine word.
    pub(crate) fn unwrap_template(inner: &'a Flat) -> Self {
        let mut bytes = Vec::with_capacity(inner.0.len() * 3 * size_of::<usize>());
        for (attribute_type, value) in &inner.0 {
            bytes.extend_from_slice(&attribute_type.to_ne_bytes());
            bytes.extend_from_slice(&(value.as_ptr() as usize).to_ne_bytes());
            bytes.extend_from_slice(&value.len().to_ne_bytes());
        }
        Self {
            attribute: Attribute::VendorDefined((CKA_UNWRAP_TEMPLATE, bytes)),
            _addressed: std::marker::PhantomData,
        }
    }

    /// The attribute. Good only while `self` lives.
    pub(crate) fn attribute(&self) -> Attribute {
        self.attribute.clone()
    }
}

/// Attributes as types and value bytes: what a nested template points to.
pub(crate) struct Flat(Vec<(u64, Box<[u8]>)>);

impl Flat {
    /// Takes the attributes of our templates apart.
    pub(crate) fn new(template: &[Attribute]) -> Result<Self, Failure> {
        template.iter().map(flat).collect::<Option<_>>().map(Self).ok_or_else(|| {
            Failure::Broken("an attribute that no template of ours has was to be nested".to_owned())
        })
    }
}

fn flat(attribute: &Attribute) -> Option<(u64, Box<[u8]>)> {
    let value: Box<[u8]> = match attribute {
        Attribute::Token(granted)
        | Attribute::Private(granted)
        | Attribute::Sensitive(granted)
        | Attribute::Extractable(granted)
        | Attribute::Encrypt(granted)
        | Attribute::Decrypt(granted)
        | Attribute::Sign(granted)
        | Attribute::Verify(granted)
        | Attribute::Wrap(granted)
        | Attribute::Unwrap(granted)
        | Attribute::Derive(granted)
        | Attribute::Copyable(granted)
        | Attribute::WrapWithTrusted(granted)
        | Attribute::Modifiable(granted) => Box::new([u8::from(*granted)]),
        Attribute::Class(class) => Box::new((**class).to_ne_bytes()),
        Attribute::KeyType(key_type) => Box::new((**key_type).to_ne_bytes()),
        Attribute::AllowedMechanisms(mechanisms) => {
            mechanisms.iter().flat_map(|mechanism| (**mechanism).to_ne_bytes()).collect()
        }
        _ => return None,
    };
    Some((attribute.attribute_type().into(), value))
}

/// C_GenerateKey for a KEK.
pub(crate) fn generate_kek(key: OurKey, id: &[u8], nested: Option<&Nested<'_>>) -> Vec<Attribute> {
    let mut template = vec![Attribute::ValueLen(Ulong::new(KEK_LEN))];
    template.extend(secret_half(key, id, &Usage::ALL, nested));
    template
}

/// C_GenerateKeyPair: the public and the private half.
pub(crate) fn generate_pair(
    key: OurKey,
    id: &[u8],
    nested: Option<&Nested<'_>>,
) -> (Vec<Attribute>, Vec<Attribute>) {
    let mut public = vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(key.key_type()),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Label(key.label().into()),
        Attribute::Id(id.to_vec()),
        Attribute::VerifyRecover(false),
    ];
    public.extend(if key == OurKey::Signing {
        vec![Attribute::EcParams(P256.to_vec())]
    } else {
        vec![
            Attribute::ModulusBits(Ulong::new(RSA_BITS)),
            Attribute::PublicExponent(RSA_EXPONENT.to_vec()),
        ]
    });
    // The transport keys' public halves are for reading out; whoever wraps to them does so elsewhere.
    let granted: &[Usage] = if key == OurKey::Signing { &[Usage::Verify] } else { &[] };
    public.extend(each(&Usage::PUBLIC, granted));
    public.push(Attribute::Copyable(false));
    public.push(Attribute::Modifiable(false));

    let mut private = secret_half(key, id, &Usage::PRIVATE, nested);
    private.insert(0, Attribute::SignRecover(false));
    (public, private)
}

fn secret_half(
    key: OurKey,
    id: &[u8],
    usages: &[Usage],
    nested: Option<&Nested<'_>>,
) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(key.class()),
        Attribute::KeyType(key.key_type()),
        Attribute::Label(key.label().into()),
        Attribute::Id(id.to_vec()),
    ];
    template.extend(guarded(key, usages));
    if let Some(nested) = nested {
        template.push(nested.attribute());
    }
    template.push(Attribute::Copyable(false));
    template.push(Attribute::Modifiable(false));
    template
}

fn guarded(key: OurKey, usages: &[Usage]) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(key.migrates()),
    ];
    if key.migrates() {
        template.push(Attribute::WrapWithTrusted(true));
    }
    template.extend(each(usages, key.usages()));
    template.push(Attribute::AllowedMechanisms(vec![key.mechanism()]));
    template
}

/// The attributes that reading the secret half back must give: what was asked, and what the token says of
/// its birth.
pub(crate) fn expected(key: OurKey) -> Vec<Attribute> {
    let secret = key.class() == ObjectClass::SECRET_KEY;
    let usages: &[Usage] = if secret { &Usage::ALL } else { &Usage::PRIVATE };
    let mut template = guarded(key, usages);
    template.extend([
        Attribute::Class(key.class()),
        Attribute::KeyType(key.key_type()),
        Attribute::Label(key.label().into()),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
        Attribute::AlwaysSensitive(true),
        Attribute::NeverExtractable(!key.migrates()),
        Attribute::Local(true),
    ]);
    if secret {
        template.push(Attribute::ValueLen(Ulong::new(KEK_LEN)));
    }
    template
}

/// How a key came to the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    /// It was generated there, and was never anywhere else.
    Here,
    /// A sealed KEK that another site's token handed over.
    Received,
}

/// C_UnwrapKey for a sealed KEK that another site's token handed over: as ours are generated.
pub(crate) fn receive_kek(key: OurKey, id: &[u8], nested: Option<&Nested<'_>>) -> Vec<Attribute> {
    secret_half(key, id, &Usage::ALL, nested)
}

/// [`expected`] of a key that was handed over: a token says that it did not make it, and may not know its
/// length.
fn expected_received(key: OurKey) -> Vec<Attribute> {
    let mut expected = expected(key);
    expected.retain(|attribute| {
        !matches!(attribute, Attribute::AlwaysSensitive(_) | Attribute::ValueLen(_))
    });
    for attribute in &mut expected {
        match attribute {
            Attribute::NeverExtractable(never) => *never = false,
            Attribute::Local(local) => *local = false,
            _ => {}
        }
    }
    expected
}

/// [`verify_born`] of a key that was made here.
pub(crate) fn verify(
    session: &cryptoki::session::Session,
    handle: cryptoki::object::ObjectHandle,
    key: OurKey,
    kept: Kept,
) -> Result<(), Failure> {
    verify_born(session, handle, key, (kept, Birth::Here))
}

/// Compares what the token says of a key with what must be; names the first difference.
pub(crate) fn verify_born(
    session: &cryptoki::session::Session,
    handle: cryptoki::object::ObjectHandle,
    key: OurKey,
    (kept, birth): (Kept, Birth),
) -> Result<(), Failure> {
    let name = key.label();
    let expected = kept.applied(match birth {
        Birth::Here => expected(key),
        Birth::Received => expected_received(key),
    });
    let types: Vec<AttributeType> = expected.iter().map(Attribute::attribute_type).collect();
    let read = session.get_attributes(handle, &types)?;
    if let Some((wanted, got)) = first_difference(&expected, &read, birth) {
        return Err(Failure::Unfit(format!("key {name}: {wanted:?} is needed, not {got:?}")));
    }
    let Some(template) = key.unwraps() else {
        return Ok(());
    };
    // The template's values can't be read through the crate, its size can; the attacks of the probe
    // show that it is obeyed.
    let wanted = template.len() * 3 * size_of::<usize>();
    let info = session.get_attribute_info(handle, &[CKA_UNWRAP_TEMPLATE])?;
    match info.as_slice() {
        [cryptoki::object::AttributeInfo::Available(len)] if *len == wanted => Ok(()),
        other => Err(Failure::Unfit(format!("key {name}: its unwrap template is {other:?}"))),
    }
}

/// The first attribute that is not what it must be, and what it is instead. Of a key that was handed over its sender has
/// said where it was: a token may be silent about that (`Quirk::SilentOnBirth`), and not say otherwise.
fn first_difference<'a>(
    expected: &'a [Attribute],
    read: &'a [Attribute],
    birth: Birth,
) -> Option<(&'a Attribute, Option<&'a Attribute>)> {
    expected.iter().filter(|wanted| !read.contains(wanted)).find_map(|wanted| {
        let got = read.iter().find(|got| got.attribute_type() == wanted.attribute_type());
        let of_birth = matches!(wanted, Attribute::NeverExtractable(_) | Attribute::Local(_));
        let may_be_silent = birth == Birth::Received && of_birth;
        (got.is_some() || !may_be_silent).then_some((wanted, got))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_be_silent_on_where_a_received_key_was_and_may_not_say_otherwise() {
        let expected = expected_received(OurKey::UseKek);
        let silent: Vec<Attribute> = expected
            .iter()
            .filter(|it| !matches!(it, Attribute::NeverExtractable(_) | Attribute::Local(_)))
            .cloned()
            .collect();
        assert_eq!(silent.len() + 2, expected.len());
        assert_eq!(first_difference(&expected, &silent, Birth::Received), None);
        // Of a key that is said to be made here it has to speak.
        assert!(first_difference(&expected, &silent, Birth::Here).is_some());
        for lie in [Attribute::NeverExtractable(true), Attribute::Local(true)] {
            let lying = [&silent[..], std::slice::from_ref(&lie)].concat();
            let found = first_difference(&expected, &lying, Birth::Received);
            assert_eq!(found.and_then(|(_, got)| got), Some(&lie));
        }
        // And nothing that guards the key may be left out.
        for left_out in &silent {
            let rest: Vec<Attribute> =
                silent.iter().filter(|it| *it != left_out).cloned().collect();
            let found = first_difference(&expected, &rest, Birth::Received);
            assert_eq!(found, Some((left_out, None)));
        }
    }

    #[test]
    fn modifiable_stands_last_in_every_template() {
        for key in OurKey::PERMANENT.into_iter().chain([OurKey::Ceremony]) {
            let mut templates: Vec<Vec<Attribute>> = key.unwraps().into_iter().collect();
            if key.class() == ObjectClass::SECRET_KEY {
                templates.push(generate_kek(key, &[1; 16], None));
            } else {
                let (public, private) = generate_pair(key, &[1; 16], None);
                templates.extend([public, private]);
            }
            for template in templates {
                assert_eq!(template.last(), Some(&Attribute::Modifiable(false)), "{key:?}");
            }
        }
    }

    #[test]
    fn a_template_says_every_usage_and_grants_only_its_own() {
        for (kek, granted) in [
            (SealedKek::MeterKek, &[Usage::Wrap][..]),
            (SealedKek::Use, &[Usage::Encrypt, Usage::Decrypt][..]),
        ] {
            let template = unwrapped(kek);
            for usage in Usage::ALL {
                assert!(template.contains(&usage.attribute(granted.contains(&usage))), "{usage:?}");
            }
            assert!(template.contains(&Attribute::Extractable(false)));
            assert!(template.contains(&Attribute::Sensitive(true)));
            assert!(template.contains(&Attribute::Copyable(false)));
        }
    }

    #[test]
    fn a_key_on_its_way_in_can_be_identified_and_wrapped_and_nothing_else() {
        for (template, granted) in [(taken(), Usage::Sign), (wrap_only(), Usage::Wrap)] {
            for usage in Usage::ALL {
                assert!(template.contains(&usage.attribute(usage == granted)), "{usage:?}");
            }
            assert!(template.contains(&Attribute::Sensitive(true)));
            assert!(template.contains(&Attribute::Extractable(granted == Usage::Sign)));
            assert_eq!(template.last(), Some(&Attribute::Modifiable(false)));
        }
    }

    #[test]
    fn no_key_of_ours_can_leave_but_the_sealed_keks_under_a_trusted_key() {
        for key in OurKey::PERMANENT {
            let free = expected(key).contains(&Attribute::Extractable(true));
            assert_eq!(free, key.migrates(), "{key:?}");
            assert_eq!(free, expected(key).contains(&Attribute::WrapWithTrusted(true)), "{key:?}");
        }
    }
}
